"""Bytes that only the holder of a key can open, and only as what they were sealed: AES-256-GCM in chunks.

    sealed = header | chunk 0 | chunk 1 | ...
    header = magic (8) | salt (16) | stamp (0 or more, as the kind has it)
    chunk  = AES-256-GCM of 1 MiB of the payload (the last one: of what is left), 16 bytes longer by its tag

Each payload has a key of its own, by HKDF-SHA256 from the holder's key, the payload's name and a random salt, so the
nonce need only count: chunk index (11 bytes, big-endian) | 1 for the last chunk, else 0 (1 byte). A chunk that is
changed, moved, cut off, repeated or taken from elsewhere does not open, nor does a whole payload under another's name:
the header, and where the payload belongs if the key does not say so, are authenticated with every chunk.
This is the STREAM construction, as in https://age-encryption.org/v1. Sizes are in the clear, and the stamp.

`Sealer` keeps it in memory, for models and keys; client/data/keep/vault.py in files with a stamp; `seal_parts` and
`unseal_parts` hold a chunk at a time, for what is larger than memory.
"""

import io
import json
import math
import secrets
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import BinaryIO, TypeAlias

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from common.crypto.derivation import derived
from common.errors import ConfigError

Payload: TypeAlias = bytes | bytearray | memoryview

SUFFIX = ".sealed"  # of a file that holds what `Sealer.seal` made

_MAGIC = b"WRSEALED"
_MAGIC_BYTES, _SALT_BYTES, _TAG_BYTES = 8, 16, 16
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
        header = new_header(_MAGIC)
        return b"".join(seal(header, self._key_of(header, name), payload))

    def open(self, sealed: bytes, name: str) -> bytes:
        """Inverse of `seal`.

        Raises:
            ConfigError: not sealed here under this name with this key, or damaged; which of these is not said.
        """
        file = io.BytesIO(sealed)
        try:
            header = read_header(file, _MAGIC)
            return bytes(unseal(header, self._key_of(header, name), file, len(sealed)))
        except (InvalidTag, ValueError) as error:
            raise ConfigError(
                f"{', '.join((*self._place, name))} does not open: it is damaged, or was sealed as something else or "
                "with another key. Restore it, or the key, from a backup."
            ) from error

    def _key_of(self, header: "Header", name: str) -> bytes:
        return derived(self._key, "sealer", json.dumps([*self._place, name]), header.salt)


@dataclass(frozen=True)
class Header:
    """What a sealed payload begins with."""

    magic: bytes  # 8, by which its kind is known
    salt: bytes  # 16, random, from which its key is made
    stamp: bytes  # what the kind puts there

    @property
    def text(self) -> bytes:
        """The header as it stands there."""
        return self.magic + self.salt + self.stamp


def new_header(magic: bytes, stamp: bytes = b"") -> Header:
    """The header of a payload that is to be sealed."""
    return Header(magic, secrets.token_bytes(_SALT_BYTES), stamp)


def read_header(file: BinaryIO, magic: bytes, stamp_bytes: int = 0) -> Header:
    """The header of a sealed payload; the file then stands at the first chunk.

    Raises:
        ValueError: another kind, or no sealed payload.
    """
    text = file.read(_MAGIC_BYTES + _SALT_BYTES + stamp_bytes)
    if len(text) < _MAGIC_BYTES + _SALT_BYTES + stamp_bytes or not text.startswith(magic):
        raise ValueError("not sealed")
    return Header(magic, text[_MAGIC_BYTES:][:_SALT_BYTES], text[_MAGIC_BYTES + _SALT_BYTES :])


def seal(header: Header, key: bytes, payload: Payload, place: bytes = b"") -> Iterator[bytes]:
    """Seal a payload, header and chunks.

    Args:
        header: a new one.
        key: 32 bytes, made from the header's salt.
        payload: any length.
        place: where it belongs.
    """
    yield header.text
    cipher, view = AESGCM(key), memoryview(payload)
    for nonce, start in _chunks(len(view)):
        yield cipher.encrypt(nonce, view[start : start + _CHUNK_BYTES], header.text + place)


def unseal(header: Header, key: bytes, file: BinaryIO, length: int, place: bytes = b"") -> bytearray:
    """Inverse of `seal`, into one buffer, which the caller may share.

    Args:
        header: as it was read from the file, which stands at the first chunk.
        key: as it was sealed.
        file: the sealed payload.
        length: of header and chunks together, bytes.
        place: as it was sealed.

    Raises:
        InvalidTag: not these bytes, this key, or this place.
        ValueError: the length cannot be.
    """
    cipher, associated = AESGCM(key), header.text + place
    length -= len(header.text)
    chunk = memoryview(bytearray(_CHUNK_BYTES + _TAG_BYTES))
    payload = bytearray(length - math.ceil(length / len(chunk)) * _TAG_BYTES)
    view = memoryview(payload)
    for nonce, start in _chunks(len(payload)):
        sealed = chunk[: file.readinto(chunk)]  # type: ignore[attr-defined]  # typeshed leaves it out of BinaryIO
        cipher.decrypt_into(nonce, sealed, associated, view[start : start + _CHUNK_BYTES])
    return payload


def seal_parts(header: Header, key: bytes, parts: Iterable[Payload], place: bytes = b"") -> Iterator[bytes]:
    """As `seal`, of a payload that comes in parts; no more than a part and a chunk are held.

    Args:
        header: a new one.
        key: 32 bytes, made from the header's salt.
        parts: of the payload, in order.
        place: where it belongs.
    """
    yield header.text
    cipher, associated, held, index = AESGCM(key), header.text + place, bytearray(), 0
    for part in parts:
        held += part
        while len(held) > _CHUNK_BYTES:  # the last chunk is known to be that only when nothing follows
            yield cipher.encrypt(_nonce(index, last=False), bytes(held[:_CHUNK_BYTES]), associated)
            del held[:_CHUNK_BYTES]
            index += 1
    yield cipher.encrypt(_nonce(index, last=True), bytes(held), associated)


def unseal_parts(header: Header, key: bytes, file: BinaryIO, place: bytes = b"") -> Iterator[bytes]:
    """Inverse of `seal_parts` and of `seal`, a chunk at a time. Only what came before the end is known to be whole.

    Args:
        header: as it was read from the file, which stands at the first chunk and ends with the last one.
        key: as it was sealed.
        file: the sealed payload.
        place: as it was sealed.

    Raises:
        InvalidTag: not these bytes, this key, or this place; or something is missing at the end.
    """
    cipher, associated, index = AESGCM(key), header.text + place, 0
    sealed = file.read(_CHUNK_BYTES + _TAG_BYTES)
    while True:
        following = file.read(_CHUNK_BYTES + _TAG_BYTES)
        yield cipher.decrypt(_nonce(index, last=not following), sealed, associated)
        if not following:
            return
        sealed, index = following, index + 1


def _chunks(length: int) -> Iterator[tuple[bytes, int]]:
    """Nonce and start of each chunk of a payload; an empty one has one empty chunk, so that it is sealed too."""
    last = max(0, (length - 1) // _CHUNK_BYTES)
    for index in range(last + 1):
        yield _nonce(index, last=index == last), index * _CHUNK_BYTES


def _nonce(index: int, *, last: bool) -> bytes:
    return index.to_bytes(_COUNTER_BYTES) + bytes([last])


__all__ = [
    "SUFFIX",
    "Header",
    "Payload",
    "Sealer",
    "new_header",
    "read_header",
    "seal",
    "seal_parts",
    "unseal",
    "unseal_parts",
]
