"""What files told when they were last looked at, so that a second load opens none of them again.

One sealed file per site (`client.data.keep.vault`): key -> stamp and a plain value. The stamp is the file's size and
times; a file that changed is looked at again. The code and the libraries that looked are part of the file's own stamp,
so an update starts anew. Keys that nobody asked for since it was opened are gone when it is saved: their files are too.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from client.data.keep.code import reading_program
from client.data.keep.vault import Vault


class Index:
    """What is known of the files of a site."""

    def __init__(self, path: Path, site_key: bytes) -> None:
        """Open it; empty where there is none, or one that cannot be used.

        Args:
            path: of the sealed file.
            site_key: secret key of the site.
        """
        self._path = path
        self._vault = Vault(site_key, "index")
        self._stamp = self._vault.mac(*reading_program())
        self._before = self._read()
        self._now: dict[str, list[Any]] = {}

    def recall(self, key: str, stamp: Sequence[Any]) -> Any | None:
        """What was learned under a key, if the stamp is still the same."""
        entry = self._before.get(key)
        if entry is None or entry[0] != stamp or not stamp:
            return None
        self._now[key] = entry
        return entry[1]

    def learn(self, key: str, stamp: Sequence[Any], value: Any) -> None:
        """Keep a plain value. A file without a stamp is not there, and nothing is kept of it."""
        if stamp:
            self._now[key] = [list(stamp), value]

    def save(self) -> None:
        """Write it, where it changed. Best effort: without it the next load opens the files again."""
        if self._now == self._before:
            return
        self._vault.keep(self._path, json.dumps(self._now, separators=(",", ":")).encode(), self._stamp)
        self._before = self._now

    def _read(self) -> dict[str, list[Any]]:
        payload = self._vault.read(self._path, self._stamp)
        try:
            values = {} if payload is None else json.loads(payload)
        except ValueError:
            self._vault.report_damage(self._path)
            return {}
        return values if isinstance(values, dict) else {}


__all__ = ["Index"]
