"""An audited release in a process of its own: what is drawn once when a program starts shows only from one start to the next.

    python -m simulations.audit_process     standard input: {"home", "run", "round", "attempt"} as JSON
                                            standard output: the release, float64, little endian
"""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from client.site import Site, open_site
from common.config import RunConfig, canonical, from_canonical
from common.errors import FederationError
from simulations.audit_bounds import Values
from simulations.audit_site import release

_COMMAND = (sys.executable, "-P", "-m", "simulations.audit_process")
_TIMEOUT_S = 300.0


def releases_from_fresh_processes(sites: Sequence[Site], run: RunConfig, *, round_: int, attempt: str) -> list[Values]:
    """The same release of each site, each from a new process, side by side.

    Raises:
        FederationError: a process failed.
    """
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[1]), "OMP_NUM_THREADS": "1"}
    children = [
        subprocess.Popen(_COMMAND, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment)  # noqa: S603 - our own interpreter and module
        for _ in sites
    ]
    try:
        for child, site in zip(children, sites, strict=True):
            asked = {"home": str(site.home), "run": canonical(run), "round": round_, "attempt": attempt}
            assert child.stdin is not None
            child.stdin.write(json.dumps(asked).encode())
            child.stdin.close()
            child.stdin = None
        answers = [child.communicate(timeout=_TIMEOUT_S)[0] for child in children]
    finally:
        for child in children:
            child.kill()
            child.wait()
    if any(child.returncode for child in children):
        raise FederationError(
            "a process of the privacy audit failed; its message stands above. Check that this Python runs "
            "`python -m simulations.audit_process`."
        )
    return [np.frombuffer(answer, "<f8") for answer in answers]


def main() -> None:
    """Answer one request."""
    asked = json.load(sys.stdin)
    site, run = open_site(Path(asked["home"])), from_canonical(RunConfig, asked["run"])
    one = release(site, run, round_=asked["round"], attempt=asked["attempt"])
    sys.stdout.buffer.write(one.sum.astype("<f8").tobytes())


if __name__ == "__main__":
    main()
