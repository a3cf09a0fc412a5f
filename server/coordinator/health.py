"""The health check of a coordinator's container: exit code 0 where it is well, else 1 and why.

    python -m server.coordinator.health             its processes are there, and the gateway and the SuperLink answer
    python -m server.coordinator.health --alive     the launcher is there and does not hang; it starts the others itself

The folder is WARDROUND_SERVER_HOME. Two files are looked at, which the launcher (supervisor.py) and the gateway
(serve.py, once a second asked whether the SuperLink answers) touch; neither gRPC nor the commands are loaded, so it
costs a twentieth of `wardround-server status`, which says more.
"""

import json
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from common.system.life import age_s, home_of, told
from common.system.locks import is_locked

LAUNCHER_NAME = "launcher.lock"
SERVING_NAME = "serving"
PROCESSES_NAME = "processes.json"
PROCESSES = ("superlink", "superexec", "gateway")

# Of the launcher, which at its start waits for the others for a minute; of the gateway.
SILENT_S, NOT_SERVING_S = 120.0, 30.0

_VARIABLE, _DEFAULT = "WARDROUND_SERVER_HOME", Path("wardround-server")  # of server/home/folder.py


def problem_of(home: Path, *, alive: bool) -> str:
    """What is wrong with the coordinator of a folder, or nothing.

    Args:
        home: the folder.
        alive: ask only whether the launcher is there.
    """
    found = _problems_of_life(home) if alive else (*_problems_of_life(home), *_problems_of_work(home))
    return next(iter(found), "")


def main(arguments: Sequence[str]) -> int:
    """Look, and say how it is."""
    return told(problem_of(home_of(_VARIABLE, _DEFAULT), alive="--alive" in arguments))


def _problems_of_life(home: Path) -> Iterator[str]:
    if not is_locked(home / LAUNCHER_NAME):
        yield "no coordinator runs here"
    elif (silent_s := age_s(home / LAUNCHER_NAME)) > SILENT_S:
        yield f"the launcher has given no sign of life for {silent_s:.0f} s"


def _problems_of_work(home: Path) -> Iterator[str]:
    try:
        pids = json.loads((home / PROCESSES_NAME).read_bytes())
    except (OSError, ValueError):
        yield f"{PROCESSES_NAME} cannot be read"
        return
    if missing := [name for name in PROCESSES if not _is_there(pids.get(name))]:
        yield f"not there: {', '.join(missing)}"
    if age_s(home / SERVING_NAME) > NOT_SERVING_S:
        yield "the gateway does not serve, or the SuperLink behind it does not answer"


def _is_there(pid: object) -> bool:
    if not isinstance(pid, int):
        return False
    try:
        os.kill(pid, 0)
    except OSError:
        return False
    return True


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
