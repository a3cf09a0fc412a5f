"""Who may ask: whoever can read the token's file, which is the user who started the server.

The token is 256 random bits, made at the start and gone with the stop. It is compared by its SHA-256 in constant time.
"""

import hashlib
import hmac
import secrets
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

from common.system.files import write_private

_BYTES = 32


@dataclass(frozen=True)
class Token:
    """What a token is compared with. path: of its file, mode 0600."""

    path: Path
    digest: bytes = field(repr=False)

    @classmethod
    def made(cls, path: Path) -> Self:
        """Draw one and write it."""
        text = secrets.token_urlsafe(_BYTES)
        write_private(path, f"{text}\n".encode(), durable=False)
        return cls(path, _digest(text.encode()))

    def fits(self, given: bytes) -> bool:
        """Whether this is the token."""
        return hmac.compare_digest(_digest(given), self.digest)


def _digest(text: bytes) -> bytes:
    return hashlib.sha256(text).digest()


__all__ = ["Token"]
