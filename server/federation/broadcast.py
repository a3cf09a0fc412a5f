"""Ask every site the same thing and hand on each answer as it arrives.

Who is asked is waited for until the deadline, also if it goes away meanwhile: its message waits for it. A message that
got lost is asked again; a site answers the same round of the same model with the same update (client/trail/outbox.py).
While too few can answer, who comes is asked too. Nothing here waits for one site alone.

Flower's own `send_and_receive` sleeps three seconds between looks; here the wait grows with the time already waited,
from 20 to 250 ms, so that looking adds at most 5 % to a round and a slow round costs the SuperLink four looks a second.
"""

import itertools
import logging
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from flwr.app import Message, MessageType
from flwr.serverapp import Grid

from common.errors import ErrorCode, UpdateError
from common.flower.inbox import Inbox
from common.wire.messages import EvaluateRequest, Refusal, Reply, Request
from common.wire.records import reply_from_record, request_to_record
from server.federation.members import BRIEFLY_S, Draw, Member, Members, State

# Sleeps at most the given seconds; may return early when a reply is known to wait.
Wait: TypeAlias = Callable[[float], None]
# Told for which nodes messages have been handed over.
Hint: TypeAlias = Callable[[Collection[int]], None]

SHORTEST_WAIT_S = 0.02
LONGEST_WAIT_S = 0.25
_SHARE_OF_ELAPSED = 0.05
# Between two messages to a site that did not get the first.
_AGAIN_AFTER_S = 2.0
# A reply that is under way at the deadline is still taken in. All times are this host's: no hospital's clock counts.
_GRACE_S = 600.0

# Why a site that was asked did not answer: it is away, it left, it was revoked, or it is here, and by its own last word
# it works on what was asked, hangs over it, or does neither.
AT_WORK, HANGS, NO_ANSWER = "at work", "hangs", "no answer"

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Answer:
    """What one site said; `reply` is None when it did not answer in time, and `why` says why.

    rejected: what came is no reply to the request, so it is refused here with this code; the reply is None then too.
    """

    site: str
    reply: Reply | None
    why: str = ""
    rejected: ErrorCode | None = None

    @property
    def came(self) -> bool:
        """Whether the site answered at all."""
        return self.reply is not None or self.rejected is not None


def ask(
    grid: Grid,
    members: Members,
    request: Request,
    *,
    timeout_s: float,
    wait: Wait = time.sleep,
    hint: Hint = lambda _nodes: None,
    wanted: Callable[[], int] = lambda: 0,
    draw: Draw | None = None,
    waiting: Callable[[Sequence[Member]], None] = lambda _awaited: None,
) -> Iterator[Answer]:
    """Send one request to all sites that are here; yield exactly one answer per site that was asked, as they come.

    Replies to earlier requests are ignored. A reply that cannot be read counts as a refusal by that site.

    Args:
        grid: Flower's way to the sites.
        members: who there is.
        request: packed once, sent to all.
        timeout_s: sites that have not answered by then are yielded with reply None.
        wait: how to pass the time between two looks.
        hint: told at once for whom there are messages.
        wanted: how many good answers are lacking still. While it says more than 0 and sites could come that were not
            asked, they are waited for and asked.
        draw: whom to ask of all; None: all.
        waiting: told of those whose answer is waited for, at each look.
    """
    exchange = _Exchange(grid, members, request, timeout_s, hint)
    start = time.monotonic()
    if draw is None:
        exchange.send(lambda one: one.willing and (one.state is State.HERE or one.is_briefly_away))
    else:
        drawn = draw.first(exchange.members)
        exchange.send(lambda one: one.site in drawn)
    if exchange.open:
        wait(0.0)  # nothing can be here yet
    while True:
        arrived = False
        for answer in exchange.receive():
            arrived = True
            yield answer
        elapsed = time.monotonic() - start
        # What has arrived by the deadline counts, however long it takes to look through it.
        if (elapsed > timeout_s and not arrived) or (not exchange.open and not 0 < wanted() <= exchange.others):
            break
        exchange.send_on(wanted(), draw, elapsed)
        waiting(exchange.awaited(wanted()))
        if not arrived:
            wait(min(LONGEST_WAIT_S, max(SHORTEST_WAIT_S, _SHARE_OF_ELAPSED * elapsed)))
    yield from exchange.silent()


class _Exchange:
    """One request to all sites, from its sending to the last answer."""

    def __init__(self, grid: Grid, members: Members, request: Request, timeout_s: float, hint: Hint) -> None:
        self._grid, self._members, self._request, self._hint = grid, members, request, hint
        self._inbox = Inbox(grid)
        self._content = request_to_record(request)
        self._ttl = timeout_s + _GRACE_S
        self._under_way: dict[str, tuple[str, float]] = {}  # message id -> site, and when it was sent (Unix s)
        self._not_before: dict[str, float] = {}  # site -> when it may be asked again
        self.open: set[str] = set()  # sites that were asked and have not answered
        self._done: set[str] = set()
        self._seen = members.look()
        self._look: list[Member] = list(self._seen.values())

    @property
    def members(self) -> Sequence[Member]:
        """As they were at the last look."""
        return self._look

    @property
    def others(self) -> int:
        """How many sites that were not asked could still come."""
        known = self.open | self._done
        return sum(one.willing and one.state is not State.REVOKED and one.site not in known for one in self._look)

    def awaited(self, lacking: int) -> Sequence[Member]:
        """Whose answer is waited for: who was asked; and where too few can answer, who else could come."""
        here = sum(one.site in self.open and one.state is State.HERE for one in self._look)
        others = {one.site for one in self._look if one.willing} - self._done if lacking > here else set[str]()
        return [one for one in self._look if one.site in self.open or one.site in others]

    def send(self, to: Callable[[Member], bool]) -> None:
        """Ask those sites that have no message under way and have not answered."""
        busy = self._done | {site for site, _ in self._under_way.values()}
        now = time.monotonic()
        due = [
            one
            for one in self._look
            if one.node is not None
            and one.site not in busy
            and one.state is not State.REVOKED
            and now >= self._not_before.get(one.site, now)
            and to(one)
        ]
        if not due:
            return
        kind = MessageType.EVALUATE if isinstance(self._request, EvaluateRequest) else MessageType.TRAIN
        group = str(self._request.round)
        messages = [self._grid.create_message(self._content, kind, one.node or 0, group, ttl=self._ttl) for one in due]
        # The SuperLink answers "" (and HttpGrid may answer None, or a shorter list) for what it did not take.
        for message_id, one in itertools.zip_longest(self._grid.push_messages(messages), due):
            if one is None:
                break
            self.open.add(one.site)
            self._not_before[one.site] = now + _AGAIN_AFTER_S
            if message_id:
                self._under_way[message_id] = (one.site, time.time())
            else:
                _log.warning("the message to %s could not be handed over", one.site)
        self._hint([one.node or 0 for one in due])

    def send_on(self, lacking: int, draw: Draw | None, elapsed: float) -> None:
        """Ask again whose message got lost; and while too few can answer others too: who is here now, or is drawn.

        Args:
            lacking: how many good answers.
            draw: whom to ask of all; None: all.
            elapsed: since the exchange began, s.
        """
        if draw is not None:
            able = self.open if lacking <= 0 else {site for site in self.open if not self._is_gone(site, elapsed)}
            others = draw.more(self._look, lacking - len(able))
        else:
            others = frozenset(one.site for one in self._look if one.willing) if lacking > 0 else frozenset()
        if not others and len(self._under_way) == len(self.open):
            return  # with thousands of sites, to look at each after each answer takes longer than all else
        self.send(lambda one: one.state is State.HERE and (one.site in self.open or one.site in others))

    def receive(self) -> Iterator[Answer]:
        """The answers that are here, and the end of the wait for sites that were revoked."""
        before, self._seen = self._seen, self._members.look()
        self._look = list(self._seen.values())
        replies, lost = self._inbox.look(list(self._under_way)) if self._under_way else ({}, set[str]())
        for message_id, message in replies.items():
            if message_id in self._under_way:
                site, _ = self._under_way.pop(message_id)
                yield self._close(_read(site, message, self._request))
        for message_id in lost | self._members.unheld(self._under_way):
            if message_id not in self._under_way:
                continue
            site, _ = self._under_way.pop(message_id)
            self._not_before[site] = time.monotonic() + _AGAIN_AFTER_S
            _log.warning("the message to %s, or its answer, got lost", site)
        if self._seen is before:
            return
        present = {one.site: one.state for one in self._look}
        for site in sorted(self.open):
            if present.get(site, State.REVOKED) is State.REVOKED:
                self._under_way = {key: one for key, one in self._under_way.items() if one[0] != site}
                yield self._close(Answer(site, None, State.REVOKED))

    def _is_gone(self, site: str, elapsed: float) -> bool:
        """Whether a site that was asked has been away, in this exchange, for longer than a moment."""
        member = self._seen.get(site)
        return member is None or (member.state is not State.HERE and min(member.seconds, elapsed) >= BRIEFLY_S)

    def silent(self) -> Iterator[Answer]:
        """Those that were asked and did not answer."""
        found = {one.site: one for one in self._look}
        for site in sorted(self.open):
            yield Answer(site, None, self._why(found.get(site)))

    def _why(self, member: Member | None) -> str:
        if member is None:
            return State.REVOKED
        if member.state is not State.HERE:
            return member.state
        work = member.work
        if work is None or (work.run_hash, work.round) != (self._request.run_hash, self._request.round):
            return NO_ANSWER
        return HANGS if work.hangs else AT_WORK

    def _close(self, answer: Answer) -> Answer:
        self.open.discard(answer.site)
        self._done.add(answer.site)
        return answer


def _read(site: str, message: Message | None, request: Request) -> Answer:
    about = f"round {request.round}: the coordinator refuses the answer of {site}"
    if message is None:
        _log.warning("%s (%s): it is no message", about, ErrorCode.BAD_REQUEST)
        return Answer(site, None, rejected=ErrorCode.BAD_REQUEST)
    if message.has_error():
        # The text of a Flower error is written at the site and may hold anything: it is not looked at.
        return Answer(site, Refusal(request.run_hash, request.round, ErrorCode.WORKER_FAILED))
    try:
        return Answer(site, reply_from_record(message.content))
    except UpdateError as error:
        _log.warning("%s (%s): %s", about, error.code, error)
        return Answer(site, None, rejected=error.code)
    except Exception:  # noqa: BLE001 - logged; whatever a site sends, it costs that site's reply and not the run
        _log.exception("%s (%s): it cannot be read", about, ErrorCode.INTERNAL)
        return Answer(site, None, rejected=ErrorCode.INTERNAL)


__all__ = ["AT_WORK", "HANGS", "LONGEST_WAIT_S", "NO_ANSWER", "SHORTEST_WAIT_S", "Answer", "Hint", "Wait", "ask"]
