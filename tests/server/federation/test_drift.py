"""How moves lie to each other: against hand-computed angles, and chance against a site that pulls its own way."""

import math

import pytest
import torch
from torch import Tensor

from common.config import RunConfig
from server.federation.checks import Update
from server.federation.drift import LENGTH, OWN_WAY, WITH_OTHERS, Drift
from server.federation.moves import MOST_OF_ALL, MOST_WEIGHTS, moves_of, weights_of_each
from tests.server.fakes import a_run

SENT = {"a": torch.zeros(2), "b": torch.zeros(1, 1)}


def moved(*values: float) -> Update:
    """An update of three weights."""
    parts = {"weights": {"a": torch.tensor(values[:2]), "b": torch.tensor([[values[2]]])}}
    return Update(parts, math.hypot(*values), 10.0)


def told(drift: Drift, updates: dict[str, Update], sent: dict[str, Tensor] = SENT) -> dict[str, dict[str, float]]:
    return drift.of_round(moves_of(updates, sent, "weights"))


def test_sums_of_cosines_are_those_of_each_pair() -> None:
    """Against each pair's cosine by torch, over tensors of odd sizes, more than are looked at for what returns."""
    generator = torch.Generator().manual_seed(3)
    sent = {"b": torch.randn(7, 3001, generator=generator), "a": torch.randn(5, generator=generator)}
    states = [{name: one + torch.randn(one.shape, generator=generator) for name, one in sent.items()} for _ in range(5)]
    flat = [torch.cat([(state[name].double() - sent[name].double()).flatten() for name in "ab"]) for state in states]
    updates = {f"s{n}": Update({"weights": state}, float(flat[n].norm()), 1e9) for n, state in enumerate(states)}
    found = moves_of(updates, sent, "weights")
    units = [one / one.norm() for one in flat]
    for place, one in enumerate(units):
        rest = [other for other in units if other is not one]
        assert float(found.with_others[place]) == pytest.approx(sum(float(one @ other) for other in rest), abs=1e-6)
        assert float(found.others[place]) == pytest.approx(float(sum(rest[1:], rest[0]).norm()), abs=1e-6)
    assert found.lengths.tolist() == pytest.approx([float(one.norm()) for one in flat])
    assert 0 < found.some.shape[1] <= MOST_WEIGHTS
    assert all(value in flat[0].tolist() for value in found.some[0, ::999].tolist())


def test_lengths_and_angles_are_those_of_the_moves() -> None:
    found = told(Drift(a_run()), {"x": moved(3, 0, 0), "y": moved(0, 4, 0), "z": moved(1, 1, 0)})
    assert [found[site][LENGTH] for site in "xyz"] == pytest.approx([3, 4, math.sqrt(2)])
    half = math.sqrt(0.5)
    assert [found[site][WITH_OTHERS] for site in "xyz"] == pytest.approx([half / 2, half / 2, half])
    assert not any(OWN_WAY in one for one in found.values())


def test_a_site_that_pulls_the_same_way_again_is_told_from_one_that_turns() -> None:
    """Beyond the mean of both, x pulls along the first weight, then along the same, then against it."""
    drift = Drift(a_run())
    pulls = ((1.0, None), (3.0, 1.0), (-2.0, -1.0))
    for pull, expected in pulls:
        found = told(drift, {"x": moved(pull, 5, 0), "y": moved(-pull, 5, 0)})
        for site in "xy":
            assert found[site].get(OWN_WAY) == (None if expected is None else pytest.approx(expected))


def test_of_a_site_that_was_away_or_did_not_move_there_is_no_way_of_its_own() -> None:
    drift = Drift(a_run())
    both = {"x": moved(1, 0, 0), "y": moved(-1, 0, 0)}
    told(drift, both)
    assert told(drift, {"x": both["x"]}) == {}
    assert not any(OWN_WAY in one for one in told(drift, both).values())
    found = told(drift, {**both, "still": moved(0, 0, 0)})
    assert set(found) == {"x", "y"}
    same = told(Drift(a_run()), {"x": both["x"], "y": both["x"]})
    assert same["x"] == {LENGTH: 1.0, WITH_OTHERS: pytest.approx(1.0)}


@pytest.mark.parametrize(("own", "low", "high"), [(0.0, -0.05, 0.05), (1.0, 0.4, 0.6)])
def test_chance_is_near_nothing_in_a_large_model_of_which_some_weights_are_looked_at(
    own: float, low: float, high: float
) -> None:
    """Each move: the same for all + the site's own, the same in each round + chance of the same size as the own."""
    generator = torch.Generator().manual_seed(0)
    sent = {"w": torch.zeros(300, 200)}
    shared = torch.randn(300, 200, generator=generator)
    ways = [own * torch.randn(300, 200, generator=generator) for _ in range(6)]
    drift = Drift(a_run())
    for _ in range(2):
        moves = [shared + way + torch.randn(300, 200, generator=generator) for way in ways]
        updates = {f"s{n}": Update({"weights": {"w": one}}, float(one.norm()), 1e9) for n, one in enumerate(moves)}
        found = told(drift, updates, sent)
    ways_found = [one[OWN_WAY] for one in found.values()]
    assert low < sum(ways_found) / len(ways_found) < high


@pytest.mark.parametrize("run", [a_run(privacy={"target-epsilon": 8.0}), a_run(format_=2, strategy={"kind": "mr-mtl"})])
def test_nothing_is_told_of_moves_that_are_noise_or_begin_elsewhere(run: RunConfig) -> None:
    drift = Drift(run)
    assert told(drift, {"x": moved(1, 0, 0), "y": moved(-1, 0, 0)}) == {}


def test_of_many_sites_fewer_weights_are_kept_so_that_memory_does_not_grow_with_them() -> None:
    held = [sites * weights_of_each(sites) for sites in (3, 128, 129, 1000, 10_000)]
    assert weights_of_each(3) == weights_of_each(128) == MOST_WEIGHTS
    assert max(held) <= MOST_OF_ALL
    assert weights_of_each(1000) == weights_of_each(990) == 2048  # a site that is away changes nothing
