"""What has left this hospital, and what was answered: the audit log's own words, the latest first."""

import datetime
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from client.rules import purged
from client.trail.audit_trail import has_joined, open_log
from common.audit.entries import Entry

UPDATE = "an update"

# What of a run goes out, or says that nothing does.
_LEFT = ("round", "statistics", "evaluated", "refusal", "approved", "denied", "export")


@dataclass(frozen=True)
class Left:
    """One thing that left, or was said."""

    at: datetime.datetime
    what: str
    run: str | None  # its name, or the beginning of its hash
    round: int | None
    detail: str


@dataclass(frozen=True)
class Trail:
    """How the audit log is."""

    entries: int
    conflicts: int
    left: tuple[Left, ...]


def trail(home: Path, most: int) -> Trail:
    """The latest of what left.

    Args:
        home: the site's.
        most: so many.

    Raises:
        AuditError: the log cannot be read.
    """
    if not has_joined(home):
        return Trail(0, 0, ())
    names = purged.names(home)
    with open_log(home).transaction() as log:
        size, conflicts = log.size, len(log.latest("conflict", count=1000))
        entries = log.latest(*_LEFT, count=most)
    return Trail(size, conflicts, tuple(_left(entry, names) for entry in entries))


def _left(entry: Entry, names: Mapping[str, str]) -> Left:
    about = entry.fields.get("receipt", entry.fields)
    run = about.get("run")
    refused = entry.kind == "denied" and about.get("by") == "policy"
    return Left(
        datetime.datetime.fromtimestamp(entry.time, datetime.UTC),
        "the answer: refused" if refused else _WORDS[entry.kind],
        None if run is None else names.get(run, str(run)[:12]),
        about.get("round"),
        _detail(entry.kind, about),
    )


_WORDS = {
    "round": UPDATE,
    "statistics": "statistics of the training patients",
    "evaluated": "scores",
    "refusal": "a refusal",
    "approved": "the answer: approved",
    "denied": "the answer: denied",
    "export": "an export, by a person here",
}


def _detail(kind: str, about: Mapping[str, object]) -> str:
    spent = f"epsilon {about['epsilon']} at delta {about['delta']}" if "epsilon" in about else "not noised"
    match kind:
        case "round":
            return f"{int(str(about['size'])):,} bytes with the tensors' names and shapes, {spent}"
        case "statistics":
            return f"of about {about['patients']} patients, not noised"
        case "evaluated":
            return f"of {about['phase']} patients, {spent}"
        case "refusal":
            return f"the code {about['code']}"
        case "export":
            return f"what: {about['what']}"
    return f"by {about.get('by', 'person')}"


__all__ = ["UPDATE", "Left", "Trail", "trail"]
