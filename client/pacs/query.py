"""What to ask a PACS for, and what it says that it has.

Attributes and matching: DICOM PS3.4 C.2.2.2 (wild cards, ranges of dates, lists), C.6.2.1 (study root). A PACS may
leave a key unmatched and answer with more, so what comes is matched here again.
"""

import csv
import datetime
import fnmatch
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, Field

from common.config import Table, validate
from common.errors import ConfigError

LABELS = ("SEG", "RTSTRUCT")

_DAY = r"\d{4}-\d\d-\d\d"
_MOST_ACCESSIONS = 20_000

# PS3.5 9: numbers with dots between. Leading zeros are forbidden there and found in practice.
Uid = Annotated[str, Field(pattern=r"^[0-9]+(\.[0-9]+)*$", max_length=64)]
# SH: no wild card, no list.
_WORD = r"[^\x00-\x1f\\*?]{1,16}"


def _dates(text: str) -> str:
    if not re.fullmatch(rf"{_DAY}(\.\.({_DAY})?)?|\.\.{_DAY}", text):
        raise ValueError("dates are a day or two with .. between, such as 2024-01-01..2024-06-30 or 2024-01-01..")
    days = [datetime.date.fromisoformat(day) for day in re.findall(_DAY, text)]  # its own words say what is wrong
    if days != sorted(days):
        raise ValueError("the first day comes after the last. Write the earlier one first")
    return text


def _code(text: str) -> str:
    if not re.fullmatch(r"[A-Z0-9][A-Z0-9 _]{0,15}", text):
        raise ValueError("a modality or body part is a code in capitals, such as CT or LIVER, without * and ?")
    return text


def _description(text: str) -> str:
    if not re.fullmatch(r"[^\x00-\x1f\\]{1,64}", text):
        raise ValueError("a description has 1 to 64 signs, without a backslash")
    return text


class Query(Table):
    """Which studies; all that is given must fit."""

    # A day, or the first and the last with .. between; one of the two may be missing.
    dates: Annotated[str, AfterValidator(_dates)] | None = None
    # Of the images, such as CT. Series of other modalities are left out; labels come with their images.
    modality: Annotated[str, AfterValidator(_code)] | None = None
    # Of the study; * stands for any signs, ? for one.
    description: Annotated[str, AfterValidator(_description)] | None = None
    # Of the series.
    body_part: Annotated[str, AfterValidator(_code)] | None = None
    accessions: tuple[Annotated[str, Field(pattern=rf"^{_WORD}$")], ...] = ()

    @property
    def days(self) -> tuple[str, str]:
        """First and last day as DICOM writes them; empty: open."""
        if self.dates is None:
            return "", ""
        first, between, last = self.dates.partition("..")
        return first.replace("-", ""), (last if between else first).replace("-", "")

    @property
    def date_range(self) -> str:
        """StudyDate to match; empty: any."""
        first, last = self.days
        return first if first == last else f"{first}-{last}"

    def fits(self, study: "Study") -> bool:
        """Whether a study is what was asked for, as far as the PACS has told of it."""
        first, last = self.days
        if study.date and not (first or "0") <= study.date <= (last or "9"):
            return False
        if self.description is not None and study.description is not None:
            return fnmatch.fnmatchcase(study.description.lower(), _pattern(self.description.lower()))
        return True

    def wants(self, series: "Series") -> bool:
        """Whether a series is among the images that are asked for."""
        if series.modality in LABELS:
            return False
        is_part = self.body_part is None or series.body_part.upper() == self.body_part
        return is_part and self.modality in (None, series.modality)


class Series(Table):
    """A series as the PACS lists it. instances: None where it does not say."""

    uid: Uid
    modality: Annotated[str, Field(max_length=16)] = ""
    body_part: Annotated[str, Field(max_length=64)] = ""
    instances: Annotated[int, Field(ge=0)] | None = None


class Study(Table):
    """A study likewise; series are the wanted ones, with the labels. patient: the id, in whatever form."""

    uid: Uid
    patient: Annotated[str, Field(max_length=256)] = ""
    date: Annotated[str, Field(pattern=r"^(\d{8})?$")] = ""
    description: Annotated[str, Field(max_length=256)] | None = None
    series: tuple[Series, ...] = ()

    @property
    def is_labelled(self) -> bool:
        """Whether a label lies beside the images."""
        return any(one.modality in LABELS for one in self.series)


class Instance(Table):
    """An object of a series. sop_class: empty where the PACS does not say. size: of its pixels unpacked, likewise."""

    uid: Uid
    sop_class: Annotated[str, Field(max_length=64)] = ""
    size: Annotated[int, Field(ge=0)] | None = None


class Answer(Table):
    """What a search has found. left_out: studies and series, by reason."""

    studies: tuple[Study, ...] = ()
    left_out: dict[str, int] = Field(default_factory=dict)


def query_of(given: Mapping[str, str]) -> Query:
    """The query that a person has typed; `accessions` names a CSV file.

    Raises:
        ConfigError: a key is unknown, a value has another form, or nothing is asked for.
    """
    values: dict[str, Any] = dict(given)
    if "accessions" in values:
        values["accessions"] = accessions_in(Path(values["accessions"]))
    query = validate(Query, values, "--query", from_file=True)
    if query == Query():
        raise ConfigError(
            "without a query all that the PACS has would be pulled. Say which studies, such as --query modality=CT "
            "--query dates=2024-01-01..2024-06-30."
        )
    return query


def accessions_in(path: Path) -> list[str]:
    """The accession numbers of a CSV file: its column accession (or AccessionNumber), or all of one without a heading.

    Raises:
        ConfigError: the file cannot be read, or has no such column; what stands in it is not repeated.
    """
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            rows = [row for row in csv.reader(file) if any(cell.strip() for cell in row)]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ConfigError(f"{path} cannot be read ({error}). Give a CSV file in UTF-8.") from error
    if not rows:
        raise ConfigError(f"{path} is empty. Give a CSV file with a column accession.")
    headings = [re.sub(r"[^a-z]", "", cell.lower()) for cell in rows[0]]
    at = next((number for number, heading in enumerate(headings) if heading in ("accession", "accessionnumber")), None)
    if at is None and len(rows[0]) > 1:
        raise ConfigError(f"{path} has no column accession. Name it so in the first line.")
    numbers = [row[at or 0].strip() if len(row) > (at or 0) else "" for row in rows[0 if at is None else 1 :]]
    for number, text in enumerate(numbers, start=1 if at is None else 2):
        if not re.fullmatch(_WORD, text):
            raise ConfigError(
                f"row {number} of {path} has no accession number: expected 1 to 16 signs, without * ? and \\."
            )
    if len(numbers) > _MOST_ACCESSIONS:
        raise ConfigError(f"{path} has {len(numbers)} rows, at most {_MOST_ACCESSIONS} are taken. Split it.")
    return list(dict.fromkeys(numbers))


def wanted_series(query: Query, series: Iterable[Series]) -> tuple[tuple[Series, ...], list[Series]]:
    """The series of a study that are pulled: the wanted images, and where there are such, the labels. And the rest."""
    found: Sequence[Series] = list(series)
    images = [one for one in found if query.wants(one)]
    wanted = [one for one in found if one in images or (images and one.modality in LABELS)]
    return tuple(wanted), [one for one in found if one not in wanted]


def _pattern(text: str) -> str:
    """For fnmatch, in which [ has a meaning that DICOM does not give it."""
    return text.replace("[", "[[]")


__all__ = [
    "LABELS",
    "Answer",
    "Instance",
    "Query",
    "Series",
    "Study",
    "Uid",
    "accessions_in",
    "query_of",
    "wanted_series",
]
