"""Files that only the site can open: what is derived from patients' images and kept on disk.

    file   = header | chunk 0 | chunk 1 | ...
    header = magic (8) | salt (16) | stamp (32)
    chunk  = AES-256-GCM of 1 MiB of the payload (the last one: of what is left), 16 bytes longer by its tag

The key is made for each file by HKDF-SHA256 from the site key, the vault's purpose and the file's random salt, so the
nonce need only count: chunk index (11 bytes, big-endian) | 1 for the last chunk, else 0 (1 byte). Header, folder and
file name are authenticated with every chunk. A chunk that is changed, moved, cut off, repeated or taken from another
file does not open. This is the STREAM construction, as in https://age-encryption.org/v1.

A file's size tells the length of its payload, and nothing else is in the clear. Names are HMACs where the caller makes
them with `name`. The stamp says what the payload was made from; a file with another stamp is out of date.
"""

import hashlib
import hmac
import json
import logging
import os
import secrets
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import BinaryIO

from cryptography.exceptions import InvalidTag

from common.files import write_private
from common.safe import derived
from common.sealer import open_chunks, seal_chunks

STAMP_BYTES = 32
NO_STAMP = bytes(STAMP_BYTES)

_MAGIC = b"WRVAULT1"
_SALT_BYTES = 16
_HEADER_BYTES = len(_MAGIC) + _SALT_BYTES + STAMP_BYTES
_NAME_HEX = 32

_log = logging.getLogger(__name__)


class Vault:
    """Seals and opens files for one purpose. What was sealed for another purpose, or by another site, does not open."""

    def __init__(self, site_key: bytes, purpose: str) -> None:
        """No file is touched yet.

        Args:
            site_key: secret key of the site; the keys of the files are derived from it.
            purpose: what is kept, such as "cache"; a part of every key.
        """
        self._site_key = site_key
        self._purpose = purpose

    def read(self, path: Path, stamp: bytes = NO_STAMP) -> bytearray | None:
        """The payload as it was written; None when it is not there.

        A file that is out of date, damaged or unreadable is not there: its content has to be made again.
        """
        try:
            with path.open("rb") as file:
                header = file.read(_HEADER_BYTES)
                if _is_header(header) and not hmac.compare_digest(header[-STAMP_BYTES:], stamp):
                    return None
                return self._open(header, file, path)
        except FileNotFoundError:
            return None
        except OSError as error:
            _log.warning(
                "%s %s cannot be read (%s); its content is made again", self._purpose, path.stem, error.strerror
            )
        except (InvalidTag, ValueError):
            self.report_damage(path)
        return None

    def write(self, path: Path, payload: bytes | bytearray | memoryview, stamp: bytes = NO_STAMP) -> None:
        """Seal a payload, whole or not at all; file and new folders are for their owner only. What a power failure
        takes is made again.

        Raises:
            OSError: the disk is full or does not allow it; what stood there before still stands.
        """
        write_private(path, self._seal(path, payload, stamp), durable=False)

    def name(self, *parts: object) -> str:
        """A file name that tells nothing about its parts; they must be JSON, or have a text."""
        return self.mac(*parts).hex()[:_NAME_HEX]

    def mac(self, *parts: object) -> bytes:
        """HMAC-SHA256 of the parts under a key of this purpose: a name or a stamp, 32 bytes."""
        text = json.dumps(parts, default=str, sort_keys=True)
        return hmac.new(self._naming_key, text.encode(), hashlib.sha256).digest()

    def report_damage(self, path: Path) -> None:
        """Log that a file does not hold what it should; also for payloads that opened and then made no sense."""
        _log.warning("%s %s is damaged; its content is made again", self._purpose, path.stem)

    def _seal(self, path: Path, payload: bytes | bytearray | memoryview, stamp: bytes) -> Iterator[bytes]:
        header = _MAGIC + secrets.token_bytes(_SALT_BYTES) + stamp
        yield header
        yield from seal_chunks(self._file_key(header), payload, _associated(header, path))

    def _open(self, header: bytes, file: BinaryIO, path: Path) -> bytearray:
        """The payload of a file that stands after its header."""
        length = os.fstat(file.fileno()).st_size - _HEADER_BYTES
        return open_chunks(self._file_key(header), file, length, _associated(header, path))

    def _file_key(self, header: bytes) -> bytes:
        return self._key("encryption", header[len(_MAGIC) : len(_MAGIC) + _SALT_BYTES])

    @cached_property
    def _naming_key(self) -> bytes:
        return self._key("names and stamps", b"")

    def _key(self, use: str, salt: bytes) -> bytes:
        return derived(self._site_key, self._purpose, use, salt)


def _associated(header: bytes, path: Path) -> bytes:
    return header + f"{path.parent.name}/{path.name}".encode()


def _is_header(header: bytes) -> bool:
    return len(header) == _HEADER_BYTES and header.startswith(_MAGIC)


__all__ = ["NO_STAMP", "STAMP_BYTES", "Vault"]
