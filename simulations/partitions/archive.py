"""What a partition may ask of the archive that it deals: what is said of its patients, and what their labels show."""

import logging
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from client.data.read.sources import find, folder_of, names_told, read
from client.data.study.labels import Vocabulary
from client.data.study.study import Reference
from client.data.study.table import read_table
from common.config import SourceConfig
from common.errors import ConfigError, DataError

_UNREAD = "unread"

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Archive:
    """A source, looked at anew for each question."""

    source: SourceConfig
    root: Path

    def values(
        self, *, column: str | None = None, attribute: str | None = None, pattern: str | None = None
    ) -> Mapping[str, str]:
        """What is said of each patient; one of whom nothing is said, or not everything read, is not among them.

        Args:
            column: of the source's table.
            attribute: of DICOM files, by keyword or tag.
            pattern: regular expression; its first group is the value, in the path of an image within the folder. An
                image elsewhere, which a table may name, has none.

        Raises:
            ConfigError: the source has no such column or attribute, or says two things of one patient.
        """
        asked = {"class_column": column, "class_attribute": attribute, "class_reports": False}
        folder = folder_of(self.source, self.root).absolute()
        told: dict[str, set[str]] = {}
        unread: set[str] = set()
        for one in self._references(self.source if pattern else self.source.model_copy(update=asked)):
            words = _within(pattern, one, folder) if pattern else _first_names(one)
            if words is None:
                unread.add(one.patient)
            else:
                told.setdefault(one.patient, set()).update(word for word in words if word)
        if unread:
            _log.warning("of %d patients a file cannot be read that should say where they belong", len(unread))
        known = {patient: words for patient, words in told.items() if patient not in unread}
        return _single(known, column or attribute or pattern)

    def listed(self, table: str, patients: str, column: str) -> Mapping[str, str]:
        """What a table of patients says of each of them; an empty cell says nothing.

        Args:
            table: a CSV within the source's folder.
            patients: its column with the patients, as the source names them.
            column: with the value.

        Raises:
            ConfigError: the table cannot be read, lacks a column, or says two things of one patient.
        """
        columns, rows = read_table(folder_of(self.source, self.root), table)
        for name in (patients, column):
            if name not in columns:
                raise ConfigError(f"the table {table!r} has no column {name!r}; it has {', '.join(columns)}.")
        told: dict[str, set[str]] = {}
        for row in rows:
            if row.cells[column]:
                told.setdefault(row.cells[patients], set()).add(row.cells[column])
        return _single(told, column)

    def strata(self, count: int) -> Mapping[str, str]:
        """The group of each patient, by label.

        The classes where the source tells those of whole images; else so many equal groups by the share of the images
        that is marked. Those whose labels cannot be read are a group of their own.
        """
        references = self._references(self.source)
        patients = {one.patient for one in references}
        if any(one.is_classed for one in references):
            groups = _by_class(references, self.source.label_map)
        else:
            groups = _by_share(references, count)
        if unread := len(patients - groups.keys()):
            _log.warning("%d patients have no label that can be read, and are dealt as a group of their own", unread)
        return {patient: groups.get(patient, _UNREAD) for patient in patients}

    def _references(self, source: SourceConfig) -> Sequence[Reference]:
        return [one for one in find(source, self.root).references if one.problem is None]


def _single(told: Mapping[str, Collection[str]], what: str | None) -> dict[str, str]:
    """The one value of each patient of whom one is told."""
    if several := [patient for patient, words in told.items() if len(words) > 1]:
        raise ConfigError(
            f"{len(several)} patients of the archive have two values of {what!r}, and a "
            "patient belongs to one site. Name what is the same in all images of a patient."
        )
    return {patient: next(iter(words)) for patient, words in told.items() if words}


def _within(pattern: str, reference: Reference, folder: Path) -> list[str]:
    inside = [path.absolute() for path in reference.images if path.absolute().is_relative_to(folder)]
    found = [re.search(pattern, path.relative_to(folder).as_posix()) for path in inside]
    return [one.group(1) or "" for one in found if one is not None]


def _first_names(reference: Reference) -> list[str] | None:
    """The first name of each thing that is said of an image; None: it cannot be read, or its files differ."""
    try:
        return [name for names in names_told(reference) for name in names[:1]]
    except DataError:
        return None


def _by_class(references: Sequence[Reference], label_map: Mapping[str, str]) -> dict[str, str]:
    told: dict[str, set[str]] = {}
    for one in references:
        if (names := _first_names(one)) is not None:
            told.setdefault(one.patient, set()).update(label_map.get(name, name) for name in names)
    return {patient: "|".join(sorted(words)) for patient, words in told.items()}


def _by_share(references: Sequence[Reference], count: int) -> dict[str, str]:
    shares: dict[str, list[float]] = {}
    for one in references:
        shares.setdefault(one.patient, []).extend(_marked(one))
    known = sorted((float(np.mean(found)), patient) for patient, found in shares.items() if found)
    digits = len(str(count - 1))  # so that their names have the groups' order
    return {patient: f"{place * count // len(known):0{digits}}" for place, (_, patient) in enumerate(known)}


def _marked(reference: Reference) -> list[float]:
    try:
        label = read(reference, Vocabulary.as_found(reference.label_map)).label
    except DataError:
        return []
    return [] if label is None else [float(np.count_nonzero(label)) / label.size]


__all__ = ["Archive"]
