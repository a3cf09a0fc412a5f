"""Who at the coordinator may do what: operators, their roles, their Ed25519 keys, and what they sign.

An operator's certificate is signed by the federation's root, which hospitals have pinned: name in the common name, role
in the organisational unit. A proposal carries one endorsement per operator; hospitals check it, so that a coordinator
host alone, without an operator's key, cannot propose anything. Whatever else is done at the coordinator is an act: its
processes and its audit log check it. Each line of a statement ends with LF:

    "wardround proposal 1", run hash, bundle SHA-256, operator, seconds since the epoch
    "wardround act 1", action, subject, operator, seconds since the epoch, nonce (32 hex digits)

An act's subject is the SHA-256 of what it is about, see `subject_of`. `RIGHTS` is the one table of who may do what.
"""

import datetime
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import Literal, get_args

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.x509 import Certificate
from cryptography.x509.oid import NameOID

from common.errors import EnrolmentError
from common.identity import certificates
from common.text import NAME_PATTERN

Role = Literal["admin", "operator", "auditor"]

LIFETIME = datetime.timedelta(days=365)
# The commands of wardround-server, and the roles that may use them. What is not here is open to whoever has the home:
# init, new, start, status, doctor, operator list. An admin may do everything.
RIGHTS: Mapping[str, tuple[Role, ...]] = {
    # who belongs to the federation
    "invite": ("admin",),
    "enrol": ("admin",),
    "approve": ("admin",),
    "revoke": ("admin",),
    "operator-add": ("admin",),
    "operator-remove": ("admin",),
    "root-protect": ("admin",),
    "root-rotate": ("admin",),
    "root-finish": ("admin",),
    "key-protect": ("admin",),
    "key-unprotect": ("admin",),
    # what is trained
    "run": ("admin", "operator"),
    "stop": ("admin", "operator"),
    "resume": ("admin", "operator"),
    "export": ("admin", "operator"),
    "purge": ("admin",),
    # what is read
    "requests": ("admin", "operator"),
    "sites": ("admin", "operator", "auditor"),
    "runs": ("admin", "operator", "auditor"),
    "runs-compare": ("admin", "operator", "auditor"),
    "runs-diff": ("admin", "operator", "auditor"),
    "watch": ("admin", "operator", "auditor"),
    "report": ("admin", "operator", "auditor"),
    "audit-verify": ("admin", "auditor"),
    "audit-export": ("admin", "auditor"),
}

# Our own extended key usage (a UUID under 2.25): these certificates open no TLS connection.
_USAGE = x509.ObjectIdentifier("2.25.212367940374936402437262373612376218465")


@dataclass(frozen=True)
class Operator:
    """A person at the coordinator, as their certificate says."""

    name: str
    role: Role
    key: Ed25519PublicKey


@dataclass(frozen=True)
class Endorsement:
    """An operator's signature under a proposal."""

    certificate_pem: bytes
    signature: bytes
    signed_at: int  # seconds since the epoch, UTC


@dataclass(frozen=True)
class Signer:
    """Who signed a proposal, as the certificate says."""

    name: str
    key: str  # Ed25519 public key, hex


@dataclass(frozen=True)
class Act:
    """An operator's signature under what they do."""

    action: str  # a key of RIGHTS
    subject: str  # see `subject_of`
    certificate_pem: bytes
    signed_at: int  # seconds since the epoch, UTC
    nonce: str  # 32 hex digits, never used again
    signature: bytes


def certificate(
    key: Ed25519PublicKey, name: str, role: Role, root: Certificate, root_key: certificates.PrivateKey
) -> Certificate:
    """An operator's certificate."""
    subject = x509.Name(
        [x509.NameAttribute(NameOID.COMMON_NAME, name), x509.NameAttribute(NameOID.ORGANIZATIONAL_UNIT_NAME, role)]
    )
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(root.subject)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(certificates.now() - certificates.CLOCK_SKEW)
        .not_valid_after(certificates.now() + LIFETIME)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(x509.ExtendedKeyUsage([_USAGE]), critical=True)
        .sign(root_key, hashes.SHA256())
    )


def check_certificate(pem: bytes, roots_pem: bytes, at: datetime.datetime | None = None) -> Operator:
    """Who a certificate names, if one of the roots signed it for this purpose and it is valid.

    Args:
        pem: the certificate.
        roots_pem: those that are trusted.
        at: when it has to be valid; None: now.

    Raises:
        EnrolmentError: anything else.
    """
    try:
        found = certificates.load_certificate(pem)
        usage = list(found.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value)
        roles = [one.value for one in found.subject.get_attributes_for_oid(NameOID.ORGANIZATIONAL_UNIT_NAME)]
        key = found.public_key()
    except (ValueError, x509.ExtensionNotFound) as error:
        raise EnrolmentError("the operator's certificate cannot be read. Ask the coordinator for another.") from error
    if (
        not certificates.is_signed_by_any(found, roots_pem)
        or usage != [_USAGE]
        or not isinstance(key, Ed25519PublicKey)
    ):
        raise EnrolmentError("the operator's certificate is not of this federation's root. Ask the coordinator.")
    role = next((role for role in get_args(Role) if roles == [role]), None)
    if role is None:
        raise EnrolmentError("the operator's certificate names no role. Ask the coordinator for another.")
    if not found.not_valid_before_utc <= (at or certificates.now()) <= found.not_valid_after_utc:
        raise EnrolmentError("the operator's certificate is out of date. The coordinator has to renew it.")
    name = certificates.common_name(found)
    if not re.fullmatch(NAME_PATTERN, name):  # shown to whoever decides
        raise EnrolmentError("the operator's certificate holds no name such as maria-2. Ask the coordinator.")
    return Operator(name, role, key)


def endorse(
    key: Ed25519PrivateKey, certificate_pem: bytes, run_hash: str, bundle_sha256: str, signed_at: int
) -> Endorsement:
    """Sign a proposal."""
    name = certificates.common_name(certificates.load_certificate(certificate_pem))
    return Endorsement(certificate_pem, key.sign(_statement(run_hash, bundle_sha256, name, signed_at)), signed_at)


def check_endorsements(
    endorsements: Sequence[Endorsement], roots_pem: bytes, run_hash: str, bundle_sha256: str
) -> tuple[Signer, ...]:
    """The operators who signed a proposal and may do so, each once, sorted; endorsements that do not hold are left out.

    Args:
        endorsements: as received.
        roots_pem: the pinned root, and its successor if there is one.
        run_hash: of the run document, hex.
        bundle_sha256: hex.
    """
    found = set()
    for one in endorsements:
        try:
            operator = check_certificate(one.certificate_pem, roots_pem)
            operator.key.verify(one.signature, _statement(run_hash, bundle_sha256, operator.name, one.signed_at))
        except (EnrolmentError, InvalidSignature):
            continue
        if operator.role in RIGHTS["run"]:
            found.add(Signer(operator.name, public_bytes(operator.key).hex()))
    return tuple(sorted(found, key=lambda one: (one.name, one.key)))


def people(signers: Sequence[Signer]) -> tuple[str, ...]:
    """The people behind signatures, as far as can be known: one name or one key is one person.

    A person with two names and two keys counts as two: the root, which certified both, is believed not to do that.

    Returns:
        For each person the names, sorted.
    """
    groups: list[set[Signer]] = []
    for one in signers:
        same = [group for group in groups if any(one.name == other.name or one.key == other.key for other in group)]
        groups = [group for group in groups if group not in same] + [set().union({one}, *same)]
    return tuple(sorted(" also called ".join(sorted({one.name for one in group})) for group in groups))


def check_removal(certificate_pem: bytes, act: Act, roots_pem: bytes) -> tuple[Signer, Signer]:
    """The operator whom an admin has removed, and the admin: what that operator has signed does not count any more.

    Args:
        certificate_pem: the removed operator's.
        act: by which it was done.
        roots_pem: those that are trusted.

    Raises:
        EnrolmentError: no admin of this federation has signed that.
    """
    try:
        certificate = certificates.load_certificate(certificate_pem)
        key, at = certificate.public_key(), datetime.datetime.fromtimestamp(act.signed_at, datetime.UTC)
    except (ValueError, OverflowError, OSError) as error:
        raise EnrolmentError("the removal of an operator cannot be read") from error
    name = certificates.common_name(certificate)
    fits = act.action == "operator-remove" and act.subject == subject_of(name, certificates.fingerprint(certificate))
    if not fits or not isinstance(key, Ed25519PublicKey):
        raise EnrolmentError("the removal of an operator is not what it says")
    admin = check_act(act, roots_pem, at)
    return Signer(name, public_bytes(key).hex()), Signer(admin.name, public_bytes(admin.key).hex())


def subject_of(*parts: str) -> str:
    """What an act is about, as a hash: the SHA-256 of the parts, each ended by LF.

    invite                          site, SHA-256 of the token, when it expires
    enrol, revoke                   site
    approve                         site, its certificate's fingerprint, its receipt key (hex)
    run, stop, resume, export, purge, report   run hash
    operator-add, operator-remove   operator, the certificate's fingerprint
    root-*, key-*                   fingerprint of the root's certificate
    audit-export                    the log's public key (hex)
    """
    return sha256("".join(f"{part}\n" for part in parts).encode()).hexdigest()


def sign_act(
    key: Ed25519PrivateKey, certificate_pem: bytes, action: str, subject: str, *, signed_at: int, nonce: str
) -> Act:
    """Sign what is done."""
    name = certificates.common_name(certificates.load_certificate(certificate_pem))
    signature = key.sign(act_statement(action, subject, name, signed_at, nonce))
    return Act(action, subject, certificate_pem, signed_at, nonce, signature)


def check_act(act: Act, roots_pem: bytes, at: datetime.datetime | None = None) -> Operator:
    """Who signed an act, if they might.

    Args:
        act: as received.
        roots_pem: the roots that are trusted.
        at: when it was entered in the audit log; None: now.

    Raises:
        EnrolmentError: the certificate or the signature does not hold, or the role may not do this.
    """
    operator = check_certificate(act.certificate_pem, roots_pem, at)
    statement = act_statement(act.action, act.subject, operator.name, act.signed_at, act.nonce)
    try:
        operator.key.verify(act.signature, statement)
    except InvalidSignature as error:
        raise EnrolmentError("the operator's signature is wrong. Give the command again.") from error
    check_right(operator, act.action)
    return operator


def check_right(operator: Operator, action: str) -> None:
    """Refuse what an operator's role may not do.

    Raises:
        EnrolmentError: it may not; the message says who may.
    """
    may = RIGHTS.get(action, ())
    if operator.role not in may:
        raise EnrolmentError(
            f"{operator.name} is {operator.role} and may not {action.replace('-', ' ')}. Who may: "
            f"{', '.join(may) or 'nobody'}. Give such an operator with --as, or ask one."
        )


def act_statement(action: str, subject: str, operator: str, signed_at: int, nonce: str) -> bytes:
    """What an act's signature is over."""
    return f"wardround act 1\n{action}\n{subject}\n{operator}\n{signed_at}\n{nonce}\n".encode()


def key_to_bytes(key: Ed25519PrivateKey) -> bytes:
    """The 32 secret bytes of a key."""
    return key.private_bytes(serialization.Encoding.Raw, serialization.PrivateFormat.Raw, serialization.NoEncryption())


def public_bytes(key: Ed25519PrivateKey | Ed25519PublicKey) -> bytes:
    """The 32 public bytes of a key."""
    public = key.public_key() if isinstance(key, Ed25519PrivateKey) else key
    return public.public_bytes(serialization.Encoding.Raw, serialization.PublicFormat.Raw)


def _statement(run_hash: str, bundle_sha256: str, operator: str, signed_at: int) -> bytes:
    return f"wardround proposal 1\n{run_hash}\n{bundle_sha256}\n{operator}\n{signed_at}\n".encode()
