"""One site as the SuperLink sees it: its Flower node, the messages it owes an answer to, the answer on its way.

The gateway keeps the site's Flower key and speaks for it on loopback. Three promises follow:

- A message is delivered until the site confirms it, and again after the site restarts, until it has answered. A
  hospital that reboots in the middle of a round picks the round up again; so does a gateway.
- An object reaches a site only if a message it was sent contains it; N sites cost the SuperLink one download.
- A reply reaches the SuperLink only when all of it is here and hashes to its ids. A slow line at one hospital never
  makes the ServerApp wait in the middle of a reply.
"""

import contextlib
import hashlib
import random
import threading
import time
from collections.abc import Callable, Mapping
from functools import partial

import httpx
from flwr.proto.fleet_pb2 import (
    DeactivateNodeRequest,
    PullMessagesRequest,
    PullMessagesResponse,
    PushMessagesRequest,
    PushMessagesResponse,
    RegisterNodeFleetRequest,
)
from flwr.proto.heartbeat_pb2 import SendNodeHeartbeatRequest
from flwr.proto.message_pb2 import (
    ConfirmMessageReceivedRequest,
    Message,
    ObjectTree,
    PullObjectRequest,
    PullObjectResponse,
    PushObjectRequest,
    PushObjectResponse,
)
from flwr.proto.node_pb2 import Node
from flwr.proto.run_pb2 import GetRunRequest, GetRunResponse

from common.errors import FederationError, UpdateError
from common.flower.calls import SuperLink, fleet_client, public_key_pem
from common.flower.packing import object_ids, unpack_message
from common.identity import certificates
from common.wire.messages import Request
from common.wire.records import request_from_record
from server.gateway.deliveries import Deliveries, Delivery
from server.gateway.objects import Objects
from server.gateway.uploads import ReplyTooLargeError, Upload, announced

# A node counts as gone at the SuperLink when two are missed. Who is here is for the gateway to say: that may be late.
HEARTBEAT_S = 600.0
_AGAIN_S = 3.0  # after the SuperLink did not answer

_OBJECT_WAIT_S = 60.0
_OBJECT_PAUSE_S = 0.02


class NodeProxy:
    """See the module. Methods raise httpx.HTTPError when the SuperLink is away or refuses."""

    def __init__(
        self,
        site: str,
        node_key_pem: bytes,
        superlink: SuperLink,
        objects: Objects,
        deliveries: Deliveries,
        *,
        last_id: int,
        arrived: Callable[[str, Callable[[], Request | None], PushMessagesRequest, Mapping[str, bytes]], None],
        identity: bytes,
    ) -> None:
        """Prepare a proxy that is not active yet.

        Args:
            site: its name.
            node_key_pem: the Flower key the coordinator keeps for it.
            superlink: where it is.
            objects: shared by all proxies.
            deliveries: shared by all proxies.
            last_id: the node id it had before this process started; 0 if none.
            arrived: called with the site, a way to what it was asked, its reply and that one's objects, when the reply
                is whole and before it goes on.
            identity: the Flower key as the registry has it.
        """
        key = certificates.load_key(node_key_pem)
        self.site = site
        self.node_id = last_id
        self.former_ids: set[int] = set()
        self.present = False
        self.last_seen = time.monotonic()
        self.turn = 0  # of the latest PullMessages call
        self._identity = identity
        self._public_key = public_key_pem(key)
        self._client = fleet_client(superlink, key)
        self._objects = objects
        self._deliveries = deliveries
        self._arrived = arrived
        self.presence = threading.Lock()  # who lets the site go, or takes it in again, holds it
        self._lock = threading.Lock()
        self._activation = threading.Lock()
        self._upload: Upload | None = None
        self._handing_on = threading.Lock()  # one reply at a time: what is noted last is what goes on
        self._answered = ""  # id of the last reply that went on
        self._looked = float("-inf")  # when it was looked for messages last
        self._beat_at = 0.0

    def is_for(self, identity: bytes) -> bool:
        """Whether this proxy still belongs to the site's present identity."""
        return self._identity == identity

    def activate(self) -> int:
        """Register at a SuperLink that does not know us, mark the node online, start over.

        Returns:
            The node id.
        """
        with self._activation:
            former = self.node_id
            # A heartbeat brings any node the SuperLink knows back online; ActivateNode only one that is offline.
            if not self.beat(at_once=True):
                registered = self._client.RegisterNode(RegisterNodeFleetRequest(public_key=self._public_key))
                self.node_id = registered.node_id
                self.beat(at_once=True)
            self.last_seen = time.monotonic()
            if self.node_id != former:
                self.former_ids.add(former)
            self._deliveries.unconfirm(self.node_id)
            self.expect()
            with self._lock:
                self._upload = None
            self.present = True
            return self.node_id

    def return_(self) -> bool:
        """Be present again under the same node id, after silence or a restart of the gateway.

        Returns:
            False when the SuperLink does not know the node: then `activate` is needed.
        """
        with self._activation:
            if not self.present:
                self.present = self.beat(at_once=True)
                self.expect()
            return self.present

    def leave(self) -> None:
        """Its agent has gone. What it owes stays, and its node stays online, should it return."""
        self.present = False
        self.next_turn()

    def shut_out(self) -> None:
        """The site is revoked: the SuperLink need not keep anything for it."""
        # A SuperLink that does not know the node need not be told.
        with contextlib.suppress(httpx.HTTPStatusError):
            self._client.DeactivateNode(DeactivateNodeRequest(node_id=self.node_id))

    def beat(self, *, at_once: bool = False) -> bool:
        """Keep the node online, if it is time again; False when the SuperLink does not know it.

        Raises:
            httpx.HTTPError: the SuperLink does not answer, or fails, such as while its database is locked. That says
                nothing of the node.
        """
        if not at_once and time.monotonic() < self._beat_at:
            return True
        # Should the SuperLink be away, look again soon.
        self._beat_at = time.monotonic() + _AGAIN_S
        request = SendNodeHeartbeatRequest(node=self._node, heartbeat_interval=HEARTBEAT_S)
        try:
            success = self._client.SendNodeHeartbeat(request).success
        except httpx.HTTPStatusError as error:
            if error.response.is_server_error:
                raise
            success = False
        self._beat_at = time.monotonic() + HEARTBEAT_S / 2 * (1 + random.random())  # noqa: S311 - not all at once
        return bool(success)

    def next_turn(self) -> int:
        """The number of a new PullMessages call."""
        with self._lock:
            self.turn += 1
            return self.turn

    def expect(self) -> None:
        """There is a message for it, or may be."""
        self._looked = float("-inf")

    def look_due(self, every_s: float) -> float:
        """Seconds until it is time to look for messages; not more than 0 when it is."""
        return self._looked + every_s - time.monotonic()

    def undelivered(self) -> PullMessagesResponse | None:
        """A message that was sent but not confirmed."""
        for delivery in self._owed:
            if not delivery.confirmed:
                return PullMessagesResponse(messages_list=[delivery.head], message_object_trees=[delivery.tree])
        return None

    def pull(self) -> PullMessagesResponse | None:
        """Look for a new message at the SuperLink."""
        self._looked = time.monotonic()  # before: a hint that comes meanwhile is not lost
        response = self._client.PullMessages(PullMessagesRequest(node=self._node))
        for head, tree in zip(response.messages_list, response.message_object_trees, strict=True):
            self._deliveries.add(self.node_id, head, tree)
        return response if response.messages_list else None

    def pull_object(self, request: PullObjectRequest) -> PullObjectResponse:
        """One object of a message this site was sent; "not found" for anything else."""
        trees = [one.tree for one in self._owed if one.head.metadata.run_id == request.run_id]
        if not any(request.object_id in object_ids(tree) for tree in trees):
            return PullObjectResponse(object_found=False, object_available=False)
        try:
            content = self._objects.get(request.object_id, lambda: self._download(request))
        except LookupError:
            return PullObjectResponse(object_found=False, object_available=False)
        return PullObjectResponse(object_found=True, object_available=True, object_content=content)

    def confirm(self, message_id: str) -> None:
        """The site has the whole message. The SuperLink keeps it until the answer, should the site restart."""
        self._deliveries.confirm(self.node_id, message_id)

    def give_up_overdue(self) -> None:
        """Forget what it has not answered in time, and let the SuperLink forget it; call it every second or so.

        A site that is late in every round would else keep every round's request, here and there, until the run ends.

        Raises:
            httpx.HTTPError: the SuperLink does not answer, or fails; it has to be told again.
        """
        for one in self._owed:
            if one.overdue:
                try:
                    self._release(one.head.metadata.run_id, one.head.metadata.message_id)
                except httpx.HTTPStatusError as error:
                    if error.response.is_server_error:
                        raise
                    # One that does not know the message, or the node, need not be told.
                    self._deliveries.remove(one.head.metadata.message_id)

    def begin_reply(self, request: PushMessagesRequest) -> PushMessagesResponse:
        """Announce a reply; its objects follow.

        Raises:
            UpdateError: it does not answer a message of this site, or is malformed.
        """
        upload = announced(request, [one.head.metadata for one in self._owed], self.node_id)
        with self._lock:
            self._upload = upload
        return PushMessagesResponse(objects_to_push=upload.wanted, session_id=upload.session)

    def add_object(self, request: PushObjectRequest) -> tuple[PushObjectResponse, bool]:
        """Take one object of the announced reply; with the last one the reply goes to the SuperLink.

        Returns:
            The answer, and whether the reply is now complete.

        Raises:
            FederationError: the announcement was lost in a restart.
            UpdateError: the object does not belong to the reply, or was altered; or another reply to its message went
                on meanwhile.
        """
        intact = hashlib.sha256(request.object_content).hexdigest() == request.object_id
        with self._lock:
            upload = self._upload
            if upload is None or request.session_id != upload.session:
                raise FederationError("the reply this object belongs to is not known here; announce it again")
            try:
                complete = upload.take(request.object_id, request.object_content, intact=intact)
            except ReplyTooLargeError:
                self._upload = None
                raise
            if complete:
                self._upload = None
        if complete:
            self._hand_on(upload)
        return PushObjectResponse(stored=True), complete

    def is_asked_by(self, run_id: int) -> bool:
        """Whether the site owes this run an answer."""
        return any(one.head.metadata.run_id == run_id for one in self._owed)

    def get_run(self, run_id: int) -> GetRunResponse:
        """What the SuperLink says about a run."""
        return self._client.GetRun(GetRunRequest(node=self._node, run_id=run_id))

    def close(self) -> None:
        """Close the connections."""
        self._client.close()

    @property
    def _owed(self) -> list[Delivery]:
        """The messages that it has not answered."""
        return self._deliveries.of(self.node_id)

    @property
    def _node(self) -> Node:
        return Node(node_id=self.node_id)

    def _asked(self, reply: PushMessagesRequest) -> Request | None:
        """What the message said that a reply answers; None if it is none of ours. The reply's own word does not count.

        Raises:
            httpx.HTTPError: it has to be fetched again, and the SuperLink is away.
        """
        asked = reply.messages_list[0].metadata.reply_to_message_id
        for delivery in self._owed:
            head, tree = delivery.head, delivery.tree
            if head.metadata.message_id != asked:
                continue
            with contextlib.suppress(UpdateError, LookupError):
                content_id = ",".join(child.object_id for child in tree.children)
                return self._objects.request(content_id, partial(self._request, head, tree))
        return None

    def _request(self, head: Message, tree: ObjectTree) -> Request:
        """What a message of this site says."""
        wanted = {
            one: PullObjectRequest(node=self._node, run_id=head.metadata.run_id, object_id=one)
            for one in object_ids(tree)
        }
        objects = {one: self._objects.get(one, partial(self._download, wanted[one])) for one in wanted}
        return request_from_record(unpack_message(head, tree, objects).content)

    def _download(self, request: PullObjectRequest) -> bytes:
        # The ServerApp announces a message before it has pushed its objects.
        deadline = time.monotonic() + _OBJECT_WAIT_S
        while True:
            response = self._client.PullObject(
                PullObjectRequest(node=self._node, run_id=request.run_id, object_id=request.object_id)
            )
            if response.object_available:
                return bytes(response.object_content)
            if not response.object_found or time.monotonic() > deadline:
                raise LookupError(request.object_id)
            time.sleep(_OBJECT_PAUSE_S)

    def _hand_on(self, upload: Upload) -> None:
        metadata = upload.request.messages_list[0].metadata
        with self._handing_on:
            if metadata.message_id == self._answered:
                return  # sent twice
            if all(one.head.metadata.message_id != metadata.reply_to_message_id for one in self._owed):
                raise UpdateError("the message has been answered")
            self._arrived(self.site, partial(self._asked, upload.request), upload.request, upload.contents)
            self._forward(upload)
            self._answered = metadata.message_id

    def _forward(self, upload: Upload) -> None:
        response = self._client.PushMessages(upload.request)
        metadata = upload.request.messages_list[0].metadata

        def push(object_id: str) -> None:
            request = PushObjectRequest(
                node=self._node,
                run_id=metadata.run_id,
                object_id=object_id,
                object_content=upload.contents[object_id],
                session_id=response.session_id,
            )
            if not self._client.PushObject(request).stored:
                raise UpdateError("the SuperLink did not store the reply")

        # What the SuperLink does not want it says by wanting nothing; of what it has already, it takes each again.
        for one in response.objects_to_push or [upload.request.message_object_trees[0].object_id]:
            push(one)  # one after the other: threads would cost more than they gain
        self._release(metadata.run_id, metadata.reply_to_message_id)

    def _release(self, run_id: int, message_id: str) -> None:
        """Nothing more will be asked about a message."""
        self._client.ConfirmMessageReceived(
            ConfirmMessageReceivedRequest(node=self._node, run_id=run_id, message_object_id=message_id)
        )
        self._deliveries.remove(message_id)
