"""A site's reply on its way here: announced, checked against what the site was asked, and taken object by object."""

import secrets
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from flwr.proto.fleet_pb2 import PushMessagesRequest
from flwr.proto.message_pb2 import Metadata

from common.errors import UpdateError
from common.flower.packing import object_ids

# A reply is a handful of objects; a model of 50 million parameters has 200 MB.
MAX_REPLY_OBJECTS = 1000
MAX_REPLY_BYTES = 1024**3

_TIME_TOLERANCE_S = 1e-3


class ReplyTooLargeError(UpdateError):
    """The reply has more than MAX_REPLY_BYTES: none of it is kept."""


@dataclass
class Upload:
    """A reply of which not all objects have arrived."""

    request: PushMessagesRequest
    session: str
    wanted: frozenset[str]
    contents: dict[str, bytes] = field(default_factory=dict)
    size: int = 0

    def take(self, object_id: str, content: bytes, *, intact: bool) -> bool:
        """Take one object.

        Args:
            object_id: as the site names it.
            content: its bytes.
            intact: whether they hash to that name; found out by the caller, outside of any lock.

        Returns:
            Whether the reply is now complete.

        Raises:
            ReplyTooLargeError: the upload is over.
            UpdateError: the object does not belong to the reply, or was altered.
        """
        if object_id not in self.wanted:
            raise UpdateError("the object does not belong to the reply that was announced")
        if not intact:
            raise UpdateError("the object's bytes do not match its id")
        self.size += len(content)
        if self.size > MAX_REPLY_BYTES:
            raise ReplyTooLargeError(f"the reply exceeds {MAX_REPLY_BYTES} bytes")
        self.contents[object_id] = content
        return len(self.contents) == len(self.wanted)


def announced(request: PushMessagesRequest, questions: Sequence[Metadata], node_id: int) -> Upload:
    """The upload that a site announces.

    Args:
        request: the reply without its objects.
        questions: what the site was asked and has not answered.
        node_id: the site's.

    Raises:
        UpdateError: it answers none of them, or is malformed.
    """
    if len(request.messages_list) != 1 or len(request.message_object_trees) != 1:
        raise UpdateError("exactly one reply with its object tree is expected")
    metadata, tree = request.messages_list[0].metadata, request.message_object_trees[0]
    wanted = frozenset(object_ids(tree))
    if (metadata.reply_to_message_id, metadata.run_id) not in [(one.message_id, one.run_id) for one in questions]:
        raise UpdateError("the reply does not answer a message this site was sent")
    check_times(metadata, next(one for one in questions if one.message_id == metadata.reply_to_message_id))
    if metadata.src_node_id != node_id or metadata.message_id != tree.object_id:
        raise UpdateError("the reply's sender or id is wrong")
    if len(wanted) > MAX_REPLY_OBJECTS:
        raise UpdateError(f"the reply has {len(wanted)} objects, at most {MAX_REPLY_OBJECTS} are allowed")
    return Upload(request, secrets.token_hex(16), wanted)


def check_times(reply: Metadata, question: Metadata) -> None:
    """Refuse what the SuperLink would throw away without a word; it runs by this host's clock.

    Raises:
        UpdateError: the message's time is over, or the reply is not dated as its message.
    """
    if question.created_at + question.ttl <= time.time():
        raise UpdateError("the time for the reply is over")
    if reply.ttl <= 0 or reply.created_at + reply.ttl > question.created_at + question.ttl + _TIME_TOLERANCE_S:
        raise UpdateError("the reply is dated by another clock than its message; is the site's program an older one?")


__all__ = ["MAX_REPLY_BYTES", "MAX_REPLY_OBJECTS", "ReplyTooLargeError", "Upload", "announced", "check_times"]
