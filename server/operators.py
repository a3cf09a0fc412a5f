"""The coordinator's operators: their keys as files, their certificates in the registry, their signatures on proposals.

A key lies in home/operators/NAME.key, plain (0600) or under a passphrase, or where its owner keeps it. The root signs
the certificate; hospitals check it (common/operators.py).
"""

import time
from hashlib import sha256
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from common import operators, pki
from common.errors import ConfigError, EnrolmentError
from common.files import write_private
from common.operators import Endorsement, Role, key_to_bytes
from common.sealed import is_sealed, passphrase_from, seal, unseal
from server.home import Home, root_credentials
from server.registry import Member, Registry, check_name
from server.witness import open_log

FIRST = "admin"  # whom `init` makes
PASSPHRASE_VARIABLE = "WARDROUND_OPERATOR_PASSPHRASE"  # noqa: S105 - a variable's name
_PURPOSE = "operator key"


def add(
    home: Home,
    registry: Registry,
    name: str,
    role: Role,
    *,
    passphrase: str | None = None,
    root_passphrase: str | None = None,
) -> Path:
    """Make an operator's key and certificate.

    Args:
        home: the coordinator's.
        registry: its registry.
        name: of the operator.
        role: what they may do.
        passphrase: seals the key; None: the file's mode guards it.
        root_passphrase: of a sealed root key.

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
    write_private(path, secret if passphrase is None else seal(secret, passphrase, _PURPOSE))
    registry.put_operator(name, role, pki.to_pem(certificate))
    open_log(home).append("operator-added", {"certificate": pki.fingerprint(certificate), "role": role})
    return path


def remove(home: Home, registry: Registry, name: str) -> None:
    """An operator may do nothing any more.

    Raises:
        EnrolmentError: unknown.
    """
    certificates = [one.certificate for one in registry.operators() if one.name == name]
    registry.remove_operator(name)
    fingerprint = pki.fingerprint(pki.load_certificate(certificates[0]))
    open_log(home).append("operator-removed", {"certificate": fingerprint})


def endorse(
    home: Home, registry: Registry, name: str, run_hash: str, bundle: bytes, *, key: Path | None, passphrase: str | None
) -> Endorsement:
    """Sign a proposal as an operator.

    Args:
        home: the coordinator's.
        registry: its registry.
        name: of the operator.
        run_hash: of the run document, hex.
        bundle: as it will be proposed.
        key: the key's file; None: home/operators/NAME.key.
        passphrase: of a sealed key; None: from WARDROUND_OPERATOR_PASSPHRASE, or its _FILE.

    Raises:
        EnrolmentError: no such operator, or the role may not propose.
        ConfigError: the key does not open, or is another's.
    """
    member = find(registry, name)
    if member.role not in operators.MAY_PROPOSE:
        raise EnrolmentError(f"{name} is {member.role} and may not propose runs. Ask an operator or admin.")
    secret = load_key(key or home.path / "operators" / f"{name}.key", passphrase)
    operator = operators.check_certificate(member.certificate, home.trusted_roots_pem)
    if operators.public_bytes(secret) != operators.public_bytes(operator.key):
        raise ConfigError(f"the key is not operator {name}'s. Give the right file with --key.")
    return operators.endorse(secret, member.certificate, run_hash, sha256(bundle).hexdigest(), int(time.time()))


def find(registry: Registry, name: str) -> Member:
    """An active operator.

    Raises:
        EnrolmentError: there is none of that name.
    """
    for one in registry.operators():
        if one.name == name and one.active:
            return one
    raise EnrolmentError(f"no operator is called {name!r}. See `wardround-server operator list`.")


def is_key_sealed(path: Path) -> bool:
    """Whether a key needs a passphrase; False also when there is no file."""
    return path.exists() and is_sealed(path.read_bytes())


def load_key(path: Path, passphrase: str | None) -> Ed25519PrivateKey:
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
    try:
        return Ed25519PrivateKey.from_private_bytes(data)
    except ValueError as error:
        raise ConfigError(f"{path} is no operator's key. Give the right file with --key.") from error
