"""The mark of a home that came from a backup: home/restored.json, until the other side has seen its log.

A backup may be old. What was done after it is not in it: charges to the privacy ledger, rounds, signatures. The other
side has seen the audit log grow, so the first exchange of checkpoints tells whether this one is the newest. Until that
has gone well nothing is done that costs; afterwards the mark is gone. With the first start the audit log gets an entry
`restored`, from which on it differs from the log of the home that the backup was taken of: of two that go on, one is
noticed.

    {"made": when the backup was made, "restored": when, "entered": whether the audit log has it}     ISO 8601, UTC
"""

import json
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from common.errors import ConfigError
from common.system.files import write_private

MARK_NAME = "restored.json"


def mark(home: Path, made: str) -> None:
    """Note that a home comes from a backup that was made then."""
    now = datetime.now(UTC).isoformat(timespec="seconds")
    _write(home, {"made": made, "restored": now, "entered": False})


def enter(home: Path, append: Callable[[], object]) -> None:
    """Have the audit log say it, once; with the first start.

    Args:
        home: which may be marked.
        append: writes the entry.
    """
    found = _read(home)
    if found is not None and not found["entered"]:
        append()
        _write(home, found | {"entered": True})


def made(home: Path) -> str | None:
    """When the backup was made whose home this is, as long as the other side has not seen its log; None: it has."""
    found = _read(home)
    return None if found is None else str(found["made"])


def settle(home: Path) -> None:
    """The other side has seen the log, and it is the newest."""
    (home / MARK_NAME).unlink(missing_ok=True)


def _write(home: Path, values: dict[str, Any]) -> None:
    write_private(home / MARK_NAME, json.dumps(values, indent=2).encode())


def _read(home: Path) -> dict[str, Any] | None:
    path = home / MARK_NAME
    try:
        values = json.loads(path.read_bytes())
        return {name: values[name] for name in ("made", "restored", "entered")}
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError) as error:
        raise ConfigError(
            f"{path} is damaged: it says that this home comes from a backup. Restore the backup again."
        ) from error


__all__ = ["MARK_NAME", "enter", "made", "mark", "settle"]
