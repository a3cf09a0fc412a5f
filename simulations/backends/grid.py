"""What the grids of all backends share: nodes that are always there, and messages made without Flower's processes.

Node ids 1, 2, ... follow the order of the sites.
"""

import time
from collections.abc import Iterable, Sequence
from typing import Any, TypeAlias

from flwr.app import DEFAULT_TTL, Message, Metadata, RecordDict
from flwr.proto.node_pb2 import NodeInfo
from flwr.serverapp import Grid

from client.site import Site
from common.errors import FederationError

NodeId: TypeAlias = int

_COORDINATOR: NodeId = 0


class SimulatedGrid(Grid):
    """The sites of one simulation; how messages are answered is the backend's."""

    def __init__(self, sites: Sequence[Site]) -> None:
        self._sites = dict(enumerate(sites, start=1))
        self._nodes = [NodeInfo(node_id=node, name=site.config.name) for node, site in self._sites.items()]
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
        return self._nodes

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        """All answers; the sites take the time they take, `timeout` ends the wait between two of them."""
        end = time.monotonic() + timeout if timeout is not None else float("inf")
        ids = list(self.push_messages(messages))
        replies: list[Message] = []
        while time.monotonic() < end and (answers := list(self.pull_messages(ids))):
            replies += answers
        return replies


def with_id(message: Message, message_id: str, content: RecordDict | None = None) -> Message:
    """The message under a name; content: in place of its own."""
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
    return _message(metadata, message.content if content is None else content)


def _message(metadata: Metadata, content: RecordDict) -> Message:
    # Flower's documented constructor reads a task identity that only its own processes have; this form does not.
    return Message(metadata=metadata, content=content)  # type: ignore[call-overload, no-any-return]


__all__ = ["NodeId", "SimulatedGrid", "with_id"]
