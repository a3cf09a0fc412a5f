"""Each strategy makes what its paper says, goes on from a checkpoint to the same bits, and bears hostile sites."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from flwr.common import Code, FitRes, Status, ndarrays_to_parameters, parameters_to_ndarrays
from flwr.server.strategy import FedAdam, FedYogi, aggregate
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from common.config import RunConfig
from common.errors import ConfigError, ErrorCode, FederationError
from common.learning.checkpoint import pack, unpack
from common.learning.network import build_model, norms_of
from common.learning.tensor_bytes import views_of
from common.strategies import STRATEGY_CHOICE
from common.wire.messages import Request, TrainReply, TrainRequest
from server.federation.strategies import AGGREGATIONS, State, aggregation_of
from tests.server.fakes import FakeGrid, FakeSite, a_run, refuses, trains
from tests.server.federation.test_rounds import BAD_UPDATES, moves, run_it, sends

KINDS = sorted(AGGREGATIONS)
SITES = "abcdefg"  # enough for all
SHAPES = {"one": (3, 2), "two": (4,)}


def a_state(seed: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(shape, generator=generator) for name, shape in SHAPES.items()}


def of_kind(kind: str, **keys: object) -> RunConfig:
    return a_run(quorum=len(SITES), format_=2, strategy={"kind": kind, **keys})


def made(
    run: RunConfig, start: State, rounds: Sequence[Sequence[State]], weights: Sequence[float] = ()
) -> list[dict[str, Tensor]]:
    """The model after each round of the given updates."""
    aggregation = aggregation_of(run)
    aggregation.start({"weights": start})
    models = []
    for number, updates in enumerate(rounds, start=1):
        for place, update in enumerate(updates):
            aggregation.add({"weights": update}, weights[place] if weights else 1.0)
        aggregation.finish(number)
        models.append(dict(aggregation.held["weights"]))
    return models


def assert_close(found: Mapping[str, Tensor], expected: Mapping[str, Any]) -> None:
    for name, tensor in found.items():
        assert tensor.dtype == torch.float32
        np.testing.assert_allclose(tensor.numpy(), expected[name], rtol=2e-5, atol=2e-6)


START, ROUNDS = a_state(0), [[a_state(10 * number + site) for site in range(7)] for number in range(1, 5)]
ARRAYS = [[([one[name].double().numpy() for name in SHAPES], 1) for one in updates] for updates in ROUNDS]


def as_named(arrays: Sequence[Any]) -> dict[str, Any]:
    return dict(zip(SHAPES, arrays, strict=True))


def test_every_strategy_has_both_halves() -> None:
    assert sorted(STRATEGY_CHOICE.by_name) == KINDS


@pytest.mark.parametrize(
    ("kind", "keys"),
    [
        ("fedprox", {"mu": 0.7}),  # at the coordinator
        ("fedavgm", {"momentum": 0.0}),
        ("trimmed-mean", {"trim": 0}),
        ("norm-clipping", {"norm": 1e6}),
        ("multi-krum", {"hostile": 0}),
    ],
)
def test_without_what_it_is_for_a_strategy_is_fedavg(kind: str, keys: Mapping[str, object]) -> None:
    for found, plain in zip(
        made(of_kind(kind, **keys), START, ROUNDS), made(of_kind("fedavg"), START, ROUNDS), strict=True
    ):
        assert_close(found, {name: one.numpy() for name, one in plain.items()})


def test_sgd_of_torch_makes_what_fedavgm_makes() -> None:
    weights = [3.0, 1.0, 1.0, 1.0, 1.0, 2.0, 1.0]
    mine = made(of_kind("fedavgm", momentum=0.8, **{"learning-rate": 0.5}), START, ROUNDS, weights)
    held = {name: tensor.clone().requires_grad_() for name, tensor in START.items()}
    optimizer = torch.optim.SGD(held.values(), lr=0.5, momentum=0.8)
    for updates, found in zip(ROUNDS, mine, strict=True):
        _step(optimizer, held, updates, weights)
        assert_close(found, {name: one.detach().numpy() for name, one in held.items()})


def test_adagrad_of_torch_makes_what_fedadagrad_makes() -> None:
    mine = made(of_kind("fedadagrad", tau=0.05, **{"learning-rate": 0.3}), START, ROUNDS)
    held = {name: tensor.clone().requires_grad_() for name, tensor in START.items()}
    optimizer = torch.optim.Adagrad(held.values(), lr=0.3, initial_accumulator_value=0.05**2, eps=0.05)
    for updates, found in zip(ROUNDS, mine, strict=True):
        _step(optimizer, held, updates, [1.0] * 7)
        assert_close(found, {name: one.detach().numpy() for name, one in held.items()})


def _step(optimizer: torch.optim.Optimizer, held: dict[str, Tensor], updates: Sequence[State], w: list[float]) -> None:
    """What the sites moved, backwards, is the gradient."""
    for name, one in held.items():
        mean = sum(weight * update[name] for weight, update in zip(w, updates, strict=True)) / sum(w)
        one.grad = one.detach() - mean
    optimizer.step()


@pytest.mark.parametrize(("kind", "theirs"), [("fedadam", FedAdam), ("fedyogi", FedYogi)])
def test_flower_makes_what_the_adaptive_ones_make(kind: str, theirs: Any) -> None:
    """Flower corrects Adam's bias, which the paper does not: the rate it is given takes that back."""
    tau, beta_1, beta_2, rate = 0.02, 0.8, 0.95, 0.1
    keys = {"tau": tau, "beta-1": beta_1, "beta-2": beta_2, "learning-rate": rate}
    mine = made(of_kind(kind, **keys), START, ROUNDS)
    first = [START[name].numpy() for name in SHAPES]
    flower = theirs(initial_parameters=ndarrays_to_parameters(first), eta=rate, beta_1=beta_1, beta_2=beta_2, tau=tau)
    flower.v_t = [np.full_like(one, tau**2) for one in first]
    for number, (updates, found) in enumerate(zip(ROUNDS, mine, strict=True), start=1):
        if kind == "fedadam":
            flower.eta = rate * (1 - beta_1 ** (number + 1)) / np.sqrt(1 - beta_2 ** (number + 1))
        results = [
            (None, FitRes(Status(Code.OK, ""), ndarrays_to_parameters([one[name].numpy() for name in SHAPES]), 1, {}))
            for one in updates
        ]
        parameters, _ = flower.aggregate_fit(number, results, [])
        assert_close(found, as_named(parameters_to_ndarrays(parameters)))


@pytest.mark.parametrize(
    ("kind", "keys", "theirs"),
    [
        ("fedmedian", {}, aggregate.aggregate_median),
        ("trimmed-mean", {"trim": 2}, lambda results: aggregate.aggregate_trimmed_avg(results, 2 / 7)),
        ("multi-krum", {"hostile": 2, "selected": 3}, lambda results: aggregate.aggregate_krum(results, 2, 3)),
        ("multi-krum", {"hostile": 1, "selected": 1}, lambda results: aggregate.aggregate_krum(results, 1, 0)),
        (
            "bulyan",
            {"hostile": 1},
            lambda results: aggregate.aggregate_bulyan(results, 1, aggregate.aggregate_krum, to_keep=0),
        ),
    ],
    ids=lambda one: str(one) if isinstance(one, str | dict) else "",
)
def test_flower_makes_what_the_robust_ones_make(kind: str, keys: Mapping[str, object], theirs: Any) -> None:
    for found, arrays in zip(made(of_kind(kind, **keys), START, ROUNDS), ARRAYS, strict=True):
        assert_close(found, as_named(theirs(arrays)))


def test_a_median_of_an_even_number_is_the_mean_of_the_two_in_the_middle() -> None:
    four = [{"w": torch.tensor([value])} for value in (1.0, 9.0, 2.0, 100.0)]
    (found,) = made(a_run(quorum=3, format_=2, strategy={"kind": "fedmedian"}), {"w": torch.zeros(1)}, [four])
    assert found["w"].tolist() == [5.5]


def test_a_move_beyond_the_median_length_is_shortened_to_it() -> None:
    """From (1, 1): moves of length 5, 10 and 50; the last becomes (6, 8)."""
    start = {"w": torch.tensor([1.0, 1.0])}
    ends = [(4.0, 5.0), (1.0, 11.0), (31.0, 41.0)]
    (found,) = made(of_kind("norm-clipping"), start, [[{"w": torch.tensor(end)} for end in ends]], [2.0, 1.0, 1.0])
    assert found["w"].tolist() == pytest.approx([1 + (2 * 3 + 0 + 6) / 4, 1 + (2 * 4 + 10 + 8) / 4])


@given(
    honest=st.lists(st.floats(-10, 10, width=32), min_size=5, max_size=5),
    hostile=st.floats(-(2.0**100), 2.0**100, width=32),
    place=st.integers(0, 5),
)
@settings(max_examples=60, deadline=None)
@pytest.mark.parametrize("kind", ["fedmedian", "trimmed-mean", "multi-krum", "bulyan"])
def test_one_hostile_site_moves_the_model_no_farther_than_the_honest_ones_reach(
    kind: str, honest: list[float], hostile: float, place: int
) -> None:
    """The hostile one lies beyond, or is as good as an honest one."""
    values = [*honest[:place], hostile, *honest[place:]]
    values.append(honest[0])  # seven, for Bulyan
    (found,) = made(of_kind(kind), {"w": torch.zeros(1)}, [[{"w": torch.tensor([value])} for value in values]])
    low, high = min(honest), max(honest)
    if kind == "multi-krum" and 2 * low - high <= hostile <= 2 * high - low:
        return
    # Bulyan's mean takes in what lies as near to the median as an honest one, on its other side.
    slack = 1e-6 * max(1.0, high - low) + (high - low if kind == "bulyan" else 0)
    assert low - slack <= float(found["w"][0]) <= high + slack


def sharing(run: RunConfig, sites: Mapping[str, FakeSite]) -> dict[str, FakeSite]:
    """The sites; where normalisations stay, they send those that they were sent."""
    if not run.strategy.NORMS_STAY:
        return dict(sites)
    norms = norms_of(build_model(run))

    def with_norms(site: FakeSite) -> FakeSite:
        def answers(request: Request) -> Any:
            reply = site(request)
            if not isinstance(reply, TrainReply):
                return reply
            before, after = unpack(request.parts["weights"]), unpack(reply.parts["weights"])
            kept = {name: before[name] if name in norms else one for name, one in after.items()}
            return replace(reply, parts={"weights": pack(kept)})

        return answers

    return {name: with_norms(site) for name, site in sites.items()}


def test_an_update_of_fedbn_that_moves_normalisations_is_refused(tmp_path: Path) -> None:
    run = a_run(1, 2, format_=2, strategy={"kind": "fedbn"}, federation={"round-timeout-s": 0.02})
    honest = sharing(run, {"a": moves(1), "b": moves(2)})
    summary = run_it(FakeGrid({**honest, "c": moves(3)}), run, tmp_path)
    assert summary.sites_by_round[0]["refused"] == {"c": "wrong-tensors"}


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_that_was_cut_makes_the_same_model(kind: str, tmp_path: Path) -> None:
    run = a_run(4, len(SITES), format_=2, strategy={"kind": kind}, federation={"averaging": 0.5})
    sites = sharing(run, {name: moves(seed) for seed, name in enumerate(SITES)})
    whole = run_it(FakeGrid(sites), run, tmp_path / "whole")

    def stops(request: Request) -> Any:
        if isinstance(request, TrainRequest) and request.round == 3:
            raise KeyboardInterrupt
        return sites["g"](request)

    with pytest.raises(KeyboardInterrupt):
        run_it(FakeGrid({**sites, "g": stops}), run, tmp_path / "cut")
    resumed = run_it(FakeGrid(sites), run, tmp_path / "cut")
    assert resumed.model_sha256 == whole.model_sha256
    assert whole.rounds == 4


@pytest.mark.parametrize("kind", KINDS)
def test_no_update_is_written_to_and_none_is_held_after_its_round(kind: str) -> None:
    """Updates are views of the bytes that came, whose hash is in the records by then."""
    run = of_kind(kind)
    aggregation = aggregation_of(run)
    aggregation.start({"weights": START})
    for number, updates in enumerate(ROUNDS, start=1):
        came = [{part: pack(one) for part in run.strategy.up} for one in updates]
        as_they_came = [{part: bytearray(one) for part, one in parts.items()} for parts in came]
        for place, parts in enumerate(came):
            aggregation.add({part: views_of(one) for part, one in parts.items()}, 1.0 + place, 1 / (1 + place))
        aggregation.finish(number)
        assert as_they_came == came
        held = [one.untyped_storage() for state in aggregation.held.values() for one in state.values()]
        for parts in came:
            for one in parts.values():
                start = np.frombuffer(one, np.uint8).ctypes.data
                assert not any(start <= storage.data_ptr() < start + len(one) for storage in held)


@pytest.mark.parametrize("kind", KINDS)
def test_hostile_updates_are_named_and_the_model_stays_finite(kind: str, tmp_path: Path) -> None:
    """All that cannot enter at once, beside seven honest sites: the model is that of the seven, bit for bit."""
    run = a_run(2, len(SITES), format_=2, strategy={"kind": kind})
    honest = sharing(run, {name: moves(seed) for seed, name in enumerate(SITES)})
    hostile = {f"x-{fault}": sends(change) for fault, (change, _) in BAD_UPDATES.items()}
    summary = run_it(FakeGrid({**honest, **hostile}), run, tmp_path / "with")
    without = run_it(FakeGrid(honest), run, tmp_path / "without")
    expected = {f"x-{fault}": code for fault, (_, code) in BAD_UPDATES.items()}
    if kind == "fedbn":  # it moves all weights, normalisations too
        expected["x-huge"] = ErrorCode.WRONG_TENSORS
    assert summary.sites_by_round[1]["refused"] == expected
    assert summary.model_sha256 == without.model_sha256


def moved(change: Callable[[Tensor], Tensor]) -> FakeSite:
    """A site that answers with each tensor changed."""
    return trains(lambda request: pack({name: change(one) for name, one in unpack(request.parts["weights"]).items()}))


LEGAL: dict[str, FakeSite] = {
    "nothing": moved(lambda one: one),
    "zeros": moved(torch.zeros_like),
    "opposite": moved(lambda one: one - 3),
    "silent": lambda _: None,
}


@pytest.mark.parametrize("kind", KINDS)
def test_what_may_enter_and_helps_nobody_leaves_the_model_finite(kind: str, tmp_path: Path) -> None:
    run = a_run(5, len(SITES), format_=2, strategy={"kind": kind}, federation={"round-timeout-s": 0.02})
    honest = sharing(run, {name: moves(seed) for seed, name in enumerate(SITES)})
    assert run_it(FakeGrid({**honest, **LEGAL}), run, tmp_path).status == "completed"
    state = unpack((tmp_path / "model.safetensors").read_bytes())
    assert all(bool(one.isfinite().all()) for one in state.values())


@pytest.mark.parametrize(
    ("kind", "keys", "fewest"),
    [
        ("fedmedian", {}, 3),
        ("trimmed-mean", {"trim": 3}, 7),
        ("multi-krum", {}, 5),
        ("multi-krum", {"selected": 6}, 7),  # of six one may be hostile, and would always be selected
        ("multi-krum", {"selected": 6, "hostile": 0}, 6),
        ("multi-krum", {"selected": 2, "hostile": 2}, 7),
        ("bulyan", {"hostile": 2}, 11),
    ],
)
def test_a_quorum_with_which_a_strategy_cannot_work_is_refused(
    kind: str, keys: Mapping[str, object], fewest: int
) -> None:
    a_run(2, fewest, format_=2, strategy={"kind": kind, **keys})
    with pytest.raises(ConfigError, match=f"needs {fewest} updates in every round: set federation.quorum = {fewest}"):
        a_run(2, fewest - 1, format_=2, strategy={"kind": kind, **keys})


def test_below_that_number_a_round_fails_and_no_model_is_made_of_it(tmp_path: Path) -> None:
    sites = {name: moves(seed) for seed, name in enumerate("abc")}
    run = a_run(1, 3, format_=2, strategy={"kind": "fedmedian"}, federation={"round-timeout-s": 0.02})
    with pytest.raises(FederationError, match="2 updates could enter round 1, the quorum is 3"):
        run_it(FakeGrid({**sites, "c": refuses(ErrorCode.NO_DATA)}), run, tmp_path)
    assert not (tmp_path / "model.safetensors").exists()
