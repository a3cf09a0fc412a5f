"""Sums over whole models are those of exact arithmetic, whatever the threads, the shapes, the types and the strides."""

import math
from fractions import Fraction

import pytest
import torch
from torch import Tensor

from server.federation.checks import Update
from server.federation.moves import moves_of
from server.federation.strategies.blocks import (
    BLOCK,
    State,
    by_values,
    distance,
    in_blocks,
    is_finite,
    length,
    weighted_mean,
)
from server.federation.strategies.robust import squared_distances

ODD = {"none": (0, 3), "one": (), "few": (3, 1, 5), "edge": (BLOCK,), "more": (2 * BLOCK + 1,), "many": (7, BLOCK - 3)}


def states(count: int, seed: int = 0, **scale: float) -> list[dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    return [
        {name: torch.randn(shape, generator=generator) * scale.get(name, 1.0) for name, shape in ODD.items()}
        for _ in range(count)
    ]


def assert_bits(found: State, expected: State) -> None:
    assert found.keys() == expected.keys()
    for name, one in expected.items():
        assert (found[name].dtype, found[name].shape) == (one.dtype, one.shape)
        assert torch.equal(found[name], one), name


def plain_mean(updates: list[dict[str, Tensor]], weights: list[float]) -> dict[str, Tensor]:
    """By whole tensors, in the order given."""
    return {
        name: (
            sum((w * one[name].double() for one, w in zip(updates, weights, strict=True)), torch.zeros(()).double())
            / sum(weights)
        ).to(first.dtype)
        for name, first in updates[0].items()
    }


def with_threads(count: int, work: object) -> object:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        return work()  # type: ignore[operator]
    finally:
        torch.set_num_threads(before)


def test_the_mean_is_that_of_whole_tensors_at_odd_sizes() -> None:
    """Weights of few bits: their products are exact in float64, so that both have but one right result."""
    updates, weights = states(5), [3.0, 1.0, 250.0, 8.0, 17.5]
    assert_bits(weighted_mean(updates, weights), plain_mean(updates, weights))


@pytest.mark.parametrize("threads", [2, 3, 16])
def test_threads_change_no_bit(threads: int) -> None:
    """Of means, distances and moves, with weights whose products are rounded."""
    updates, weights = states(5), [math.pi, 1 / 3, 99.9, 1e-3, 7.0]
    (sent,) = states(1, seed=9)
    round_ = {f"s{n}": Update({"weights": one}, distance(one, sent), 1e9) for n, one in enumerate(updates)}

    def all_of_it() -> tuple[dict[str, Tensor], list[float], list[list[float]]]:
        moves = moves_of(round_, sent, "weights")
        numbers = [length(sent), *(distance(one, sent) for one in updates)]
        told = [one.tolist() for one in (moves.with_others, moves.others, squared_distances(updates).flatten())]
        return weighted_mean(updates, weights), numbers, told

    alone, together = (with_threads(count, all_of_it) for count in (1, threads))
    assert_bits(together[0], alone[0])  # type: ignore[index]
    assert together[1:] == alone[1:]  # type: ignore[index]


def test_huge_and_tiny_values_are_added_exactly_where_float32_could_not() -> None:
    """Against fractions: 1e30 comes and goes, and what is tiny beside it stays as far as float64 holds it."""
    columns = [(1e30, -1e30, 1e-30), (3e38, 3e38, 3e38), (1e-45, 1e-45, 0.0), (1.0, 2.0**-24, 2.0**-24), (-0.0, 0, 0)]
    updates = [{"w": torch.tensor(row)} for row in zip(*columns, strict=True)]
    found = weighted_mean(updates, [1.0, 1.0, 2.0])["w"]
    for got, column in zip(found.tolist(), columns, strict=True):
        values = torch.tensor(column).tolist()
        exact = (Fraction(values[0]) + Fraction(values[1]) + 2 * Fraction(values[2])) / 4
        assert got == float(torch.tensor(float(exact), dtype=torch.float64).float())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64, torch.int64])
def test_other_types_stay_what_they_are(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(1)
    updates = [{"w": (torch.randn(3, 7, generator=generator) * 50).to(dtype)} for _ in range(3)]
    assert_bits(weighted_mean(updates, [1.0, 2.0, 5.0]), plain_mean(updates, [1.0, 2.0, 5.0]))


def test_strides_do_not_matter() -> None:
    rows = [torch.arange(35.0).reshape(5, 7) * (n + 1) for n in range(3)]
    turned = [{"w": one.T, "every": one[::2, ::3]} for one in rows]
    straight = [{name: one.contiguous() for name, one in state.items()} for state in turned]
    weights = [1.0, 2.0, 4.0]
    assert_bits(weighted_mean(turned, weights), weighted_mean(straight, weights))
    assert distance(turned[0], turned[1]) == distance(straight[0], straight[1])
    assert_bits(by_values(turned, lambda one: one.amax(0)), by_values(straight, lambda one: one.amax(0)))


def test_distances_are_those_of_the_whole_vectors() -> None:
    one, other = states(2)
    flat = [torch.cat([state[name].double().flatten() for name in ODD]) for state in (one, other)]
    assert length(one) == pytest.approx(float(flat[0].norm()), rel=1e-12)
    assert distance(one, other) == pytest.approx(float((flat[0] - flat[1]).norm()), rel=1e-12)
    assert distance(one, one) == 0
    between = squared_distances([one, other, one])
    assert between.diagonal().tolist() == [0, 0, 0]
    assert between[0, 1] == pytest.approx(distance(one, other) ** 2, rel=1e-12)
    assert between[0, 2] == 0


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("name", [name for name, shape in ODD.items() if math.prod(shape)])
def test_a_value_that_is_not_finite_is_found_in_the_last_place_of_any_tensor(name: str, value: float) -> None:
    one, other = states(2)
    assert is_finite(one)
    one[name].view(-1)[-1] = value
    assert not is_finite(one)
    assert not math.isfinite(distance(one, other))


def test_a_rule_sees_every_place_once() -> None:
    updates = states(4)
    found = by_values(updates, lambda values: values.sort(0).values[1])
    assert_bits(found, {n: torch.stack([one[n] for one in updates]).sort(0).values[1] for n in ODD})


def test_what_comes_of_the_blocks_comes_in_their_order() -> None:
    shape = {"a": torch.empty(10), "b": torch.empty(0), "c": torch.empty(5)}
    expected = [("a", 0, 3), ("a", 3, 6), ("a", 6, 9), ("a", 9, 10), ("c", 0, 3), ("c", 3, 5)]
    for threads in (1, 2, 5):
        found = with_threads(threads, lambda: in_blocks(shape, lambda: lambda *place: place, 3))
        assert found == expected


def test_threads_are_as_before_also_where_a_block_fails() -> None:
    def fails(name: str, start: int, stop: int) -> None:
        raise RuntimeError(f"{name} {start} {stop}, {torch.get_num_threads()} thread")

    def tried() -> None:
        with pytest.raises(RuntimeError, match="a 0 1, 1 thread"):
            in_blocks({"a": torch.empty(1)}, lambda: fails)
        assert torch.get_num_threads() == 3

    with_threads(3, tried)


def test_a_mean_holds_no_more_than_what_it_makes() -> None:
    """Beside 16 updates of 4 MiB: the mean, and blocks of 1 MiB in float64, two for each thread."""
    updates = [{"w": torch.ones(1 << 20)} for _ in range(16)]
    assert _peak_bytes(lambda: weighted_mean(updates, [1.0] * 16)) < (4 + 2 + 1) << 20


def _peak_bytes(work: object) -> int:
    """What torch holds at most beyond what it held before, by its own allocations."""
    held = most = 0
    with torch.profiler.profile(profile_memory=True) as profile:
        with_threads(1, work)
    for event in profile.profiler.kineto_results.events():
        if event.name() == "[memory]":
            held += event.nbytes()
            most = max(most, held)
    assert most
    return most
