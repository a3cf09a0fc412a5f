"""Ask every site the same thing and hand on each answer as it arrives.

Flower's own `send_and_receive` sleeps three seconds between looks; here the wait grows with the time already waited,
from 20 to 250 ms, so that looking adds at most 5 % to a round and a slow round costs the SuperLink four looks a second.
"""

import itertools
import logging
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TypeAlias

from flwr.app import Message, MessageType
from flwr.serverapp import Grid

from common.errors import ErrorCode, UpdateError
from common.records import EvaluateRequest, Refusal, Reply, Request, reply_from_record, request_to_record

# Sleeps at most the given seconds; may return early when a reply is known to wait.
Wait: TypeAlias = Callable[[float], None]

SHORTEST_WAIT_S = 0.02
LONGEST_WAIT_S = 0.25
_SHARE_OF_ELAPSED = 0.05
# Flower compares times taken on two machines; a message must not expire because a hospital's clock is off.
_CLOCK_SKEW_S = 600.0

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Answer:
    """What one site said; `reply` is None when it did not answer in time or could not be reached."""

    site: str
    reply: Reply | None


def ask(
    grid: Grid, sites: Mapping[int, str], request: Request, *, timeout_s: float, wait: Wait = time.sleep
) -> Iterator[Answer]:
    """Send one request to all sites; yield exactly one answer per site, as they come.

    Replies to earlier requests are ignored. A reply that cannot be read counts as a refusal by that site.

    Args:
        grid: Flower's way to the sites.
        sites: node id -> site name.
        request: packed once, sent to all.
        timeout_s: sites that have not answered by then are yielded with reply None.
        wait: how to pass the time between two looks.
    """
    pending = _push(grid, sites, request, timeout_s)
    for site in sites.values():
        if site not in pending.values():
            _log.warning("the message to %s could not be handed over", site)
            yield Answer(site, None)
    start = time.monotonic()
    while pending:
        arrived = False
        for message in grid.pull_messages(list(pending)):
            if (asked := message.metadata.reply_to_message_id) in pending:
                arrived = True
                site = pending.pop(asked)
                yield Answer(site, _read(message, request))
        elapsed = time.monotonic() - start
        if elapsed > timeout_s:
            break
        if pending and not arrived:
            wait(min(LONGEST_WAIT_S, max(SHORTEST_WAIT_S, _SHARE_OF_ELAPSED * elapsed)))
    for site in pending.values():
        yield Answer(site, None)


def _push(grid: Grid, sites: Mapping[int, str], request: Request, timeout_s: float) -> dict[str, str]:
    """Send; return message id -> site for what was accepted."""
    kind = MessageType.EVALUATE if isinstance(request, EvaluateRequest) else MessageType.TRAIN
    content = request_to_record(request)
    ttl = timeout_s + _CLOCK_SKEW_S
    messages = [grid.create_message(content, kind, node, str(request.round), ttl=ttl) for node in sites]
    # The SuperLink answers "" (and HttpGrid may answer None, or a shorter list) for what it did not take.
    ids = itertools.zip_longest(grid.push_messages(messages), sites.values())
    return {message_id: site for message_id, site in ids if message_id and site is not None}


def _read(message: Message, request: Request) -> Reply:
    if message.has_error():
        # The text of a Flower error is written at the site and may hold anything: it is not looked at.
        return Refusal(request.run_hash, request.round, ErrorCode.WORKER_FAILED)
    try:
        return reply_from_record(message.content)
    except UpdateError as error:
        return Refusal(request.run_hash, request.round, error.code)


__all__ = ["LONGEST_WAIT_S", "SHORTEST_WAIT_S", "Answer", "Wait", "ask"]
