"""The ServerApp: from a run's configuration to its model.

An ordinary Flower app. The coordinator starts it for an approved run, with its home in the environment, and its model
is sealed there; under stock Flower (`flwr run`) there is none, and the results go to ./wardround-runs as plain files.
"""

import logging
import os
import threading
import time
from contextlib import nullcontext
from pathlib import Path

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from common.config.rundocument import from_text
from common.console.logs import log_to
from common.errors import ConfigError, FederationError
from common.system.wakeup import gateway_hint, strategy_wake
from common.text import counted
from server.federation.events import SUMMARY_NAME, summary_as_dict
from server.federation.liveness import alive
from server.federation.members import HomeMembers
from server.federation.rounds import federate
from server.federation.selection import in_words
from server.home.folder import ENVIRONMENT, advice, folder_name, open_home
from server.registry.audit_trail import RoundNotes
from server.views.report import write_report

WITHOUT_HOME = Path("wardround-runs")
# Flower asks this process to end as soon as its parent has; it gets so long for that.
_GRACE_S = 5.0

app = ServerApp()

_log = logging.getLogger(__name__)


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Flower's entry: one run from start, or from its last checkpoint, to summary and report."""
    text = context.run_config.get("run")
    if not isinstance(text, str):
        raise ConfigError("the app's configuration has no key 'run'. Build the bundle with `wardround-server run`.")
    run = from_text(text)
    home = open_home() if os.environ.get(ENVIRONMENT) else None
    if home is not None:
        log_to(logging.INFO, advice=advice(home.path))
        _end_with_parent()
    out = home.run_folder(run) if home else WITHOUT_HOME / folder_name(run)
    members = HomeMembers(home, run.hash) if home else None
    notes = RoundNotes(home, run.hash) if home else None
    wake, hint = strategy_wake(home.path if home else None), gateway_hint(home.path if home else None)
    sealer = home.sealer_of(run.hash) if home else None
    here = alive(out, context.run_id) if home else nullcontext()
    try:
        with here:
            summary = federate(grid, run, out, members=members, wake=wake, hint=hint, note_round=notes, sealer=sealer)
    except FederationError as error:
        _log.error("run %s failed: %s", run.name, error)
        raise
    finally:
        if (out / SUMMARY_NAME).exists():
            write_report(out)
    scores = summary.scores.get("test", {}).get("mean-of-sites") or "no test scores"
    for sentence in in_words(summary_as_dict(summary)):
        _log.info("run %s: %s", run.name, sentence)
    _log.info("run %s is complete after %s: %s", run.name, counted(summary.rounds, "round"), scores)


def _end_with_parent() -> None:
    """See that this process ends when the SuperExec has ended, a coordinator that was killed included.

    Flower's own watch raises SIGINT and leaves the end to its handler. With flwr 1.41.0 some processes were seen to
    stay after that, all threads waiting for a lock; why is not known. The checkpoint is whole at any moment, so nothing
    is lost by an abrupt end.
    """
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1.0)
        time.sleep(_GRACE_S)
        os._exit(1)

    threading.Thread(target=watch, name="end-with-parent", daemon=True).start()
