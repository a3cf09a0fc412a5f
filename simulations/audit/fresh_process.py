"""An audited release from a newly started program: noise that follows from how a program starts shows only there.

python -m simulations.audit.fresh_process     standard input: {"home", "run", "round", "attempt"} as JSON
                                    standard output: the release, float64, little endian
"""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np

from client.site import Site, open_site
from common.config import RunConfig
from common.config.rundocument import from_text, issue
from common.errors import FederationError
from common.system.environment import PACKAGES, for_child
from simulations.audit.audited_site import Release, release

_COMMAND = (sys.executable, "-P", "-m", "simulations.audit.fresh_process")
_TIMEOUT_S = 300.0


def release_from_fresh_process(site: Site, run: RunConfig, *, round_: int, attempt: str) -> Release:
    """As `release`, by a newly started program.

    Raises:
        FederationError: the program failed.
    """
    asked = {"home": str(site.home), "run": issue(run).text, "round": round_, "attempt": attempt}
    done = subprocess.run(  # noqa: S603 - our own interpreter and module
        _COMMAND,
        input=json.dumps(asked).encode(),
        stdout=subprocess.PIPE,
        env=for_child(PYTHONPATH=str(PACKAGES), OMP_NUM_THREADS="1"),
        timeout=_TIMEOUT_S,
        check=False,
    )
    if done.returncode:
        raise FederationError(
            "a process of the privacy audit failed; its message stands above. Check that this Python runs "
            "`python -m simulations.audit.fresh_process`."
        )
    return Release(np.frombuffer(done.stdout, "<f8"), site.ledger.entries()[-1])


def main() -> None:
    """Answer one request."""
    asked = json.load(sys.stdin)
    site, run = open_site(Path(asked["home"])), from_text(asked["run"]).config
    made = release(site, run, round_=asked["round"], attempt=asked["attempt"])
    sys.stdout.buffer.write(made.sum.astype("<f8").tobytes())


if __name__ == "__main__":
    main()
