"""The working set: preprocessed studies, kept encrypted so that a second look at a cohort decodes nothing.

One file per study, in one folder per way of preprocessing, sealed by the site's vault (`client.data.keep.vault`): names
are HMACs, and a file's size tells the number of slices. The payload is safetensors {images, labels}; never pickle.

The stamp, HMAC of what the study was made from, tells an old entry from a current one: all of its reference (paths,
patient, label map), and of every image and label file the size and the times of modification and of change, to the
nanosecond. To look at them takes microseconds, where hashing the content would cost more than the cache read. The
time of change is set by the kernel alone, so a file that was replaced and given its old time back is seen. What it
cannot see is a second write of the same length within one tick of the file system's clock.

Nothing is memory-mapped: what lies on disk is ciphertext. A cohort is decrypted once into memory, where epochs read.
"""

import json
import logging
import os
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import safetensors.torch
import torch
from torch import Tensor

from client.data.keep.code import code_digest
from client.data.keep.vault import Vault
from client.data.study.study import Reference
from common.config import RunConfig, canonical

_SUFFIX = ".case"
_TYPES = {"F32": torch.float32, "U8": torch.uint8}  # as safetensors names them
# Ways of preprocessing that are kept; those used longest ago go first.
_KEPT_SETTINGS = 4
# What decides the numbers that preprocessing gives, beside the code of this package.
_LIBRARIES = ("torch", "numpy", "pydicom", "nibabel", "pillow", "python-gdcm", "pylibjpeg-openjpeg", "pyjpegls")

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Entry:
    """Where a study is kept, and what it was made from. Made before the study is read: see `Cache.write`."""

    path: Path
    stamp: bytes


@dataclass(frozen=True, eq=False)
class Prepared:
    """A study as it is kept.

    images: (S, C, *sp) float32; labels: (S, *sp) uint8; digest: of the image before preprocessing, by which the same
    image in two studies is known.
    """

    images: Tensor
    labels: Tensor
    digest: str = ""


class Cache:
    """The preprocessed studies of one site for one run. Its state: whether the disk still takes new ones."""

    def __init__(self, folder: Path, site_key: bytes, run: RunConfig) -> None:
        """Name the place; nothing is written yet.

        Args:
            folder: of the site's cache; made with the first entry, for its owner only.
            site_key: secret key of the site; the cache's own keys are derived from it.
            run: its modality, channels, classes, preprocessing and model axes are part of the place. So are the code
                that reads and preprocesses, the versions of its libraries, and the number of threads: a sum's
                rounding depends on it.
        """
        self._root = folder
        self._vault = Vault(site_key, "cache")
        data = run.data  # what of it decides the images; splits and folds do not
        settings = (data.modality, data.channels, data.classes, canonical(run.preprocessing), run.model.dims)
        versions = [version(library) for library in _LIBRARIES]
        self._folder = folder / self._vault.name(
            "settings", *settings, torch.get_num_threads(), *versions, code_digest()
        )
        self._writable = True

    def entry(self, reference: Reference, *, empty_is_negative: bool = False) -> Entry | None:
        """The study's place; None where it has none, because it cannot be read at all.

        Args:
            reference: names its files.
            empty_is_negative: whether a label that marks nothing is one; it decides whether the study is kept at all.
        """
        if reference.problem is not None:
            return None
        try:
            files = [path.stat() for path in (*reference.images, *reference.labels)]
        except OSError:
            return None  # reading it will say why
        times = [(file.st_size, file.st_mtime_ns, file.st_ctime_ns) for file in files]
        stamp = self._vault.mac("stamp", vars(reference), empty_is_negative, times)
        return Entry(self._folder / self._file_name(reference), stamp)

    def read(self, entry: Entry) -> Prepared | None:
        """The study, bit for bit as written; None when it is not there.

        An entry that is out of date or damaged is not there: the study is read from its files again.
        """
        payload = self._vault.read(entry.path, entry.stamp)
        try:
            return None if payload is None else _unpack(payload)
        except (ValueError, KeyError):
            self._vault.report_damage(entry.path)
            return None

    def write(self, entry: Entry, prepared: Prepared) -> None:
        """Keep a study. Best effort: a full disk ends the writing, not the work.

        Args:
            entry: made BEFORE the study was read, so that files which changed meanwhile make it out of date.
            prepared: the study.
        """
        if not self._writable:
            return
        tensors = {"images": prepared.images.contiguous(), "labels": prepared.labels.contiguous()}
        try:
            self._vault.write(entry.path, safetensors.torch.save(tensors, {"digest": prepared.digest}), entry.stamp)
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

    def _file_name(self, reference: Reference) -> str:
        return _file_name(self._vault, reference)


def drop(folder: Path, site_key: bytes, references: Iterable[Reference]) -> None:
    """Remove what is kept of these studies, whatever the preprocessing.

    Args:
        folder: of the site's cache.
        site_key: secret key of the site.
        references: of the studies.
    """
    vault = Vault(site_key, "cache")
    for reference in references:
        for path in folder.glob(f"*/{_file_name(vault, reference)}"):
            path.unlink(missing_ok=True)


def _file_name(vault: Vault, reference: Reference) -> str:
    # The first file too: two sources of a site may use the same keys.
    return vault.name("study", reference.kind, reference.key, reference.images[:1]) + _SUFFIX


def _unpack(payload: bytearray) -> Prepared:
    """Tensors of a safetensors text, in its own memory; the library's reader copies, which takes 8 times as long."""
    start = 8 + int.from_bytes(payload[:8], "little")
    parts = json.loads(payload[8:start])

    def tensor(name: str) -> Tensor:
        begin, end = parts[name]["data_offsets"]
        dtype = _TYPES[parts[name]["dtype"]]
        count = (end - begin) // dtype.itemsize
        return torch.frombuffer(payload, dtype=dtype, count=count, offset=start + begin).view(parts[name]["shape"])

    return Prepared(tensor("images"), tensor("labels"), parts["__metadata__"]["digest"])


__all__ = ["Cache", "Entry", "Prepared", "drop"]
