"""When each site last called: written by the gateway, read by whoever shows the sites.

A file beside the registry, and not in it: each change of that wakes every call that a site holds. Of a coordinator
that was killed it is as old as the gateway's last writing, some seconds.
"""

import datetime
import json
from collections.abc import Mapping
from pathlib import Path

from common.system.files import write_private

_NAME = "seen.json"


def write_seen(home: Path, seen: Mapping[str, float]) -> None:
    """Note when each site last called (Unix s). A full disk costs the note alone."""
    write_private(home / _NAME, json.dumps(dict(sorted(seen.items()))).encode(), durable=False)


def read_seen(home: Path) -> dict[str, datetime.datetime]:
    """When each site last called; nothing of one that never did."""
    try:
        rows = json.loads((home / _NAME).read_bytes())
    except (OSError, ValueError):
        return {}
    return {site: datetime.datetime.fromtimestamp(at, datetime.UTC) for site, at in rows.items()}


__all__ = ["read_seen", "write_seen"]
