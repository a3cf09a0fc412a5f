"""The working set: preprocessed studies, kept encrypted so that a second look at a cohort decodes nothing.

One file per study, in one folder per way of preprocessing, sealed by the site's vault (`client.data.keep.vault`): names
are HMACs, and a file's size tells the number of slices; what makes it out of date: `client.data.keep.entry`. The
payload is safetensors {images, labels}; never pickle.

Nothing is memory-mapped: what lies on disk is ciphertext. A cohort is decrypted once into memory, where epochs read.
"""

import json
import logging
import os
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import safetensors.torch
import torch
from torch import Tensor

from client.data.isolate.isolation import Job
from client.data.keep.code import reading_program, version
from client.data.keep.entry import Entry, entry_of, keep_only, name_of
from client.data.keep.vault import Vault
from client.data.study.study import Reference
from common.config import RunConfig, canonical
from common.errors import DataError

_SUFFIX = ".case"
_TYPES = {"F32": torch.float32, "U8": torch.uint8, "I32": torch.int32}  # as safetensors names them
# Ways of preprocessing that are kept; those used longest ago go first.
_KEPT_SETTINGS = 4

_log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Prepared:
    """A study as it is kept.

    images: (S, C, *sp) float32; labels: (S, *sp) uint8, or int32 where a label is a sum of classes; digest: of the
    image before preprocessing, by which the same image in two studies is known; label_digest: of its
    label then.
    """

    images: Tensor
    labels: Tensor
    digest: str = ""
    label_digest: str = ""


class Cache:
    """The preprocessed studies of one site for one run."""

    def __init__(self, folder: Path, site_key: bytes, run: RunConfig) -> None:
        """Name the place; nothing is written yet.

        Args:
            folder: of the site's cache; made with the first entry, for its owner only.
            site_key: secret key of the site; the cache's own keys are derived from it.
            run: its modality, channels, classes, what labels are, of regions the patch, preprocessing and model axes
                are part of the place. So are the code that reads and preprocesses, the versions of its libraries, and
                the number of threads.
        """
        self._root = folder
        self._vault = Vault(site_key, "cache")
        data = run.data  # what of it decides the images; splits and folds do not
        # A study whose regions are too many for the run's patch is set aside before it is kept: so the patch counts.
        label = (run.task.label, run.task.of_regions and run.training.patch_size, run.task.overlaps)
        settings = (data.modality, data.channels, data.classes, canonical(run.preprocessing), run.model.dims, *label)
        # A sum's rounding depends on the number of threads.
        program = (torch.get_num_threads(), version("torch"), *reading_program())
        self._folder = folder / self._vault.name("settings", *settings, *program)

    def entry(self, job: Job) -> Entry | None:
        """See `entry_of`."""
        return entry_of(job, self._folder / _file_name(self._vault, job.reference), self._vault)

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

    def write(self, entry: Entry, result: Prepared | DataError) -> None:
        """Keep a study, by best effort. One that was refused is read again."""
        if isinstance(result, Prepared):
            tensors = {"images": result.images.contiguous(), "labels": result.labels.contiguous()}
            digests = {"digest": result.digest, "label-digest": result.label_digest}
            self._vault.keep(entry.path, safetensors.torch.save(tensors, digests), entry.stamp)

    def keep_only(self, jobs: Iterable[Job]) -> None:
        """Drop what belongs to no study of the site any more, whatever the preprocessing, and settings long unused."""
        names = {_file_name(self._vault, job.reference) for job in jobs}
        try:
            if self._folder.is_dir():
                os.utime(self._folder)
            folders = [path for path in self._root.iterdir() if path.is_dir()] if self._root.is_dir() else []
            folders.sort(key=lambda path: path.stat().st_mtime_ns, reverse=True)
            for folder in folders[_KEPT_SETTINGS:]:
                shutil.rmtree(folder)
        except OSError as error:
            _log.warning("old settings of the cache cannot be removed (%s)", error.strerror)
            return
        for folder in folders[:_KEPT_SETTINGS]:
            keep_only(names, folder, "cache")


def drop(folder: Path, site_key: bytes, references: Iterable[Reference]) -> int:
    """Remove what is kept of these studies, whatever the preprocessing; how many files that were.

    Args:
        folder: of the site's cache.
        site_key: secret key of the site.
        references: of the studies.
    """
    vault = Vault(site_key, "cache")
    names = {_file_name(vault, reference) for reference in references}
    paths = [path for name in sorted(names) for path in folder.glob(f"*/{name}")]
    for path in paths:
        path.unlink(missing_ok=True)
    return len(paths)


def _file_name(vault: Vault, reference: Reference) -> str:
    return name_of(vault, reference) + _SUFFIX


def _unpack(payload: bytearray) -> Prepared:
    """Tensors of a safetensors text, in its own memory; the library's reader copies, which takes 8 times as long."""
    start = 8 + int.from_bytes(payload[:8], "little")
    parts = json.loads(payload[8:start])

    def tensor(name: str) -> Tensor:
        begin, end = parts[name]["data_offsets"]
        dtype = _TYPES[parts[name]["dtype"]]
        count = (end - begin) // dtype.itemsize
        return torch.frombuffer(payload, dtype=dtype, count=count, offset=start + begin).view(parts[name]["shape"])

    told = parts["__metadata__"]
    return Prepared(tensor("images"), tensor("labels"), told["digest"], told["label-digest"])


__all__ = ["Cache", "Prepared", "drop"]
