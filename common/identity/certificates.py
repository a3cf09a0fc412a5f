"""Keys and certificates: who may speak to whom.

One root (ECDSA P-256) per coordinator signs two kinds of leaf: the coordinator's own certificate (serverAuth) and
one certificate per site (clientAuth, common name = site name). A leaf of one kind is never accepted as the other
(RFC 5280, section 4.2.1.12). A site's leaf also names the key that signs its receipts and audit log, in an extension of
ours that is not critical (common/identity/receipt_keys.py). What a root signs about another one is in
common/identity/rotation.py. Fingerprints are SHA-256 over DER, in hex; people compare them as phrases
(common/identity/phrase.py).
"""

import datetime
import ipaddress
from collections.abc import Iterable
from typing import TypeAlias

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.types import CertificatePublicKeyTypes
from cryptography.x509 import Certificate, CertificateSigningRequest
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from common.errors import EnrolmentError

ROOT_LIFETIME = datetime.timedelta(days=3650)
SERVER_LIFETIME = datetime.timedelta(days=365)
SITE_LIFETIME = datetime.timedelta(days=90)
# Clocks of two hosts may differ by this much.
CLOCK_SKEW = datetime.timedelta(minutes=5)
# What to do where a certificate does not hold at this time.
COMPARE_CLOCKS = "Compare the clock with the coordinator's."
# Of the extension with a site's receipt key, as SubjectPublicKeyInfo (RFC 8410). Under 2.25 stands a UUID (X.667).
RECEIPT_KEY_OID = x509.ObjectIdentifier("2.25.161819248113119175532435940204733443825")

PrivateKey: TypeAlias = ec.EllipticCurvePrivateKey


def now() -> datetime.datetime:
    """The time in UTC, which every certificate and expiry uses."""
    return datetime.datetime.now(datetime.UTC)


def days_left(end: datetime.datetime) -> int:
    """Days until then, to the nearest, as people count them: 90 for what began just now; below 0 only after it."""
    left = end - now()
    return left.days if left < datetime.timedelta() else round(left / datetime.timedelta(days=1))


def new_key() -> PrivateKey:
    """A fresh ECDSA P-256 key."""
    return ec.generate_private_key(ec.SECP256R1())


def key_to_pem(key: PrivateKey) -> bytes:
    """PKCS8 PEM, not encrypted: store it with `common.system.files.write_private`."""
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def load_key(pem: bytes) -> PrivateKey:
    """Inverse of `key_to_pem`.

    Raises:
        EnrolmentError: not an EC private key in PEM.
    """
    try:
        key = serialization.load_pem_private_key(pem, password=None)
    except (ValueError, TypeError) as error:
        raise EnrolmentError("the file is not a private key in PEM. Restore it from a backup or join again.") from error
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise EnrolmentError("the private key is not ECDSA. Restore it from a backup or join again.")
    return key


def to_pem(item: Certificate | CertificateSigningRequest) -> bytes:
    """PEM of a certificate or request."""
    return item.public_bytes(serialization.Encoding.PEM)


def load_certificate(pem: bytes) -> Certificate:
    """The first certificate in `pem`; ValueError otherwise."""
    return x509.load_pem_x509_certificate(pem)


def fingerprint(item: Certificate | CertificateSigningRequest) -> str:
    """SHA-256 of the DER form, hex."""
    digest = hashes.Hash(hashes.SHA256())
    digest.update(item.public_bytes(serialization.Encoding.DER))
    return digest.finalize().hex()


def new_root(key: PrivateKey, name: str, after: Certificate | None = None) -> Certificate:
    """A self-signed root that may sign leaves and nothing else.

    Args:
        key: its own.
        name: its name.
        after: the root that it is to follow; whatever the clock says, it is the newer one of the two.
    """
    begins = now() - CLOCK_SKEW
    if after is not None:
        begins = max(begins, after.not_valid_before_utc + datetime.timedelta(seconds=1))
    return (
        builder(name, name, key.public_key(), now() + ROOT_LIFETIME, begins)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(key_usage(sign_certificates=True), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA256())
    )


def server_certificate(key: PrivateKey, hosts: Iterable[str], root: Certificate, root_key: PrivateKey) -> Certificate:
    """The coordinator's leaf for these host names and IP addresses."""
    hosts = tuple(hosts)
    return (
        builder(hosts[0][:64], common_name(root), key.public_key(), now() + SERVER_LIFETIME)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(key_usage(sign_certificates=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=True)
        .add_extension(x509.SubjectAlternativeName([_general_name(host) for host in hosts]), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(root_key.public_key()), critical=False)
        .sign(root_key, hashes.SHA256())
    )


def csr_for(site: str, key: PrivateKey) -> CertificateSigningRequest:
    """A site's request; the private key stays at the site."""
    return x509.CertificateSigningRequestBuilder().subject_name(subject_name(site)).sign(key, hashes.SHA256())


def check_csr(pem: bytes, site: str) -> CertificateSigningRequest:
    """Read a request and make sure it is `site`'s own.

    Raises:
        EnrolmentError: not a request, a wrong name, a bad signature, or not a P-256 key.
    """
    try:
        csr = x509.load_pem_x509_csr(pem)
    except ValueError as error:
        raise EnrolmentError("the certificate request cannot be read. Join again.") from error
    if not csr.is_signature_valid:
        raise EnrolmentError("the certificate request's signature is wrong. Join again.")
    if common_name(csr) != site or len(list(csr.subject)) != 1:
        raise EnrolmentError(f"the certificate request must name site {site!r} and nothing else. Join again.")
    public_key = csr.public_key()
    if not isinstance(public_key, ec.EllipticCurvePublicKey) or not isinstance(public_key.curve, ec.SECP256R1):
        raise EnrolmentError("the certificate request's key must be ECDSA P-256. Join again.")
    return csr


def site_certificate(
    csr: CertificateSigningRequest,
    site: str,
    root: Certificate,
    root_key: PrivateKey,
    receipt_key: bytes | None = None,
) -> Certificate:
    """A site's leaf. Only the public key is taken from the request, all else is ours.

    Args:
        csr: the site's request.
        site: its name.
        root: the root's certificate.
        root_key: its key.
        receipt_key: signs the site's receipts and audit log, 32 bytes; without one, no other site believes its log.
    """
    unsigned = (
        builder(site, common_name(root), csr.public_key(), now() + SITE_LIFETIME)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(key_usage(sign_certificates=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH]), critical=True)
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(site)]), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(root_key.public_key()), critical=False)
    )
    if receipt_key is not None:
        public = Ed25519PublicKey.from_public_bytes(receipt_key)
        der = public.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
        unsigned = unsigned.add_extension(x509.UnrecognizedExtension(RECEIPT_KEY_OID, der), critical=False)
    return unsigned.sign(root_key, hashes.SHA256())


def is_signed_by_any(certificate: Certificate, roots_pem: bytes) -> bool:
    """Whether one of the roots signed a certificate."""
    for root in x509.load_pem_x509_certificates(roots_pem):
        try:
            certificate.verify_directly_issued_by(root)
        except (ValueError, TypeError, InvalidSignature):
            continue
        return True
    return False


def check_site_certificate(certificate_pem: bytes, roots_pem: bytes, site: str, key: PrivateKey) -> Certificate:
    """What a site checks before it stores the certificate it was given, and at each start.

    Args:
        certificate_pem: the site's.
        roots_pem: the pinned root, and its successor if there is one.
        site: its name.
        key: its TLS key.

    Raises:
        EnrolmentError: not this root's, not this site's, not this key's, not a client certificate, or out of date.
    """
    try:
        certificate = load_certificate(certificate_pem)
        usage = certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
        if not is_signed_by_any(certificate, roots_pem):
            raise ValueError("another issuer")
    except (ValueError, x509.ExtensionNotFound) as error:
        raise EnrolmentError("the certificate is not signed by this federation's root. Join again.") from error
    if certificate.subject != subject_name(site) or certificate.public_key() != key.public_key():
        raise EnrolmentError(f"the certificate is not for site {site!r} and its key. Join again.")
    if list(usage) != [ExtendedKeyUsageOID.CLIENT_AUTH]:
        raise EnrolmentError("the certificate is not a client certificate. Join again.")
    if not is_valid_now(certificate):
        raise EnrolmentError(
            f"the certificate of site {site!r} {validity(certificate)}. {COMPARE_CLOCKS} If it has run out, ask the "
            "coordinator for a new invitation and join again."
        )
    return certificate


def is_valid_now(certificate: Certificate) -> bool:
    """Whether this computer's clock lies within a certificate's time."""
    return certificate.not_valid_before_utc <= now() <= certificate.not_valid_after_utc


def validity(certificate: Certificate) -> str:
    """From when to when, and what time it is here, to the minute: a wrong clock is seen by the hour."""
    begins, ends = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    return (
        f"is valid from {begins:%Y-%m-%d %H:%M} to {ends:%Y-%m-%d %H:%M} UTC, and by this computer's clock it is "
        f"{now():%Y-%m-%d %H:%M} UTC"
    )


def common_name(item: Certificate | CertificateSigningRequest) -> str:
    """The one common name of a subject, or an empty string."""
    names = item.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    return str(names[0].value) if len(names) == 1 else ""


def subject_name(common: str) -> x509.Name:
    """A subject that is one common name and nothing else."""
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common)])


def hosts_of(certificate: Certificate) -> list[str]:
    """The DNS names and IP addresses a certificate is good for."""
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    addresses = [str(address) for address in names.get_values_for_type(x509.IPAddress)]
    return [*names.get_values_for_type(x509.DNSName), *addresses]


def builder(
    subject: str,
    issuer: str,
    public_key: CertificatePublicKeyTypes,
    ends: datetime.datetime,
    begins: datetime.datetime | None = None,
) -> x509.CertificateBuilder:
    """A certificate that lacks its extensions and its signature; it begins a little before now, unless told."""
    return (
        x509.CertificateBuilder()
        .subject_name(subject_name(subject))
        .issuer_name(subject_name(issuer))
        .public_key(public_key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(begins or now() - CLOCK_SKEW)
        .not_valid_after(ends)
    )


def key_usage(*, sign_certificates: bool) -> x509.KeyUsage:
    """What a root may do, or a leaf."""
    return x509.KeyUsage(
        digital_signature=not sign_certificates,
        key_cert_sign=sign_certificates,
        crl_sign=sign_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _general_name(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)
