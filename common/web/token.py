"""Who may ask: whoever can read the token's file, which is the user who started the server, and whom they give it to.

The token is 256 random bits. It is compared by its SHA-256 in constant time.
"""

import hashlib
import hmac
import secrets
import stat
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

from common.errors import ConfigError
from common.system.files import write_private

_BYTES = 32
_LEAST = 32  # letters of a token that somebody else has written there


@dataclass(frozen=True)
class Token:
    """What a token is compared with. path: of its file, mode 0600."""

    path: Path
    digest: bytes = field(repr=False)

    @classmethod
    def made(cls, path: Path) -> Self:
        """Draw one and write it: for a server whose token goes with it."""
        text = secrets.token_urlsafe(_BYTES)
        write_private(path, f"{text}\n".encode(), durable=False)
        return cls(path, _digest(text.encode()))

    @classmethod
    def kept(cls, path: Path) -> Self:
        """The one that lies there, or a new one: for a program that asks again after a restart.

        Raises:
            ConfigError: the file can be read by others, or holds no token.
        """
        if not path.exists():
            return cls.made(path)
        text = path.read_bytes().strip()
        if stat.S_IMODE(path.stat().st_mode) & 0o077:
            raise ConfigError(f"{path} can be read by others. Remove it: a new token is then made.")
        if len(text) < _LEAST:
            raise ConfigError(f"{path} holds no token. Remove it: a new one is then made.")
        return cls(path, _digest(text))

    def fits(self, given: bytes) -> bool:
        """Whether this is the token."""
        return hmac.compare_digest(_digest(given), self.digest)


def _digest(text: bytes) -> bytes:
    return hashlib.sha256(text).digest()


__all__ = ["Token"]
