"""What earlier checks found out, so that a second check reads only what is new or has changed.

One file per study and way of naming labels (as found, or as a run does, of maps or of whole images; of several runs the
last), sealed by the site's vault and named by an HMAC; what makes it out of date: `client.data.keep.entry`. Its payload
is facts, or code and reason, as JSON; a newline; the thumbnail as PNG. A study that could not be read at all is not
kept: the disk may have been away, and to try again costs little.
"""

import json
from collections.abc import Iterable
from pathlib import Path

from client.data.isolate.isolation import Job
from client.data.keep.code import reading_program
from client.data.keep.entry import Entry, entry_of, keep_only, name_of
from client.data.keep.vault import Vault
from client.data.quality.quality import Checked, facts_from_json, facts_to_json
from client.data.study.labels import Vocabulary
from common.errors import DataError, ErrorCode

_NOT_KEPT = (ErrorCode.UNREADABLE, ErrorCode.NOT_OPENED, ErrorCode.OUT_OF_MEMORY)


class Catalogue:
    """The checked studies of one site."""

    def __init__(self, folder: Path, site_key: bytes) -> None:
        """Name the folder; it is made with the first entry, for its owner only."""
        self._folder = folder
        self._vault = Vault(site_key, "catalogue")
        self._program = reading_program()

    def entry(self, job: Job) -> Entry | None:
        """See `entry_of`."""
        return entry_of(job, self._folder / self._name(job), self._vault, *self._program)

    def read(self, entry: Entry) -> Checked | DataError | None:
        """What was found out about a study; None when nothing was, or it has changed since."""
        payload = self._vault.read(entry.path, entry.stamp)
        if payload is None:
            return None
        try:
            text, _, thumbnail = bytes(payload).partition(b"\n")
            values = json.loads(text)
            if "code" in values:
                return DataError(values["reason"], ErrorCode(values["code"]))
            return Checked(facts_from_json(values), thumbnail)
        except (ValueError, KeyError, TypeError):
            self._vault.report_damage(entry.path)
            return None

    def write(self, entry: Entry, result: Checked | DataError) -> None:
        """Keep what was found out, by best effort."""
        if isinstance(result, Checked):
            payload = json.dumps(facts_to_json(result.facts)).encode() + b"\n" + result.thumbnail
        elif result.code not in _NOT_KEPT:
            payload = json.dumps({"code": result.code, "reason": str(result)}).encode()
        else:
            return
        self._vault.keep(entry.path, payload, entry.stamp)

    def keep_only(self, jobs: Iterable[Job]) -> None:
        """Drop what belongs to no study of the site any more, and what a crash left behind."""
        # As found, as a run's maps, as a run's images as a whole, and without labels.
        ways = (Vocabulary(), Vocabulary(classes=()), Vocabulary(classes=(), whole=True), None)
        keep_only(
            {self._name(Job(job.reference, wanted)) for job in jobs for wanted in ways}, self._folder, "catalogue"
        )

    def _name(self, job: Job) -> str:
        wanted = job.wanted
        way = "images" if wanted is None else "whole" if wanted.whole else wanted.classes is None
        return name_of(self._vault, job.reference, way)


__all__ = ["Catalogue"]
