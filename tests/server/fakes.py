"""A grid whose sites are functions, so that a test can make any of them misbehave."""

import itertools
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from flwr.app import Error, Message, Metadata, RecordDict
from flwr.app.message import make_message
from flwr.proto.node_pb2 import NodeInfo
from flwr.serverapp import Grid
from flwr.supercore.run import Run

from common.config import RunConfig, validate
from common.errors import ErrorCode
from common.privacy.accountant import epsilon
from common.privacy.guarantee import plan
from common.wire.frames import Buffer
from common.wire.messages import EvaluateReply, EvaluateRequest, Refusal, Reply, Request, TrainReply, TrainRequest
from common.wire.records import reply_to_record, request_from_record

# What a fake site says: a reply, a Flower error, raw records, or None for silence.
Said = Reply | Error | RecordDict | None
FakeSite = Callable[[Request], Said]


def a_run(rounds: int = 2, quorum: int = 2, *, format_: int = 1, **tables: Mapping[str, object]) -> RunConfig:
    """The smallest valid run. Of plain SGD, so that a fake site may move the model as far as its test wants."""
    values: dict[str, Any] = {
        "format": format_,
        "name": "tiny",
        "model": {"channels": [4, 8], "residual-units": 0},
        "data": {"modality": "photo", "classes": ["lesion"]},
        "training": {"patch-size": [8, 8], "local-steps": 1, "optimizer": "sgd"},
        "federation": {"rounds": rounds, "quorum": quorum, "round-timeout-s": 0.5, "join-timeout-s": 0.05},
    }
    for table, changes in tables.items():
        values[table] = {**values.get(table, {}), **changes}
    return validate(RunConfig, values)


def trains(change: Callable[[TrainRequest], Buffer], patients: int = 10, dice: float = 0.5) -> FakeSite:
    """A well-behaved site whose update is `change(request)`."""

    def site(request: Request) -> Said:
        if isinstance(request, EvaluateRequest):
            return EvaluateReply(request.run_hash, request.round, request.phase, patients, {"dice": dice})
        return TrainReply(request.run_hash, request.round, {"weights": change(request)}, patients, {"train-loss": 1.0})

    return site


def price(run: RunConfig, rounds: int, patients: int = 20) -> dict[str, float]:
    """What an honest site of so many declared patients states after so many rounds of a private run."""
    cost = plan(run, patients)
    steps = rounds * cost.steps_per_round
    spent = epsilon([(cost.noise_multiplier, cost.sampling_rate, steps)], cost.delta)
    return {"steps": cost.steps_per_round, "epsilon": float(f"{spent:.6g}"), "delta": float(f"{cost.delta:.6g}")}


def refuses(code: ErrorCode) -> FakeSite:
    """A site that refuses everything."""
    return lambda request: Refusal(request.run_hash, request.round, code)


class FakeGrid(Grid):
    """Sites by name; `order` says in which order replies arrive, `unreachable` who cannot be sent to."""

    def __init__(
        self, sites: Mapping[str, FakeSite], *, order: Sequence[str] = (), unreachable: Iterable[str] = ()
    ) -> None:
        self.sites = dict(sites)
        self.order = list(order) or list(sites)
        self.unreachable = set(unreachable)
        self.stale: list[Message] = []  # delivered with the next look
        self.requests: list[tuple[str, Request]] = []
        self.nodes = {100 + index: name for index, name in enumerate(sites)}
        self._numbers = itertools.count()
        self._replies: dict[str, tuple[str, Message]] = {}
        self._unanswered: dict[str, tuple[str, Message]] = {}

    def set_run(self, run: object) -> None:
        pass

    @property
    def run(self) -> Run:
        raise AssertionError("the strategy knows its run")

    def create_message(
        self, content: RecordDict, message_type: str, dst_node_id: int, group_id: str, ttl: float | None = None
    ) -> Message:
        assert ttl is None or ttl > 0
        return a_message(content, dst_node_id, message_type, group_id)

    def get_node_ids(self) -> Iterable[int]:
        return list(self.nodes)

    def get_nodes(self) -> Iterable[NodeInfo]:
        return [NodeInfo(node_id=node, name=name) for node, name in self.nodes.items()]

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        ids = []
        for message in messages:
            site = self.nodes[message.metadata.dst_node_id]
            if site in self.unreachable:
                ids.append("")
                continue
            message_id = f"m{next(self._numbers)}"
            message.metadata.__dict__["_message_id"] = message_id
            request = request_from_record(message.content)
            self.requests.append((site, request))
            if (reply := reply_message(self.sites[site](request), message)) is not None:
                self._replies[message_id] = (site, reply)
            else:
                self._unanswered[site] = (message_id, message)
            ids.append(message_id)
        return ids

    def answer_late(self, site: str) -> None:
        """The site answers the last message that it left unanswered."""
        message_id, message = self._unanswered.pop(site)
        reply = reply_message(self.sites[site](request_from_record(message.content)), message)
        assert reply is not None
        self._replies[message_id] = (site, reply)

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        if self.stale:
            stale, self.stale = self.stale, []
            return stale
        ready = [(self.order.index(self._replies[id_][0]), id_) for id_ in message_ids if id_ in self._replies]
        return [self._replies.pop(min(ready)[1])[1]] if ready else []

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        raise AssertionError(f"the strategy polls itself, got {messages} {timeout}")


def a_message(content: RecordDict, node: int, kind: str, group: str) -> Message:
    metadata = Metadata(
        run_id=1,
        message_id="",
        src_node_id=0,
        dst_node_id=node,
        reply_to_message_id="",
        group_id=group,
        created_at=time.time(),
        ttl=3600,
        message_type=kind,
    )
    return make_message(metadata, content)


def reply_message(said: Said, to: Message) -> Message | None:
    if said is None:
        return None
    if isinstance(said, RecordDict | Error):
        return Message(said, reply_to=to)
    return Message(reply_to_record(said), reply_to=to)
