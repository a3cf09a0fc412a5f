"""The health check of a site's container: exit code 0 where the agent is well, else 1 and why.

    python -m client.agent.health             connected, with room on the disk and audit logs that fit
    python -m client.agent.health --alive     the agent is there and does not hang, whatever becomes of the coordinator

The folder is WARDROUND_HOME. It reads what the agent writes (status.py) and loads neither gRPC nor the commands: it
costs a twentieth of `wardround-client status`, which says more. A container is to be started anew only where --alive
says no: a coordinator that is away does not come back by that.
"""

import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from client.home.folder import DEFAULT, ENVIRONMENT
from common.system.life import age_s, home_of, told
from common.system.locks import is_locked

STATUS_NAME, LOCK_NAME = "status.json", "agent.lock"
CONNECTED, IN_ORDER = "connected", "in order"
CONFLICT = "CONFLICT"  # begins what the agent says of audit logs that do not fit

# The agent gives one every ten seconds, but while it waits for a call of at most thirty.
SILENT_S = 120.0


def problem_of(home: Path, *, alive: bool) -> str:
    """What is wrong with the agent of a site's folder, or nothing.

    Args:
        home: the folder.
        alive: ask only whether it is there.
    """
    found = _problems_of_life(home) if alive else (*_problems_of_life(home), *_problems_of_work(home))
    return next(iter(found), "")


def main(arguments: Sequence[str]) -> int:
    """Look, and say how it is."""
    return told(problem_of(home_of(ENVIRONMENT, DEFAULT), alive="--alive" in arguments))


def _problems_of_life(home: Path) -> Iterator[str]:
    if not is_locked(home / LOCK_NAME):
        yield "no agent runs here"
    elif (silent_s := age_s(home / LOCK_NAME)) > SILENT_S:
        yield f"the agent has given no sign of life for {silent_s:.0f} s"


def _problems_of_work(home: Path) -> Iterator[str]:
    try:
        values = json.loads((home / STATUS_NAME).read_bytes())
    except (OSError, ValueError):
        yield f"{STATUS_NAME} cannot be read"
        return
    if values.get("state") != CONNECTED:
        yield f"not connected: {values.get('state')}"
    if values.get("disk") != IN_ORDER:
        yield f"the disk: {values.get('disk')}"
    if str(values.get("audit", "")).startswith(CONFLICT):
        yield "the audit logs do not fit"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
