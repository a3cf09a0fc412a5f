"""Whose the images are, and at which site: what names, folders, tables and headers tell, else a partition.

Patients: a pattern in the names, where several images go by one. Sites: the table's column, the first folders that the
paths differ in, or the name of the institution in DICOM. A value with fewer patients than a site needs is left out, and
told. Where nothing tells sites apart the patients are dealt in equal parts.
"""

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath

from client.data.read.pairs import patient_of
from common.config import SourceConfig
from common.errors import ConfigError, DataError, ErrorCode
from common.text import as_name
from simulations.drafts.folder import Look
from simulations.partitions import Archive

# One who trains, one who validates, one who tests.
FEWEST = 3
_MOST_SITES = 20
_THREE_SITES = 12  # patients from which three sites are dealt, instead of two
_LONGEST = 63
# A number after a word for a person; the same name but for the side, or the number of a slice. First group: the person.
_PATTERNS = (
    r"(?i)(?:^|/)((?:patient|pat|subject|subj|sub|person|pid|case|p)[_-]?\d+)(?=[_\-./]|$)",
    r"(?i)^(.+?)[_-]?(?:left|right|od|os)$",
    r"^(.+?)[_-]?[LR]$",
    r"(?i)^(.+?)[_-](?:slice|frame|img|image|view|z|s)[_-]?\d+$",
)
_OF_FOLDER = r"^([^/]+)/"
_PERSONS = re.compile(r"(?i)(?:patient|pat|subject|subj|sub|person|pid|case|p)?[_-]?\d+")


@dataclass(frozen=True)
class Sites:
    """partition: keys of [partition] beside `source`. sizes: patients by site. said: how they were told apart.

    left_out: patients by a value that is of too few.
    """

    partition: Mapping[str, object]
    sizes: Mapping[str, int]
    said: str
    left_out: Mapping[str, int] = field(default_factory=dict)


def with_patients(look: Look) -> Look:
    """The same, with the patients that a pattern in the names tells, where one does and nobody has said it."""
    source = look.source
    if source.patient_pattern is not None or source.csv is not None or source.kind not in ("nifti", "images"):
        return look
    own = all(study.patient == study.key for study in look.studies)  # BIDS tells its subjects
    patterns = (*_PATTERNS, *((_OF_FOLDER,) if _folders_are_persons(look) else ()))
    for pattern in patterns if own else ():
        named = [patient_of(study.key, pattern)[0] for study in look.studies]
        if all(named) and FEWEST <= len(set(named)) < len(named):
            studies = (replace(study, patient=name) for study, name in zip(look.studies, named, strict=True))
            return replace(look, source=source.model_copy(update={"patient_pattern": pattern}), studies=tuple(studies))
    return look


def alike(look: Look) -> int:
    """How many patients may be the same people by some names, though not by all, as the left and right eye are."""
    patients = sorted({study.patient for study in look.studies})
    if look.source.patient_pattern is not None or look.source.kind == "dicom":
        return 0
    most = 0
    for pattern in _PATTERNS:
        named = Counter(name for patient in patients if (name := patient_of(patient, pattern)[0]))
        most = max(most, sum(count for count in named.values() if count > 1))
    return most


def deal(look: Look) -> Sites:
    """The sites, by what tells them apart; else equal parts.

    Raises:
        DataError: too few patients for two sites.
    """
    patients = {study.patient for study in look.studies}
    if len(patients) < 2 * FEWEST:
        raise DataError(
            f"the folder has {len(patients)} patients with images that can be used; two sites with {FEWEST} each, who "
            f"train, validate and test, want {2 * FEWEST}. Add some, or write a scenario by hand (docs/scenarios.md).",
            ErrorCode.NO_DATA,
        )
    for keys, what in _ways(look):
        told = _values(look.source, keys)
        counts = Counter(value for patient, value in told.items() if patient in patients)
        kept = {value: count for value, count in sorted(counts.items()) if count >= FEWEST}
        if 2 <= len(kept) <= _MOST_SITES:
            return _by_value(keys, what, kept, counts, len(patients))
    count = 3 if len(patients) >= _THREE_SITES else 2
    names = [f"site-{number}" for number in range(1, count + 1)]
    sizes = {name: len(patients) // count + (place < len(patients) % count) for place, name in enumerate(names)}
    return Sites({"kind": "equal", "sites": names}, sizes, "nothing tells sites apart: dealt in equal parts, by chance")


def _by_value(
    keys: Mapping[str, str], what: str, kept: Mapping[str, int], counts: Mapping[str, int], patients: int
) -> Sites:
    named: dict[str, str] = {}
    for number, value in enumerate(kept, start=1):
        name = as_name(value)[:_LONGEST].strip("-")
        named[name if name and name not in named else f"site-{number}"] = value
    values = {name: [value] for name, value in named.items() if name != value}
    left_out = {value: count for value, count in counts.items() if value not in kept}
    if untold := patients - sum(counts.values()):
        left_out["nothing"] = untold
    return Sites(
        {"kind": "by-value", "sites": list(named), **keys, **({"values": values} if values else {})},
        {name: kept[value] for name, value in named.items()},
        what,
        left_out,
    )


def _ways(look: Look) -> list[tuple[dict[str, str], str]]:
    ways = []
    if look.site_column is not None:
        ways.append(({"column": look.site_column}, f"by the column {look.site_column!r} of {look.source.csv}"))
    if look.source.csv is None and (pattern := _folder_pattern(look)) is not None:
        ways.append(({"pattern": pattern}, "by their folders"))
    if look.source.kind == "dicom":
        ways.append(({"attribute": "InstitutionName"}, "by InstitutionName of the DICOM files"))
    return ways


def _values(source: SourceConfig, keys: Mapping[str, str]) -> Mapping[str, str]:
    """What is said of each patient; nothing where it says two things of one."""
    try:
        return Archive(source, Path(source.path)).values(**keys)
    except ConfigError:
        return {}


def _folder_pattern(look: Look) -> str | None:
    """The first folder that paths differ in; None where files lie together, or each folder is a patient's."""
    parts = [PurePosixPath(Path(study.name).as_posix()).parts for study in look.studies]
    folders = [path if look.source.kind == "dicom" else path[:-1] for path in parts]
    shared = 0
    while all(len(path) > shared for path in folders) and len({path[shared] for path in folders}) == 1:
        shared += 1
    if not all(len(path) > shared for path in folders):
        return None
    return f"^{re.escape('/'.join([*folders[0][:shared], '']))}([^/]+)/"


def _folders_are_persons(look: Look) -> bool:
    """Whether the first folders are so many, or named so, that they are people and no sites."""
    folders = {PurePosixPath(study.key).parts[0] for study in look.studies if "/" in study.key}
    return len(folders) > _MOST_SITES or (bool(folders) and all(_PERSONS.fullmatch(name) for name in folders))


__all__ = ["FEWEST", "Sites", "alike", "deal", "with_patients"]
