"""Who a site is to its coordinator: what joining left under home/tls, read and checked at each start.

The site's certificate must be of a pinned root, of this site, of its key, and name its receipt key.
"""

import json
from dataclasses import dataclass
from pathlib import Path

import grpc
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from common.errors import EnrolmentError
from common.identity import certificates, rotation
from common.identity.operators import public_bytes
from common.identity.phrase import as_phrase
from common.identity.receipt_keys import receipt_key_of, request_digest
from common.system.files import move, write_private
from common.wire.channels import MAX_NEWS_BYTES, secure_channel


@dataclass(frozen=True)
class Identity:
    """Who this site is to its coordinator."""

    site: str
    gateway: str  # host:port, mutual TLS
    key_pem: bytes
    certificate_pem: bytes
    root_pem: bytes  # the pinned root, and its successor after it until that signs this site's certificate
    certificate: x509.Certificate
    receipt_key: Ed25519PrivateKey  # signs this site's receipts and audit log; the certificate names it
    log_key: bytes  # Ed25519 public key, 32 bytes: checks the coordinator's

    @property
    def renewal_is_due(self) -> bool:
        """Whether two thirds of the certificate's life are over."""
        life = self.certificate.not_valid_after_utc - self.certificate.not_valid_before_utc
        return certificates.now() > self.certificate.not_valid_after_utc - life / 3

    @property
    def knows_successor(self) -> bool:
        """Whether a next root is pinned that has not signed this site's certificate yet."""
        return not certificates.is_signed_by_any(self.certificate, rotation.newest(self.root_pem))

    @property
    def days_left(self) -> int:
        """Days until the certificate expires; below 0 where it has."""
        return certificates.days_left(self.certificate.not_valid_after_utc)

    def channel(self, max_receive_bytes: int = MAX_NEWS_BYTES, *, to_successor: bool = False) -> grpc.Channel:
        """A channel to the gateway, for messages up to this size.

        Args:
            max_receive_bytes: of one message.
            to_successor: only to a gateway that shows a certificate of the newest root that is pinned.
        """
        roots = rotation.newest(self.root_pem) if to_successor else self.root_pem
        return secure_channel(
            self.gateway, roots, self.key_pem, self.certificate_pem, max_receive_bytes=max_receive_bytes
        )

    def __repr__(self) -> str:
        return f"Identity(site={self.site!r}, gateway={self.gateway!r})"


# What `join` leaves in `tls`.
_JOINED = ("coordinator.json", "certificate.pem", "root.pem", "receipt.key")


def load_identity(home: Path) -> Identity:
    """Read and check what `join` stored.

    Raises:
        EnrolmentError: the site has not joined, or its certificate is not valid now.
    """
    tls = home / "tls"
    try:
        coordinator = json.loads((tls / "coordinator.json").read_bytes())
        certificate_pem, root_pem, receipt_key = ((tls / name).read_bytes() for name in _JOINED[1:])
        site, gateway, log_key = str(coordinator["site"]), str(coordinator["gateway"]), str(coordinator["log-key"])
        key_pem = _promoted_key(tls, certificate_pem)
        signing = Ed25519PrivateKey.from_private_bytes(receipt_key)
    except FileNotFoundError as error:
        raise not_joined(home, error) from error
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise EnrolmentError(f"the files in {tls} cannot be read. Restore them from a backup or join again.") from error
    certificate = certificates.check_site_certificate(certificate_pem, root_pem, site, certificates.load_key(key_pem))
    check_own_receipt_key(certificate_pem, root_pem, site, signing)
    if (kept := rotation.without_retired(root_pem, certificate)) != root_pem:
        write_private(tls / "root.pem", kept)
        root_pem = kept
    return Identity(site, gateway, key_pem, certificate_pem, root_pem, certificate, signing, bytes.fromhex(log_key))


def not_joined(home: Path, error: FileNotFoundError) -> EnrolmentError:
    """What it means that a file of `tls` is not there."""
    asked_only = (home / "tls" / "request.pem").exists()  # it waits to be approved
    if not asked_only and any((home / "tls" / name).exists() for name in _JOINED):
        return EnrolmentError(
            f"{error.filename} is missing, and {home} has joined a federation. Restore the folder tls from a backup; "
            "if there is none, ask the coordinator for a new invitation and join again."
        )
    if asked_only:
        return EnrolmentError(f"{home} has not joined a federation yet: {_how_far(home / 'tls')}")
    return EnrolmentError(
        f"{home} has not joined a federation. Ask the coordinator for an invitation and run "
        "`wardround-client join INVITATION`."
    )


def _how_far(tls: Path) -> str:
    """Of a request for a certificate that has not come: where it is, and what to do."""
    if not (tls / "token.sha256").exists():
        return "its request has not reached the coordinator. Run the same `wardround-client join INVITATION` again."
    receipt_key = Ed25519PrivateKey.from_private_bytes((tls / "receipt.key").read_bytes())
    csr = x509.load_pem_x509_csr((tls / "request.pem").read_bytes())
    return (
        "its request waits for the coordinator's approval. Tell the coordinator the phrase "
        f"{as_phrase(request_digest(csr, public_bytes(receipt_key)))}, and run the same "
        "`wardround-client join INVITATION` again, which goes on waiting. A certificate that came by mail: "
        "`wardround-client join INVITATION --certificate FILE`."
    )


def check_own_receipt_key(certificate_pem: bytes, roots_pem: bytes, site: str, receipt_key: Ed25519PrivateKey) -> None:
    """Refuse a certificate by which other sites would take another's signatures for this site's.

    Raises:
        EnrolmentError: it names another receipt key, or none.
    """
    if receipt_key_of(certificate_pem, roots_pem, site) != public_bytes(receipt_key):
        raise EnrolmentError(
            f"the certificate names another key for the receipts of site {site!r} than the one in tls/receipt.key. "
            "Tell the coordinator, and join again."
        )


def _promoted_key(tls: Path, certificate_pem: bytes) -> bytes:
    """The key of the certificate; after a renewal that is the next one, which then takes its place."""
    following = tls / "next-key.pem"
    if following.exists():
        public_key = certificates.load_certificate(certificate_pem).public_key()
        if certificates.load_key(following.read_bytes()).public_key() == public_key:
            move(following, tls / "key.pem")
    return (tls / "key.pem").read_bytes()


__all__ = ["Identity", "check_own_receipt_key", "load_identity"]
