"""Arithmetic over all weights of models, in float64, that holds no float64 copy of a model.

Tensors are walked over in blocks whose float64 copies stay in a processor's cache; made of whole models they would go
through memory, twice the size of these. The blocks are dealt to as many threads as torch has. One thread works on a
block from its first value to its last, and what comes of the blocks is put together in their order: so no result
depends on how many threads there are, to the bit.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import chain, zip_longest
from typing import TypeAlias, TypeVar

import torch
from torch import Tensor

State: TypeAlias = Mapping[str, Tensor]  # the model's tensors, by name
Result = TypeVar("Result")
# What is done with the values of one tensor from a place on, up to another one.
Work: TypeAlias = Callable[[str, int, int], Result]

BLOCK = 1 << 17  # values: 1 MiB in float64
_STACKED = 1 << 20  # values of all states together, where a block holds those of each
_FEWEST_EACH = 4  # blocks, for which a thread is worth its start


def in_blocks(shape: State, begin: Callable[[], Work[Result]], block: int = BLOCK) -> list[Result]:
    """Do the same with each block of a model.

    One thread of a process calls it: one that torch first sees meanwhile has one thread of torch's from then on.

    Args:
        shape: tensors of the sizes that are walked over.
        begin: makes what works on blocks, one after another, with memory of its own; called once for each thread.
        block: values, at most.

    Returns:
        What came of each block, in their order.
    """
    places = [
        (name, start, min(start + block, one.numel()))
        for name, one in shape.items()
        for start in range(0, one.numel(), block)
    ]
    threads = torch.get_num_threads()
    hands = max(1, min(threads, len(places) // _FEWEST_EACH))

    def worked(some: Sequence[tuple[str, int, int]]) -> list[Result]:
        work = begin()
        return [work(*place) for place in some]

    torch.set_num_threads(1)  # or torch would split a block, each operation anew
    try:
        if hands == 1:
            return worked(places)
        with ThreadPoolExecutor(hands, "blocks") as pool:
            dealt = list(pool.map(worked, [places[first::hands] for first in range(hands)]))
    finally:
        torch.set_num_threads(threads)
    return list(chain.from_iterable(zip_longest(*dealt)))[: len(places)]


def weighted_mean(states: Sequence[State], weights: Sequence[float]) -> dict[str, Tensor]:
    """The mean of states of one kind, added up in the order in which they are given.

    Args:
        states: at least one; their names, shapes and types are the same.
        weights: of each; their sum is not 0.

    Returns:
        Tensors of the same types.
    """
    flat, total = flattened(states), sum(weights)
    made = {name: torch.empty(one.shape, dtype=one.dtype) for name, one in states[0].items()}

    def begin() -> Work[None]:
        buffers = torch.empty(2, BLOCK, dtype=torch.float64)

        def work(name: str, start: int, stop: int) -> None:
            mean, one = buffers[:, : stop - start]
            first, *others = flat[name]
            mean.copy_(first[start:stop]).mul_(weights[0])
            for values, weight in zip(others, weights[1:], strict=True):
                mean.add_(one.copy_(values[start:stop]), alpha=weight)
            made[name].view(-1)[start:stop].copy_(mean.div_(total))

        return work

    in_blocks(made, begin)
    return made


def by_values(states: Sequence[State], combined: Callable[[Tensor], Tensor]) -> dict[str, Tensor]:
    """What a rule makes of the values that states of one kind have at a place.

    Args:
        states: at least one.
        combined: (states, n) float64, which it may change, to (n).

    Returns:
        Tensors of the same types.
    """
    made = {name: torch.empty(one.shape, dtype=one.dtype) for name, one in states[0].items()}

    def begin() -> Work[None]:
        stacked = stack_of(states)

        def work(name: str, start: int, stop: int) -> None:
            made[name].view(-1)[start:stop].copy_(combined(stacked(name, start, stop)))

        return work

    in_blocks(made, begin, stacked_block(len(states)))
    return made


def distance(one: State, other: State) -> float:
    """L2, over the tensors of `other`; neither NaN nor infinite values are lost on the way."""
    flat = flattened((one, other))

    def begin() -> Work[float]:
        buffers = torch.empty(2, BLOCK, dtype=torch.float64)

        def work(name: str, start: int, stop: int) -> float:
            apart, subtracted = buffers[:, : stop - start]
            first, second = flat[name]
            apart.copy_(first[start:stop]).sub_(subtracted.copy_(second[start:stop]))
            return float(apart.dot(apart))

        return work

    return math.sqrt(sum(in_blocks(other, begin)))


def length(state: State) -> float:
    """L2."""

    def begin() -> Work[float]:
        buffer = torch.empty(BLOCK, dtype=torch.float64)

        def work(name: str, start: int, stop: int) -> float:
            values = buffer[: stop - start].copy_(flat[name][0][start:stop])
            return float(values.dot(values))

        return work

    flat = flattened((state,))
    return math.sqrt(sum(in_blocks(state, begin)))


def is_finite(state: State) -> bool:
    """Whether no value is NaN or infinite."""

    def begin() -> Work[bool]:
        return lambda name, start, stop: bool(flat[name][0][start:stop].isfinite().all())

    flat = flattened((state,))
    return all(in_blocks(state, begin))


def flattened(states: Sequence[State]) -> dict[str, list[Tensor]]:
    """Each tensor of the last one in each of the states, as a view (n) where its values lie one after another."""
    return {name: [one[name].reshape(-1) for one in states] for name in states[-1]}


def stacked_block(count: int) -> int:
    """Values of a block of which so many states are looked at side by side."""
    return min(BLOCK, max(1, _STACKED // count))


def stack_of(states: Sequence[State]) -> Callable[[str, int, int], Tensor]:
    """What gives the values of all states in a block of `stacked_block`, (states, n) float64: in one memory, again."""
    flat = flattened(states)
    buffer = torch.empty(len(states), stacked_block(len(states)), dtype=torch.float64)

    def stacked(name: str, start: int, stop: int) -> Tensor:
        rows = buffer[:, : stop - start]
        for row, values in zip(rows, flat[name], strict=True):
            row.copy_(values[start:stop])
        return rows

    return stacked


__all__ = [
    "BLOCK",
    "State",
    "Work",
    "by_values",
    "distance",
    "flattened",
    "in_blocks",
    "is_finite",
    "length",
    "stack_of",
    "stacked_block",
    "weighted_mean",
]
