"""A run as it happens, for a person: a live table on a terminal, plain lines elsewhere.

Reads the registry and the run's `metrics.jsonl` alone, so watching costs the federation nothing and may begin, end
and begin again at any time.
"""

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeAlias

from common.config import TRAIN_LOSS
from common.config.statistics import COUNTED
from common.console.cli import live_table, note
from common.tasks import Task, of_local
from common.text import counted, sized
from server.federation.events import (
    JOURNAL_NAME,
    OVERALL,
    STOPPED,
    WAITING,
    Event,
    read_events,
)
from server.home.folder import Home
from server.registry.proposals import Proposal
from server.registry.registry import Registry
from server.views.sentences import (
    lost_of,
    made_of,
    missing_of,
    noise_of,
    not_asked_of,
    odd_of,
    refused_of,
    score_with_noise,
    waiting_in,
    who_waits,
)

_LOOK_EVERY_S = 0.5


Told: TypeAlias = Callable[[Proposal, list[Event]], None]
Idle: TypeAlias = Callable[[], str | None]


def watch(home: Home, registry: Registry, run_hash: str, *, idle: Idle, told: Told | None = None) -> Proposal:
    """Show a run until it is closed.

    Args:
        home: the coordinator's.
        registry: its registry.
        run_hash: of the run.
        idle: why no run goes on at the moment; None: they do.
        told: of the run and its events whenever there are others.

    Returns:
        The run in its final state.
    """
    if sys.stderr.isatty():
        return _watch_live(home, registry, run_hash, idle, told)
    printed = 0
    last_line = ""
    explained = False
    for proposal, events in _observe(home, registry, run_hash, told):
        line = _state_now(registry, proposal, idle)
        if line != last_line:
            note(line)
            last_line = line
        # A resumed run forgets what came after its checkpoint.
        printed = min(printed, len(events))
        for event in events[printed:]:
            if text := event_line(event, proposal.run.task):
                note(text)
            if proposal.open and not explained and (noise := noise_of([event])):  # at its end the table is explained
                note(noise)
                explained = True
        printed = len(events)
    return proposal


def state_line(registry: Registry, proposal: Proposal) -> str:
    """Where the run stands, in one line. Why it has ended is for the caller to say, once."""
    if proposal.state != "proposed":
        return f"{proposal.name} {proposal.run_hash[:8]}: {proposal.state}"
    willing, active = registry.willing(proposal), registry.active()
    if len(willing) >= proposal.run.federation.quorum:
        return f"{proposal.name} {proposal.run_hash[:8]}: starting"
    silent = active - proposal.approved - proposal.denied
    few = (
        f"; {counted(len(active), 'site is', 'sites are')} enrolled, fewer than its quorum"
        if len(active) < proposal.run.federation.quorum
        else ""
    )
    denied = f"; {'; '.join(proposal.refusals)}" if proposal.denied else ""
    return (
        f"{proposal.name} {proposal.run_hash[:8]}: {len(willing)} of {proposal.run.federation.quorum} "
        f"approvals{denied}{few}; waiting for {', '.join(sorted(silent)) or 'sites to enrol'} "
        f"(there: `wardround-client approve {proposal.run_hash[:8]}`; to withdraw it: "
        f"`wardround-server stop {proposal.run_hash[:8]}`)"
    )


def event_line(event: Event, task: Task) -> str:
    """One event of the journal as a line; empty for those a watcher does not need."""
    match event["event"]:
        case "round":
            left_out = [
                *refused_of(event),
                *missing_of(event),
                *odd_of(event),
                *not_asked_of(event),
            ]
            remark = f"; {', '.join(left_out)}" if left_out else ""
            steps = f"; steps: {', '.join(made)}" if (made := made_of(event)) else ""
            return (
                f"round {event['round']}: {counted(len(event['sites']), 'site')}, {event['seconds']:.1f} s, "
                f"{sized(event['bytes-down'] + event['bytes-up'])}{steps}{remark}"
            )
        case kind if kind == WAITING:
            return who_waits(event)
        case "train" if COUNTED in event and event["round"] == 1:
            return f"{event['site']} tells statistics of about {event[COUNTED]:g} training patients"
        case "evaluate" if event["site"] == OVERALL:
            score = f"{task.headline} {_number(_score([event], task))}"
            local = event.get(of_local(task.headline))
            alone = "" if local is None else f"; {_number(local)} of the models trained alone"
            lost = "".join(f"; {said}" for said in lost_of(event))
            return f"round {event['round']}: {event['phase']} {score} (mean of sites){alone}{lost}"
        case kind if kind == STOPPED:
            return (
                f"round {event['round']}: stopped early, no better {task.headline} in "
                f"{counted(event['patience'], 'evaluation')} since round {event['best-round']}"
            )
        case _:
            return ""


def live_line(state: str, events: Sequence[Event]) -> str:
    """What stands above the table: the state, who is waited for, whose last scores are lost, what noise means."""
    return ". ".join(filter(None, (state, _wait(events), _lost(events), noise_of(events))))


def _state_now(registry: Registry, proposal: Proposal, idle: Idle) -> str:
    line, why = state_line(registry, proposal), idle() if proposal.open else None
    return line if why is None else f"{line}; {why}"


def _watch_live(home: Home, registry: Registry, run_hash: str, idle: Idle, told: Told | None) -> Proposal:
    with live_table() as show:
        for proposal, events in _observe(home, registry, run_hash, told):
            finished = _latest(events, "round", "round") or 0
            title = f"{proposal.name}: {finished} of {counted(_rounds(proposal), 'round')} done"
            task = proposal.run.task
            columns = ("site", "train loss", task.headline, "steps", "seconds", "epsilon")
            show(live_line(_state_now(registry, proposal, idle), events), title, columns, _by_site(events, task))
    return proposal


def _by_site(events: Sequence[Event], task: Task) -> list[tuple[object, ...]]:
    """A row for each site that was heard of, and one for all: train loss, headline score, steps, seconds, epsilon."""
    sites = sorted({str(event["site"]) for event in events if "site" in event} - {OVERALL})
    rows: list[tuple[object, ...]] = []
    for site in [*sites, OVERALL]:
        own = [event for event in events if event.get("site") == site]
        loss, steps, seconds, epsilon = (
            _latest(own, "train", key) for key in (TRAIN_LOSS, "steps", "seconds", "epsilon")
        )
        rows.append((site, loss, _score(own, task), steps, seconds, epsilon))
    return rows


def _observe(
    home: Home, registry: Registry, run_hash: str, told: Told | None
) -> Iterator[tuple[Proposal, list[Event]]]:
    read = _reader(home, registry.proposal(run_hash))
    last: list[Event] = []
    while True:
        # First the state, then the events: when it is closed, they are all there.
        proposal = registry.proposal(run_hash)
        events = read()
        if told is not None and events and (events != last or not proposal.open):
            told(proposal, events)
        last = events
        yield proposal, events
        if not proposal.open:
            return
        time.sleep(_LOOK_EVERY_S)


def _reader(home: Home, proposal: Proposal) -> Callable[[], list[Event]]:
    path = home.run_folder(proposal.document) / JOURNAL_NAME
    return lambda: read_events(path)


def _wait(events: Sequence[Event]) -> str | None:
    return None if (event := waiting_in(events)) is None else who_waits(event, _latest(events, "round", "round") or 0)


def _lost(events: Sequence[Event]) -> str | None:
    scored = (event for event in reversed(events) if event["event"] == "evaluate" and event["site"] == OVERALL)
    if (last := next(scored, None)) is None or not (lost := lost_of(last)):
        return None
    return f"{last['phase']} scores after round {last['round']}: {', '.join(lost)}"


def _latest(events: Sequence[Event], kind: str, key: str) -> Any:
    return next((event[key] for event in reversed(events) if event["event"] == kind and key in event), None)


def _rounds(proposal: Proposal) -> int:
    return proposal.run.federation.rounds


def _score(events: Sequence[Event], task: Task) -> object:
    """The last one, with the standard deviation of its noise where the site has added some."""
    scored = (event for event in reversed(events) if event["event"] == "evaluate" and task.headline in event)
    return score_with_noise(next(scored, {}), task.headline, task)


def _number(value: Any) -> str:
    return f"{value:.3f}" if isinstance(value, float) else "-" if value is None else str(value)
