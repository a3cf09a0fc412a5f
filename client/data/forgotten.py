"""Patients who take no part any more: they are left out of every look at the site's images.

    home/forgotten.json   {"format": 1, "cohort": ..., "patients": [pseudonym, ...]}

Only keyed pseudonyms are kept, so the list does not say who is on it.
"""

import json
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from client.data.pseudonym import cohort_id, pseudonym
from client.data.study import Found
from common.config import Table, validate
from common.errors import ConfigError
from common.files import write_atomically


class _File(Table):
    format: Literal[1]
    # Names the site key: under another one every pseudonym would be a stranger, and everybody would be back.
    cohort: str
    patients: tuple[str, ...]


@dataclass(frozen=True)
class Forgotten:
    """The list in a file. `path` None: nobody is on it."""

    path: Path | None
    site_key: bytes = field(repr=False)

    def without(self, found: Found) -> Found:
        """What was found, without the studies of these patients; they are not counted either.

        Raises:
            ConfigError: the list is damaged, or made under another site key.
        """
        names = self._names()
        if not names:
            return found
        kept = tuple(one for one in found.references if pseudonym(self.site_key, one.patient) not in names)
        return replace(found, references=kept)

    def add(self, path: Path, patient: str) -> None:
        """Put a patient on the list in this file."""
        names = self._names() | {pseudonym(self.site_key, patient)}
        file = _File(format=1, cohort=cohort_id(self.site_key), patients=tuple(sorted(names)))
        write_atomically(path, file.model_dump_json(indent=1).encode())

    def _names(self) -> frozenset[str]:
        try:
            text = b"" if self.path is None else self.path.read_bytes()
        except FileNotFoundError:
            text = b""
        if not text:
            return frozenset()
        try:
            file = validate(_File, json.loads(text))
        except (ValueError, TypeError, RecursionError, ConfigError) as error:
            raise _damaged("it is not a list that this version reads") from error
        if file.cohort != cohort_id(self.site_key):
            raise _damaged("it was made under another site key")
        return frozenset(file.patients)


def _damaged(what: str) -> ConfigError:
    return ConfigError(
        f"forgotten.json in the site's home cannot be used: {what}. It says which patients take no part, and nothing "
        "is read without it. Restore it, and site.key, from a backup."
    )


__all__ = ["Forgotten"]
