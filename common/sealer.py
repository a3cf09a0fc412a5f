"""Bytes that only the holder of a key can open, and only as what they were sealed: AES-256-GCM in chunks.

    sealed = magic (8) | salt (16) | chunk 0 | chunk 1 | ...
    chunk  = AES-256-GCM of 1 MiB of the payload (the last one: of what is left), 16 bytes longer by its tag

Each payload has a key of its own, by HKDF-SHA256 from the holder's key, the payload's name and a random salt, so the
nonce need only count: chunk index (11 bytes, big-endian) | 1 for the last chunk, else 0 (1 byte). A chunk that is
changed, moved, cut off, repeated or taken from elsewhere does not open, nor does a whole payload under another's name.
This is the STREAM construction, as in https://age-encryption.org/v1. Sizes are in the clear, and nothing else.
"""

import io
import json
import math
import secrets
from collections.abc import Iterator
from typing import BinaryIO, TypeAlias

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from common.errors import ConfigError
from common.safe import derived

Payload: TypeAlias = bytes | bytearray | memoryview

SUFFIX = ".sealed"  # of a file that holds what `Sealer.seal` made

_MAGIC = b"WRSEALED"
_SALT_BYTES = 16
_HEADER_BYTES = len(_MAGIC) + _SALT_BYTES
_TAG_BYTES = 16
_CHUNK_BYTES = 2**20
_COUNTER_BYTES = 11


class Sealer:
    """Seals and opens under one key. What a thing is, is a path of names: `sealer.at("run 7").seal(data, "model")`."""

    def __init__(self, key: bytes, *place: str) -> None:
        """Nothing is derived yet.

        Args:
            key: 32 secret bytes.
            place: what comes before the names of what is sealed.
        """
        self._key = key
        self._place = place

    def at(self, place: str) -> "Sealer":
        """The sealer of a part: what it seals opens there alone."""
        return Sealer(self._key, *self._place, place)

    def seal(self, payload: Payload, name: str) -> bytes:
        """Seal a payload; the same name is needed to open it."""
        header = _MAGIC + secrets.token_bytes(_SALT_BYTES)
        return b"".join((header, *seal_chunks(self._key_of(header, name), payload, header)))

    def open(self, sealed: bytes, name: str) -> bytes:
        """Inverse of `seal`.

        Raises:
            ConfigError: not sealed here under this name with this key, or damaged; which of these is not said.
        """
        file, header = io.BytesIO(sealed), sealed[:_HEADER_BYTES]
        try:
            if file.readinto(bytearray(_HEADER_BYTES)) < _HEADER_BYTES or not header.startswith(_MAGIC):
                raise ValueError("not sealed")
            return bytes(open_chunks(self._key_of(header, name), file, len(sealed) - _HEADER_BYTES, header))
        except (InvalidTag, ValueError) as error:
            raise ConfigError(
                f"{', '.join((*self._place, name))} does not open: it is damaged, or was sealed as something else or "
                "with another key. Restore it, or the key, from a backup."
            ) from error

    def _key_of(self, header: bytes, name: str) -> bytes:
        return derived(self._key, "sealer", json.dumps([*self._place, name]), header[-_SALT_BYTES:])


def seal_chunks(key: bytes, payload: Payload, associated: bytes) -> Iterator[bytes]:
    """Seal a payload under a key that is used for nothing else.

    Args:
        key: 32 bytes.
        payload: any length.
        associated: authenticated with every chunk.
    """
    cipher, view = AESGCM(key), memoryview(payload)
    for nonce, start in _chunks(len(view)):
        yield cipher.encrypt(nonce, view[start : start + _CHUNK_BYTES], associated)


def open_chunks(key: bytes, file: BinaryIO, length: int, associated: bytes) -> bytearray:
    """Inverse of `seal_chunks`, into one buffer, which the caller may share.

    Args:
        key: as it was sealed.
        file: stands at the first chunk.
        length: of all chunks together, bytes.
        associated: as it was sealed.

    Raises:
        InvalidTag: not these bytes, this key, or this associated data.
        ValueError: the length cannot be.
    """
    cipher = AESGCM(key)
    chunk = memoryview(bytearray(_CHUNK_BYTES + _TAG_BYTES))
    payload = bytearray(length - math.ceil(length / len(chunk)) * _TAG_BYTES)
    view = memoryview(payload)
    for nonce, start in _chunks(len(payload)):
        sealed = chunk[: file.readinto(chunk)]  # type: ignore[attr-defined]  # typeshed leaves it out of BinaryIO
        cipher.decrypt_into(nonce, sealed, associated, view[start : start + _CHUNK_BYTES])
    return payload


def _chunks(length: int) -> Iterator[tuple[bytes, int]]:
    """Nonce and start of each chunk of a payload; an empty one has one empty chunk, so that it is sealed too."""
    last = max(0, (length - 1) // _CHUNK_BYTES)
    for index in range(last + 1):
        yield index.to_bytes(_COUNTER_BYTES) + bytes([index == last]), index * _CHUNK_BYTES


__all__ = ["SUFFIX", "Payload", "Sealer", "open_chunks", "seal_chunks"]
