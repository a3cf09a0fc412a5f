"""The only file that touches Flower's internals (outside flwr.app, flwr.clientapp, flwr.serverapp and flwr.proto).

Flower moves a message as a small head plus a tree of content-addressed objects (SHA-256 over the deflated bytes).
`pack_message` and `unpack_message` translate between that and `flwr.app.Message`; the rest starts a SuperLink and
speaks to it: by its port on loopback, or by a unix socket where it has a network of its own.
These are flwr 1.41.0's ways and no other version's: `check_version` says so before anything else does.
"""

import contextlib
import hashlib
import http.client
import importlib.metadata
import itertools
import os
import socket
import sys
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

import httpx
from cryptography.hazmat.primitives.asymmetric import ec
from flwr.app import ConfigRecord, Message, RecordDict
from flwr.app.message import remove_content_from_message
from flwr.common.constant import ErrorCode as FlowerError
from flwr.common.constant import Status
from flwr.common.serde import message_from_proto, message_to_proto
from flwr.proto.control_pb2 import ListRunsRequest, StartRunRequest, StopRunRequest
from flwr.proto.fab_pb2 import Fab
from flwr.proto.message_pb2 import ConfirmMessageReceivedRequest, ObjectTree
from flwr.proto.message_pb2 import Message as MessageProto
from flwr.proto.runtime_pb2 import PullAppMessagesRequest
from flwr.supercore.control.control_http_client import ControlHttpClient
from flwr.supercore.inflatable.inflatable_object import (
    _get_computed_object_ids,
    get_all_nested_objects,
    get_object_tree,
    iterate_object_tree,
    no_object_id_recompute,
)
from flwr.supercore.inflatable.inflatable_protobuf_utils import make_pull_object_fn_protobuf
from flwr.supercore.inflatable.inflatable_utils import (
    ObjectPullError,
    ObjectUnavailableError,
    inflate_object_from_contents,
    pull_objects,
)
from flwr.supercore.primitives.asymmetric import public_key_to_bytes
from flwr.supercore.protobuf.client import ProtobufClient
from flwr.supernode.fleet_http_client import FleetHttpClient
from flwr.supernode.node_auth_http_interceptor import NodeAuthHttpInterceptor

from common.errors import ConfigError, ErrorCode, FederationError, UpdateError
from common.system.environment import PACKAGES, flower_variables, for_child
from common.system.files import LONGEST_ADDRESS, socket_address

if TYPE_CHECKING:  # loads the ServerApp's half of Flower, which an agent has no use for
    from flwr.serverapp import Grid

VERSION = "1.41.0"
# The program that a SuperExec starts for each run.
SERVER_APP = "flwr-serverapp"

# A reply of which nothing more has come for so long is given up. It is on this machine before it is announced.
STALLED_S = 15.0
# Where a SuperLink is: its port on loopback, or its unix socket.
SuperLink: TypeAlias = int | Path

RequestType = TypeVar("RequestType")
ReplyType = TypeVar("ReplyType")
ClientType = TypeVar("ClientType", bound=ProtobufClient)

_PROBE_S = 3.0
# As the client's own: see flwr/supercore/protobuf/client.py.
_CALL_S = 30.0

# What Flower answers in place of a site: the message, its reply or the node is not there.
_NOT_ANSWERED = (
    FlowerError.MESSAGE_UNAVAILABLE,
    FlowerError.REPLY_MESSAGE_UNAVAILABLE,
    FlowerError.NODE_UNAVAILABLE,
)


def check_version() -> None:
    """Refuse to work with a Flower this file was not written for.

    Raises:
        ConfigError: another version is installed.
    """
    installed = importlib.metadata.version("flwr")
    if installed != VERSION:
        raise ConfigError(f"flwr {installed} is installed, {VERSION} is needed. Run `pip install flwr=={VERSION}`.")


def object_ids(tree: ObjectTree) -> list[str]:
    """Ids of all objects of a message, children before parents, each once."""
    return list(dict.fromkeys(node.object_id for node in iterate_object_tree(tree)))


def has_more_objects(tree: ObjectTree, most: int) -> bool:
    """Whether a message has more than so many objects, each as often as it is named; found out without listing all."""
    return next(itertools.islice(iterate_object_tree(tree), most, None), None) is not None


def unpack_message(
    message: MessageProto, tree: ObjectTree, objects: Mapping[str, bytes], *, hashed: bool = False
) -> Message:
    """Rebuild a message from its head and its objects.

    Args:
        message: the head, without content.
        tree: its object tree; the root is the message itself.
        objects: the bytes of every id in `object_ids(tree)`.
        hashed: whoever received the objects has found that they hash to their ids.

    Raises:
        UpdateError: an object is missing, does not hash to its id, or is malformed.
    """
    if tree.object_id != message.metadata.message_id:
        raise UpdateError("the message and its object tree do not belong together", ErrorCode.BAD_REQUEST)
    contents: dict[str, bytes] = {}
    for object_id in object_ids(tree):
        content = objects.get(object_id, b"")
        if not content or not (hashed or hashlib.sha256(content).hexdigest() == object_id):
            raise UpdateError("an object of the message is missing or was altered on the way", ErrorCode.BAD_REQUEST)
        contents[object_id] = content
    try:
        inflated = inflate_object_from_contents(tree.object_id, contents)
    except Exception as error:  # Flower raises KeyError, ValueError, TypeError, DecodeError, ...
        raise UpdateError("the message cannot be decoded", ErrorCode.BAD_REQUEST) from error
    if not isinstance(inflated, Message):
        raise UpdateError("the object tree does not hold a message", ErrorCode.BAD_REQUEST)
    # Flower leaves the id out of the hashed bytes and sets it in this way itself.
    inflated.metadata.__dict__["_message_id"] = tree.object_id
    return inflated


def pack_message(message: Message) -> tuple[MessageProto, ObjectTree, dict[str, bytes]]:
    """Split a message into its head (without content), its object tree and the bytes of its objects by id."""
    objects: dict[str, bytes] = {}
    with no_object_id_recompute():
        # A large record is deflated and hashed once: Flower would do so for its id, and deflate it again for its bytes.
        for record in message.content.values() if message.has_content() else ():
            if isinstance(record, ConfigRecord):
                content = record.deflate()
                record.__dict__["_object_id"] = object_id = hashlib.sha256(content).hexdigest()
                _get_computed_object_ids().add(object_id)
                objects[object_id] = content
        message.metadata.__dict__["_message_id"] = message.object_id
        tree = get_object_tree(message)
        for object_id, item in get_all_nested_objects(message).items():
            if object_id not in objects:
                objects[object_id] = item.deflate()
    return message_to_proto(remove_content_from_message(message)), tree, objects


def question_of(head: MessageProto) -> Message:
    """A message by its head alone, to answer what is not taken in."""
    message = message_from_proto(head)
    message.metadata.__dict__["_message_id"] = head.metadata.message_id
    return message


def reply_to(question: Message, content: RecordDict) -> Message:
    """A reply that tells no time but the question's; Flower would write when the work ended, to the microsecond."""
    reply = Message(content, reply_to=question)
    reply.metadata.created_at, reply.metadata.ttl = question.metadata.created_at, question.metadata.ttl
    return reply


def superlink_command(port: int, path: Path | None = None) -> list[str]:
    """A SuperLink on loopback, and on a unix socket; its state is in memory and disposable. See `superexec_command`."""
    program = [str(Path(sys.executable).with_name("flower-superlink"))]
    if path is not None:
        program = [sys.executable, "-m", "server.coordinator.superlink", str(path)]
    return [*program, *("--insecure", "--host", "127.0.0.1", "--port", str(port), "--isolation", "process")]


def superexec_command(port: int, parent: int) -> list[str]:
    """The SuperExec of a SuperLink, which starts a ServerApp for each run; it ends with its parent."""
    return [
        str(Path(sys.executable).with_name("flower-superexec")),
        *("--insecure", "--runtime-api-address", f"127.0.0.1:{port}", "--parent-pid", str(parent)),
    ]


def run_superlink(path: Path, arguments: Sequence[str]) -> None:
    """Be a SuperLink that answers on a unix socket too, which only its owner can use. Returns when it has ended.

    Args:
        path: of the socket; one that a killed process left is replaced.
        arguments: of the command `flower-superlink`.
    """
    import uvicorn  # noqa: PLC0415 - with the next one 2 s, which no other caller of this module should pay
    from flwr.superlink.cli.flower_superlink import flower_superlink  # noqa: PLC0415

    path.unlink(missing_ok=True)
    listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    before = os.umask(0o177)
    with socket_address(path) as address:
        listening.bind(address)
    os.umask(before)

    def run(app: Any, **settings: Any) -> None:
        config = uvicorn.Config(app, **settings)
        with contextlib.suppress(KeyboardInterrupt):  # as uvicorn.run does: it has ended in order
            uvicorn.Server(config).run(sockets=[config.bind_socket(), listening])

    uvicorn.run = run
    sys.argv = ["flower-superlink", *arguments]
    flower_superlink()


def superlink_answers(where: SuperLink) -> bool:
    """Whether Flower's SuperLink says that it is well."""
    # Not httpx, whose client makes a TLS context of its own first: 14 ms of CPU, and the gateway asks each second.
    port = where if isinstance(where, int) else 80
    with contextlib.closing(http.client.HTTPConnection("127.0.0.1", port, timeout=_PROBE_S)) as probe:
        try:
            if isinstance(where, Path):
                probe.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
                probe.sock.settimeout(_PROBE_S)
                probe.sock.connect(_short(where))
            probe.request("GET", "/health")
            return probe.getresponse().status == http.client.OK
        except (OSError, http.client.HTTPException):
            return False


def superlink_environment(flower_home: Path) -> dict[str, str]:
    """Environment of the SuperLink, its SuperExec and ServerApps: no secret in it, and nothing leaves this machine."""
    packages = str(PACKAGES)
    ours = {
        **flower_variables(flower_home, quiet=False),
        # A run starts within this time; each poll costs the SuperLink about 15 ms of CPU.
        "FLWR_SUPEREXEC_TASK_POLL_INTERVAL": "1",
        # SuperLink and SuperExec start their children by name.
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)]),
        "PYTHONPATH": os.pathsep.join(filter(None, [packages, os.environ.get("PYTHONPATH")])),
        "NO_PROXY": "127.0.0.1,localhost",
        "no_proxy": "127.0.0.1,localhost",
    }
    return for_child(**ours)


def fleet_client(where: SuperLink, node_key: ec.EllipticCurvePrivateKey) -> FleetHttpClient:
    """A client of the SuperLink's Fleet API that signs as one node."""
    return _client(FleetHttpClient, where, [NodeAuthHttpInterceptor(node_key, node_key.public_key())])


def public_key_pem(node_key: ec.EllipticCurvePrivateKey) -> bytes:
    """A node's public key as Flower stores and compares it."""
    return public_key_to_bytes(node_key.public_key())


def start_run(where: SuperLink, bundle: bytes) -> int:
    """Start a ServerApp for the bundle.

    Returns:
        Flower's run id.

    Raises:
        FederationError: the SuperLink is out of reach or refuses.
    """
    fab = Fab(hash_str=hashlib.sha256(bundle).hexdigest(), content=bundle)
    with _client(ControlHttpClient, where) as control:
        run_id = _call(control.StartRun, StartRunRequest(fab=fab)).run_id
    if run_id == 0:
        raise FederationError("the SuperLink did not accept the run. See logs/superlink.log in the coordinator's home.")
    return int(run_id)


def run_is_live(where: SuperLink, run_id: int) -> bool:
    """Whether the SuperLink knows the run and it has not finished.

    Raises:
        FederationError: the SuperLink is out of reach.
    """
    with _client(ControlHttpClient, where) as control:
        runs = _call(control.ListRuns, ListRunsRequest(limit=1000)).run_dict
    return run_id in runs and runs[run_id].status.status != Status.FINISHED


def stop_run(where: SuperLink, run_id: int) -> None:
    """Stop a run's ServerApp; nothing happens if it has ended.

    Raises:
        FederationError: the SuperLink is out of reach.
    """
    if run_is_live(where, run_id):
        with _client(ControlHttpClient, where) as control:
            _call(control.StopRun, StopRunRequest(run_id=run_id))


def stop_runs_of(where: SuperLink, bundle: bytes) -> None:
    """Stop every ServerApp that runs for a bundle.

    Raises:
        FederationError: the SuperLink is out of reach.
    """
    fab_hash = hashlib.sha256(bundle).hexdigest()
    with _client(ControlHttpClient, where) as control:
        for run_id, run in _call(control.ListRuns, ListRunsRequest(limit=1000)).run_dict.items():
            if run.fab_hash == fab_hash and run.status.status != Status.FINISHED:
                _call(control.StopRun, StopRunRequest(run_id=run_id))


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


def _client(kind: type[ClientType], where: SuperLink, interceptors: Sequence[Any] = ()) -> ClientType:
    port = where if isinstance(where, int) else 80
    client = kind.from_server_address(f"127.0.0.1:{port}", True, None, interceptors=list(interceptors))
    if isinstance(where, Path):
        client._client.close()
        transport = httpx.HTTPTransport(uds=_short(where), verify=False)  # a unix socket
        client._client = httpx.Client(transport=transport, timeout=_CALL_S, follow_redirects=True)
    return client


def _short(path: Path) -> str:
    """A name for a unix socket that fits into an address, for as long as this process lives."""
    if len(os.fsencode(path)) <= LONGEST_ADDRESS:
        return str(path)
    return f"/proc/self/fd/{_folder(path.parent)}/{path.name}"


@lru_cache(maxsize=64)
def _folder(path: Path) -> int:
    return os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)


def _call(method: Callable[[RequestType], ReplyType], request: RequestType) -> ReplyType:
    try:
        return method(request)
    except httpx.HTTPError as error:
        raise FederationError(
            f"the SuperLink did not answer as expected ({error}). "
            "See `wardround-server status` and logs/superlink.log in the coordinator's home."
        ) from error
