"""Which sites are at work on what, as they said last: written by the gateway, read by a run that has waited in vain.

A file beside the registry, and not in it: each change of that wakes every call that a site holds.
"""

import json
import time
from collections.abc import Mapping
from pathlib import Path

from common.system.files import write_private
from common.wire.at_work import AtWork

_NAME = "work.json"
# What is older was said by a site that is not there any more; a site says it every 15 s.
_FRESH_S = 60.0


def write_work(home: Path, work: Mapping[str, tuple[AtWork, float]]) -> None:
    """Note what each site is at, and when it said so (Unix s). A full disk costs the note alone."""
    rows = {
        site: {"run": one.run_hash, "round": one.round, "hangs": one.hangs, "at": at}
        for site, (one, at) in work.items()
    }
    write_private(home / _NAME, json.dumps(rows).encode(), durable=False)


def read_work(home: Path) -> dict[str, AtWork]:
    """What each site is at now, as far as it has said so lately."""
    try:
        rows = json.loads((home / _NAME).read_bytes())
    except (OSError, ValueError):
        return {}
    since = time.time() - _FRESH_S
    return {
        site: AtWork(str(row["run"]), int(row["round"]), bool(row["hangs"]))
        for site, row in rows.items()
        if row["at"] > since
    }


__all__ = ["read_work", "write_work"]
