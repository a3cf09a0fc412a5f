"""Who takes part in a run, and how each is right now: what a round goes by when it asks, waits and says who is missing.
And whom a round asks, where it does not ask all.

`HomeMembers` knows it from the coordinator's registry: every enrolled site, connected or not. `GridMembers` knows what
Flower says, in a simulation and under stock Flower: the nodes that are there.
"""

import hashlib
import logging
import math
import sqlite3
import time
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Protocol

from flwr.proto.node_pb2 import NodeInfo
from flwr.serverapp import Grid

from common.config import RunConfig
from common.config.rundocument import RunDocument
from common.errors import AuditError, ErrorCode, FederationError
from common.system.wakeup import gateway_started_at
from common.wire.at_work import AtWork
from common.wire.messages import EvaluateRequest, Request
from server.federation.events import (
    ASKED,
    BY_COORDINATOR,
    FOR,
    NOT_THERE,
    SCORES,
    UPDATES,
    WAITING,
    Journal,
    in_words,
    refusal,
)
from server.gateway import deliveries
from server.home.folder import Home, read_nodes
from server.home.work import read_work
from server.registry.registry import Registry
from server.registry.sites import Presence
from server.registry.store import StoreError

# So long a site is missing before a new round goes on without asking it; a message waits for it meanwhile.
BRIEFLY_S = 60.0
# Who is gone for less is mostly on the way back, and nobody is told.
_TOLD_AFTER_S = 3.0
# A gateway that has just started, and a site that has just come, are given so long to find what they had.
_SETTLED_S = 10.0

_log = logging.getLogger(__name__)


class State(StrEnum):
    """How a member is."""

    HERE = "here"
    AWAY = "away"  # it does not call
    LEFT = "left"  # it said goodbye
    REVOKED = "revoked"  # shut out by the coordinator


_STATES = {Presence.HERE: State.HERE, Presence.AWAY: State.AWAY, Presence.LEFT: State.LEFT}


@dataclass(frozen=True)
class Member:
    """A site, as it is now."""

    site: str
    state: State
    node: int | None = None  # Flower's; None: it was never here, and cannot be asked
    seconds: float = float("inf")  # how long it has been in this state, as far as is known
    willing: bool = True  # has approved the run
    work: AtWork | None = None  # what it is at, as far as it has said so lately

    @property
    def can_be_asked(self) -> bool:
        """Whether it takes part in the run and has been here."""
        return self.willing and self.node is not None and self.state is not State.REVOKED

    @property
    def is_briefly_away(self) -> bool:
        """Whether it may be back in a moment."""
        return self.state is State.AWAY and self.seconds < BRIEFLY_S


class Members(Protocol):
    """A look at the members."""

    def look(self) -> Mapping[str, Member]:
        """All of them by name, in the order of names."""

    def unheld(self, asked: Mapping[str, tuple[str, float]]) -> set[str]:
        """Messages that got lost on their way to a site.

        Args:
            asked: message id -> the site, and when it was sent, in seconds since the epoch.
        """


class GridMembers:
    """The nodes that Flower shows."""

    def __init__(self, grid: Grid) -> None:
        self._grid = grid
        self._nodes: Iterable[NodeInfo] = ()
        self._here: dict[int, str] = {}
        self._seen: dict[str, Member] = {}

    def look(self) -> Mapping[str, Member]:
        """See `Members`. One that has been there stays a member."""
        nodes = self._grid.get_nodes()
        if nodes is self._nodes:  # a simulation's, of which there may be thousands
            return self._seen
        self._nodes = nodes
        here = {node.node_id: node.name or node.owner_name or f"node-{node.node_id}" for node in nodes}
        if here == self._here:
            return self._seen
        if len(set(here.values())) != len(here):
            raise FederationError("two connected nodes carry the same site name. Give each site a name of its own.")
        found = {site: Member(site, State.HERE, node) for node, site in here.items()}
        gone = {site: Member(site, State.AWAY, one.node) for site, one in self._seen.items() if site not in found}
        self._here, self._seen = here, dict(sorted((found | gone).items()))
        return self._seen

    def unheld(self, _asked: Mapping[str, tuple[str, float]]) -> set[str]:
        """See `Members`: Flower loses none."""
        return set()


class HomeMembers:
    """The enrolled sites. Those that were revoked are shown as long as they have a say in the run."""

    def __init__(self, home: Home, run_hash: str) -> None:
        self._home, self._run = home, run_hash
        self._registry = Registry(home.registry)
        self._nodes = read_nodes(home)
        self._known: dict[str, Member] = {}
        self._since: dict[str, float] = {}  # when the state of each changed

    def look(self) -> Mapping[str, Member]:
        """See `Members`. A registry that cannot be read for a moment changes nothing."""
        try:
            sites = self._registry.sites()
            approved = next((one.approved for one in self._registry.unfinished() if one.run_hash == self._run), None)
            nodes = {site: node for node, site in self._nodes.items()}  # the last is the present one
        except (StoreError, AuditError) as error:
            _log.warning("the registry cannot be read: %s", error)
            return self._known
        states = {one.name: _STATES[one.presence] for one in sites if one.state == "active"}
        states |= {one.name: State.REVOKED for one in sites if one.state == "revoked" and one.name in self._known}
        now = time.monotonic()
        for site, state in states.items():
            before = self._known.get(site)
            if before is None or before.state is not state:
                # Whoever was away before this process began may have been so for long.
                self._since[site] = now if before is not None else float("-inf")
        work = read_work(self._home.path)
        self._known = {
            site: Member(
                site,
                state,
                nodes.get(site),
                now - self._since[site],
                approved is None or site in approved,
                work.get(site),
            )
            for site, state in sorted(states.items())
        }
        return self._known

    def unheld(self, asked: Mapping[str, tuple[str, float]]) -> set[str]:
        """See `Members`: what a gateway that was killed had not on disk."""
        started, now = gateway_started_at(self._home.path), time.time()
        settled = {site for site, one in self._known.items() if one.state is State.HERE and one.seconds > _SETTLED_S}
        lost = {message for message, (site, at) in asked.items() if at < started and site in settled}
        if not lost or now - started < _SETTLED_S:
            return set()
        try:
            return lost - deliveries.held(self._home.flower / deliveries.NAME)
        except sqlite3.Error as error:
            _log.warning("the messages on their way cannot be read: %s", error)
            return set()


class Draw:
    """Whom a round asks where it does not ask all: see [federation] sites-per-round.

    Sites stand in the order of a digest of the seed, the round and their names: one set of sites is as likely as any
    other, a round's does not depend on those before, and who else is there moves nobody. Where those that were asked
    cannot make the quorum any more, the next in the order are asked too. A round that is trained again asks whom it
    asked before, and after a failure also whom it lacked.
    """

    def __init__(self, run: RunConfig, round_: int, again: Collection[str], tell: Callable[[list[str]], None]) -> None:
        """Nobody is drawn yet.

        Args:
            run: its seed.
            round_: from 1.
            again: whom this round has asked when it was begun before; nobody: it was not.
            tell: told the names of those who are drawn, before they are asked.
        """
        self._run, self._round, self._again, self._tell = run, round_, frozenset(again), tell
        self._could: set[str] = set()
        self.asked: set[str] = set(again)

    @property
    def not_asked(self) -> list[str]:
        """Who could have been asked, and was not drawn."""
        return sorted(self._could - self.asked)

    def first(self, members: Iterable[Member]) -> frozenset[str]:
        """Whom the round asks as it begins."""
        self._could |= {
            one.site for one in members if one.can_be_asked and (one.state is State.HERE or one.is_briefly_away)
        }
        return self._again or self._drawn(self._run.federation.sites_per_round or len(self._could))

    def more(self, members: Iterable[Member], lacking: int) -> frozenset[str]:
        """Whom it asks besides, so many at most, as far as they are here."""
        if lacking <= 0:
            return frozenset()
        self._could |= {one.site for one in members if one.can_be_asked and one.state is State.HERE}
        return self._drawn(lacking)

    def _drawn(self, count: int) -> frozenset[str]:
        drawn = sorted(self._could - self.asked, key=self._place)[:count]
        if drawn:
            self._tell(sorted(drawn))
        self.asked |= set(drawn)
        return frozenset(drawn)

    def _place(self, site: str) -> bytes:
        return hashlib.sha256(f"{self._run.seed}|{self._round}|{site}".encode()).digest()


def draw_of(journal: Journal, document: RunDocument, round_: int) -> Draw | None:
    """Whom a round asks, told to the journal; None: all."""
    if document.config.federation.sites_per_round is None:
        return None
    before = [set(one["sites"]) for one in journal.events if one["event"] == ASKED and one["round"] == round_]
    of = {"run-hash": document.hash, "round": round_}
    tell = lambda sites: journal.record(ASKED, {**of, "sites": sites})  # noqa: E731
    return Draw(document.config, round_, set().union(*before), tell)


class Waiting:
    """Tells the journal who is gone and is waited for, in one exchange or before the first round; once, and again when
    it changes: so that whoever watches need not guess why nothing happens.
    """

    def __init__(self, journal: Journal, round_: int, timeout_s: float, what: str) -> None:
        self._journal, self._round, self._for = journal, round_, what
        self._until = time.time() + timeout_s
        self._told: dict[str, str] = {}

    @classmethod
    def of(cls, journal: Journal, request: Request, timeout_s: float) -> "Waiting":
        """In the exchange that begins with a request."""
        return cls(journal, request.round, timeout_s, SCORES if isinstance(request, EvaluateRequest) else UPDATES)

    def __call__(self, awaited: Iterable[Member]) -> None:
        """Those who are waited for, as they are now, gone or not."""
        gone = [
            one
            for one in awaited
            if one.state in (State.AWAY, State.LEFT) and (one.seconds >= _TOLD_AFTER_S or one.site in self._told)
        ]
        sites = {one.site: str(one.state) for one in gone}
        if sites != self._told:
            self._told, now = sites, time.time()
            since = {one.site: now - one.seconds for one in gone if math.isfinite(one.seconds)}
            said = {"round": self._round, FOR: self._for, "sites": sites, "since": since, "until": self._until}
            self._journal.record(WAITING, said)


def not_there(members: Members, asked: Collection[str], draw: Draw | None) -> dict[str, dict[str, str]]:
    """For a round's event: who takes part in the run and was not asked, as it was gone, or came later."""
    known = members.look().values()
    not_gone = {*asked, *(draw.not_asked if draw else ())}
    gone = {one.site: str(one.state) for one in known if one.can_be_asked and one.site not in not_gone}
    return {NOT_THERE: gone} if gone else {}


@dataclass
class Absent:
    """Who did not contribute to an exchange, and why."""

    refused: dict[str, ErrorCode] = field(default_factory=dict)
    # Of these the sites whose answer was refused here; the others have refused what they were asked.
    here: set[str] = field(default_factory=set)
    # Site -> why it did not answer, see server/federation/broadcast.py.
    missing: dict[str, str] = field(default_factory=dict)

    def reject(self, site: str, code: ErrorCode) -> None:
        """What the site answered does not count."""
        self.refused[site] = code
        self.here.add(site)

    def as_event(self) -> dict[str, Any]:
        """What the journal has of it."""
        refused = {site: str(code) for site, code in sorted(self.refused.items())}
        missing = dict(sorted(self.missing.items()))
        here = sorted(self.here & refused.keys())
        return {"refused": refused, BY_COORDINATOR: here, "missing": list(missing), "why-missing": missing}

    def refusals(self) -> dict[str, str]:
        """Who refused what, as a sentence for each site."""
        return {site: refusal(site, code, here=site in self.here) for site, code in self.refused.items()}


def present(members: Members) -> list[str]:
    """The sites that are here now."""
    return [site for site, one in members.look().items() if one.state is State.HERE]


def who_is_missing(
    members: Members, there: Collection[str], why: Mapping[str, str], refusals: Mapping[str, str]
) -> str:
    """The end of a sentence that names every member that is not `there`, each with the reason.

    Args:
        members: all of them.
        there: whom not to name.
        why: why some gave no answer (server/federation/broadcast.py), where that is known.
        refusals: of others who refused what, as a sentence.
    """
    known = members.look()
    reasons = []
    for site in sorted((known.keys() | why.keys() | refusals.keys()) - set(there)):
        reason, member = why.get(site), known.get(site)
        if site in refusals:
            reasons.append(refusals[site])
        elif member is not None and not member.willing:
            reasons.append(f"{site} has not approved the run")
        else:
            reasons.append(f"{site} {in_words(reason or (member.state if member else State.REVOKED))}")
    return f": {', '.join(reasons)}" if reasons else ""


__all__ = [
    "BRIEFLY_S",
    "Absent",
    "Draw",
    "GridMembers",
    "HomeMembers",
    "Member",
    "Members",
    "State",
    "Waiting",
    "draw_of",
    "not_there",
    "present",
    "who_is_missing",
]
