"""What a model costs on its way between a site and its coordinator: ours and Flower's, by turns in one process.

    write   from tensors to the objects that travel, each named by its SHA-256
    again   a request that is written already, for one more site
    check   whether each object hashes to its name, as whoever receives it finds out
    read    from the objects to tensors

Ours carries the weights as safetensors in one object; Flower's own, its `ArrayRecord`, has objects for each tensor.
Beside them what cannot be done without: the bytes once through memory, and once through SHA-256. CPU seconds are
those of all threads. Of the two ways ours alone reads without a copy, so its tensors may not be written to.
"""

import hashlib
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from flwr.app import ArrayRecord, ConfigRecord, MetricRecord, RecordDict

from common.config import sha256_of
from common.flower.packing import pack_message, unpack_message
from common.learning.checkpoint import pack
from common.learning.tensor_bytes import views_of
from common.strategies import WEIGHTS
from common.wire.messages import TrainReply, TrainRequest
from common.wire.records import reply_from_record, reply_to_record, request_from_record, request_to_record
from simulations.bench.models import CHANNELS, State, message_of, model_of, moved, run_of, size_of

OURS, FLOWER = "ours", "Flower"
MEMORY, HASH = "copy in memory", "SHA-256"
EITHER, BARE = "either", "bare"  # message and way of these two

_ARRAYS, _METRICS, _CONFIG = "arrays", "metrics", "config"


@dataclass(frozen=True)
class Figure:
    """One step of one way. size: bytes of the model; cpu_s: of each turn."""

    message: str
    step: str
    way: str
    size: int
    cpu_s: tuple[float, ...]

    @property
    def ms_per_30_mb(self) -> tuple[float, float, float]:
        """CPU milliseconds for 30 MB: the median, the least and the most."""
        found = [one * 1000 * 30e6 / self.size for one in self.cpu_s]
        return statistics.median(found), min(found), max(found)

    def times(self, other: "Figure") -> float:
        """CPU time as a multiple of another's: the median over the turns."""
        return statistics.median(a / b for a, b in zip(self.cpu_s, other.cpu_s, strict=True))


def measure(
    *,
    repeats: int,
    channels: Sequence[int] = CHANNELS,
    progress: Callable[[int, str], None] = lambda _done, _note: None,
) -> tuple[Figure, ...]:
    """Send the same model in both ways, by turns.

    Args:
        repeats: turns.
        channels: of the network.
        progress: called with (turns done, "turns").

    Returns:
        MEMORY and HASH; then, of a request and of an update, each step of both ways, ours first.
    """
    run = run_of(channels)
    model = moved(model_of(run), 0)
    steps = _steps(sha256_of(run), model)
    cpu_s: dict[tuple[str, str, str], list[float]] = {key: [] for key in steps}
    for turn in range(repeats + 1):
        keys = list(steps)
        first = turn % len(keys)
        for key in (*keys[first:], *keys[:first]):
            work = steps[key]()
            started = time.process_time()
            kept = work()  # until the clock is read: freeing it is another step
            cpu_s[key].append(time.process_time() - started)
            del kept, work
        progress(turn, "turns")
    return tuple(Figure(*key, size_of(model), tuple(one[1:])) for key, one in cpu_s.items())


def _steps(run_hash: str, model: State) -> Mapping[tuple[str, str, str], Callable[[], Callable[[], Any]]]:
    """(message, step, way) -> what prepares it -> what is measured."""
    data = pack(model)

    def ours(kind: str) -> RecordDict:
        parts = {WEIGHTS: pack(model)}
        if kind == "request":
            return request_to_record(TrainRequest(run_hash, 1, parts))
        return reply_to_record(TrainReply(run_hash, 1, parts, 10, {"train-loss": 1.0}))

    def flower(kind: str) -> RecordDict:
        arrays = ArrayRecord(dict(model))
        if kind == "request":
            return RecordDict({_ARRAYS: arrays, _CONFIG: ConfigRecord({"server-round": 1})})
        return RecordDict({_ARRAYS: arrays, _METRICS: MetricRecord({"train-loss": 1.0, "num-examples": 10})})

    def ours_read(kind: str, received: Any) -> State:
        content = unpack_message(*received, hashed=True).content
        message = request_from_record(content) if kind == "request" else reply_from_record(content)
        assert isinstance(message, TrainRequest | TrainReply)  # noqa: S101 - it was written as one
        return views_of(message.parts[WEIGHTS])

    def flower_read(_kind: str, received: Any) -> State:
        return unpack_message(*received, hashed=True).content.array_records[_ARRAYS].to_torch_state_dict()

    steps: dict[tuple[str, str, str], Callable[[], Callable[[], Any]]] = {
        (EITHER, MEMORY, BARE): lambda: lambda: bytearray(data),
        (EITHER, HASH, BARE): lambda: lambda: hashlib.sha256(data).digest(),
    }
    for kind in ("request", "update"):
        for step in ("write", "again", "check", "read"):
            for way, make, read in ((OURS, ours, ours_read), (FLOWER, flower, flower_read)):
                if step != "again" or kind == "request":
                    steps[kind, step, way] = _step(step, kind, make, read)
    return steps


def _step(
    step: str, kind: str, make: Callable[[str], RecordDict], read: Callable[[str, Any], State]
) -> Callable[[], Callable[[], Any]]:
    def prepared() -> Callable[[], Any]:
        if step == "write":
            return lambda: pack_message(message_of(make(kind)))
        record = make(kind)
        received = pack_message(message_of(record))
        if step == "again":
            return lambda: pack_message(message_of(record, site=2))
        if step == "check":
            return lambda: _checked(received[2])
        return lambda: read(kind, received)

    return prepared


def _checked(objects: Mapping[str, bytes]) -> None:
    if any(hashlib.sha256(content).hexdigest() != name for name, content in objects.items()):
        raise RuntimeError("an object that does not hash to its name")


__all__ = ["FLOWER", "HASH", "MEMORY", "OURS", "Figure", "measure"]
