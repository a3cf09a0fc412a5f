"""What earlier checks found out, so that a second check reads only what is new or has changed.

One file per study and way of naming labels (as found, or as a run does; of several runs the last), sealed by the site's
vault and named by an HMAC. Its payload is facts, or code and reason, as JSON; a newline; the thumbnail as PNG.

The stamp tells an old entry from a current one: all of the study's reference, size and times of its files (as in
`client.data.keep.cache`), how its label is read, and the code and libraries that read it. A study that could not be
read at all is not kept: the disk may have been away, and to try again costs little.
"""

import json
import logging
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path

from client.data.isolate.isolation import Job
from client.data.keep.code import code_digest
from client.data.keep.vault import Vault
from client.data.quality.quality import Checked, facts_from_json, facts_to_json
from client.data.study.labels import Vocabulary
from common.errors import DataError, ErrorCode

_LIBRARIES = (
    *("wardround", "numpy", "pydicom", "highdicom", "nibabel", "pillow"),
    *("python-gdcm", "pylibjpeg-openjpeg", "pyjpegls"),
)
_NOT_KEPT = (ErrorCode.UNREADABLE, ErrorCode.NOT_OPENED, ErrorCode.OUT_OF_MEMORY)

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Place:
    """Where what was found out about a study is kept, and what it was made from."""

    path: Path
    stamp: bytes


class Catalogue:
    """The checked studies of one site. Its state: whether the disk still takes new ones."""

    def __init__(self, folder: Path, site_key: bytes) -> None:
        """Name the folder; it is made with the first entry, for its owner only."""
        self._folder = folder
        self._vault = Vault(site_key, "catalogue")
        self._writable = True

    def place(self, job: Job) -> Place | None:
        """The study's place, to be made BEFORE it is read; None where it has none, because it cannot be read at all."""
        if job.reference.problem is not None:
            return None
        try:
            files = [path.stat() for path in (*job.reference.images, *job.reference.labels)]
        except OSError:
            return None  # reading it will say why
        times = [(file.st_size, file.st_mtime_ns, file.st_ctime_ns) for file in files]
        way = (None if job.wanted is None else job.wanted.to_json(), job.empty_is_negative)
        stamp = self._vault.mac("stamp", vars(job.reference), times, way, _program())
        return Place(self._folder / self._name(job), stamp)

    def read(self, place: Place) -> Checked | DataError | None:
        """What was found out about a study; None when nothing was, or it has changed since."""
        payload = self._vault.read(place.path, place.stamp)
        if payload is None:
            return None
        try:
            text, _, thumbnail = bytes(payload).partition(b"\n")
            values = json.loads(text)
            if "code" in values:
                return DataError(values["reason"], ErrorCode(values["code"]))
            return Checked(facts_from_json(values), thumbnail)
        except (ValueError, KeyError, TypeError):
            self._vault.report_damage(place.path)
            return None

    def write(self, place: Place, result: Checked | DataError) -> None:
        """Keep what was found out. Best effort: a full disk ends the writing, not the check."""
        if not self._writable or (isinstance(result, DataError) and result.code in _NOT_KEPT):
            return
        if isinstance(result, DataError):
            payload = json.dumps({"code": result.code, "reason": str(result)}).encode()
        else:
            payload = json.dumps(facts_to_json(result.facts)).encode() + b"\n" + result.thumbnail
        try:
            self._vault.write(place.path, payload, place.stamp)
        except OSError as error:
            self._writable = False
            _log.warning(
                "the catalogue cannot be written (%s), so the next check reads these studies again. Free space in the "
                "site's home folder, or make it writable.",
                error.strerror,
            )

    def keep_only(self, jobs: Iterable[Job]) -> None:
        """Drop what belongs to no study of the site any more, and what a crash left behind."""
        names = {
            self._name(Job(job.reference, wanted))
            for job in jobs
            for wanted in (Vocabulary(), Vocabulary(classes=()), None)  # the two ways of naming labels, and without
        }
        try:
            for path in self._folder.iterdir() if self._folder.is_dir() else ():
                if path.name not in names:
                    path.unlink(missing_ok=True)
        except OSError as error:
            _log.warning("old entries of the catalogue cannot be removed (%s)", error.strerror)

    def _name(self, job: Job) -> str:
        # The first file too: two sources of a site may use the same keys.
        reference = job.reference
        way = "images" if job.wanted is None else job.wanted.classes is None
        return self._vault.name(reference.kind, reference.key, reference.images[:1], way)


@lru_cache(maxsize=1)
def _program() -> tuple[str, ...]:
    """What reads and judges the studies: this package's code, and versions."""
    return code_digest(), *map(version, _LIBRARIES)


__all__ = ["Catalogue", "Place"]
