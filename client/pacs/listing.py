"""What a PACS answers to a search, as our own records: what does not fit is left out and counted, nothing is endless.

Both ways to a PACS bring data sets of the same attributes (PS3.4 C.6.2.1, PS3.18 10.6). Their values are foreign: each
is read as text and checked by the record's own form.
"""

import re
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any, TypeVar

from pydicom import Dataset

from client.pacs.problems import PacsError
from client.pacs.query import Answer, Instance, Query, Series, Study, wanted_series
from common.config import Table, validate
from common.errors import ConfigError

STUDY_KEYS = ("StudyInstanceUID", "StudyDate", "StudyDescription", "ModalitiesInStudy", "PatientID", "AccessionNumber")
SERIES_KEYS = ("SeriesInstanceUID", "Modality", "BodyPartExamined", "NumberOfSeriesRelatedInstances")
INSTANCE_KEYS = (
    "SOPInstanceUID",
    "SOPClassUID",
    "Rows",
    "Columns",
    "BitsAllocated",
    "SamplesPerPixel",
    "NumberOfFrames",
)

MOST_STUDIES = 10_000
MOST_SERIES = 10_000  # of a study
MOST_INSTANCES = 100_000  # of a series

_T = TypeVar("_T")
_Record = TypeVar("_Record", bound=Table)


class Listing:
    """The studies of one search, as they come.

    studies: those that may be wanted, each once.
    """

    def __init__(self, query: Query) -> None:
        """Nothing has come yet."""
        self.studies: list[Study] = []
        self._query = query
        self._seen: set[str] = set()
        self._whole: list[Study] = []
        self._left_out: Counter[str] = Counter()

    def add(self, study: Study | None) -> None:
        """A study of the PACS's answer; None: one that cannot be read."""
        if study is None:
            self._left_out["study whose answer is not valid DICOM"] += 1
        elif study.uid not in self._seen:
            self._seen.add(study.uid)
            if self._query.fits(study):
                self.studies.append(study)
            else:
                self._left_out["study that was not asked for"] += 1

    def complete(self, study: Study, series: Iterable[Series | None]) -> None:
        """All series of a study."""
        found = list(bounded(series, MOST_SERIES, "series of one study"))
        readable = {one.uid: one for one in found if one is not None}
        self._left_out["series whose answer is not valid DICOM"] += found.count(None)
        wanted, rest = wanted_series(self._query, readable.values())
        if not wanted:
            self._left_out["study without such images"] += 1
            return
        for one in rest:
            modality = one.modality if re.fullmatch(r"[A-Z]{2,8}", one.modality) else "without modality"
            self._left_out[f"series that was not asked for ({modality})"] += 1
        self._whole.append(study.model_copy(update={"series": wanted}))

    def answer(self) -> Answer:
        """What was found."""
        return Answer(studies=tuple(self._whole), left_out=dict(+self._left_out))


def bounded(found: Iterable[_T], most: int, what: str) -> Iterator[_T]:
    """Entries, as long as there are not too many.

    Raises:
        PacsError: there are.
    """
    for number, one in enumerate(found, start=1):
        if number > most:
            raise PacsError(
                f"the PACS answers with more than {most:,} {what}. Narrow the query, such as with dates; if it is "
                "narrow, the PACS ignores it."
            )
        yield one


def study_of(found: Dataset) -> Study | None:
    """A study's record; None where the answer makes none."""
    return _record(
        Study,
        uid=_text(found, "StudyInstanceUID"),
        patient=_text(found, "PatientID"),
        date=_text(found, "StudyDate"),
        description=_text(found, "StudyDescription") if "StudyDescription" in found else None,
    )


def series_of(found: Dataset) -> Series | None:
    """A series' record likewise."""
    return _record(
        Series,
        uid=_text(found, "SeriesInstanceUID"),
        modality=_text(found, "Modality"),
        body_part=_text(found, "BodyPartExamined"),
        instances=_number(found, "NumberOfSeriesRelatedInstances"),
    )


def instance_of(found: Dataset) -> Instance:
    """An object's record.

    Raises:
        PacsError: the answer makes none: the series could not be known to be whole.
    """
    rows, columns, bits = (_number(found, tag) for tag in ("Rows", "Columns", "BitsAllocated"))
    size = None
    if rows is not None and columns is not None and bits is not None:
        frames, samples = _number(found, "NumberOfFrames") or 1, _number(found, "SamplesPerPixel") or 1
        size = rows * columns * bits // 8 * frames * samples
    record = _record(Instance, uid=_text(found, "SOPInstanceUID"), sop_class=_text(found, "SOPClassUID"), size=size)
    if record is None:
        raise PacsError("the PACS lists an object without a valid UID. Have the study checked there.")
    return record


def _record(kind: type[_Record], **values: Any) -> _Record | None:
    try:
        return validate(kind, values)
    except ConfigError:
        return None


def _text(found: Dataset, keyword: str) -> str:
    try:
        value = found.get(keyword)
    except Exception:  # noqa: BLE001 - a value that cannot be decoded raises any of many types
        return ""
    return "" if value is None else str(value).strip()


def _number(found: Dataset, keyword: str) -> int | None:
    text = _text(found, keyword)
    return int(text) if re.fullmatch(r"\d{1,12}", text) else None


__all__ = [
    "INSTANCE_KEYS",
    "MOST_INSTANCES",
    "MOST_STUDIES",
    "SERIES_KEYS",
    "STUDY_KEYS",
    "Listing",
    "bounded",
    "instance_of",
    "series_of",
    "study_of",
]
