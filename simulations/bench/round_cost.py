"""What a simulated round costs when there is nearly nothing to train: one step of the smallest network on one image.

The ways and the turns are those of `simulations.bench.training`. The bare loop's time is that of the training itself,
with nothing around it; what our backends take beyond it is asking, checking, averaging, the journal and a checkpoint
that survives a power failure. Time on the wall is mostly the disk's, which flushes the journal and the checkpoint.
"""

import statistics
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from simulations.bench import training
from simulations.bench.training import Figure
from simulations.bench.training_ways import BARE, BARE_PROCESSES, IN_PROCESS, PROCESSES

# The smallest network, and the least that it can train on.
_CHANNELS, _ROWS, _PATIENTS = (4, 8), 16, 6
_AGAINST = {BARE: BARE, IN_PROCESS: BARE, BARE_PROCESSES: BARE_PROCESSES, PROCESSES: BARE_PROCESSES}


@dataclass(frozen=True)
class Cost:
    """One way with so many clients, milliseconds of a round; beyond: over the bare loop's in the same turn.

    On the wall medians. Of CPU time, which the kernel tells in steps of 10 ms, the mean.
    """

    way: str
    clients: int
    wall_ms: float
    cpu_ms: float
    beyond_wall_ms: float
    beyond_cpu_ms: float

    @property
    def message_ms(self) -> float:
        """CPU time of a round for each client."""
        return self.cpu_ms / self.clients


def measure(
    folder: Path,
    *,
    clients: int,
    rounds: int,
    progress: Callable[[int, str], None] = lambda _done, _note: None,
) -> tuple[Cost, ...]:
    """Make rounds with so many clients in every way, by turns.

    Args:
        folder: empty; receives images, homes and models.
        clients: how many.
        rounds: that count.
        progress: called with (turns done, "turns").

    Returns:
        One for each of `simulations.bench.training_ways.WAYS`, in this order.
    """
    figures = training.measure(
        folder, clients=clients, rounds=rounds, patients=_PATIENTS, channels=_CHANNELS, rows=_ROWS,
        steps=1, batch=1, progress=progress,
    )  # fmt: skip
    by_way = {one.way: one for one in figures}
    return tuple(_cost(one, by_way[_AGAINST[one.way]], clients) for one in figures)


def _cost(one: Figure, bare: Figure, clients: int) -> Cost:
    beyond = [ours - theirs for ours, theirs in zip(one.seconds, bare.seconds, strict=True)]
    cpu_ms, bare_cpu_ms = (1000 * statistics.mean(figure.cpu_s) for figure in (one, bare))
    wall_ms = 1000 * statistics.median(one.seconds)
    return Cost(one.way, clients, wall_ms, cpu_ms, 1000 * statistics.median(beyond), cpu_ms - bare_cpu_ms)


__all__ = ["Cost", "measure"]
