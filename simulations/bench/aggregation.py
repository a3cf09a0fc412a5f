"""What making one model of many costs: ours and Flower's, from the same updates, by turns in one process.

The updates are messages as a coordinator has received them, each with memory of its own: objects by name, ours with the
weights as safetensors, Flower's with an array for each tensor. Flower's way is its own for FedAvg: its reading of the
objects, and `aggregate_arrayrecords` of flwr.serverapp.strategy.strategy_utils. Ours adds in float64, Flower in
float32. A third way is all that our coordinator does with updates: it looks at the hashes of what came, names each
update by its SHA-256, checks it, looks at how the moves lie to each other, and adds.

CPU seconds are those of all threads. Memory is what a way takes at most beyond the messages, looked at in a turn that
is not timed.
"""

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from flwr.app import ArrayRecord, MetricRecord, RecordDict
from flwr.proto.message_pb2 import Message as MessageProto
from flwr.proto.message_pb2 import ObjectTree
from flwr.serverapp.strategy.strategy_utils import aggregate_arrayrecords

from common.config import RunConfig, sha256_of
from common.flower.packing import pack_message, unpack_message
from common.learning.checkpoint import pack
from common.learning.tensor_bytes import views_of
from common.strategies import WEIGHTS
from common.wire.messages import TrainReply
from common.wire.records import reply_from_record, reply_to_record
from server.federation.checks import check_update, outliers
from server.federation.moves import moves_of
from server.federation.strategies import aggregation_of
from server.federation.strategies.blocks import length
from server.federation.suspicion import suspicious
from simulations.bench import peak
from simulations.bench.models import CHANNELS, State, message_of, model_of, moved, run_of, size_of

FLOWER, FLOWER_READ = "Flower, from received bytes", "Flower, from records in memory"
OURS, WITH_CHECKS = "ours, from received bytes", "ours, and all checks"
WAYS = (FLOWER, FLOWER_READ, OURS, WITH_CHECKS)

_PATIENTS = "patients"

Received = tuple[MessageProto, ObjectTree, Mapping[str, bytes]]


@dataclass(frozen=True)
class Figure:
    """One way with so many updates. cpu_s, wall_s: of each turn; size: bytes of a model; memory: bytes."""

    way: str
    updates: int
    size: int
    cpu_s: tuple[float, ...]
    wall_s: tuple[float, ...]
    memory: int

    def rates(self, seconds: Sequence[float]) -> tuple[float, float, float]:
        """GB of updates a second: the median, the least and the most."""
        rates = [self.updates * self.size / 1e9 / one for one in seconds]
        return statistics.median(rates), min(rates), max(rates)

    def times(self, other: "Figure") -> tuple[float, float]:
        """How many times as fast as another way, in CPU time and on the wall: medians over the turns."""
        pairs = ((other.cpu_s, self.cpu_s), (other.wall_s, self.wall_s))
        cpu, wall = (statistics.median(a / b for a, b in zip(*pair, strict=True)) for pair in pairs)
        return cpu, wall


def measure(
    *,
    updates: int,
    repeats: int,
    channels: Sequence[int] = CHANNELS,
    progress: Callable[[int, str], None] = lambda _done, _note: None,
) -> tuple[Figure, ...]:
    """Aggregate the same updates in every way, by turns.

    Args:
        updates: of different sites.
        repeats: turns; two more are made before, and the second's memory counts.
        channels: of the network.
        progress: called with (turns done, "turns").

    Returns:
        A figure for each of `WAYS`, in this order.
    """
    ways, size = _ways(updates, channels)
    memory: dict[str, int] = {}
    for name, work in ways.items():
        work()  # what is found out once for a run, or loaded, counts for none
        before = peak.from_here()
        kept = work()
        memory[name] = peak.most() - before
        del kept
    seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in ways}
    for turn in range(1, repeats + 1):
        first = turn % len(WAYS)
        for name in (*WAYS[first:], *WAYS[:first]):
            cpu_s, wall_s = time.process_time(), time.perf_counter()
            kept = ways[name]()  # until the clocks are read: freeing it is not aggregating
            seconds[name].append((time.process_time() - cpu_s, time.perf_counter() - wall_s))
            del kept
        progress(turn, "turns")
    return tuple(
        Figure(
            name, updates, size,
            cpu_s=tuple(cpu_s for cpu_s, _ in seconds[name]),
            wall_s=tuple(wall_s for _, wall_s in seconds[name]),
            memory=memory[name],
        )
        for name in WAYS
    )  # fmt: skip


def _ways(updates: int, channels: Sequence[int]) -> tuple[dict[str, Callable[[], Any]], int]:
    """Everything that is measured, as functions without arguments, and the bytes of a model."""
    run = run_of(channels, updates)
    model, patients = model_of(run), {f"site-{number:02}": 5 * (2 + number % 7) for number in range(updates)}
    ours: dict[str, Received] = {}
    flower: dict[str, Received] = {}
    for number, (site, count) in enumerate(patients.items()):
        update = moved(model, number)
        reply = TrainReply(sha256_of(run), 1, {WEIGHTS: pack(update)}, count, {"train-loss": 1.0})
        ours[site] = pack_message(message_of(reply_to_record(reply)))
        arrays, metrics = ArrayRecord(dict(update)), MetricRecord({_PATIENTS: count})
        flower[site] = pack_message(message_of(RecordDict({"arrays": arrays, "metrics": metrics})))
    records = [_flower_reads(one) for one in flower.values()]
    ways: dict[str, Callable[[], Any]] = {
        FLOWER: lambda: aggregate_arrayrecords([_flower_reads(one) for one in flower.values()], _PATIENTS),
        FLOWER_READ: lambda: aggregate_arrayrecords(records, _PATIENTS),
        OURS: partial(_ours, run, model, ours),
        WITH_CHECKS: partial(_with_checks, run, model, ours),
    }
    return ways, size_of(model)


def _flower_reads(received: Received) -> RecordDict:
    return unpack_message(*received, hashed=True).content


def _ours(run: RunConfig, model: State, received: Mapping[str, Received]) -> State:
    aggregation = aggregation_of(run)
    aggregation.start({WEIGHTS: model})
    for _, one in sorted(received.items()):
        reply = reply_from_record(unpack_message(*one, hashed=True).content)
        assert isinstance(reply, TrainReply)  # noqa: S101 - it was made as one
        aggregation.add({name: views_of(part) for name, part in reply.parts.items()}, reply.patients)
    aggregation.finish(1)
    return aggregation.held[WEIGHTS]


def _with_checks(run: RunConfig, model: State, received: Mapping[str, Received]) -> State:
    aggregation, run_hash, norm = aggregation_of(run), sha256_of(run), length(model)
    aggregation.start({WEIGHTS: model})
    replies, found = {}, {}
    for site, one in sorted(received.items()):
        reply = reply_from_record(unpack_message(*one).content)
        assert isinstance(reply, TrainReply)  # noqa: S101 - it was made as one
        replies[site] = reply
        found[site] = check_update(reply, run, run_hash, 1, model, start_norm=norm)
    if outliers(found, run):
        raise RuntimeError("updates that are alike look unlike")
    odd = suspicious(found, moves_of(found, model, WEIGHTS), {site: one.sha256 for site, one in replies.items()})
    if odd:
        raise RuntimeError("updates that are alike look odd")
    for site, update in found.items():
        aggregation.add(update.parts, replies[site].patients)
    aggregation.finish(1)
    return aggregation.held[WEIGHTS]


__all__ = ["FLOWER", "FLOWER_READ", "OURS", "WAYS", "WITH_CHECKS", "Figure", "measure"]
