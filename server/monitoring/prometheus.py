"""What the coordinator tells Prometheus: its processes, the sites, and the runs that are open or ended last.

The numbers of a run are its RunView's. Labels are names of sites, codes of closed lists, and runs: those that are open
and the latest others, so that their number stays as it is however many a coordinator has had.
"""

import datetime
import shutil
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from typing import TypeAlias

from common.config import TRAIN_LOSS
from common.errors import ErrorCode
from common.privacy.scores import SCORE_NOISE
from common.web.measures import Family, one, states
from server.coordinator import supervisor
from server.coordinator.doors import doors
from server.federation.events import BY_COORDINATOR, JOURNAL_NAME, NOT_ASKED, OVERALL, Event, read_events
from server.home.folder import Home
from server.registry.audit_trail import open_log
from server.registry.proposals import Proposal
from server.registry.registry import Registry
from server.registry.sites import UNPROVEN
from server.views.measures import EXCHANGE, TRAIN, latest
from server.views.progress import progress_of, summary_of
from server.views.run import RunView, view_of

LATEST_ENDED = 5

# A proposal that has its quorum and waits for its start is "starting".
RUN_STATES = ("proposed", "starting", "running", "completed", "failed", "stopped")
SITE_STATES = ("invited", "pending", "active", "revoked", UNPROVEN)
_OTHER = "other"
_ANSWERS = ("approved", "denied", "refused", "awaited")

Samples: TypeAlias = list[tuple[Mapping[str, str], float]]


@dataclass(frozen=True)
class _Told:
    """A run that is told of."""

    label: str
    proposal: Proposal
    events: Sequence[Event]
    view: RunView
    epsilon: float | None  # at most, as the run says
    rounds: int  # done
    seconds_left: float | None


def families(home: Home, registry: Registry) -> Iterator[Family]:
    """All that is told, as it is now.

    Args:
        home: the coordinator's.
        registry: its registry.
    """
    running = supervisor.is_running(home)
    yield Family("wardround_build_info", "Version of Wardround", [({"version": version("wardround")}, 1.0)])
    yield one("wardround_collected_timestamp_seconds", "When these numbers were collected", time.time())
    yield one("wardround_coordinator_running", "Whether the coordinator has been started", float(running))
    up = [({"process": door.name}, float(door.ok)) for door in doors(home)]
    yield Family("wardround_process_up", "Whether a port or process of the coordinator is as it should be", up)
    yield one(
        "wardround_disk_free_bytes", "Free on the disk of the coordinator's folder", shutil.disk_usage(home.path).free
    )
    with open_log(home).transaction() as log:
        entries, conflicts = log.size, len(log.latest("conflict", count=1000))
    yield one("wardround_audit_entries", "Entries of the coordinator's audit log", entries)
    yield one("wardround_audit_conflicts", "Entries that say that two audit logs do not fit", conflicts)
    told = _told(home, registry)
    yield from _of_sites(registry, told, running=running)
    yield from _of_runs(registry, told)


def _of_sites(registry: Registry, told: Sequence[_Told], *, running: bool) -> Iterator[Family]:
    sites = registry.sites()
    counts = Counter(site.state for site in sites)
    yield Family("wardround_sites", "Sites in each state", [({"state": state}, counts[state]) for state in SITE_STATES])
    active = [site for site in sites if site.state == "active"]
    here: Samples = [({"site": site.name}, float(site.connected and running)) for site in active]
    yield Family("wardround_site_connected", "Whether a site's agent is connected", here)
    ends: Samples = [({"site": site.name}, _seconds(site.expires)) for site in active if site.expires]
    yield Family("wardround_site_certificate_expiry_timestamp_seconds", "When a site's certificate ends", ends)
    clocks: Samples = [({"site": site}, ahead) for site, ahead in sorted(registry.clocks().items())]
    yield Family("wardround_site_clock_ahead_seconds", "How far a site's clock is ahead of the coordinator's", clocks)
    seen: dict[str, float] = {}
    for run in told:
        for event in run.events:
            if event["event"] == "train":
                seen[event["site"]] = max(seen.get(event["site"], 0.0), event["time"])
    updates: Samples = [({"site": site}, at) for site, at in sorted(seen.items())]
    yield Family("wardround_site_last_update_timestamp_seconds", "When an update of a site last came", updates)


def _of_runs(registry: Registry, told: Sequence[_Told]) -> Iterator[Family]:
    counts = Counter(_state(registry, proposal) for proposal in registry.proposals())
    yield Family("wardround_runs", "Runs in each state", [({"state": state}, counts[state]) for state in RUN_STATES])

    def of_each(name: str, said: str, value: Callable[[_Told], float | None]) -> Family:
        values = [({"run": run.label}, found) for run in told if (found := value(run)) is not None]
        return Family(name, said, values)

    now = [
        sample for run in told for sample in states("state", RUN_STATES, _state(registry, run.proposal), run=run.label)
    ]
    yield Family("wardround_run_state", "The state that a run is in", now)
    yield of_each(
        "wardround_run_rounds", "Rounds that a run shall have", lambda run: run.proposal.run.federation.rounds
    )
    yield of_each("wardround_run_round", "Rounds that are done", lambda run: run.rounds)
    yield of_each(
        "wardround_run_last_round_timestamp_seconds",
        "When a run's last round ended",
        lambda run: max(run.view.moments.values(), default=None),
    )
    yield of_each("wardround_run_seconds_left", "How long a run will take, about", lambda run: run.seconds_left)
    yield of_each("wardround_run_quorum", "Sites that a round needs", lambda run: run.proposal.run.federation.quorum)
    yield of_each("wardround_run_target_epsilon", "Epsilon that a run may spend at a site", lambda run: run.epsilon)
    for name, said in (
        ("seconds", "Seconds of the exchange"),
        ("sites", "Sites whose update entered"),
        (NOT_ASKED, "Sites that were not drawn, and so not asked,"),
    ):
        values = [({"run": run.label}, found) for run in told if (found := _of_last_round(run, name)) is not None]
        yield Family(f"wardround_run_last_round_{name.replace('-', '_')}", f"{said} in a run's last round", values)
    answers = [
        ({"run": run.label, "answer": answer}, float(len(sites)))
        for run in told
        for answer, sites in _answers(registry, run.proposal).items()
    ]
    yield Family("wardround_run_answers", "Sites by what they answered to a run", answers)
    awaited: Samples = [
        ({"run": run.label, "site": site}, 1.0)
        for run in told
        for site in sorted(_answers(registry, run.proposal)["awaited"])
    ]
    yield Family("wardround_run_awaited", "Sites whose answer a run waits for", awaited)
    for name, said, phase, number in (
        ("wardround_run_train_loss", "A site's latest training loss", TRAIN, TRAIN_LOSS),
        ("wardround_run_epsilon", "Epsilon that a site states to have spent in a run", TRAIN, "epsilon"),
    ):
        stated: Samples = [
            ({"run": run.label, "site": site}, value)
            for run in told
            for site, value in sorted(latest(run.view.measures, phase, number).items())
        ]
        yield Family(name, said, stated)
    yield Family(
        "wardround_run_score", "A site's latest headline score; the mean of the sites is overall", _scores(told)
    )
    yield Family(
        "wardround_run_score_noise",
        "Standard deviation of the noise that hospitals added to a latest headline score, which it may take below 0 or "
        "above 1",
        _scores(told, of=SCORE_NOISE),
    )
    yield Family("wardround_run_refusals_total", "Refusals in a run's rounds", _refusals(told), "counter")
    yield Family("wardround_run_missing_total", "Rounds that a site did not answer", _missing(told), "counter")
    for name, said in (("bytes-down", "to the sites"), ("bytes-up", "from the sites")):
        total: Samples = [
            ({"run": run.label}, sum(value for _, value in _overall(run, name))) for run in told if run.rounds
        ]
        yield Family(
            f"wardround_run_{name.replace('-', '_')}_total", f"Bytes {said} in a run's rounds", total, "counter"
        )


def _told(home: Home, registry: Registry) -> list[_Told]:
    proposals = registry.proposals()
    ended = [one for one in proposals if not one.open][:LATEST_ENDED]
    here = supervisor.present(home, registry)
    return [_of_run(home, proposal, here) for proposal in proposals if proposal.open or proposal in ended]


def _of_run(home: Home, proposal: Proposal, here: frozenset[str] | None) -> _Told:
    folder = home.run_folder(proposal.document)
    events = read_events(folder / JOURNAL_NAME)
    progress, privacy = progress_of(folder, proposal, here), proposal.run.privacy
    view = view_of(summary_of(folder, proposal), events)
    epsilon = None if privacy is None or view.guarantee is None or view.guarantee.void else privacy.target_epsilon
    return _Told(folder.name, proposal, events, view, epsilon, progress.round, progress.seconds_left)


def _state(registry: Registry, proposal: Proposal) -> str:
    has_quorum = len(registry.willing(proposal)) >= proposal.run.federation.quorum
    return "starting" if proposal.state == "proposed" and has_quorum else proposal.state


def _answers(registry: Registry, proposal: Proposal) -> dict[str, set[str]]:
    active = registry.active()
    refused = set(proposal.refused)
    said = dict(
        zip(_ANSWERS, (set(proposal.approved), set(proposal.denied) - refused, refused, set[str]()), strict=True)
    )
    if _state(registry, proposal) == "proposed":
        said["awaited"] = active - proposal.approved - proposal.denied - refused
    return said


def _overall(run: _Told, name: str) -> Sequence[tuple[float, float]]:
    series = next((one.series for one in run.view.measures if (one.phase, one.name) == (EXCHANGE, name)), {})
    return [point for points in series.values() for point in points]


def _of_last_round(run: _Told, name: str) -> float | None:
    points = _overall(run, name)
    return points[-1][1] if points else None


def _scores(told: Sequence[_Told], of: str | None = None) -> Samples:
    """Of each site the latest headline score, or another number `of` it, under the score's name."""
    headlines = [(run, run.proposal.run.task.headline) for run in told]
    return [
        ({"run": run.label, "phase": phase, "score": headline, "site": site}, value)
        for run, headline in headlines
        for phase in ("validation", "test")
        for site, value in sorted(latest(run.view.measures, phase, of or headline).items())
    ]


def _refusals(told: Sequence[_Told]) -> Samples:
    codes = {str(code) for code in ErrorCode}
    counts: Counter[tuple[str, str, str]] = Counter()
    for run in told:
        for event in run.events:
            if event["event"] != "round" and event.get("site") != OVERALL:
                continue  # a site's own numbers, which may bear any name in a journal of an earlier version
            for site, code in (event.get("refused") or {}).items():
                by = "coordinator" if site in event.get(BY_COORDINATOR, []) else "site"
                counts[run.label, code if code in codes else _OTHER, by] += 1
    return [({"run": run, "code": code, "by": by}, count) for (run, code, by), count in sorted(counts.items())]


def _missing(told: Sequence[_Told]) -> Samples:
    counts = Counter(
        (run.label, site)
        for run in told
        for event in run.events
        if event["event"] == "round"
        for site in event["missing"]
    )
    return [({"run": run, "site": site}, count) for (run, site), count in sorted(counts.items())]


def _seconds(moment: str) -> float:
    return datetime.datetime.fromisoformat(moment).timestamp()


__all__ = ["LATEST_ENDED", "RUN_STATES", "families"]
