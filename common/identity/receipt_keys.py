"""The key that signs a site's receipts and audit log: proved when it is certified, believed when a root names it.

The key has signed the site's request, or no root would name it. The root names it in the site's leaf, in an extension
of ours that is not critical: so other sites learn it from the root, whoever passes the certificate on.
"""

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.x509 import CertificateSigningRequest
from cryptography.x509.oid import ExtendedKeyUsageOID

from common.errors import EnrolmentError
from common.identity import certificates, rotation

# So that the signature is good for nothing else, and no other one for this.
_PROOF_PREFIX = "wardround receipt key v1\n"


def request_digest(csr: CertificateSigningRequest, receipt_key: bytes) -> str:
    """SHA-256, hex, of a request and the receipt key that goes with it: what two people compare as a phrase."""
    digest = hashes.Hash(hashes.SHA256())
    digest.update(csr.public_bytes(serialization.Encoding.DER))
    digest.update(receipt_key)
    return digest.finalize().hex()


def prove_receipt_key(csr: CertificateSigningRequest, site: str, receipt_key: Ed25519PrivateKey) -> bytes:
    """The receipt key's signature under a site's request: whoever asks has the key, and has not only seen it."""
    return receipt_key.sign(_proof_statement(csr, site, receipt_key.public_key().public_bytes_raw()))


def check_receipt_key(raw: bytes, proof: bytes, csr: CertificateSigningRequest, site: str) -> bytes:
    """The public key that signs a site's receipts, if the site has it.

    Args:
        raw: the key.
        proof: its signature, see `prove_receipt_key`.
        csr: the request that it comes with.
        site: whose that is.

    Raises:
        EnrolmentError: not an Ed25519 public key, or the signature is not that key's for this request and site.
    """
    try:
        Ed25519PublicKey.from_public_bytes(raw).verify(proof, _proof_statement(csr, site, raw))
    except ValueError as error:
        raise EnrolmentError("the receipt key is not an Ed25519 public key. Join again.") from error
    except InvalidSignature as error:
        raise EnrolmentError(
            "the receipt key has not signed this request, so it need not be the site's own. Join again."
        ) from error
    return raw


def receipt_key_of(certificate_pem: bytes, roots_pem: bytes, site: str) -> bytes:
    """The key that signs a site's receipts and audit log, as a trusted root says.

    An expired certificate still tells: what was signed with the key stays signed.

    Args:
        certificate_pem: the site's, from whoever passes it on; after it vouchers, if a root before has signed it.
        roots_pem: the pinned root, and its successor if there is one.
        site: whose it should be.

    Returns:
        The Ed25519 public key, 32 bytes.

    Raises:
        EnrolmentError: not signed by one of the roots, not this site's, or it names no such key.
    """
    try:
        certificate, *chain = x509.load_pem_x509_certificates(certificate_pem)
        vouchers = b"".join(certificates.to_pem(one) for one in chain if rotation.is_voucher(one, roots_pem))
        if not certificates.is_signed_by_any(certificate, roots_pem + vouchers):
            raise EnrolmentError("no root that is known here has signed it")
        usage = certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
        if certificate.subject != certificates.subject_name(site) or list(usage) != [ExtendedKeyUsageOID.CLIENT_AUTH]:
            raise EnrolmentError(f"it is not the certificate of site {site}")
        extension = certificate.extensions.get_extension_for_oid(certificates.RECEIPT_KEY_OID).value
        key = serialization.load_der_public_key(extension.public_bytes())
    except (ValueError, UnsupportedAlgorithm, x509.ExtensionNotFound, x509.DuplicateExtension) as error:
        raise EnrolmentError("it is no certificate with a receipt key") from error
    if not isinstance(key, Ed25519PublicKey):
        raise EnrolmentError("its receipt key is not an Ed25519 key")
    return key.public_bytes_raw()


def _proof_statement(csr: CertificateSigningRequest, site: str, receipt_key: bytes) -> bytes:
    return f"{_PROOF_PREFIX}{site}\n{request_digest(csr, receipt_key)}\n".encode()


__all__ = ["check_receipt_key", "prove_receipt_key", "receipt_key_of", "request_digest"]
