"""The working set: preprocessed studies, kept encrypted so that a second look at a cohort decodes nothing.

One file per study, in one folder per way of preprocessing. Names are HMACs; a file's size tells the number of slices
and nothing else is in the clear.

    file  = header | chunk 0 | chunk 1 | ...
    header = magic (8) | salt (16) | stamp (32)
    chunk = AES-256-GCM of 1 MiB of the payload (the last one: of what is left), 16 bytes longer by its tag
    payload = safetensors {images, labels}; never pickle

The key is made for each file by HKDF-SHA256 from the site key and the file's random salt, so the nonce need only count:
chunk index (11 bytes, big-endian) | 1 for the last chunk, else 0 (1 byte). Header, folder and file name are
authenticated with every chunk. A chunk that is changed, moved, cut off, repeated or taken from another file does not
open. This is the STREAM construction, as in https://age-encryption.org/v1.

The stamp, HMAC of what the study was made from, tells an old entry from a current one: all of its reference (paths,
patient, label map), and of every image and label file the size and the times of modification and of change, to the
nanosecond. To look at them takes microseconds, where hashing the content would cost more than the cache read. The
time of change is set by the kernel alone, so a file that was replaced and given its old time back is seen. What it
cannot see is a second write of the same length within one tick of the file system's clock.

Nothing is memory-mapped: what lies on disk is ciphertext. A cohort is decrypted once into memory, where epochs read.
"""

import hashlib
import hmac
import json
import logging
import math
import os
import secrets
import shutil
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property, lru_cache
from importlib.metadata import version
from pathlib import Path
from typing import BinaryIO

import safetensors.torch
import torch
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from torch import Tensor

from client.data.study import Reference
from common.config import RunConfig, canonical

_MAGIC = b"WRCACHE1"
_SALT_BYTES = 16
_STAMP_BYTES = 32
_HEADER_BYTES = len(_MAGIC) + _SALT_BYTES + _STAMP_BYTES
_TAG_BYTES = 16
_CHUNK_BYTES = 2**20
_COUNTER_BYTES = 11
_NAME_HEX = 32
_ENCRYPTION = b"wardround cache v1: encryption"
_NAMING = b"wardround cache v1: names and stamps"
_SUFFIX = ".case"
_TYPES = {"F32": torch.float32, "U8": torch.uint8}  # as safetensors names them
# Ways of preprocessing that are kept; those used longest ago go first.
_KEPT_SETTINGS = 4
# What decides the numbers that preprocessing gives, beside the code of this package.
_LIBRARIES = ("torch", "numpy", "pydicom", "nibabel", "pillow")

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Entry:
    """Where a study is kept, and what it was made from. Made before the study is read: see `Cache.write`."""

    path: Path
    stamp: bytes


class Cache:
    """The preprocessed studies of one site for one run. Its state: whether the disk still takes new ones."""

    def __init__(self, folder: Path, site_key: bytes, run: RunConfig) -> None:
        """Name the place; nothing is written yet.

        Args:
            folder: of the site's cache; made with the first entry, for its owner only.
            site_key: secret key of the site; the cache's own keys are derived from it.
            run: its data contract, preprocessing and model axes are part of the place. So are the code that reads and
                preprocesses, the versions of its libraries, and the number of threads: a sum's rounding depends on it.
        """
        self._root = folder
        self._site_key = site_key
        settings = (canonical(run.data), canonical(run.preprocessing), run.model.dims, torch.get_num_threads())
        versions = [version(library) for library in _LIBRARIES]
        self._folder = folder / self._name("settings", *settings, *versions, _code_digest(Path(__file__).parent))
        self._writable = True

    def entry(self, reference: Reference) -> Entry | None:
        """The study's place; None where it has none, because it cannot be read at all."""
        if reference.problem is not None:
            return None
        try:
            files = [path.stat() for path in (*reference.images, *reference.labels)]
        except OSError:
            return None  # reading it will say why
        times = [(file.st_size, file.st_mtime_ns, file.st_ctime_ns) for file in files]
        return Entry(self._folder / self._file_name(reference), self._mac("stamp", vars(reference), times))

    def read(self, entry: Entry) -> tuple[Tensor, Tensor] | None:
        """Images (S, C, *sp) float32 and labels (S, *sp) uint8, bit for bit as written; None when they are not there.

        An entry that is out of date or damaged is not there: the study is read from its files again.
        """
        name = entry.path.stem
        try:
            with entry.path.open("rb") as file:
                header = file.read(_HEADER_BYTES)
                if _is_header(header) and not hmac.compare_digest(header[-_STAMP_BYTES:], entry.stamp):
                    return None
                return _unpack(self._open(header, file, entry.path))
        except FileNotFoundError:
            return None
        except OSError as error:
            _log.warning("cache entry %s cannot be read (%s); its study is decoded again", name, error.strerror)
        except (InvalidTag, ValueError, KeyError):
            _log.warning("cache entry %s is damaged; its study is decoded again", name)
        return None

    def write(self, entry: Entry, images: Tensor, labels: Tensor) -> None:
        """Keep a study. Best effort: a full disk ends the writing, not the work.

        Args:
            entry: made BEFORE the study was read, so that files which changed meanwhile make it out of date.
            images: (S, C, *sp) float32.
            labels: (S, *sp) uint8.
        """
        if not self._writable:
            return
        payload = safetensors.torch.save({"images": images.contiguous(), "labels": labels.contiguous()})
        partial = entry.path.with_suffix(f".{secrets.token_hex(8)}.partial")
        try:
            for folder in (self._root, self._folder):
                folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            try:
                with os.fdopen(descriptor, "wb") as file:
                    file.writelines(self._seal(entry, payload))
                partial.replace(entry.path)
            finally:
                partial.unlink(missing_ok=True)
        except OSError as error:
            self._writable = False
            _log.warning(
                "the cache cannot be written (%s). The work goes on without it, and the next start decodes these "
                "studies again. Free space in the site's home folder, or make it writable.",
                error.strerror,
            )

    def keep_only(self, references: Iterable[Reference]) -> None:
        """Drop what belongs to no study of the site any more, whatever the preprocessing, and settings long unused."""
        names = {self._file_name(reference) for reference in references}
        try:
            if self._folder.is_dir():
                os.utime(self._folder)
            folders = [path for path in self._root.iterdir() if path.is_dir()] if self._root.is_dir() else []
            folders.sort(key=lambda path: path.stat().st_mtime_ns, reverse=True)
            for folder in folders[_KEPT_SETTINGS:]:
                shutil.rmtree(folder)
            for folder in folders[:_KEPT_SETTINGS]:
                for path in folder.iterdir():
                    if path.name not in names:
                        path.unlink(missing_ok=True)
        except OSError as error:
            _log.warning("old cache entries cannot be removed (%s)", error.strerror)

    def _seal(self, entry: Entry, payload: bytes) -> Iterator[bytes]:
        header = _MAGIC + secrets.token_bytes(_SALT_BYTES) + entry.stamp
        yield header
        cipher, associated = self._cipher(header), _associated(header, entry.path)
        view = memoryview(payload)
        for nonce, start in _chunks(len(payload)):
            yield cipher.encrypt(nonce, view[start : start + _CHUNK_BYTES], associated)

    def _open(self, header: bytes, file: BinaryIO, path: Path) -> bytearray:
        """The payload of a file that stands after its header; into one buffer, which the tensors then share."""
        cipher, associated = self._cipher(header), _associated(header, path)
        chunk = memoryview(bytearray(_CHUNK_BYTES + _TAG_BYTES))
        length = os.fstat(file.fileno()).st_size - _HEADER_BYTES
        payload = bytearray(length - math.ceil(length / len(chunk)) * _TAG_BYTES)
        view = memoryview(payload)
        for nonce, start in _chunks(len(payload)):
            sealed = chunk[: file.readinto(chunk)]  # type: ignore[attr-defined]  # typeshed leaves it out of BinaryIO
            cipher.decrypt_into(nonce, sealed, associated, view[start : start + _CHUNK_BYTES])
        return payload

    def _cipher(self, header: bytes) -> AESGCM:
        salt = header[len(_MAGIC) : len(_MAGIC) + _SALT_BYTES]
        return AESGCM(_derive(self._site_key, _ENCRYPTION, salt))

    def _file_name(self, reference: Reference) -> str:
        # The first file too: two sources of a site may use the same keys.
        return self._name("study", reference.kind, reference.key, reference.images[:1]) + _SUFFIX

    def _name(self, *parts: object) -> str:
        return self._mac(*parts).hex()[:_NAME_HEX]

    def _mac(self, *parts: object) -> bytes:
        return hmac.new(
            self._naming_key, json.dumps(parts, default=str, sort_keys=True).encode(), hashlib.sha256
        ).digest()

    @cached_property
    def _naming_key(self) -> bytes:
        return _derive(self._site_key, _NAMING, b"")


@lru_cache
def _code_digest(package: Path) -> str:
    """SHA-256 of a package's modules: an update of Wardround that leaves them alone keeps the cache."""
    modules = sorted(package.glob("*.py"))
    return hashlib.sha256(b"".join(hashlib.sha256(path.read_bytes()).digest() for path in modules)).hexdigest()


def _derive(site_key: bytes, purpose: bytes, salt: bytes) -> bytes:
    """A key of 32 bytes for one purpose; the site key itself keys the pseudonyms (RFC 5869)."""
    return HKDF(SHA256(), length=32, salt=salt, info=purpose).derive(site_key)


def _associated(header: bytes, path: Path) -> bytes:
    return header + f"{path.parent.name}/{path.name}".encode()


def _is_header(header: bytes) -> bool:
    return len(header) == _HEADER_BYTES and header.startswith(_MAGIC)


def _chunks(length: int) -> Iterator[tuple[bytes, int]]:
    """Nonce and start of each chunk of a payload."""
    last = (length - 1) // _CHUNK_BYTES
    for index in range(last + 1):
        yield index.to_bytes(_COUNTER_BYTES) + bytes([index == last]), index * _CHUNK_BYTES


def _unpack(payload: bytearray) -> tuple[Tensor, Tensor]:
    """Tensors of a safetensors text, in its own memory; the library's reader copies, which takes 8 times as long."""
    start = 8 + int.from_bytes(payload[:8], "little")
    parts = json.loads(payload[8:start])

    def tensor(name: str) -> Tensor:
        begin, end = parts[name]["data_offsets"]
        dtype = _TYPES[parts[name]["dtype"]]
        count = (end - begin) // dtype.itemsize
        return torch.frombuffer(payload, dtype=dtype, count=count, offset=start + begin).view(parts[name]["shape"])

    return tensor("images"), tensor("labels")


__all__ = ["Cache", "Entry"]
