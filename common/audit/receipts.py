"""A receipt: what left a hospital in a round, signed by the hospital, countersigned by the coordinator.

The hospital signs before the update leaves, the coordinator when it has it. Two signatures under the same bytes:
afterwards neither side can say that the round was another one. The bytes are the canonical JSON of the fields;
before signing they are given a prefix, so that a signature under a receipt is good for nothing else.
"""

import base64
from dataclasses import dataclass
from hashlib import sha256

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from common.audit.entries import Value, canonical, check_receipt, parse_canonical
from common.audit.notes import is_signed
from common.errors import AuditError

_SITE_PREFIX = b"wardround receipt v1\n"
_COORDINATOR_PREFIX = b"wardround countersignature v1\n"


@dataclass(frozen=True)
class Receipt:
    """One update of one site in one round; the fields of `entries.RECEIPT`."""

    run: str  # SHA-256 of the run's document, hex
    round: int
    site: str
    received: str  # SHA-256 of what came in, hex: of its one part, see common/wire/messages.py for several
    update: str  # likewise, of the update that left
    size: int  # of the update, bytes
    policy: str  # SHA-256 of the hospital's policy, hex
    minute: int  # seconds since the epoch, UTC, rounded down to a minute
    patients: int | None = None  # the count that left with the update, or absent
    epsilon: str | None = None  # charged for the round, decimal; absent without privacy
    delta: str | None = None

    def __post_init__(self) -> None:
        check_receipt(self.to_fields())

    def to_fields(self) -> dict[str, Value]:
        """The fields there are."""
        return {name: value for name, value in vars(self).items() if value is not None}

    def to_bytes(self) -> bytes:
        """The canonical bytes."""
        return canonical(self.to_fields())

    @classmethod
    def from_fields(cls, fields: dict[str, Value]) -> "Receipt":
        """Raises AuditError unless the fields are those of a receipt."""
        check_receipt(fields)
        return cls(**fields)

    @classmethod
    def from_bytes(cls, data: bytes) -> "Receipt":
        """Inverse of `to_bytes`; AuditError for anything else."""
        return cls.from_fields(parse_canonical(data))

    @property
    def sha256(self) -> str:
        """The receipt's name: hash of its bytes, hex."""
        return sha256(self.to_bytes()).hexdigest()


def receipt_for(
    *,
    run: str,
    round_: int,
    site: str,
    received: str,
    update: str,
    size: int,
    policy: str,
    time: float,
    patients: int,
    spent: tuple[str, str] | None,
) -> Receipt:
    """Make a receipt from what is at hand when an update is about to leave.

    Args:
        run: SHA-256 of the run, hex.
        round_: from 1.
        site: name.
        received: SHA-256 of the parts of the request, hex.
        update: SHA-256 of the parts that leave, hex.
        size: of those, bytes.
        policy: SHA-256 of the policy, hex.
        time: now, Unix seconds.
        patients: the count that leaves with the update, bucketed; 0 where none does.
        spent: (epsilon, delta) charged for this round, see `decimal_text`; None without privacy.
    """
    epsilon, delta = spent or (None, None)
    return Receipt(
        run=run,
        round=round_,
        site=site,
        received=received,
        update=update,
        size=size,
        policy=policy,
        minute=int(time) // 60 * 60,
        patients=patients or None,
        epsilon=epsilon,
        delta=delta,
    )


def sign(receipt: Receipt, key: Ed25519PrivateKey) -> bytes:
    """The hospital's signature, 64 bytes."""
    return key.sign(_SITE_PREFIX + receipt.to_bytes())


def countersign(receipt: Receipt, signature: bytes, site_key: bytes, key: Ed25519PrivateKey) -> bytes:
    """The coordinator's signature, 64 bytes, under the receipt and the hospital's signature.

    Raises:
        AuditError: the hospital's signature is wrong.
    """
    if not is_signed_by_site(receipt, signature, site_key):
        raise AuditError(f"the receipt of site {receipt.site} for round {receipt.round} is not signed with its key")
    return key.sign(_countersigned(receipt, signature))


def is_signed_by_site(receipt: Receipt, signature: bytes, site_key: bytes) -> bool:
    """Check the hospital's signature."""
    return is_signed(_SITE_PREFIX + receipt.to_bytes(), signature, site_key)


def is_countersigned(receipt: Receipt, signature: bytes, countersignature: bytes, coordinator_key: bytes) -> bool:
    """Check the coordinator's signature."""
    return is_signed(_countersigned(receipt, signature), countersignature, coordinator_key)


def entry_fields(receipt: Receipt, signature: bytes, countersignature: bytes | None = None) -> dict[str, Value]:
    """The fields of an entry `round`: without countersignature at the hospital, with it at the coordinator."""
    fields = {"receipt": receipt.to_fields(), "signature": base64.b64encode(signature).decode()}
    if countersignature is not None:
        fields["countersignature"] = base64.b64encode(countersignature).decode()
    return fields


def countersigned_fields(receipt: Receipt, countersignature: bytes) -> dict[str, Value]:
    """The fields of an entry `countersigned`: the hospital has the coordinator's signature."""
    return {"receipt-hash": receipt.sha256, "countersignature": base64.b64encode(countersignature).decode()}


def _countersigned(receipt: Receipt, signature: bytes) -> bytes:
    return _COORDINATOR_PREFIX + receipt.to_bytes() + b"\n" + signature
