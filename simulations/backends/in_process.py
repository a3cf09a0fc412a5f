"""A Flower grid without a network: every site answers in this process, through the same ClientApp.

Messages are copied deeply on the way in and out, so that nothing is shared which a wire would not carry; the
model's bytes are immutable and cost nothing. A site works when its answer is looked for, one at a time: memory holds
one model in training whatever the number of sites, and an interrupted look leaves the rest undone.
"""

import copy
import secrets
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeAlias

from flwr.app import DEFAULT_TTL, Context, Message, Metadata, RecordDict
from flwr.proto.node_pb2 import NodeInfo
from flwr.serverapp import Grid

from client.app import client_app
from client.site import Site
from common.config.rundocument import RunDocument
from common.errors import FederationError

NodeId: TypeAlias = int

_COORDINATOR: NodeId = 0


class InProcessGrid(Grid):
    """Sites of one simulation; node ids 1, 2, ... follow the order of the sites."""

    def __init__(self, sites: Sequence[Site], document: RunDocument) -> None:
        self._sites = dict(enumerate(sites, start=1))
        self._client_app = client_app(lambda context: self._sites[context.node_id])
        self._run_config = {"run": document.text}
        self._states = {node: RecordDict() for node in self._sites}
        self._waiting: dict[str, Message] = {}
        self._run: Any = None

    # Flower's Run is not among its public names, hence Any.
    def set_run(self, run: Any) -> None:
        """Keep Flower's description of the run."""
        self._run = run

    @property
    def run(self) -> Any:
        """Flower's description of the run, where one was set."""
        if self._run is None:
            raise FederationError("a simulation has no Flower run. Call set_run first.")
        return self._run

    def create_message(
        self, content: RecordDict, message_type: str, dst_node_id: int, group_id: str, ttl: float | None = None
    ) -> Message:
        """A message from the coordinator."""
        metadata = Metadata(
            run_id=1,
            message_id="",
            src_node_id=_COORDINATOR,
            dst_node_id=dst_node_id,
            reply_to_message_id="",
            group_id=group_id,
            created_at=time.time(),
            ttl=ttl or DEFAULT_TTL,
            message_type=message_type,
        )
        return _message(metadata, content)

    def get_node_ids(self) -> Iterable[int]:
        """All sites: none is ever away."""
        return list(self._sites)

    def get_nodes(self) -> Iterable[NodeInfo]:
        """All sites with their names."""
        return [NodeInfo(node_id=node, name=site.config.name) for node, site in self._sites.items()]

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Take messages in; the sites see copies."""
        ids = []
        for message in messages:
            # Names the attempt in the sites' ledgers, so it must never come twice, not even in another process.
            message_id = secrets.token_hex(16)
            self._waiting[message_id] = _with_id(copy.deepcopy(message), message_id)
            ids.append(message_id)
        return ids

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Let the first site that still owes one of these answers work, and return its answer."""
        for message_id in message_ids:
            if (message := self._waiting.pop(message_id, None)) is not None:
                return [copy.deepcopy(self._work(message))]
        return []

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        """All answers; the sites take the time they take, `timeout` ends the wait between two of them."""
        end = time.monotonic() + timeout if timeout is not None else float("inf")
        ids = list(self.push_messages(messages))
        replies: list[Message] = []
        while time.monotonic() < end and (answers := list(self.pull_messages(ids))):
            replies += answers
        return replies

    def _work(self, message: Message) -> Message:
        node = message.metadata.dst_node_id
        context = Context(
            run_id=1,
            node_id=node,
            node_config={"home": str(self._sites[node].home)},
            state=self._states[node],
            run_config=dict(self._run_config),
        )
        return self._client_app(message, context)


@contextmanager
def opened(sites: Sequence[Site], document: RunDocument) -> Iterator[Grid]:
    """The backend: nothing to start, nothing to end."""
    yield InProcessGrid(sites, document)


def _with_id(message: Message, message_id: str) -> Message:
    old = message.metadata
    metadata = Metadata(
        run_id=old.run_id,
        message_id=message_id,
        src_node_id=old.src_node_id,
        dst_node_id=old.dst_node_id,
        reply_to_message_id=old.reply_to_message_id,
        group_id=old.group_id,
        created_at=old.created_at,
        ttl=old.ttl,
        message_type=old.message_type,
    )
    return _message(metadata, message.content)


def _message(metadata: Metadata, content: RecordDict) -> Message:
    # Flower's documented constructor reads a task identity that only its own processes have; this form does not.
    return Message(metadata=metadata, content=content)  # type: ignore[call-overload, no-any-return]


__all__ = ["InProcessGrid", "opened"]
