"""The coordinator's operators: their keys as files, their certificates in the registry, what they sign.

A key lies in home/operators/NAME.key, or where its owner keeps it: under a passphrase, or sealed with the coordinator's
key. The root signs the certificate; hospitals check it (common/identity/operators.py).

A command first finds its `Signer` (`acting`): an operator whom nobody removed, whose certificate is valid,
whose role may do it and whose key is there. Nothing is written before that. Then `carry_out`, the one function by which
anything is done, has the signer sign an act and enters it in the audit log: before what it lets in, after what it ends.
What was refused is entered too. Only the processes that carry an act out make this more than a custom among those who
have the home: see server/registry/acts.py for what they refuse.
"""

import contextlib
import secrets
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import TypeVar, get_args

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.x509 import Certificate

from common.crypto.passphrase import is_sealed, passphrase_from, seal, unseal
from common.errors import ConfigError, EnrolmentError
from common.identity import certificates, operators
from common.identity.operators import Act, Endorsement, Operator, Role, key_to_bytes, subject_of
from common.system.files import write_private
from server.home.folder import Home
from server.home.root import root_credentials
from server.registry.acts import entered_fields
from server.registry.audit_trail import open_log
from server.registry.registry import Member, Registry
from server.registry.sites import check_name

FIRST = "admin"  # whom `init` makes
PASSPHRASE_VARIABLE = "WARDROUND_OPERATOR_PASSPHRASE"  # noqa: S105 - a variable's name
_PURPOSE = "operator key"
# Not to be held up by a log that cannot be written; see server/registry/acts.py.
_ENDS = frozenset({"revoke", "stop", "operator-remove"})

ResultType = TypeVar("ResultType")


@dataclass(frozen=True)
class Signer:
    """An operator with the key, who may do one thing and signs nothing else."""

    name: str
    certificate: bytes  # PEM
    key: Ed25519PrivateKey = field(repr=False)
    action: str  # a key of `operators.RIGHTS`

    def sign(self, *about: str) -> Act:
        """Sign what is done; see `subject_of` for what it is about."""
        nonce = secrets.token_hex(16)
        signed_at = int(time.time())
        subject = subject_of(*about)
        return operators.sign_act(self.key, self.certificate, self.action, subject, signed_at=signed_at, nonce=nonce)


def add(
    home: Home,
    registry: Registry,
    name: str,
    role: Role,
    *,
    passphrase: str | None = None,
    root_passphrase: str | None = None,
    by: Signer | None = None,
) -> Path:
    """Make an operator's key and certificate.

    Args:
        home: the coordinator's.
        registry: its registry.
        name: of the operator.
        role: what they may do.
        passphrase: seals the key; None: the coordinator's key does.
        root_passphrase: of a sealed root key.
        by: an admin; None: the root key alone does it, which the log then tells.

    Returns:
        The key's file; it may be moved to where only its owner can read it.

    Raises:
        ConfigError: the name is not allowed or taken, or the root key does not open.
    """
    if any(one.name == check_name(name) and one.active for one in registry.operators()):
        raise ConfigError(f"operator {name} exists. Remove it first, or take another name.")
    key = Ed25519PrivateKey.generate()
    root_key, root = root_credentials(home, root_passphrase)
    certificate = operators.certificate(key.public_key(), name, role, root, root_key)
    secret = key_to_bytes(key)
    path = home.path / "operators" / f"{name}.key"
    sealed = home.operator_keys.seal(secret, name) if passphrase is None else seal(secret, passphrase, _PURPOSE)

    def put() -> None:
        write_private(path, sealed)
        registry.put_operator(name, role, certificates.to_pem(certificate))

    _add(home, name, role, certificate, by, put=put)
    return path


def remove(home: Home, registry: Registry, name: str, by: Signer | None = None) -> None:
    """An operator may do nothing any more; the hospitals are told with the next call that each of them makes.

    Raises:
        EnrolmentError: unknown.
    """
    fingerprint = certificates.fingerprint(certificates.load_certificate(_find(registry, name).certificate))
    _remove(home, name, fingerprint, by, lambda act: registry.remove_operator(name, act))


def certify_again(home: Home, registry: Registry, by: Signer | None, root_passphrase: str | None = None) -> None:
    """Give every operator a certificate of the present root, for the same key and role; the earlier one is removed.

    Hospitals that join after a rotation know the new root alone, and would look at no proposal signed under the old.

    Args:
        home: the coordinator's.
        registry: its registry.
        by: an admin who may finish a rotation, of which this is the end; None: the root key alone does it.
        root_passphrase: of a sealed root key.

    Raises:
        ConfigError: the root key does not open.
        ValueError: the admin was asked for another right.
    """
    if by is not None and by.action != "root-finish":
        raise ValueError(f"who may {by.action} does not sign operators' certificates anew")
    adds, removes = (by and replace(by, action=action) for action in ("operator-add", "operator-remove"))
    root_key, root = root_credentials(home, root_passphrase)
    # Whoever does it comes last: what they sign after the removal of their earlier certificate would not count.
    for member in sorted(registry.operators(), key=lambda one: by is not None and one.name == by.name):
        earlier = certificates.load_certificate(member.certificate)
        public = earlier.public_key()
        role = next((role for role in get_args(Role) if role == member.role), None)
        if not member.active or role is None or not isinstance(public, Ed25519PublicKey):
            continue
        certificate = operators.certificate(public, member.name, role, root, root_key)
        _add(home, member.name, role, certificate, adds, put=lambda: None)
        # The key goes on, so the hospitals need not know.
        _remove(
            home,
            member.name,
            certificates.fingerprint(earlier),
            removes,
            partial(_put_again, registry, member.name, role, certificate),
        )


def acting(
    home: Home,
    registry: Registry,
    action: str,
    name: str = FIRST,
    *,
    key: Path | None = None,
    ask: Callable[[Path], str | None] = lambda _: None,
) -> Signer:
    """Who signs what is asked; nothing is signed yet.

    Args:
        home: the coordinator's.
        registry: its registry.
        action: a key of `operators.RIGHTS`.
        name: of the operator.
        key: the key's file; None: home/operators/NAME.key.
        ask: for the passphrase of the key in a file; None: from WARDROUND_OPERATOR_PASSPHRASE, or its _FILE.

    Raises:
        EnrolmentError: no such operator, the certificate is out of date, or the role may not; the log has it.
        ConfigError: the key does not open, or is another's.
    """
    about = {"action": action}
    try:
        member = _find(registry, name)
        about |= {
            "operator": name,
            "certificate": certificates.fingerprint(certificates.load_certificate(member.certificate)),
        }
        operator = _allowed(home, member, action)
        path = key or home.path / "operators" / f"{name}.key"
        secret = load_key(home, name, path, ask(path))
        if operators.public_bytes(secret) != operators.public_bytes(operator.key):
            raise ConfigError(f"the key is not operator {name}'s. Give the right file with --key.")
    except (EnrolmentError, ConfigError):
        open_log(home).append("act-refused", about)
        raise
    return Signer(name, member.certificate, secret, action)


def carry_out(
    home: Home,
    signers: Signer | Sequence[Signer],
    about: Sequence[str],
    do: Callable[[Act], ResultType],
    *,
    only: str | None = None,
) -> ResultType:
    """Sign what is done, enter it in the audit log, and only then do it; what ends something is done first.

    Args:
        home: the coordinator's.
        signers: whoever does it, found by `acting` for what is done; each signs.
        about: see `subject_of`.
        do: is given the first signer's act; writes whatever is to be written.
        only: what `do` does, where it can be no other.

    Raises:
        ValueError: the signers were asked for another right.
        AuditError: the log cannot be written. Nothing was done, unless it ends something: that is done.
    """
    several = [signers] if isinstance(signers, Signer) else list(signers)
    (action,) = {signer.action for signer in several}
    if only not in (None, action):
        raise ValueError(f"who may {action} does not sign {only}")
    acts = [signer.sign(*about) for signer in several]
    if action in _ENDS:
        done = do(acts[0])
    for act in acts:
        enter(home, act)
    return done if action in _ENDS else do(acts[0])


def still_may(registry: Registry, name: str, certificate: bytes | None, action: str) -> None:
    """Refuse whoever was removed, or is another by now, since they began to look.

    Args:
        registry: the coordinator's.
        name: the operator's.
        certificate: theirs when they began; PEM.
        action: a key of `operators.RIGHTS`.

    Raises:
        EnrolmentError: they may not look any more.
    """
    member = next((one for one in registry.operators() if one.name == name and one.active), None)
    if member is None or member.certificate != certificate or member.role not in operators.RIGHTS[action]:
        raise EnrolmentError(
            f"operator {name} may not look at this any more. Start it again as one who may: --as NAME."
        )


def has_admin(home: Home, registry: Registry) -> bool:
    """Whether anybody is left who may add operators."""
    for member in registry.operators():
        with contextlib.suppress(EnrolmentError):
            if member.active and _allowed(home, member, "operator-add"):
                return True
    return False


def enter(home: Home, act: Act) -> None:
    """Enter an act in the audit log, before what it causes.

    Raises:
        EnrolmentError: its nonce was used before.
    """
    with open_log(home).transaction() as log:
        if any(entry.fields["nonce"] == act.nonce for entry in log.latest("act", count=log.size)):
            raise EnrolmentError("this act was carried out before. Give the command again, which signs a new one.")
        log.append("act", entered_fields(act))


def endorse(signer: Signer, run_hash: str, bundle: bytes) -> Endorsement:
    """Sign a proposal, for the hospitals.

    Args:
        signer: an operator's.
        run_hash: of the run document, hex.
        bundle: as it will be proposed.
    """
    digest = sha256(bundle).hexdigest()
    return operators.endorse(signer.key, signer.certificate, run_hash, digest, int(time.time()))


def is_key_sealed(path: Path) -> bool:
    """Whether a key needs a passphrase; False also when there is no file."""
    return path.exists() and is_sealed(path.read_bytes())


def load_key(home: Home, name: str, path: Path, passphrase: str | None) -> Ed25519PrivateKey:
    """Read an operator's key.

    Raises:
        ConfigError: not there, not a key, or it does not open.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ConfigError(f"{path} cannot be read ({error.strerror}). Give the operator's key with --key.") from error
    if is_sealed(data):
        passphrase = passphrase or passphrase_from(PASSPHRASE_VARIABLE)
        if passphrase is None:
            raise ConfigError(
                f"the operator's key is under a passphrase. Set {PASSPHRASE_VARIABLE} or {PASSPHRASE_VARIABLE}_FILE, "
                "or run the command on a terminal, which asks for it."
            )
        data = unseal(data, passphrase, _PURPOSE)
    else:
        data = home.operator_keys.open(data, name)
    try:
        return Ed25519PrivateKey.from_private_bytes(data)
    except ValueError as error:
        raise ConfigError(f"{path} is no operator's key. Give the right file with --key.") from error


def _find(registry: Registry, name: str) -> Member:
    for one in registry.operators():
        if one.name == name and one.active:
            return one
    raise EnrolmentError(f"no operator is called {name!r}. See `wardround-server operator list`.")


def _allowed(home: Home, member: Member, action: str) -> Operator:
    """Who the certificate says it is: the registry's word for the role does not count."""
    operator = operators.check_certificate(member.certificate, home.trusted_roots_pem)
    operators.check_right(operator, action)
    return operator


def _add(
    home: Home, name: str, role: Role, certificate: Certificate, by: Signer | None, *, put: Callable[[], None]
) -> None:
    about = {"operator": name, "certificate": certificates.fingerprint(certificate), "role": role}
    key = operators.check_certificate(certificates.to_pem(certificate), home.trusted_roots_pem).key

    def add(_act: Act | None) -> None:
        open_log(home).append("operator-added", about | {"key": operators.public_bytes(key).hex()})
        put()

    if by is None:
        add(None)
    else:
        carry_out(home, by, (name, about["certificate"]), add, only="operator-add")


def _put_again(registry: Registry, name: str, role: Role, certificate: Certificate, _act: Act | None) -> None:
    registry.put_operator(name, role, certificates.to_pem(certificate))


def _remove(home: Home, name: str, fingerprint: str, by: Signer | None, put: Callable[[Act | None], None]) -> None:
    if by is None:
        put(None)
    else:
        carry_out(home, by, (name, fingerprint), put, only="operator-remove")
    open_log(home).append("operator-removed", {"certificate": fingerprint})
