"""A run's life at the coordinator: approved by enough hospitals, started, watched, started again, closed.

The registry holds the state, so the commands only write a wish there and the process that runs this carries it out:
a killed coordinator goes on where it was. The ServerApp's own word is `summary.json`; a ServerApp that ended without
one was killed, and the strategy resumes from its checkpoint when it is started again. A run is given up when its
ServerApp dies again and again without a further round; starts of the coordinator do not count for that.
"""

import logging
import time
from pathlib import Path

from common.console.logs import Trouble
from common.errors import ConfigError, ErrorCode, FederationError
from common.flower import calls
from server.archive.forms import Maker
from server.coordinator.doors import read_processes
from server.federation.events import SUMMARY_NAME, read_summary, rounds_done
from server.federation.liveness import has_begun, has_died, on_their_way
from server.home.folder import Home
from server.home.purged import is_purged
from server.registry.audit_trail import open_log
from server.registry.proposals import Proposal
from server.registry.registry import Registry

# More deaths than this, one after the other and without a round in between, are no accident.
MAX_STARTS = 6

# As server/federation/rounds.py, which loads torch, writes them.
ROUND_FOLDERS = "checkpoint/round-*[0-9]"

_LOOK_EVERY_S = 2.0
# A ServerApp that was on its way and is no more is believed to be dead after so long.
_LOST_AFTER_S = 2.0
# So long after a run is done the last receipts are waited for, before its folder among the models is made without.
_RECEIPTS_AFTER_S = 30.0
_BACK_OFF_S = (0.0, 1.0, 2.0, 5.0, 10.0, 30.0)

_log = logging.getLogger(__name__)


class Runs:
    """Carries out what the registry says. Call `step` about every second."""

    def __init__(self, home: Home, registry: Registry) -> None:
        self._home = home
        self._registry = registry
        self._superlink = home.superlink
        self._trouble = Trouble(_log)
        self._next_look: dict[str, float] = {}
        # The last round that was complete when this process started the run.
        self._round_at_start: dict[str, int] = {}
        # By run: when a ServerApp was last seen that is on its way and has not begun.
        self._on_its_way: dict[str, float] = {}
        # Completed runs without a folder among the models: when that is made whatever receipts there are.
        self._to_keep = {
            one.run_hash: 0.0
            for one in registry.proposals()
            if one.state == "completed" and not is_purged(home.run_folder(one.document))
        }
        self._maker: tuple[str, Maker] | None = None  # by the run whose model it has
        self._forgive_interruptions()

    def close(self) -> None:
        """End what goes on beside; the next start begins it anew."""
        if self._maker is not None:
            self._maker[1].stop()
            self._maker = None

    def step(self) -> set[int]:
        """Bring every run one step on.

        Returns:
            Flower's ids of the runs going on.
        """
        for proposal in self._registry.unfinished():
            try:
                self._advance(proposal)
            except FederationError as error:
                self._trouble.say(f"run {proposal.run_hash[:8]}: {error}")
        self._keep_models()
        self._trouble.settle()
        return {one.run_id for one in self._registry.unfinished() if one.state == "running" and one.run_id is not None}

    def _advance(self, proposal: Proposal) -> None:
        match proposal.state:
            case "proposed":
                self._start_if_approved(proposal)
            case "running":
                self._follow(proposal)
            case "stopped" if proposal.run_id is not None:
                calls.stop_run(self._superlink, proposal.run_id)
                self._registry.ended(proposal.run_hash)
            case _:
                self._registry.ended(proposal.run_hash)

    def _start_if_approved(self, proposal: Proposal) -> None:
        """People decide about a proposal, and take the time that they need; who proposed it withdraws it by `stop`.

        Where those who have said no leave too few for the quorum, there is nothing to wait for.
        """
        quorum = proposal.run.federation.quorum
        active, willing = self._registry.active(), self._registry.willing(proposal)
        if len(willing) >= quorum:
            self._start(proposal)
        elif len(active) >= quorum > len(active - proposal.denied):
            reason = (
                f"too few sites are left for a quorum of {quorum}: {'; '.join(proposal.refusals)}. Propose a run that "
                "they allow; or, when they have changed their policy or answer, go on with "
                f"`wardround-server resume {proposal.run_hash[:8]}`."
            )
            self._close(proposal, "failed", reason, ErrorCode.TOO_FEW_SITES)

    def _follow(self, proposal: Proposal) -> None:
        summary = read_summary(self._home.run_folder(proposal.document))
        if summary is not None and summary["status"] in ("completed", "failed"):
            why = str(summary.get("reason") or ""), str(summary.get("code") or "")
            self._close(proposal, str(summary["status"]), *why)
            return
        now, folder = time.monotonic(), self._home.run_folder(proposal.document)
        died = proposal.run_id is not None and (
            has_died(folder, proposal.run_id) or self._is_lost(proposal, proposal.run_id, now)
        )
        if now < self._next_look.get(proposal.run_hash, 0.0) and not died:
            return
        self._next_look[proposal.run_hash] = now + _LOOK_EVERY_S
        if proposal.run_id is not None and not died and calls.run_is_live(self._superlink, proposal.run_id):
            return
        starts = self._starts_in_vain(proposal)
        if proposal.run_id is not None:
            if died:
                calls.stop_run(self._superlink, proposal.run_id)  # which would else believe in it for a minute
            # Look once more before judging: it may have written its summary and ended just now.
            self._registry.ended(proposal.run_hash)
            self._next_look[proposal.run_hash] = now + _BACK_OFF_S[min(starts, len(_BACK_OFF_S) - 1)]
        elif starts >= MAX_STARTS:
            reason = f"the ServerApp ended {starts} times without completing a round. See logs/superexec.log."
            self._close(proposal, "failed", reason, ErrorCode.INTERNAL)
        else:
            _log.warning("run %s ended without a result; starting it again", proposal.run_hash[:8])
            self._start(proposal, starts)

    def _is_lost(self, proposal: Proposal, run_id: int, now: float) -> bool:
        """Whether its ServerApp ended before it took the run's lock: one was on its way, and none is any more."""
        if has_begun(self._home.run_folder(proposal.document), run_id):
            self._on_its_way.pop(proposal.run_hash, None)
            return False
        superexec = read_processes(self._home).get("superexec")
        folders = [self._home.run_folder(one.document) for one in self._registry.unfinished()]
        if superexec is not None and on_their_way(superexec, folders) > 0:
            self._on_its_way[proposal.run_hash] = now
            return False
        if now - self._on_its_way.get(proposal.run_hash, now) < _LOST_AFTER_S:
            return False
        return self._on_its_way.pop(proposal.run_hash, None) is not None

    def _starts_in_vain(self, proposal: Proposal) -> int:
        """How often the run's ServerApp was started since the last round was completed, as far as it is its fault."""
        before = self._round_at_start.get(proposal.run_hash)
        if before is None:  # it ended with the coordinator that started it
            return 0
        return proposal.starts if _last_round(self._home.run_folder(proposal.document)) == before else 0

    def _start(self, proposal: Proposal, starts_in_vain: int = 0) -> None:
        folder = self._home.run_folder(proposal.document)
        self._on_its_way.pop(proposal.run_hash, None)
        # One that was not noted, as the registry was locked or this process killed just then; or one that was stopped,
        # and the run resumed before anybody looked.
        calls.stop_runs_of(self._superlink, proposal.bundle)
        _forget_failure(folder)
        run_id = calls.start_run(self._superlink, proposal.bundle)
        if not self._registry.started(proposal.run_hash, run_id, starts_in_vain + 1):
            calls.stop_run(self._superlink, run_id)
            return
        self._round_at_start[proposal.run_hash] = _last_round(folder)
        _log.info("run %s started (%s)", proposal.run_hash[:8], proposal.name)

    def _forgive_interruptions(self) -> None:
        # A ServerApp that is told to end with the coordinator notes a failure. It was none: the run goes on.
        for proposal in self._registry.unfinished():
            if proposal.state == "running":
                _forget_failure(self._home.run_folder(proposal.document))

    def _close(self, proposal: Proposal, state: str, reason: str, code: str) -> None:
        rounds = rounds_done(self._home.run_folder(proposal.document))
        if self._registry.close(proposal.run_hash, state, reason, code=code, rounds=rounds):
            open_log(self._home).append("closed", {"run": proposal.run_hash})
            if state == "completed":
                self._to_keep[proposal.run_hash] = time.monotonic() + _RECEIPTS_AFTER_S
        _log.info("run %s is %s %s", proposal.run_hash[:8], state, reason)

    def _keep_models(self) -> None:
        """Make the folders of runs that are done; where that fails, a command that needs one tries again."""
        for run_hash, at_last in list(self._to_keep.items()):
            try:
                if not self._is_kept(self._registry.proposal(run_hash), at_last):
                    continue
            except (ConfigError, OSError) as error:
                _log.warning("run %s has no folder among the models: %s", run_hash[:8], error)
                if self._maker is not None and self._maker[0] == run_hash:
                    self.close()  # or the next run would wait for it
            del self._to_keep[run_hash]

    def _is_kept(self, proposal: Proposal, at_last: float) -> bool:
        """Whether the folder is there, now at the latest; else it waits for the model's forms, or for receipts."""
        from server.archive import record  # noqa: PLC0415 - loads jinja2

        if record.is_kept(self._home, proposal):
            if self._maker is not None and self._maker[0] == proposal.run_hash:
                self.close()  # a command was faster
            return True
        if self._maker is None:
            self._maker = proposal.run_hash, Maker(self._home, proposal)
        run_hash, maker = self._maker
        if run_hash != proposal.run_hash or (made := maker.made) is None:
            return False
        if time.monotonic() < at_last and not record.has_all_receipts(self._home, proposal):
            return False
        self._maker = None
        if record.keep(self._home, proposal, made):
            _log.info("run %s has its folder among the models", run_hash[:8])
        return True


def _last_round(folder: Path) -> int:
    """The last round whose model is kept; 0 before there is one."""
    return max((int(path.name.removeprefix("round-")) for path in folder.glob(ROUND_FOLDERS)), default=0)


def _forget_failure(folder: Path) -> None:
    summary = read_summary(folder)
    if summary is not None and summary["status"] != "completed":
        (folder / SUMMARY_NAME).unlink()
