"""From one root to the next: what a root signs about another one, and what a site makes of it.

A root that is to follow is cross-signed by the present one: a certificate of its name, key and dates for that purpose
alone. Sites learn of it when they renew. When it has taken over, it gives each root before it a voucher, for another
purpose: by that those who know the new root alone believe what the old one said about receipt keys. A site lets go of
the old root with the first certificate that the new one has signed for it.
"""

import datetime

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.x509 import Certificate

from common.errors import EnrolmentError
from common.identity import certificates

# The only use of a cross-signature, and of a voucher. Under 2.25 stands a UUID (X.667).
_SUCCESSOR_USAGE = x509.ObjectIdentifier("2.25.117209318964803366950217480735264138911")
_VOUCHER_USAGE = x509.ObjectIdentifier("2.25.236334221086911700291526143972707976965")


def cross_sign(successor: Certificate, root: Certificate, root_key: certificates.PrivateKey) -> Certificate:
    """The next root's name, key and dates, signed by the present one: why who trusts this root may trust the next."""
    return (
        certificates.builder(
            certificates.common_name(successor),
            certificates.common_name(root),
            successor.public_key(),
            successor.not_valid_after_utc,
            successor.not_valid_before_utc,
        )
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(certificates.key_usage(sign_certificates=True), critical=True)
        .add_extension(x509.ExtendedKeyUsage([_SUCCESSOR_USAGE]), critical=True)
        .sign(root_key, hashes.SHA256())
    )


def vouch_for(
    old: Certificate, root: Certificate, root_key: certificates.PrivateKey, until: datetime.datetime
) -> Certificate:
    """A voucher: by it those who know this root alone believe what a root before it says about receipt keys.

    In a chain it opens no TLS connection: its one usage is our own, and a root's path length admits nothing between it
    and a leaf. It must not be pinned, and nobody stores it: it travels with the certificates that need it.

    Args:
        old: the root before.
        root: this root's certificate.
        root_key: its key.
        until: when all that the old one has signed has run out.
    """
    return (
        certificates.builder(certificates.common_name(old), certificates.common_name(root), old.public_key(), until)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(certificates.key_usage(sign_certificates=True), critical=True)
        .add_extension(x509.ExtendedKeyUsage([_VOUCHER_USAGE]), critical=True)
        .sign(root_key, hashes.SHA256())
    )


def is_voucher(certificate: Certificate, roots_pem: bytes) -> bool:
    """Whether a root that is trusted here vouches, now, for the key in it."""
    try:
        usage = certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    except (ValueError, x509.ExtensionNotFound, x509.DuplicateExtension):
        return False
    return (
        certificates.is_valid_now(certificate)
        and list(usage) == [_VOUCHER_USAGE]
        and certificates.is_signed_by_any(certificate, roots_pem)
    )


def check_successor(pem: bytes, roots_pem: bytes) -> Certificate:
    """The next root, from its self-signed certificate and the cross-signed one after it.

    The present root has signed, for this purpose and no other, the next one's name, key and dates; and it follows all
    that are pinned. So no root that was rotated away comes back, by the voucher that the present one has given it or
    with new dates of its own making.

    Args:
        pem: both certificates.
        roots_pem: those that are pinned; the next root may be one of them already.

    Raises:
        EnrolmentError: no root that is trusted here vouches for it, it is out of date, or older than one of those.
    """
    try:
        successor, cross = x509.load_pem_x509_certificates(pem)
        successor.verify_directly_issued_by(successor)
        usage = cross.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
        is_root = all(
            one.extensions.get_extension_for_class(x509.BasicConstraints).value.ca for one in (successor, cross)
        )
    except (ValueError, TypeError, InvalidSignature, x509.ExtensionNotFound, x509.DuplicateExtension) as error:
        raise EnrolmentError(
            "the next root cannot be read, or is not cross-signed as a next root. It is not trusted; ask the "
            "coordinator to rotate it again."
        ) from error
    if not (is_root and list(usage) == [_SUCCESSOR_USAGE] and _identity(successor) == _identity(cross)):
        raise EnrolmentError(
            "the next root is not cross-signed as a next root. It is not trusted; ask the coordinator."
        )
    if not certificates.is_signed_by_any(cross, roots_pem):
        raise EnrolmentError("the next root is not signed by the present one. It is not trusted; ask the coordinator.")
    if not certificates.is_valid_now(successor):
        raise EnrolmentError(
            f"the next root {certificates.validity(successor)}. It is not trusted. {certificates.COMPARE_CLOCKS}"
        )
    pinned = [one for one in x509.load_pem_x509_certificates(roots_pem) if one != successor]
    if any(successor.not_valid_before_utc <= one.not_valid_before_utc for one in pinned):
        raise EnrolmentError("the next root is not newer than one pinned here. It is not trusted; ask the coordinator.")
    return successor


def without_retired(roots_pem: bytes, certificate: Certificate) -> bytes:
    """The pinned roots but for those that are older than the one that has signed a site's certificate.

    That root signs since the rotation to it is over; what is still to be believed of the ones before, it vouches for.
    """
    roots = x509.load_pem_x509_certificates(roots_pem)
    began = max(
        (
            one.not_valid_before_utc
            for one in roots
            if certificates.is_signed_by_any(certificate, certificates.to_pem(one))
        ),
        default=None,
    )
    return b"".join(certificates.to_pem(one) for one in roots if began is None or one.not_valid_before_utc >= began)


def newest(roots_pem: bytes) -> bytes:
    """The one of the pinned roots that began last (PEM)."""
    return certificates.to_pem(
        max(x509.load_pem_x509_certificates(roots_pem), key=lambda one: one.not_valid_before_utc)
    )


def _identity(root: Certificate) -> tuple[object, ...]:
    """What two certificates of one root have in common: name, key and dates."""
    return root.subject, root.public_key(), root.not_valid_before_utc, root.not_valid_after_utc


__all__ = ["check_successor", "cross_sign", "is_voucher", "newest", "vouch_for", "without_retired"]
