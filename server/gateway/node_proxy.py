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
import secrets
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
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
    Metadata,
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

# Flower's default; a node counts as gone when two are missed.
HEARTBEAT_S = 30.0
# A reply is a handful of objects; a model of 50 million parameters has 200 MB.
MAX_REPLY_OBJECTS = 1000
MAX_REPLY_BYTES = 1024**3

_OBJECT_WAIT_S = 60.0
_OBJECT_PAUSE_S = 0.02
_PUSHES_AT_ONCE = 3
_TIME_TOLERANCE_S = 1e-3


@dataclass
class _Upload:
    """A reply of which not all objects have arrived."""

    request: PushMessagesRequest
    session: str
    wanted: set[str]
    contents: dict[str, bytes] = field(default_factory=dict)
    size: int = 0


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
        self._upload: _Upload | None = None
        self._handing_on = threading.Lock()  # one reply at a time: what is noted last is what goes on
        self._answered = ""  # id of the last reply that went on
        self._last_beat = 0.0

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
        if not at_once and time.monotonic() - self._last_beat < HEARTBEAT_S * 0.6:
            return True
        # Should the SuperLink be away, look again soon.
        self._last_beat = time.monotonic() - HEARTBEAT_S * 0.5
        request = SendNodeHeartbeatRequest(node=self._node, heartbeat_interval=HEARTBEAT_S)
        try:
            success = self._client.SendNodeHeartbeat(request).success
        except httpx.HTTPStatusError as error:
            if error.response.is_server_error:
                raise
            success = False
        self._last_beat = time.monotonic()
        return bool(success)

    def next_turn(self) -> int:
        """The number of a new PullMessages call."""
        with self._lock:
            self.turn += 1
            return self.turn

    def undelivered(self) -> PullMessagesResponse | None:
        """A message that was sent but not confirmed."""
        for delivery in self._owed:
            if not delivery.confirmed:
                return PullMessagesResponse(messages_list=[delivery.head], message_object_trees=[delivery.tree])
        return None

    def pull(self) -> PullMessagesResponse | None:
        """Look for a new message at the SuperLink."""
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

    def begin_reply(self, request: PushMessagesRequest) -> PushMessagesResponse:
        """Announce a reply; its objects follow.

        Raises:
            UpdateError: it does not answer a message of this site, or is malformed.
        """
        if len(request.messages_list) != 1 or len(request.message_object_trees) != 1:
            raise UpdateError("exactly one reply with its object tree is expected")
        metadata, tree = request.messages_list[0].metadata, request.message_object_trees[0]
        wanted = object_ids(tree)
        questions = [one.head.metadata for one in self._owed]
        if (metadata.reply_to_message_id, metadata.run_id) not in [(one.message_id, one.run_id) for one in questions]:
            raise UpdateError("the reply does not answer a message this site was sent")
        _check_times(metadata, next(one for one in questions if one.message_id == metadata.reply_to_message_id))
        if metadata.src_node_id != self.node_id or metadata.message_id != tree.object_id:
            raise UpdateError("the reply's sender or id is wrong")
        if len(wanted) > MAX_REPLY_OBJECTS:
            raise UpdateError(f"the reply has {len(wanted)} objects, at most {MAX_REPLY_OBJECTS} are allowed")
        with self._lock:
            self._upload = _Upload(request, secrets.token_hex(16), set(wanted))
            return PushMessagesResponse(objects_to_push=wanted, session_id=self._upload.session)

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
            if request.object_id not in upload.wanted:
                raise UpdateError("the object does not belong to the reply that was announced")
            if not intact:
                raise UpdateError("the object's bytes do not match its id")
            upload.size += len(request.object_content)
            if upload.size > MAX_REPLY_BYTES:
                self._upload = None
                raise UpdateError(f"the reply exceeds {MAX_REPLY_BYTES} bytes")
            upload.contents[request.object_id] = request.object_content
            complete = len(upload.contents) == len(upload.wanted)
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

    def _hand_on(self, upload: _Upload) -> None:
        metadata = upload.request.messages_list[0].metadata
        with self._handing_on:
            if metadata.message_id == self._answered:
                return  # sent twice
            if all(one.head.metadata.message_id != metadata.reply_to_message_id for one in self._owed):
                raise UpdateError("the message has been answered")
            self._arrived(self.site, partial(self._asked, upload.request), upload.request, upload.contents)
            self._forward(upload)
            self._answered = metadata.message_id

    def _forward(self, upload: _Upload) -> None:
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

        with ThreadPoolExecutor(_PUSHES_AT_ONCE) as pool:
            # What the SuperLink does not want it says by wanting nothing; of what it has already, it takes each again.
            list(pool.map(push, response.objects_to_push or [upload.request.message_object_trees[0].object_id]))
        question = metadata.reply_to_message_id
        self._client.ConfirmMessageReceived(
            ConfirmMessageReceivedRequest(node=self._node, run_id=metadata.run_id, message_object_id=question)
        )
        self._deliveries.remove(question)


def _check_times(reply: Metadata, question: Metadata) -> None:
    """Refuse what the SuperLink would throw away without a word; it runs by this host's clock.

    Raises:
        UpdateError: the message's time is over, or the reply is not dated as its message.
    """
    if question.created_at + question.ttl <= time.time():
        raise UpdateError("the time for the reply is over")
    if reply.ttl <= 0 or reply.created_at + reply.ttl > question.created_at + question.ttl + _TIME_TOLERANCE_S:
        raise UpdateError("the reply is dated by another clock than its message; is the site's program an older one?")
