"""Studies as others send them: what may be written of them, when one is whole, and which one never will be.

    STAGING/<name>/<series>/<object>.dcm     name: drawn, and tells nothing; series, object: UIDs, digits and dots

Storage says neither how many objects a study has nor which is the last (PS3.4 B, PS3.18 10.5). So a study is whole
when every association that brought a part of it was released and nothing more has come for the quiet time; or, for
senders that keep an association open, when nothing has come for a minute. It is not whole where an association broke
off, an object was refused, or one UID came with two contents; that is told with it. A request of STOW-RS is an
association here: its end is its release.

An object that is answered with success is on the disk. Nothing here grows without end (`Limits`).
"""

import hashlib
import re
import secrets
import shutil
import threading
import time
from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path

from pydicom import dcmread
from pydicom import uid as classes

from client.pacs.receiving import PACKED, PLAIN
from common.system.files import write_private

# PS3.4 B.2.3, PS3.7 C, PS3.18 10.5.3: answers to a C-STORE, and reasons in an answer of STOW-RS.
STORED, NO_ROOM, NOT_AS_BEFORE, NOT_UNDERSTOOD = 0x0000, 0xA700, 0xA900, 0xC000
CLASS_NOT_TAKEN, SYNTAX_NOT_TAKEN = 0x0122, 0xC122
LONGEST_PAUSE_S = 60.0
# What a model may be asked about; labels, reports and other objects are refused, and the study is whole without them.
IMAGES = (
    classes.CTImageStorage, classes.EnhancedCTImageStorage, classes.MRImageStorage, classes.EnhancedMRImageStorage,
    classes.ComputedRadiographyImageStorage, classes.DigitalXRayImageStorageForPresentation,
    classes.DigitalXRayImageStorageForProcessing, classes.DigitalMammographyXRayImageStorageForPresentation,
    classes.DigitalMammographyXRayImageStorageForProcessing, classes.UltrasoundImageStorage,
    classes.OphthalmicPhotography8BitImageStorage, classes.PositronEmissionTomographyImageStorage,
    classes.SecondaryCaptureImageStorage,
)  # fmt: skip

_UID = re.compile(r"[0-9]+(\.[0-9]+)*", re.ASCII)
_LONGEST_UID = 64
_NAMES = ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID", "SOPClassUID")


@dataclass(frozen=True)
class Limits:
    """What is taken at most. studies: in the making at a time; objects, size: of one study; spare: bytes left free."""

    studies: int = 64
    objects: int = 20_000
    size: int = 16 << 30
    spare: int = 2 << 30


@dataclass(frozen=True)
class Head:
    """What an object says of itself: UIDs of its study, series, of itself, its class, and how it is written."""

    study: str
    series: str
    uid: str
    sop_class: str
    syntax: str


@dataclass(frozen=True)
class Arrived:
    """A study that came to its end. name: of its folder. problem: why it is not whole; None: it is."""

    name: str
    objects: int
    size: int
    repeated: int
    problem: str | None


@dataclass
class _Coming:
    name: str
    last: float
    digests: dict[str, bytes] = field(default_factory=dict)
    size: int = 0
    repeated: int = 0
    open: set[Hashable] = field(default_factory=set)
    problem: str | None = None


class Arrivals:
    """The studies in the making; for all threads. refused: objects that were not taken and belong to none of them."""

    def __init__(
        self,
        staging: Path,
        quiet_s: float,
        limits: Limits | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Nothing has come yet.

        Args:
            staging: where they are written.
            quiet_s: how long nothing must come until one is whole.
            limits: of what is taken.
            clock: seconds that only grow.
        """
        self.refused = 0
        self._staging, self._quiet_s, self._limits, self._clock = staging, quiet_s, limits or Limits(), clock
        self._coming: dict[str, _Coming] = {}
        self._spoilt: dict[Hashable, str] = {}
        self._lock = threading.Lock()

    def take(self, association: Hashable, encoded: bytes, head: Head | None) -> int:
        """Write an object.

        Args:
            association: that brings it.
            encoded: in the DICOM file format.
            head: of it, as `head_of` reads it.

        Returns:
            The status that it is answered with.
        """
        with self._lock:
            if head is None:
                self._refuse(association, "an object came that is no DICOM object")
                return NOT_UNDERSTOOD
            if head.sop_class not in IMAGES:
                self.refused += 1
                return CLASS_NOT_TAKEN
            if head.syntax not in (*PLAIN, *PACKED):
                self._refuse(association, "an image came in a transfer syntax that is not taken")
                return SYNTAX_NOT_TAKEN
            coming = self._coming.get(head.study)
            if coming is None:
                if len(self._coming) >= self._limits.studies:
                    self._refuse(association, "too many studies came at a time")
                    return NO_ROOM
                coming = self._coming[head.study] = _Coming(secrets.token_hex(8), self._clock())
            coming.open.add(association)
            coming.last = self._clock()
            coming.problem = coming.problem or self._spoilt.get(association)
            return self._write(coming, head.series, head.uid, encoded)

    def refuse(self, association: Hashable, why: str) -> None:
        """An object is not taken: no study of which its association brings a part is whole."""
        with self._lock:
            self._refuse(association, why)

    def alive(self, association: Hashable) -> None:
        """More is coming of an association, though no object is through."""
        with self._lock:
            for study in self._coming.values():
                if association in study.open:
                    study.last = self._clock()

    def ended(self, association: Hashable, problem: str | None = None) -> None:
        """An association is over.

        Args:
            association: as `take` was given it.
            problem: why its sender has not ended it in order; None: it has.
        """
        with self._lock:
            self._spoilt.pop(association, None)
            for study in self._coming.values():
                if association in study.open:
                    study.open.discard(association)
                    study.last = self._clock()
                    study.problem = study.problem or problem

    def finished(self) -> Iterator[Arrived]:
        """The studies that came to their end since the last call."""
        with self._lock:
            now = self._clock()
            for uid, study in list(self._coming.items()):
                quiet = LONGEST_PAUSE_S if study.open else 0.0
                if now - study.last >= max(self._quiet_s, quiet):
                    del self._coming[uid]
                    yield Arrived(study.name, len(study.digests), study.size, study.repeated, study.problem)

    def _refuse(self, association: Hashable, why: str) -> None:
        self.refused += 1
        self._spoilt.setdefault(association, why)
        for study in self._coming.values():
            if association in study.open:
                study.problem = study.problem or why

    def _write(self, study: _Coming, series: str, uid: str, encoded: bytes) -> int:
        digest = hashlib.sha256(encoded).digest()
        if (before := study.digests.get(uid)) is not None:
            if before == digest:
                study.repeated += 1
                return STORED
            study.problem = "one object came twice with two contents"
            return NOT_AS_BEFORE
        free = shutil.disk_usage(self._staging).free - len(encoded)
        too_many = len(study.digests) >= self._limits.objects or study.size + len(encoded) > self._limits.size
        if too_many or free < self._limits.spare:
            study.problem = "it is larger than is taken" if too_many else "the disk is full"
            return NO_ROOM
        try:
            write_private(self._staging / study.name / series / f"{uid}.dcm", encoded)
        except OSError:
            study.problem = "it could not be written"
            return NO_ROOM
        study.digests[uid] = digest
        study.size += len(encoded)
        return STORED


def head_of(encoded: bytes) -> Head | None:
    """What an object says of itself; None: it is no DICOM object, or its names are no UIDs."""
    try:
        header = dcmread(BytesIO(encoded), stop_before_pixels=True, specific_tags=list(_NAMES))
        names = [str(header[name].value) for name in _NAMES]
        names.append(str(header.file_meta.TransferSyntaxUID))
    except MemoryError:
        raise
    except Exception:  # noqa: BLE001 - a mutated object raises any of many types
        return None
    return Head(*names) if all(map(is_uid, names)) else None


def is_uid(text: str) -> bool:
    """Whether this is a UID (PS3.5 9): digits and dots, and so neither a path nor a name."""
    return len(text) <= _LONGEST_UID and _UID.fullmatch(text) is not None


__all__ = [
    "CLASS_NOT_TAKEN",
    "IMAGES",
    "LONGEST_PAUSE_S",
    "NOT_AS_BEFORE",
    "NOT_UNDERSTOOD",
    "NO_ROOM",
    "STORED",
    "SYNTAX_NOT_TAKEN",
    "Arrivals",
    "Arrived",
    "Head",
    "Limits",
    "head_of",
    "is_uid",
]
