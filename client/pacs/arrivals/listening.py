"""The process that waits for what others send: it sees the hospital's network, nothing of the federation.

Started by `client.pacs.arrivals.listener`. Before it opens its port it hides the site's keys from itself, and lets
itself wait at that port alone, connect to nothing, and write into the staging folder alone; its environment holds no
secret, and what its libraries print goes nowhere. Only then it imports what speaks and parses. It judges no image and
moves no study: it says which have come to their end (`client.pacs.arrivals.arriving`).

    python -P -m client.pacs.arrivals.listening --home HOME --staging FOLDER --port PORT     frames on stdin and stdout
"""

import argparse
import resource
import select
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from common.system import sandbox
from common.wire import frames

if TYPE_CHECKING:
    from client.pacs.arrivals.arriving import Arrivals
    from client.pacs.arrivals.settings import Waiting

_MEMORY = 6 << 30  # bytes of address space
_LOOK_S, _BEAT_S = 0.1, 5.0


def main(arguments: Sequence[str] | None = None) -> int:
    """Receive until the pipe is closed."""
    parser = argparse.ArgumentParser(prog="client.pacs.arrivals.listening", description=__doc__)
    parser.add_argument("--home", type=Path, required=True, help="the site's home folder")
    parser.add_argument("--staging", type=Path, required=True, help="the folder to write into")
    parser.add_argument("--port", type=int, required=True, help="to wait at")
    given = parser.parse_args(arguments)
    sandbox.die_with_parent()
    sandbox.shed()
    keys = sandbox.hide([given.home / name for name in sandbox.SECRETS])
    disk = sandbox.lock([given.staging], listening=[given.port])
    questions, answers = sandbox.take_pipe()
    with suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_AS, (_MEMORY, _MEMORY))
    frames.send(answers, {"kind": "ready", "keys": keys, "disk": disk})
    question = frames.receive(questions, lambda _header: ())
    if question is not None:
        _listen(question, given.staging, questions, lambda header: frames.send(answers, header))
    return 0


def _listen(question: dict[str, Any], staging: Path, questions: int, tell: Callable[[dict[str, Any]], None]) -> None:
    """Open the port, and tell of each study that comes to its end, until the pipe is closed."""
    from client.pacs import problems  # noqa: PLC0415 - what speaks and parses comes after the sandbox
    from client.pacs.arrivals.arriving import Arrivals  # noqa: PLC0415
    from client.pacs.arrivals.settings import waiting_of  # noqa: PLC0415

    settings = waiting_of(question["settings"])
    arrivals = Arrivals(staging, settings.quiet)
    try:
        server = _opened(settings, arrivals)
    except problems.PacsError as error:
        tell(problems.to_json(error))
        return
    tell({"kind": "listening"})
    told = time.monotonic()
    try:
        while not select.select([questions], [], [], _LOOK_S)[0]:
            for one in arrivals.finished():
                tell({"kind": "arrived", "study": vars(one)})
            if time.monotonic() - told >= _BEAT_S:
                told = time.monotonic()
                tell({"kind": "beat", "refused": arrivals.refused})
    finally:
        server.shutdown()


def _opened(settings: "Waiting", arrivals: "Arrivals") -> Any:
    """The server at its port.

    Raises:
        PacsError: the port is not to be had, or a file cannot be used.
    """
    if settings.protocol == "stow-rs":
        from client.pacs.arrivals.webserver import Web  # noqa: PLC0415 - after the sandbox, and the one that is needed

        return Web(settings, arrivals)
    from client.pacs.arrivals.cstore import opened  # noqa: PLC0415

    return opened(settings, arrivals)


if __name__ == "__main__":
    sys.exit(main())
