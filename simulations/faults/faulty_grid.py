"""A Flower grid some of whose sites answer a request to train with something else than they trained.

Their answers are held until all of them that were asked have answered, as those at fault may act together.
"""

import time
from collections.abc import Iterable
from typing import Any

import torch
from flwr.app import Message, RecordDict
from flwr.proto.node_pb2 import NodeInfo
from flwr.serverapp import Grid

from common.config import RunConfig
from common.learning.checkpoint import pack, unpack
from common.wire.encoding import encode, weights_of
from common.wire.frames import Buffer
from common.wire.messages import TrainReply, TrainRequest
from common.wire.records import reply_from_record, reply_to_record, request_from_record
from simulations.faults.fault import Fault, State


class FaultyGrid(Grid):
    """`grid`, with one fault."""

    def __init__(self, grid: Grid, fault: Fault, run: RunConfig) -> None:
        self._grid, self._fault, self._part = grid, fault, run.strategy.MODEL
        self._precision = run.federation.update_precision
        self._sites: dict[int, str] = {}  # those at fault, by node
        self._request: TrainRequest | None = None
        self._asked: set[str] = set()  # ids of messages to sites at fault
        self._held: dict[str, tuple[Message, TrainReply]] = {}  # site -> what it would have sent
        self._free: list[Message] = []

    # Flower's Run is not among its public names, hence Any.
    def set_run(self, run: Any) -> None:
        """As the grid below does."""
        self._grid.set_run(run)

    @property
    def run(self) -> Any:
        """As the grid below says."""
        return self._grid.run

    def create_message(
        self, content: RecordDict, message_type: str, dst_node_id: int, group_id: str, ttl: float | None = None
    ) -> Message:
        """As the grid below does."""
        return self._grid.create_message(content, message_type, dst_node_id, group_id, ttl)

    def get_node_ids(self) -> Iterable[int]:
        """As the grid below says."""
        return self._grid.get_node_ids()

    def get_nodes(self) -> Iterable[NodeInfo]:
        """As the grid below says."""
        return self._grid.get_nodes()

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Note what is asked of sites at fault."""
        if not self._sites:
            self._sites = {one.node_id: one.name for one in self._grid.get_nodes() if one.name in self._fault.sites}
        pushed = list(messages)
        ids = list(self._grid.push_messages(pushed))
        for message, known_as in zip(pushed, ids, strict=True):
            request = request_from_record(message.content) if message.metadata.dst_node_id in self._sites else None
            if isinstance(request, TrainRequest):
                self._request = request
                self._asked.add(known_as)
        return ids

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Answers, those of sites at fault when the last of them is there."""
        ids = list(message_ids)
        while not self._free and (found := list(self._grid.pull_messages(ids))):
            self._free = [message for message in found if not self._hold(message)]
            if self._held and not self._asked:
                self._free += self._changed()
        free, self._free = self._free, []
        return free

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        """All answers."""
        end = time.monotonic() + timeout if timeout is not None else float("inf")
        ids = list(self.push_messages(messages))
        replies: list[Message] = []
        while time.monotonic() < end and (answers := list(self.pull_messages(ids))):
            replies += answers
        return replies

    def _hold(self, message: Message) -> bool:
        if message.metadata.reply_to_message_id not in self._asked:
            return False
        self._asked.discard(message.metadata.reply_to_message_id)
        reply = reply_from_record(message.content)
        if not isinstance(reply, TrainReply):  # it refused: nothing to change
            return False
        self._held[self._sites[message.metadata.src_node_id]] = (message, reply)
        return True

    def _changed(self) -> list[Message]:
        assert self._request is not None  # noqa: S101 - it was answered; for the type checker
        start = unpack(self._request.parts[self._part])
        trained = {site: self._read(reply.parts[self._part], start) for site, (_, reply) in sorted(self._held.items())}
        lies = self._fault.sent_instead(start, trained)
        messages = []
        for site, (message, reply) in self._held.items():
            parts = {**reply.parts, self._part: self._written(lies[site], start)}
            changed = TrainReply(reply.run_hash, reply.round, parts, reply.patients, dict(reply.metrics))
            message.content = reply_to_record(changed)
            messages.append(message)
        self._held = {}
        return messages

    def _read(self, part: Buffer, start: State) -> State:
        if self._precision == "float32":
            return unpack(part)
        weights = weights_of(part, {name: one.numpy() for name, one in start.items()}, self._precision)
        return {name: torch.from_numpy(one) for name, one in weights.items()}

    def _written(self, lie: State, start: State) -> bytes:
        """Of what rounding takes from a lie nothing is kept."""
        if self._precision == "float32":
            return pack(lie)
        return encode({name: (lie[name] - one).numpy() for name, one in start.items()}, self._precision)


__all__ = ["FaultyGrid"]
