"""How a ServerApp looks for replies without waiting for any of them."""

import contextlib
import time
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import httpx
from flwr.app import Message
from flwr.common.constant import ErrorCode as FlowerError
from flwr.proto.message_pb2 import ConfirmMessageReceivedRequest, ObjectTree
from flwr.proto.message_pb2 import Message as MessageProto
from flwr.proto.runtime_pb2 import PullAppMessagesRequest
from flwr.supercore.inflatable.inflatable_protobuf_utils import make_pull_object_fn_protobuf
from flwr.supercore.inflatable.inflatable_utils import ObjectPullError, ObjectUnavailableError, pull_objects

from common.errors import UpdateError
from common.flower.bodies import send_in_pieces
from common.flower.packing import object_ids, unpack_message

if TYPE_CHECKING:  # loads the ServerApp's half of Flower, which an agent has no use for
    from flwr.serverapp import Grid

# A reply of which nothing more has come for so long is given up. It is on this machine before it is announced.
STALLED_S = 15.0

# What Flower answers in place of a site: the message, its reply or the node is not there.
_NOT_ANSWERED = (
    FlowerError.MESSAGE_UNAVAILABLE,
    FlowerError.REPLY_MESSAGE_UNAVAILABLE,
    FlowerError.NODE_UNAVAILABLE,
)


@dataclass
class _Arriving:
    """A reply that is announced, as far as its objects are here."""

    head: MessageProto
    tree: ObjectTree
    since: float
    contents: dict[str, bytes] = field(default_factory=dict)
    gone: bool = False


class Inbox:
    """The replies to a ServerApp's messages. A look never waits, neither for a reply nor for the rest of one.

    Flower's own `pull_messages` waits for the objects of a reply that was announced, for minutes and one reply after
    the other; when whoever announced it was killed meanwhile, they never come.
    """

    def __init__(self, grid: "Grid") -> None:
        self._grid: Any = grid
        # Flower's HttpGrid has no public way to look and not to wait. Other grids wait for nothing.
        self._client: Any = getattr(grid, "_runtime_client", None)
        http = getattr(self._client, "_client", None)
        if isinstance(http, httpx.Client):  # by which the messages go out, too
            send_in_pieces(http)
        self._arriving: dict[str, _Arriving] = {}

    def look(self, asked: Collection[str]) -> tuple[dict[str, Message | None], set[str]]:
        """Look for replies.

        Args:
            asked: ids of messages.

        Returns:
            The replies that are here as a whole, by the id of the message they answer, None for one that cannot be
            decoded; and those of the messages that nothing will answer any more, because the SuperLink lost them, or a
            reply that began to arrive stopped.
        """
        if self._client is None:
            return _sorted({one.metadata.reply_to_message_id: one for one in self._grid.pull_messages(list(asked))})
        request = PullAppMessagesRequest(message_ids=[one for one in asked if one not in self._arriving])
        fresh = self._client.PullMessages(request)
        for head, tree in zip(fresh.messages_list, fresh.message_object_trees, strict=True):
            self._arriving[head.metadata.reply_to_message_id] = _Arriving(head, tree, time.monotonic())
        whole: dict[str, Message | None] = {}
        stopped = set()
        for question, reply in list(self._arriving.items()):
            if question not in asked:
                del self._arriving[question]
            elif self._has_stopped(reply):
                del self._arriving[question]
                stopped.add(question)
            elif len(reply.contents) == len(object_ids(reply.tree)):
                del self._arriving[question]
                whole[question] = self._take(reply)
        found, lost = _sorted(whole)
        return found, stopped | lost

    def _take(self, reply: _Arriving) -> Message | None:
        metadata = reply.head.metadata
        self._client.ConfirmMessageReceived(
            ConfirmMessageReceivedRequest(
                node=self._grid.node, run_id=metadata.run_id, message_object_id=metadata.message_id
            )
        )
        try:
            # The gateway looked at their hashes too; since then the SuperLink's database held them.
            return unpack_message(reply.head, reply.tree, reply.contents)
        except UpdateError:
            return None

    def _has_stopped(self, reply: _Arriving) -> bool:
        """Take what is there of a reply; whether the rest will not come."""
        pull = make_pull_object_fn_protobuf(self._client.PullObject, self._grid.node, reply.head.metadata.run_id)

        def fetch(object_id: str) -> bytes:
            if object_id not in reply.contents:
                try:
                    reply.contents[object_id] = pull(object_id)
                except ObjectPullError:
                    reply.gone = True
                    raise
                reply.since = time.monotonic()
            return reply.contents[object_id]

        with contextlib.suppress(ObjectPullError, ObjectUnavailableError):
            pull_objects(object_ids(reply.tree), fetch, max_tries_per_object=1)
        return reply.gone or time.monotonic() - reply.since > STALLED_S


def _sorted(replies: dict[str, Message | None]) -> tuple[dict[str, Message | None], set[str]]:
    """Without those that Flower made itself because a site's is not there, and the messages that these are about."""
    lost = {
        question
        for question, one in replies.items()
        if one is not None and one.has_error() and one.error.code in _NOT_ANSWERED
    }
    return {question: one for question, one in replies.items() if question not in lost}, lost


__all__ = ["STALLED_S", "Inbox"]
