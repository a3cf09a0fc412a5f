"""What may be written of what a PACS sends: the objects that were asked for, each once, each in its place.

    FOLDER/<series>/<object>.dcm        by their UIDs, which are digits and dots

An object is looked at before it is written: its header must say the study, the series and the object that were asked
for. So neither its place nor its name is ever the peer's choice. The header is parsed here, in the process that may
write to the staging folder only (client/pacs/process.py).
"""

import hashlib
import time
from collections.abc import Callable, Mapping
from io import BytesIO
from pathlib import Path

from pydicom import dcmread
from pydicom import uid as syntax

from client.pacs.problems import PacsError
from common.system.files import write_private

# Of one object, and of one answer to a search.
MOST_BYTES = 1 << 30
MOST_ANSWER_BYTES = 64 << 20
# As stored, so that nothing is lost and the PACS has least to do; it takes one of them for each object.
PLAIN = (syntax.ExplicitVRLittleEndian, syntax.ImplicitVRLittleEndian)
PACKED = (
    syntax.JPEGLosslessSV1, syntax.JPEGLossless, syntax.JPEGLSLossless, syntax.JPEGLSNearLossless,
    syntax.JPEG2000Lossless, syntax.JPEG2000, syntax.HTJ2KLossless, syntax.HTJ2K, syntax.RLELossless,
    syntax.JPEGBaseline8Bit, syntax.JPEGExtended12Bit,
)  # fmt: skip

_MIB = 1 << 20


class Meter:
    """Counts the bytes that come, and waits where they come faster than is allowed.

    total: so far. last: when the last of them came, of time.monotonic.
    """

    def __init__(self, rate: float | None, told: Callable[[int], None]) -> None:
        """Nothing has come yet.

        Args:
            rate: MiB a second at most; None: as fast as they come.
            told: called with the bytes so far.
        """
        self.total = 0
        self._rate, self._told = rate, told
        self._began = self.last = time.monotonic()

    def take(self, count: int) -> None:
        """So many bytes have come."""
        self.total += count
        self.last = time.monotonic()
        if self._rate is not None:
            due = self._began + self.total / (self._rate * _MIB)
            if (early := due - self.last) > 0:
                self.last = due  # while we wait it is not the peer who is silent
                time.sleep(early)
        self._told(self.total)

    @staticmethod
    def pause() -> None:
        """Let what has come be worked on first."""
        time.sleep(0.01)


class Receiver:
    """A study as it comes.

    files, size: written so far, and their bytes. repeated: objects that came again, just the same.
    """

    def __init__(self, folder: Path, study: str, expected: Mapping[str, str]) -> None:
        """Nothing has come yet.

        Args:
            folder: the study's, new.
            study: its UID.
            expected: UID of each object -> UID of its series.
        """
        self._folder, self._study, self._expected = folder, study, expected
        self._digests: dict[str, bytes] = {}
        self.repeated = self.size = 0

    @property
    def files(self) -> int:
        """Objects that were written."""
        return len(self._digests)

    @property
    def missing(self) -> int:
        """Objects that were asked for and have not come."""
        return len(self._expected) - len(self._digests)

    def take(self, encoded: bytes) -> None:
        """Write an object, as the PACS has sent it.

        Args:
            encoded: in the DICOM file format.

        Raises:
            PacsError: it is not one that was asked for, or not what came before under its name.
        """
        uid = self._uid_of(encoded)
        digest = hashlib.sha256(encoded).digest()
        if (before := self._digests.get(uid)) is not None:
            if before != digest:
                raise PacsError("one object came twice with two contents. Have the PACS checked for duplicate UIDs.")
            self.repeated += 1
            return
        place = self._folder / self._expected[uid] / f"{uid}.dcm"
        write_private(place, encoded, durable=False)  # flushed with its study
        self._digests[uid] = digest
        self.size += len(encoded)

    def _uid_of(self, encoded: bytes) -> str:
        tags = ["SOPInstanceUID", "SeriesInstanceUID", "StudyInstanceUID"]
        try:
            header = dcmread(BytesIO(encoded), stop_before_pixels=True, specific_tags=list(tags))
            uid, series, study = (str(header[tag].value) for tag in tags)
        except MemoryError:
            raise
        except Exception as error:
            raise PacsError("an object came that is no DICOM file. Have the study checked at the PACS.") from error
        if study != self._study or self._expected.get(uid) != series:
            raise PacsError("an object came that was not asked for. Have the PACS's index checked.")
        return uid


__all__ = ["MOST_ANSWER_BYTES", "MOST_BYTES", "PACKED", "PLAIN", "Meter", "Receiver"]
