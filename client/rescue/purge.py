"""What a run left at a hospital, removed at the end of a project; what must stay, stays.

Removed are the proposal with its answer, the last update, the state that strategies keep, models of the site's own, and
what was compared. What was spent, sent and told stays: the privacy ledger, the audit log, statistics that a run was
told, and the run's text, by which the first two are understood. A purged run takes no part here any more.
"""

import time
from pathlib import Path

from client.home import kept
from client.home.folder import (
    EVALUATIONS_NAME,
    GAINS_NAME,
    LOCAL_NAME,
    PERSONAL_NAME,
    RESIDUALS_NAME,
    STATISTICS_NAME,
    STRATEGIES_NAME,
)
from client.rules import approvals, purged
from client.trail.audit_trail import note
from client.trail.outbox import FOLDER
from common.config.rundocument import RunDocument
from common.errors import ConfigError
from common.rescue.purging import Left, Purge, left_at
from common.text import meant

_DAY_S = 24 * 3600.0
_SUFFIX = ".sealed"
_SHORTEST_PREFIX = 6


def plan(home: Path, run: str, *, keep_personal: bool = False) -> Purge:
    """Look what a run left here.

    Args:
        home: the site's.
        run: its name, its hash, or the start of its hash; of one that was purged before, too.
        keep_personal: the models of the site's own stay.

    Raises:
        ConfigError: it is not known, could be several, or takes part here still.
    """
    document = _find(home, run)
    if not purged.is_purged(home, document.hash):
        proposal = approvals.load(home, document.hash)
        if proposal.open and (proposal.answer is None or proposal.answer.approved):
            raise ConfigError(
                f"the run {document.config.name!r} is open: it may train here, or be answered. Wait until it has "
                f"ended, or deny it first: `wardround-client deny {document.hash[:8]}`."
            )
    removed, stays = list[Left](), list(_STAYS)
    for what, place in _places(home, document.hash).items():
        if not place.exists():
            continue
        if keep_personal and place.parent == home / PERSONAL_NAME:
            stays.append((what, "--keep-personal"))
        elif place.parent == home / EVALUATIONS_NAME and time.time() - place.stat().st_mtime < _DAY_S:
            stays.append((what, "counts for max-evaluations-per-day until tomorrow: purge again then"))
        else:
            removed.append(left_at(what, place))
    if (home / STATISTICS_NAME / f"{document.hash}{_SUFFIX}").exists():
        stays.append(("statistics that the run was told", "they have left, and later runs are told how often some did"))
    return Purge(document.config.name, document.hash, removed, stays)


def carry_out(home: Path, purge: Purge) -> None:
    """Enter it in the audit log, then remove. What is interrupted is done again by another call.

    Raises:
        ConfigError: the run is not known any more.
        AuditError: the log cannot be written; nothing was removed.
    """
    document = purged.document_of(home, purge.run_hash)
    note(home, "purged", {"run": purge.run_hash, "files": purge.files})
    purged.purge(home, document)  # first the run's text is kept, which what is removed may be the only copy of
    for one in purge.removed:
        if one.place.is_dir():
            kept.remove(one.place)
        else:
            one.place.unlink(missing_ok=True)


_STAYS = (
    ("privacy ledger", "what was spent is spent for the life of the site"),
    ("audit log", "it only grows; it has an entry of this purge now"),
    ("the run's text", "the ledger and the audit log are understood by it"),
    ("places of patients in splits, the working set", "they are of no single run; see `wardround-client data forget`"),
    ("what was exported or predicted to other folders", "this program does not know where; remove it there"),
    ("global models", "they are the coordinator's, and other hospitals'"),
)


def _places(home: Path, run_hash: str) -> dict[str, Path]:
    return {
        "last update, to be sent again": home / FOLDER / run_hash,
        "state of the strategy": home / STRATEGIES_NAME / run_hash,
        "what rounding took from updates": home / RESIDUALS_NAME / run_hash,
        "models of the site's own": home / PERSONAL_NAME / run_hash,
        "models trained alone": home / LOCAL_NAME / run_hash,
        "what was compared": home / GAINS_NAME / f"{run_hash}{_SUFFIX}",
        "what was scored": home / EVALUATIONS_NAME / f"{run_hash}{_SUFFIX}",
        "proposal, answer and count": home / "proposals" / run_hash,
    }


def _find(home: Path, run: str) -> RunDocument:
    known = purged.documents(home)
    by_hash = [run_hash for run_hash in known if len(run) >= _SHORTEST_PREFIX and run_hash.startswith(run.lower())]
    found = by_hash or [run_hash for run_hash, document in known.items() if document.config.name == run]
    if len(found) == 1:
        return known[found[0]]
    if found:
        hashes = ", ".join(one[:12] for one in found)
        raise ConfigError(f"{run!r} could be any of {hashes}. Give the start of the hash.")
    raise ConfigError(
        f"no run that was proposed here is called {run!r}.{meant(run, purged.names(home).values())} List the runs with "
        "`wardround-client runs`."
    )


__all__ = ["carry_out", "plan"]
