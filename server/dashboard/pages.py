"""The coordinator's pages in a browser: sites, runs, one run; and propose, stop and resume, signed by an operator.

What is shown is what `sites`, `runs`, `watch`, `report` and `status` show, from the registry and the run's records
alone. Who stands at the keyboard is the operator who started it: asked again with every page whether they may look, and
with every act whether they may do it, by the same functions as the commands.
"""

import datetime
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from common.config import TRAIN_LOSS
from common.identity import certificates
from common.identity.operators import RIGHTS
from common.pages.html import fragment
from common.text import counted
from common.web.pages import Dashboard, Page, Visit
from common.wire import clock
from server.coordinator import supervisor, wishes
from server.coordinator.doors import doors
from server.dashboard import proposing
from server.federation.events import JOURNAL_NAME, OVERALL, SUMMARY_NAME, Event, read_events
from server.home.folder import Home, advice
from server.home.seen import read_seen
from server.registry import operators
from server.registry.audit_trail import open_log
from server.registry.proposals import Proposal
from server.registry.registry import Registry
from server.registry.sites import Site
from server.views.progress import duration, progress_of, summary_of
from server.views.run import RunView, view_of
from server.views.sentences import last_seen, score_with_noise

MOST_ROUNDS = 30  # shown as cards; the report has all
RENEW_DAYS = 30
_ACTIVE = "active"


@dataclass(frozen=True)
class Keyboard:
    """The operator who started the dashboard."""

    name: str
    key: Path | None  # the file, where it lies elsewhere
    passphrase: str | None = field(repr=False)  # of a sealed key


@dataclass(frozen=True)
class _Member:
    """A site in a run."""

    name: str
    answer: str
    is_member: bool  # it was not removed
    here: bool
    last_round: int | None  # in which its update entered
    score: object  # with its noise
    loss: float | None
    epsilon: float | None


def dashboard_of(home: Home, registry: Registry, keyboard: Keyboard) -> Dashboard:
    """What the coordinator shows.

    Args:
        home: the coordinator's.
        registry: its registry.
        keyboard: whoever asks.
    """
    certificate, desk = _certificate(registry, keyboard.name), proposing.Desk()

    def asked(action: str, page: Callable[[Visit], Page]) -> Callable[[Visit], Page]:
        def shown(visit: Visit) -> Page:
            operators.still_may(registry, keyboard.name, certificate, action)
            return page(visit)

        return shown

    def signer_of(action: str) -> operators.Signer:
        return operators.acting(
            home, registry, action, keyboard.name, key=keyboard.key, ask=lambda _: keyboard.passphrase
        )

    def act(action: str, do: Callable[[Home, Registry, operators.Signer, Proposal], str]) -> Callable[..., str]:
        def done(visit: Visit, _form: Mapping[str, str]) -> str:
            proposal = registry.proposal(visit.path["run"])
            return do(home, registry, signer_of(action), proposal)

        return done

    def look(_visit: Visit, form: Mapping[str, str]) -> str:
        operators.still_may(registry, keyboard.name, certificate, "run")
        return desk.look_at(form.get("text", "").replace("\r\n", "\n"))  # as a form has line ends

    menu = [("Overview", "/"), ("Runs", "/runs"), ("Sites", "/sites")]
    if _role(registry, keyboard.name) in RIGHTS["run"]:
        menu.insert(2, ("Propose", "/propose"))
    return Dashboard(
        name="Wardround coordinator",
        advice=advice(home.path),
        menu=menu,
        pages={
            "/": asked("runs", lambda visit: _overview(home, registry, visit)),
            "/runs": asked("runs", lambda visit: _runs(home, registry, visit)),
            "/runs/{run}": asked("watch", lambda visit: _run(home, registry, keyboard, visit)),
            "/propose": asked("run", lambda visit: proposing.page_of(home, registry, keyboard.name, desk, visit)),
            "/sites": asked("sites", lambda _visit: _sites(home, registry)),
        },
        acts={
            "/runs/{run}/stop": act("stop", wishes.stop),
            "/runs/{run}/resume": act("resume", wishes.resume),
            "/propose/sign": lambda _visit, form: proposing.sign(home, registry, signer_of("run"), desk, form),
        },
        at_once={"/propose/look": look},
        stamp=lambda: _stamp(home, registry),
    )


def _overview(home: Home, registry: Registry, visit: Visit) -> Page:
    present = supervisor.present(home, registry)
    running = present is not None
    looked = doors(home) if running else []
    proposals = registry.proposals()
    members = [one for one in registry.sites() if one.state == _ACTIVE]
    here = sum(one.name in (present or ()) for one in members)
    working = [one for one in proposals if one.open]
    with open_log(home).transaction() as log:
        entries, conflicts = log.size, len(log.latest("conflict", count=1000))
    body = fragment(
        "server/dashboard/overview.html",
        base=visit.base,
        running=running,
        doors=[(door.name, door.port, door.state) for door in looked],
        entries=entries,
        conflicts=conflicts,
        sites=_site_rows(home, registry, present),
        runs=_cards(home, registry, working),
        expiring=list(_expiring(one for one in members if one.name not in (present or ()))),
    )
    said = "The coordinator is running." if running else "The coordinator is not running."
    said += f" {here} of {counted(len(members), 'site')} connected, {counted(len(working), 'run')} open."
    return Page("Overview", body, said)


def _runs(home: Home, registry: Registry, visit: Visit) -> Page:
    proposals = registry.proposals()
    body = fragment("server/dashboard/runs.html", base=visit.base, runs=_cards(home, registry, proposals))
    return Page("Runs", body, f"{counted(sum(one.open for one in proposals), 'run')} open, {len(proposals)} in all.")


def _sites(home: Home, registry: Registry) -> Page:
    rows = _site_rows(home, registry, supervisor.present(home, registry))
    return Page("Sites", fragment("server/dashboard/sites.html", sites=rows), counted(len(rows), "site") + ".")


def _run(home: Home, registry: Registry, keyboard: Keyboard, visit: Visit) -> Page:
    proposal = registry.proposal(visit.path["run"])
    folder = home.run_folder(proposal.document)
    events = read_events(folder / JOURNAL_NAME)
    here = supervisor.present(home, registry)
    view, progress = view_of(summary_of(folder, proposal), events), progress_of(folder, proposal, here)
    members = _members(registry, proposal, events, here)
    role = _role(registry, keyboard.name)
    body = fragment(
        "server/dashboard/run.html",
        base=visit.base,
        csrf=visit.csrf,
        idle=proposal.open and here is None,
        run=view,
        proposal=proposal,
        state=_state(registry, proposal),
        progress=progress,
        left=None if progress.seconds_left is None else duration(progress.seconds_left),
        members=[
            (
                one.name,
                one.answer,
                "yes" if one.here else "no",
                one.last_round,
                one.loss,
                one.score,
                one.epsilon,
            )
            for one in members
        ],
        headline=progress.headline,
        awaited=_awaited(registry, proposal),
        silent=[] if here is None else _silent(proposal, view, members, progress.waiting_for),
        rounds=list(reversed(view.rounds))[:MOST_ROUNDS],
        more=max(0, len(view.rounds) - MOST_ROUNDS),
        may_stop=proposal.open and role in RIGHTS["stop"],
        may_resume=proposal.state in ("failed", "stopped") and role in RIGHTS["resume"],
        operator=keyboard.name,
    )
    return Page(f"Run {proposal.name}", body, f"{_state(registry, proposal).capitalize()}: {progress}.")


def _members(
    registry: Registry, proposal: Proposal, events: Sequence[Event], here: frozenset[str] | None
) -> list[_Member]:
    """All sites that have answered the proposal, or worked for the run, or may; and whether they are `here`."""
    sites = {one.name: one for one in registry.sites()}
    worked = {str(event["site"]) for event in events if "site" in event} - {OVERALL}
    active = {one.name for one in sites.values() if one.state == _ACTIVE}
    return [
        _member(name, sites.get(name), proposal, events, is_here=name in (here or ()))
        for name in sorted(worked | active | proposal.approved | proposal.denied)
    ]


def _member(name: str, site: Site | None, proposal: Proposal, events: Sequence[Event], *, is_here: bool) -> _Member:
    said = "approved" if name in proposal.approved else "denied" if name in proposal.denied else "no answer yet"
    own = [event for event in reversed(events) if event.get("site") == name]
    headline = (task := proposal.run.task).headline

    def latest(kind: str, key: str) -> float | None:
        return next((event[key] for event in own if event["event"] == kind and key in event), None)

    rounds = [event["round"] for event in events if event["event"] == "round" and name in event["sites"]]
    return _Member(
        name,
        f"refused by its policy ({proposal.refused[name]})" if name in proposal.refused else said,
        site is not None and site.state == _ACTIVE,
        is_here,
        max(rounds, default=None),
        score_with_noise(
            next((one for one in own if one["event"] == "evaluate" and headline in one), {}), headline, task
        ),
        latest("train", TRAIN_LOSS),
        latest("train", "epsilon"),
    )


def _awaited(registry: Registry, proposal: Proposal) -> list[str]:
    """Whose answer a proposal waits for."""
    if proposal.state != "proposed" or len(registry.willing(proposal)) >= proposal.run.federation.quorum:
        return []
    return sorted(registry.active() - proposal.approved - proposal.denied)


def _silent(proposal: Proposal, view: RunView, members: Iterable[_Member], awaited: Collection[str]) -> list[str]:
    """Who takes part in a run that goes on, and is away, or gave nothing to the last round; of whom the run is waiting
    for, that is said with since when and until when.
    """
    if proposal.state != "running":
        return []
    last = view.rounds[-1].number if view.rounds else None
    return [
        f"{one.name} {_where(one)}"
        for one in members
        if one.name in proposal.approved
        and one.name not in awaited
        and (not one.here or (last is not None and one.last_round != last))
    ]


def _where(one: _Member) -> str:
    if not one.is_member:
        return "is no member any more"
    if not one.here:
        return "is away"
    return f"was last heard in round {one.last_round}" if one.last_round else "is in no round yet"


def _state(registry: Registry, proposal: Proposal) -> str:
    if proposal.state == "proposed":
        willing, quorum = len(registry.willing(proposal)), proposal.run.federation.quorum
        return f"proposed, {willing} of {quorum} approvals" if willing < quorum else "starting"
    return proposal.state


def _cards(home: Home, registry: Registry, proposals: Sequence[Proposal]) -> list[dict[str, object]]:
    here = supervisor.present(home, registry)
    return [_card(home, registry, one, here) for one in proposals]


def _card(home: Home, registry: Registry, proposal: Proposal, here: frozenset[str] | None) -> dict[str, object]:
    progress = progress_of(home.run_folder(proposal.document), proposal, here)
    return {
        "name": proposal.name,
        "hash": proposal.run_hash,
        "state": _state(registry, proposal),
        "kind": {"failed": "bad", "completed": "good", "stopped": "warn"}.get(proposal.state, ""),
        "round": progress.round,
        "rounds": progress.rounds,
        "score": progress.scored or "no score yet",
        "noise": progress.noise,
        "left": progress.waits if progress.seconds_left is None else f"about {duration(progress.seconds_left)} left",
        "reason": proposal.reason,
        "refusals": proposal.refusals,
    }


def _site_rows(home: Home, registry: Registry, here: frozenset[str] | None) -> list[tuple[object, ...]]:
    clocks, seen = registry.clocks(), read_seen(home.path)
    return [
        (
            one.name,
            one.state,
            "yes" if one.name in (here or ()) else ", ".join(filter(None, ("no", last_seen(seen.get(one.name))))),
            "-" if one.expires is None else f"{_until(one):%Y-%m-%d}, {counted(_days(one), 'day')} left",
            clock.in_words(clocks[one.name], "ours") if one.name in clocks else None,
        )
        for one in registry.sites()
    ]


def _expiring(sites: Iterable[Site]) -> Iterable[str]:
    """Of sites that are not connected: whose certificate ends soon."""
    for one in sites:
        if one.expires is not None and _days(one) < RENEW_DAYS:
            left = counted(_days(one), "day")
            yield f"{one.name}'s certificate ends in {left}; its agent renews it when it connects."


def _until(site: Site) -> datetime.datetime:
    return datetime.datetime.fromisoformat(site.expires or "")


def _days(site: Site) -> int:
    return max(0, certificates.days_left(_until(site)))


def _role(registry: Registry, name: str) -> str:
    return next((one.role for one in registry.operators() if one.name == name and one.active), "")


def _certificate(registry: Registry, name: str) -> bytes | None:
    return next((one.certificate for one in registry.operators() if one.name == name and one.active), None)


def _stamp(home: Home, registry: Registry) -> str:
    """Of the registry, the runs' records and the processes."""
    files: list[tuple[str, int]] = []
    for name in (JOURNAL_NAME, SUMMARY_NAME):
        files += [(str(path), path.stat().st_mtime_ns) for path in home.path.glob(f"runs/*/{name}")]
    return f"{registry.version()} {supervisor.is_running(home)} {sorted(files)}"


__all__ = ["Keyboard", "dashboard_of"]
