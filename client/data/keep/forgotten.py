"""Patients who take no part any more: they are left out of every look at the site's images.

    home/forgotten.sealed   {"format": 1, "patients": [pseudonym, ...]}

The file is sealed as a whole (client/home/sealed_table.py), and also who opens it finds keyed pseudonyms only.
"""

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from client.data.deidentify.pseudonym import pseudonym
from client.data.study.study import Found
from client.home.sealed_table import read_table, write_table
from common.config import Table
from common.errors import ConfigError

_PURPOSE = "forgotten"


class _File(Table):
    format: Literal[1] = 1
    patients: tuple[str, ...]


@dataclass(frozen=True)
class Forgotten:
    """The list in a file. `path` None: nobody is on it."""

    path: Path | None
    site_key: bytes = field(repr=False)

    def without(self, found: Found) -> Found:
        """What was found, without the studies of these patients; they are not counted either.

        Raises:
            ConfigError: the list is damaged, or made under another site key: every pseudonym would be a stranger, and
                everybody be back.
        """
        names = self._names()
        if not names:
            return found
        kept = tuple(one for one in found.references if pseudonym(self.site_key, one.patient) not in names)
        return replace(found, references=kept)

    def has(self, patient: str) -> bool:
        """Whether a patient takes no part.

        Args:
            patient: the raw id.

        Raises:
            ConfigError: as for `without`.
        """
        names = self._names()
        return bool(names) and pseudonym(self.site_key, patient) in names

    def add(self, path: Path, patient: str) -> None:
        """Put a patient on the list in this file."""
        names = self._names() | {pseudonym(self.site_key, patient)}
        write_table(path, _File(patients=tuple(sorted(names))), self.site_key, _PURPOSE)

    def _names(self) -> frozenset[str]:
        if self.path is None:
            return frozenset()
        try:
            file = read_table(self.path, _File, self.site_key, _PURPOSE)
        except ValueError as error:
            raise _damaged(str(error)) from error
        return frozenset(file.patients if file is not None else ())


def _damaged(what: str) -> ConfigError:
    return ConfigError(
        f"forgotten.sealed in the site's home cannot be used: {what}. It says which patients take no part, and nothing "
        "is read without it. Restore it, and site.key, from a backup. If there is none, remove the file, and forget "
        "the patients again with `wardround-client data forget`."
    )


__all__ = ["Forgotten"]
