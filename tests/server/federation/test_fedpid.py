"""Sites count by what the shared model gained there: against constants made by hand."""

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest
import torch

from common.errors import ConfigError
from common.learning.checkpoint import load_model
from common.learning.network import build_model, weights_of
from common.wire.messages import EvaluateReply, EvaluateRequest, Request
from server.federation.strategies import aggregation_of
from tests.client.train.test_strategies import PRIVATE
from tests.server.fakes import FakeGrid, FakeSite, Said, a_run
from tests.server.federation.test_rounds import moves, of_kind, run_it, shift

WEIGHTS = {"a": 10.0, "b": 20.0, "c": 10.0}  # shares 1/4, 1/2, 1/4
# What each gains last, in all: a 0.1, 0.3; b 0.3, 0.3; c loses 0.1, and gains 0.2 in all.
COSTS = {1: {"a": 0.8, "b": 0.9, "c": 0.6}, 2: {"a": 0.6, "b": 0.9, "c": 0.3}, 3: {"a": 0.5, "b": 0.6, "c": 0.4}}


def weighed(
    costs: Mapping[int, Mapping[str, float]], weights: Mapping[str, float] = WEIGHTS, **keys: float
) -> dict[str, float]:
    return aggregation_of(a_run(format_=2, strategy={"kind": "fedpid", **keys})).weighed(weights, costs)


def test_weights_are_those_made_by_hand() -> None:
    """Last gains are 1/4, 3/4 and none; gains since the first round 3/8, 3/8 and 2/8."""
    assert weighed(COSTS) == pytest.approx(
        {
            "a": 0.45 / 4 + 0.45 / 4 + 0.1 * 3 / 8,
            "b": 0.45 / 2 + 0.45 * 3 / 4 + 0.1 * 3 / 8,
            "c": 0.45 / 4 + 0 + 0.1 * 2 / 8,
        }
    )
    assert weighed(COSTS, alpha=0.2, beta=0.4, gamma=0.2) == pytest.approx(
        {
            "a": 0.25 / 4 + 0.5 / 4 + 0.25 * 3 / 8,
            "b": 0.25 / 2 + 0.5 * 3 / 4 + 0.25 * 3 / 8,
            "c": 0.25 / 4 + 0.25 * 2 / 8,
        }
    )


@pytest.mark.parametrize("costs", [{}, {1: COSTS[1]}, {1: COSTS[3], 2: COSTS[3]}])
def test_without_any_gain_sites_count_as_their_sizes_say(costs: Mapping[int, Mapping[str, float]]) -> None:
    """Also before there are two scores."""
    assert weighed(costs) == pytest.approx({"a": 0.25, "b": 0.5, "c": 0.25})


def test_a_site_that_tells_no_scores_counts_as_its_size_says() -> None:
    """The others share what their sizes make together, half of the whole; a alone gains."""
    heard = {number: {site: cost for site, cost in one.items() if site != "b"} for number, one in COSTS.items()}
    found = weighed(heard, gamma=0.0)
    assert found["b"] == pytest.approx(0.5)
    assert found["a"] == pytest.approx(0.5 * 0.25 + 0.5 * 0.5)
    assert found["c"] == pytest.approx(0.5 * 0.25)


def scored(seed: int, scores: Sequence[float]) -> FakeSite:
    """A site whose validation score of the model of round r is `scores[r - 1]`."""
    plain = moves(seed, 10)

    def site(request: Request) -> Said:
        if isinstance(request, EvaluateRequest):
            return EvaluateReply(
                request.run_hash, request.round, request.phase, 10, {"dice": scores[request.round - 1]}
            )
        return plain(request)

    return site


def test_a_run_weighs_each_round_by_the_scores_before_it_and_says_so(tmp_path: Path) -> None:
    """Of equal sizes. In round 3: a has gained 0.1 and b 0.3 of the last, so 0.45 / 2 + 0.55 / 4 for a."""
    run = a_run(3, format_=2, strategy={"kind": "fedpid"})
    grid = FakeGrid({"a": scored(0, [0.2, 0.3, 0.4]), "b": scored(1, [0.2, 0.5, 0.9])})
    run_it(grid, run, tmp_path)
    rounds = of_kind(tmp_path, "round")
    assert [one["weights"] for one in rounds[:2]] == [{"a": 0.5, "b": 0.5}] * 2
    a = 0.45 / 2 + 0.55 / 4
    assert rounds[2]["weights"] == pytest.approx({"a": a, "b": 1 - a})
    _, state, _ = load_model(tmp_path)
    expected = {
        name: (0.5 + 0.5 + a) * shift(0, name, one) + (0.5 + 0.5 + 1 - a) * shift(1, name, one)
        for name, one in state.items()
    }
    for name, one in weights_of(build_model(run)).items():
        torch.testing.assert_close(state[name], one + expected[name], rtol=1e-5, atol=1e-5)


def test_a_run_that_was_cut_weighs_the_same(tmp_path: Path) -> None:
    run = a_run(4, format_=2, strategy={"kind": "fedpid"})
    sites = {"a": scored(0, [0.2, 0.3, 0.4, 0.5]), "b": scored(1, [0.2, 0.5, 0.9, 0.9])}
    whole = run_it(FakeGrid(sites), run, tmp_path / "whole")

    def stops(request: Request) -> Said:
        if not isinstance(request, EvaluateRequest) and request.round == 4:
            raise KeyboardInterrupt
        return sites["b"](request)

    with pytest.raises(KeyboardInterrupt):
        run_it(FakeGrid({**sites, "b": stops}), run, tmp_path / "cut")
    resumed = run_it(FakeGrid(sites), run, tmp_path / "cut")
    assert resumed.model_sha256 == whole.model_sha256


def test_a_model_is_the_same_to_the_bit_in_whatever_order_updates_come(tmp_path: Path) -> None:
    """With these scores the sum of the gains, and so the shares, differ in their last bit by the order of the sum."""
    run = a_run(3, quorum=3, format_=2, strategy={"kind": "fedpid"})
    scores = {"a": [0.1, 0.78, 0.78], "b": [0.02, 0.45, 0.45], "c": [0.34, 0.91, 0.91]}
    found = set()
    for order in itertools.permutations(scores):
        grid = FakeGrid({name: scored(seed, scores[name]) for seed, name in enumerate(scores)}, order=order)
        out = tmp_path / "".join(order)
        made = run_it(grid, run, out)
        found.add((made.model_sha256, str(of_kind(out, "round")[2]["weights"])))
    assert len(found) == 1


def test_with_privacy_or_without_validation_patients_it_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"'fedpid' weights sites by their validation scores .* train without"):
        a_run(format_=2, strategy={"kind": "fedpid"}, privacy=PRIVATE)
    with pytest.raises(ConfigError, match="validation-fraction must be above 0"):
        a_run(format_=2, strategy={"kind": "fedpid"}, data={"validation-fraction": 0.0})
