"""The process with the patients: torch, the data and the ClientApp. No network, no TLS key, one pipe to the agent.

Started by the agent and kept warm. This file is the door: it gives up what a worker must not have, and only then
imports what is large (`client.worker.loop`).

    python -m client.worker.main --home HOME      frames on stdin and stdout, the log on stderr
"""

import argparse
import contextlib
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

from client.home.folder import advice
from common.console.logs import log_to
from common.system import sandbox

_log = logging.getLogger(__name__)


def main(arguments: Sequence[str] | None = None) -> int:
    """Answer questions until the agent closes the pipe."""
    parser = argparse.ArgumentParser(prog="client.worker.main", description=__doc__)
    parser.add_argument("--home", type=Path, required=True, help="the site's home folder")
    home: Path = parser.parse_args(arguments).home
    sandbox.die_with_parent()
    sandbox.shed()
    network = sandbox.remove_network()
    for name in (*sandbox.MADE_LATER, *sandbox.WRITABLE):
        with contextlib.suppress(FileExistsError):  # a file in its place: whoever needs the folder says so
            (home / name).mkdir(mode=0o700, exist_ok=True)
    keys = sandbox.hide([home / name for name in sandbox.SECRETS])
    disk = sandbox.lock([home / name for name in sandbox.WRITABLE if (home / name).is_dir()])
    questions, answers = sandbox.take_pipe()
    log_to(logging.INFO, advice=advice(home))
    _log.info("network %s, keys %s, disk %s", network, keys, disk)

    from client.worker import loop  # noqa: PLC0415 - after confine: numpy and torch start threads

    loop.serve(home, questions, answers, network)
    return 0


if __name__ == "__main__":
    sys.exit(main())
