"""Signed checkpoints: what a log commits to, in the text form of C2SP tlog-checkpoint and signed-note.

    site/north-clinic                                  origin: whose log
    1042                                               entries
    CsUYapGGPo4dkMgIAUqom/Xajj7h2fB2MPA3j2jxq2I=       Merkle root, base64
    time 1790000000                                    when it was signed, seconds since the epoch, UTC
    seen 311 9Qm...=                                   the coordinator's size and root as this hospital knows them
                                                       (hospitals only, once they know one)
    <empty line>
    — site/north-clinic <base64 of key id and signature>

The signature (Ed25519) is over the text up to and with the newline before the empty line. The key id is the first
four bytes of SHA-256(origin || newline || 0x01 || public key).
"""

import base64
from dataclasses import dataclass
from hashlib import sha256

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from common.audit.entries import NOTE
from common.errors import AuditError

_ID_BYTES = 4


@dataclass(frozen=True)
class Head:
    """The state of a log: how many entries, and their root."""

    size: int
    root: bytes


@dataclass(frozen=True)
class Checkpoint:
    """The state of a log, as its owner signs it."""

    origin: str
    size: int
    root: bytes  # 32 bytes
    time: int  # seconds since the epoch, UTC
    seen: Head | None = None  # of the coordinator's log, in a hospital's checkpoint

    def to_text(self) -> str:
        """The text that is signed."""
        lines = [self.origin, str(self.size), _base64(self.root), f"time {self.time}"]
        if self.seen is not None:
            lines.append(f"seen {self.seen.size} {_base64(self.seen.root)}")
        return "\n".join(lines) + "\n"


def sign(checkpoint: Checkpoint, key: Ed25519PrivateKey) -> str:
    """The checkpoint with its signature."""
    text = checkpoint.to_text()
    blob = key_id(checkpoint.origin, public_bytes(key)) + key.sign(text.encode())
    return f"{text}\n\u2014 {checkpoint.origin} {_base64(blob)}\n"


def read(note: str, public_key: bytes) -> Checkpoint:
    """Read a signed checkpoint and check who signed it.

    Args:
        note: the whole text.
        public_key: 32 bytes.

    Raises:
        AuditError: not a checkpoint, or not signed with this key.
    """
    checkpoint = peek(note)
    found = NOTE.fullmatch(note)
    blob = base64.b64decode(found["signature"]) if found else b""
    if blob[:_ID_BYTES] != key_id(checkpoint.origin, public_key) or not is_signed(
        checkpoint.to_text().encode(), blob[_ID_BYTES:], public_key
    ):
        raise AuditError(
            f"the checkpoint of {checkpoint.origin} over {checkpoint.size} entries is not signed with the key of "
            f"{checkpoint.origin} that is known here"
        )
    return checkpoint


def peek(note: str) -> Checkpoint:
    """What a checkpoint claims, whoever signed it.

    Raises:
        AuditError: not a checkpoint.
    """
    found = NOTE.fullmatch(note)
    if found is None:
        raise AuditError("this is not a signed checkpoint of a Wardround audit log")
    seen = Head(int(found["seen_size"]), base64.b64decode(found["seen_root"])) if found["seen_size"] else None
    root = base64.b64decode(found["root"])
    checkpoint = Checkpoint(found["origin"], int(found["size"]), root, int(found["time"]), seen)
    # Several base64 texts can stand for the same bytes.
    if checkpoint.to_text() != found["text"] or _base64(base64.b64decode(found["signature"])) != found["signature"]:
        raise AuditError("the checkpoint is not in its one canonical form")
    return checkpoint


def key_id(origin: str, public_key: bytes) -> bytes:
    """The four bytes before a signature that say which key made it."""
    return sha256(origin.encode() + b"\n\1" + public_key).digest()[:_ID_BYTES]


def public_bytes(key: Ed25519PrivateKey) -> bytes:
    """The 32 bytes of the public key."""
    return key.public_key().public_bytes_raw()


def is_signed(message: bytes, signature: bytes, public_key: bytes) -> bool:
    """Whether an Ed25519 signature is right."""
    try:
        Ed25519PublicKey.from_public_bytes(public_key).verify(signature, message)
    except (InvalidSignature, ValueError):
        return False
    return True


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode()
