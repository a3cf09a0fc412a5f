"""The mark of a run whose results were purged: all that is left in its folder, and why there is no more.

home/runs/NAME-HASH8/purged.json   {"purged": when, ISO 8601, UTC; "files": how many were removed}
"""

import json
from datetime import UTC, datetime
from pathlib import Path

from common.errors import ConfigError
from common.system.files import write_private

NAME = "purged.json"


def mark(folder: Path, files: int) -> None:
    """Note that a run's results were removed."""
    now = datetime.now(UTC).isoformat(timespec="seconds")
    write_private(folder / NAME, json.dumps({"purged": now, "files": files}).encode())


def is_purged(folder: Path) -> bool:
    """Whether a run's results were removed."""
    return (folder / NAME).exists()


def check(folder: Path) -> None:
    """Refuse what needs a run's results where they were removed.

    Raises:
        ConfigError: they were.
    """
    if is_purged(folder):
        raise ConfigError(
            f"the results in {folder.name} were purged: curves, report and checkpoints are gone, and the run cannot go "
            "on. The audit log has what was done. Of a completed run whose record was kept the model is there: "
            f"`wardround-server export {folder.name.rpartition('-')[2]} --out MODEL`. To train again propose the run "
            "under another name or seed."
        )


__all__ = ["NAME", "check", "is_purged", "mark"]
