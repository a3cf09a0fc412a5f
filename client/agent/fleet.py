"""Flower's Fleet service as the agent uses it, over mutual TLS: pull a message, fetch its objects, push a reply.

A message comes as a head and a tree of object ids; an object's id is the SHA-256 of its bytes, so what was fetched
for the last message is used again: an evaluation carries the model that the next training starts from. How many objects
and bytes a message may have is said by whoever fetches it, and nothing larger is taken into memory.
Calls that carry work (fetch, confirm, push) outlive an outage of the coordinator, and its "not now": a limit of calls
or bytes for which it says when to come again. The others fail at once and the agent starts over.
"""

import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
from flwr.app import Message
from flwr.proto.fleet_pb2 import (
    ActivateNodeRequest,
    DeactivateNodeRequest,
    PullMessagesRequest,
    PushMessagesRequest,
)
from flwr.proto.fleet_pb2_grpc import FleetStub
from flwr.proto.heartbeat_pb2 import SendNodeHeartbeatRequest
from flwr.proto.message_pb2 import ConfirmMessageReceivedRequest, ObjectTree, PullObjectRequest, PushObjectRequest
from flwr.proto.message_pb2 import Message as MessageProto
from flwr.proto.node_pb2 import Node
from flwr.proto.run_pb2 import GetRunRequest, Run

from common.errors import ErrorCode, PolicyError, UpdateError
from common.flower.packing import has_more_objects, object_ids, pack_message, unpack_message
from common.wire import at_work, clock, versions
from common.wire.at_work import AtWork
from common.wire.pushback import retry_after
from common.wire.records import PIECE_BYTES

HEARTBEAT_S = 30.0
CALL_TIMEOUT_S = 30.0
# The gateway holds a pull for about 20 s.
PULL_TIMEOUT_S = 60.0
OBJECT_TIMEOUT_S = 300.0
# How long finished work waits for a coordinator that is away.
PATIENCE_S = 600.0
CONCURRENT_OBJECTS = 3
SHORTEST_PAUSE_S, LARGEST_PAUSE_S = 0.5, 10.0
# Of a message, beside the full pieces of its parts: what is around them, and the last piece of each.
_OTHER_OBJECTS, _OTHER_BYTES = 16, 64 * 1024


class LostMessageError(UpdateError):
    """An object of a message is gone or altered, so there is nothing to answer."""


class Fleet:
    """One site's conversation with the gateway."""

    def __init__(
        self, channel: grpc.Channel, stop: threading.Event, wide: Callable[[int], grpc.Channel] | None = None
    ) -> None:
        """Take over the connection.

        Args:
            channel: to the gateway.
            stop: set when nothing more is to be waited for.
            wide: opens another one for messages up to so many bytes; None: all goes over the first.
        """
        self._stub: Any = FleetStub(channel)
        self._stop, self._wide = stop, wide
        self._large: tuple[int, grpc.Channel] | None = None  # for objects, and how large they may be
        self._node = Node()
        self.ahead_s: float | None = None  # of our clock, against the coordinator's; as it was measured last
        self._objects: dict[str, bytes] = {}
        self._pool = ThreadPoolExecutor(CONCURRENT_OBJECTS, thread_name_prefix="object")

    def activate(self) -> int:
        """Tell the coordinator that this site is here; it answers with our node id. The clocks are compared.

        Raises:
            OtherVersionError: the coordinator is of a version that this one does not work with.
        """
        request = ActivateNodeRequest(public_key=b"", heartbeat_interval=HEARTBEAT_S)
        began = time.time()
        reply, call = self._stub.ActivateNode.with_call(request, timeout=CALL_TIMEOUT_S, metadata=clock.stamp())
        versions.check_coordinator(call.initial_metadata())
        theirs = clock.sent(call.initial_metadata())
        self.ahead_s = None if theirs is None else (began + time.time()) / 2 - theirs
        self._node = Node(node_id=reply.node_id)
        return self._node.node_id

    def deactivate(self) -> None:
        """Say goodbye."""
        self._stub.DeactivateNode(DeactivateNodeRequest(node_id=self._node.node_id), timeout=2.0)

    def heartbeat(self, work: AtWork | None = None) -> None:
        """Say that we are still here, while a long training keeps us from pulling, and what we are at."""
        request = SendNodeHeartbeatRequest(node=self._node, heartbeat_interval=HEARTBEAT_S)
        self._stub.SendNodeHeartbeat(request, timeout=CALL_TIMEOUT_S, metadata=at_work.stamp(work))

    def pull(self) -> tuple[MessageProto, ObjectTree] | None:
        """The next message's head and tree; None when none came while the gateway held the call."""
        response = self._stub.PullMessages(PullMessagesRequest(node=self._node), timeout=PULL_TIMEOUT_S)
        pairs = list(zip(response.messages_list, response.message_object_trees, strict=True))
        return pairs[0] if pairs else None

    def fetch(self, head: MessageProto, tree: ObjectTree, most_bytes: int) -> Message:
        """The whole message, checked against its ids.

        Args:
            head: as it was pulled.
            tree: likewise.
            most_bytes: that its model may have.

        Raises:
            LostMessageError: an object is gone or altered.
            PolicyError: BAD_REQUEST, it is larger; no more than that was taken.
        """
        run_id, limit = head.metadata.run_id, most_bytes + _OTHER_BYTES
        wanted = _object_ids(tree, _OTHER_OBJECTS + limit // PIECE_BYTES)
        stub = self._stub_for(limit)
        missing = [object_id for object_id in wanted if object_id not in self._objects]
        known = {one: self._objects[one] for one in wanted if one in self._objects}
        self._objects = {}
        try:
            for start in range(0, len(missing), CONCURRENT_OBJECTS):
                ids = missing[start : start + CONCURRENT_OBJECTS]
                known |= zip(ids, self._pool.map(lambda one: self._object(stub, run_id, one), ids), strict=True)
                if (taken := sum(map(len, known.values()))) > limit:
                    raise _too_large(taken, most_bytes)
        except grpc.RpcError as error:
            if error.code() != grpc.StatusCode.RESOURCE_EXHAUSTED or retry_after(error) is not None:
                raise
            raise _too_large(limit, most_bytes) from error
        self.confirm(head)
        try:
            message = unpack_message(head, tree, known)
        except UpdateError as error:
            raise LostMessageError(str(error), error.code) from error
        self._objects = known
        return message

    def confirm(self, head: MessageProto) -> None:
        """Say that the message has arrived; until then it is delivered again."""
        request = ConfirmMessageReceivedRequest(
            node=self._node, run_id=head.metadata.run_id, message_object_id=head.metadata.message_id
        )
        self._persist(self._stub.ConfirmMessageReceived, request, CALL_TIMEOUT_S)

    def run(self, run_id: int) -> Run:
        """What the coordinator's Flower says it runs."""
        request = GetRunRequest(node=self._node, run_id=run_id)
        run: Run = self._persist(self._stub.GetRun, request, CALL_TIMEOUT_S).run
        return run

    def push(self, reply: Message) -> int:
        """Send a reply. How long the work took is not said: it tells how many patients were drawn.

        Returns:
            Bytes of content sent.
        """
        head, tree, objects = pack_message(reply)
        request = PushMessagesRequest(
            node=self._node, messages_list=[head], message_object_trees=[tree], clientapp_runtime_list=[0.0]
        )
        response = self._persist(self._stub.PushMessages, request, CALL_TIMEOUT_S)
        wanted = [object_id for object_id in response.objects_to_push if object_id in objects]

        def push_object(object_id: str) -> int:
            content = objects[object_id]
            item = PushObjectRequest(
                node=self._node,
                run_id=reply.metadata.run_id,
                object_id=object_id,
                object_content=content,
                session_id=response.session_id,
            )
            self._persist(self._stub.PushObject, item, OBJECT_TIMEOUT_S)
            return len(content)

        return sum(self._pool.map(push_object, wanted))

    def close(self) -> None:
        """Stop the helpers."""
        self._pool.shutdown(wait=False, cancel_futures=True)
        if self._large is not None:
            self._large[1].close()

    def _stub_for(self, most_bytes: int) -> Any:
        """For objects of a message that may have so many bytes."""
        if self._wide is None:
            return self._stub
        if self._large is None or self._large[0] != most_bytes:
            if self._large is not None:
                self._large[1].close()
            self._large = most_bytes, self._wide(min(most_bytes, PIECE_BYTES) + _OTHER_BYTES)
        return FleetStub(self._large[1])

    def _object(self, stub: Any, run_id: int, object_id: str) -> bytes:
        pause = 0.02
        deadline = time.monotonic() + OBJECT_TIMEOUT_S
        request = PullObjectRequest(node=self._node, run_id=run_id, object_id=object_id)
        while True:
            response = self._persist(stub.PullObject, request, OBJECT_TIMEOUT_S)
            if response.object_found and response.object_available:
                return bytes(response.object_content)
            # Found, not yet available: the server app is still pushing it.
            if not response.object_found or time.monotonic() > deadline or self._stop.wait(pause):
                raise LostMessageError("an object of the message is gone at the coordinator", ErrorCode.BAD_REQUEST)
            pause = min(2 * pause, 0.5)

    def _persist(self, call: Callable[..., Any], request: object, timeout_s: float) -> Any:
        pause, deadline = SHORTEST_PAUSE_S, time.monotonic() + PATIENCE_S
        while True:
            try:
                return call(request, timeout=timeout_s)
            except grpc.RpcError as error:
                later = retry_after(error)
                if later is None and error.code() != grpc.StatusCode.UNAVAILABLE:
                    raise
                # The coordinator's word counts up to our own longest pause.
                if time.monotonic() > deadline or self._stop.wait(max(pause, min(later or 0.0, LARGEST_PAUSE_S))):
                    raise
                pause = min(2 * pause, LARGEST_PAUSE_S)


def _object_ids(tree: ObjectTree, most: int) -> list[str]:
    """The ids of a message's objects, counted before they are listed."""
    if has_more_objects(tree, most):
        raise PolicyError(
            f"the message has more than the {most} objects that a model of the approved run needs, and is not taken.",
            ErrorCode.BAD_REQUEST,
        )
    return object_ids(tree)


def _too_large(size: int, most: int) -> PolicyError:
    return PolicyError(
        f"the message has {size} bytes or more, and a model of the approved run {most}. It is not taken.",
        ErrorCode.BAD_REQUEST,
    )
