"""Flower's Fleet service as the agent uses it, over mutual TLS: pull a message, fetch its objects, push a reply.

A message comes as a head and a tree of object ids; an object's id is the SHA-256 of its bytes, so what was fetched
for the last message is used again: an evaluation carries the model that the next training starts from.
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

from common.errors import ErrorCode, UpdateError
from common.flower import object_ids, pack_message, unpack_message
from common.wire.pushback import retry_after

HEARTBEAT_S = 30.0
CALL_TIMEOUT_S = 30.0
# The gateway holds a pull for about 20 s.
PULL_TIMEOUT_S = 60.0
OBJECT_TIMEOUT_S = 300.0
# How long finished work waits for a coordinator that is away.
PATIENCE_S = 600.0
CONCURRENT_OBJECTS = 3
SHORTEST_PAUSE_S, LARGEST_PAUSE_S = 0.5, 10.0


class Fleet:
    """One site's conversation with the gateway."""

    def __init__(self, channel: grpc.Channel, stop: threading.Event) -> None:
        self._stub: Any = FleetStub(channel)
        self._stop = stop
        self._node = Node()
        self._objects: dict[str, bytes] = {}
        self._pool = ThreadPoolExecutor(CONCURRENT_OBJECTS, thread_name_prefix="object")

    def activate(self) -> int:
        """Tell the coordinator that this site is here; it answers with our node id."""
        request = ActivateNodeRequest(public_key=b"", heartbeat_interval=HEARTBEAT_S)
        self._node = Node(node_id=self._stub.ActivateNode(request, timeout=CALL_TIMEOUT_S).node_id)
        return self._node.node_id

    def deactivate(self) -> None:
        """Say goodbye."""
        self._stub.DeactivateNode(DeactivateNodeRequest(node_id=self._node.node_id), timeout=2.0)

    def heartbeat(self) -> None:
        """Say that we are still here, while a long training keeps us from pulling."""
        request = SendNodeHeartbeatRequest(node=self._node, heartbeat_interval=HEARTBEAT_S)
        self._stub.SendNodeHeartbeat(request, timeout=CALL_TIMEOUT_S)

    def pull(self) -> tuple[MessageProto, ObjectTree] | None:
        """The next message's head and tree; None when none came while the gateway held the call."""
        response = self._stub.PullMessages(PullMessagesRequest(node=self._node), timeout=PULL_TIMEOUT_S)
        pairs = list(zip(response.messages_list, response.message_object_trees, strict=True))
        return pairs[0] if pairs else None

    def fetch(self, head: MessageProto, tree: ObjectTree) -> Message:
        """The whole message, checked against its ids.

        Raises:
            UpdateError: an object is gone or altered.
        """
        run_id = head.metadata.run_id
        wanted = object_ids(tree)
        missing = [object_id for object_id in wanted if object_id not in self._objects]
        fetched = dict(zip(missing, self._pool.map(lambda one: self._object(run_id, one), missing), strict=True))
        self._objects = {object_id: self._objects.get(object_id) or fetched[object_id] for object_id in wanted}
        self.confirm(head)
        return unpack_message(head, tree, self._objects)

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

    def push(self, reply: Message, seconds: float) -> int:
        """Send a reply.

        Args:
            seconds: how long the work took.

        Returns:
            Bytes of content sent.
        """
        head, tree, objects = pack_message(reply)
        request = PushMessagesRequest(
            node=self._node, messages_list=[head], message_object_trees=[tree], clientapp_runtime_list=[seconds]
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

    def _object(self, run_id: int, object_id: str) -> bytes:
        pause = 0.02
        deadline = time.monotonic() + OBJECT_TIMEOUT_S
        request = PullObjectRequest(node=self._node, run_id=run_id, object_id=object_id)
        while True:
            response = self._persist(self._stub.PullObject, request, OBJECT_TIMEOUT_S)
            if response.object_found and response.object_available:
                return bytes(response.object_content)
            # Found, not yet available: the server app is still pushing it.
            if not response.object_found or time.monotonic() > deadline or self._stop.wait(pause):
                raise UpdateError("an object of the message is gone at the coordinator", ErrorCode.BAD_REQUEST)
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
