"""Real hospitals: patients by what a table, a DICOM attribute or a file name says of where they come from."""

import logging
import re
from collections import Counter
from collections.abc import Collection, Mapping
from typing import Literal, Self

from pydantic import Field, model_validator

from common.errors import ConfigError
from simulations.partitions.archive import Archive
from simulations.partitions.partition import Partition

_log = logging.getLogger(__name__)


class ByValue(Partition):
    """`column` (of the source's table, or of `table`), `attribute` (of DICOM files) or `pattern` says the value.

    pattern: its first group, in the path of a patient's image within the source's folder. values: those of each site;
    one that has none there is called like its own. table: a CSV of patients in the source's folder, whose
    `patient-column` names them as the source does.
    """

    kind: Literal["by-value"] = "by-value"
    column: str | None = None
    table: str | None = None
    patient_column: str = "id"
    attribute: str | None = None
    pattern: str | None = None
    values: dict[str, tuple[str, ...]] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _says_one_thing(self) -> Self:
        if sum(one is not None for one in (self.column, self.attribute, self.pattern)) != 1:
            raise ValueError("by-value needs exactly one of column, attribute and pattern")
        if self.table is not None and self.column is None:
            raise ValueError("by-value with a table needs its column")
        try:
            if self.pattern is not None and re.compile(self.pattern).groups < 1:
                raise ValueError(f"pattern {self.pattern!r} has no group: put what tells the site in parentheses")
        except re.error as error:
            raise ValueError(f"pattern {self.pattern!r} is no regular expression: {error}") from error
        if unknown := sorted(set(self.values) - set(self.sites)):
            raise ValueError(f"values names sites {unknown} that are not among {list(self.sites)}")
        owners = Counter(value for site in self.sites for value in self._of(site))
        if twice := sorted(value for value, count in owners.items() if count > 1):
            raise ValueError(f"values {twice} belong to two sites")
        return self

    def deal(self, patients: Collection[str], archive: Archive) -> Mapping[str, Collection[str]]:
        """Patients with a value of no site are left out, and a warning says how many of each.

        Raises:
            ConfigError: a site has none; the values that there are are named.
        """
        if self.table is not None and self.column is not None:
            told = archive.listed(self.table, self.patient_column, self.column)
        else:
            told = archive.values(column=self.column, attribute=self.attribute, pattern=self.pattern)
        found = Counter(map(told.get, patients))
        dealt = {site: [one for one in patients if told.get(one) in self._of(site)] for site in self.sites}
        if empty := [site for site, members in dealt.items() if not members]:
            said = ", ".join(f"{value} ({count})" for value, count in _in_words(found))
            raise ConfigError(
                f"no patient belongs to {', '.join(empty)}. {self.column or self.attribute or self.pattern!r} says of "
                f"the archive's patients: {said}. Name what belongs to each site in [partition.values]."
            )
        for site in self.sites:
            for value in self._of(site):
                del found[value]
        for value, count in _in_words(found):
            _log.warning("%d patients are at no site: it is said of them: %s", count, value)
        return dealt

    def _of(self, site: str) -> tuple[str, ...]:
        return self.values.get(site, (site,))


def _in_words(found: Counter[str | None]) -> list[tuple[str, int]]:
    return sorted(("nothing" if value is None else value, count) for value, count in found.items())


__all__ = ["ByValue"]
