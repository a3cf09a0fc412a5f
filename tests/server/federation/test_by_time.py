"""Sites that end rounds by time: what enters by the steps that each made, and where the mean of unlike ones settles.

The oracle is a/2 (x - b)^2 at each site, by torch's own SGD or by a formula; the sum of such losses has its minimum at
the mean of the b, weighted by the a.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from common.config import RunConfig, sha256_of, validate
from common.errors import ConfigError, ErrorCode, UpdateError
from common.learning.checkpoint import load_model, pack, unpack
from common.learning.network import build_model, weights_of
from common.wire.messages import Request, TrainReply
from server.federation.bounds import farthest, work_of
from server.federation.checks import Update, check_update, outliers
from server.federation.drift import OWN_WAY, Drift
from server.federation.events import summary_as_dict
from server.federation.moves import moves_of
from server.federation.strategies import aggregation_of
from server.views.report import report_page
from server.views.run import view_of
from server.views.watch import event_line
from tests.client.train.test_strategies import PRIVATE, Quadratic
from tests.server.fakes import FakeGrid, FakeSite, Said, a_run, trains
from tests.server.federation.test_rounds import of_kind, run_it

SITES, STEPS = ((1.0, 0.0), (1.0, 10.0)), (2, 20)  # (a, b) of each, and the steps that it makes
OPTIMUM = 5.0
GLOBAL = {"bias": torch.zeros(4), "weight": torch.ones(4, 4)}


def by_time(kind: str = "fedavg", *, training: Mapping[str, object] | None = None, **tables: Any) -> RunConfig:
    about = {"local-steps": 20, "local-seconds": 1.0, "schedule": "constant", "momentum": 0.0, "weight-decay": 0.0}
    return a_run(format_=2, strategy={"kind": kind}, training={**about, **(training or {})}, **tables)


def after_a_round(run: RunConfig, x: float) -> float:
    """Where torch's SGD, afresh at each site, and the run's strategy take x."""
    training, aggregation = run.training, aggregation_of(run)
    aggregation.start({"weights": {"x": torch.tensor([x], dtype=torch.float64)}})
    for (a, b), steps in zip(SITES, STEPS, strict=True):
        model = Quadratic(a, b, x)
        optimizer = torch.optim.SGD(
            model.parameters(), training.learning_rate, training.momentum, nesterov=training.nesterov
        )
        for _ in range(steps):
            optimizer.zero_grad()
            model().backward()
            optimizer.step()
        aggregation.add({"weights": {"x": model.w.detach()}}, 1.0, work_of(run, 1, steps))
    aggregation.finish(1)
    return float(aggregation.held["weights"]["x"])


def settled(run: RunConfig) -> float:
    """The one x that a round does not move: of quadratics it is linear in x."""
    from_0, from_1 = after_a_round(run, 0.0), after_a_round(run, 1.0)
    assert 0 < from_1 - from_0 < 1  # so rounds end there
    return from_0 / (1 - (from_1 - from_0))


def test_the_plain_mean_settles_where_the_formula_says_and_not_at_the_optimum() -> None:
    """A site leaves (1 - rate a)^K of its distance to b, so the fixed point weighs the b by 1 - (1 - rate a)^K."""
    run = by_time(training={"learning-rate": 0.01})
    pulls = [1 - (1 - 0.01 * a) ** steps for (a, _), steps in zip(SITES, STEPS, strict=True)]
    fixed = sum(pull * b for pull, (_, b) in zip(pulls, SITES, strict=True)) / sum(pulls)
    assert settled(run) == pytest.approx(fixed, rel=1e-6)
    assert fixed - OPTIMUM > 4.0  # of the 5 to where the fast site would be


@pytest.mark.parametrize(("momentum", "nesterov"), [(0.0, False), (0.9, False), (0.9, True)])
def test_moves_over_their_works_settle_at_the_optimum(momentum: float, nesterov: bool) -> None:
    rate = 0.001 * (1 - momentum)
    training = {"learning-rate": rate, "momentum": momentum, "nesterov": nesterov}
    assert settled(by_time("fednova", training=training)) == pytest.approx(OPTIMUM, abs=0.05)
    assert settled(by_time("fedavg", training=training)) > OPTIMUM + 4.0


def test_with_as_many_steps_at_all_sites_fednova_is_fedavg() -> None:
    generator = torch.Generator().manual_seed(0)
    start, *updates = ({"x": torch.randn(50, generator=generator)} for _ in range(5))
    made = []
    for kind in ("fednova", "fedavg"):
        aggregation = aggregation_of(by_time(kind))
        aggregation.start({"weights": start})
        for weight, update in enumerate(updates, start=1):
            aggregation.add({"weights": update}, float(weight), 0.3)
        aggregation.finish(1)
        made.append(aggregation.held["weights"]["x"])
    torch.testing.assert_close(made[0], made[1], rtol=1e-6, atol=1e-6)


def test_work_is_the_share_of_a_round_by_its_rates() -> None:
    """Steps of one rate count alike; where it rises from 1/4 in four steps, the first two are 3/10 of them."""
    assert work_of(by_time(), 1, 5) == pytest.approx(0.25)
    assert work_of(by_time(), 1, 20) == 1.0
    run = by_time(training={"local-steps": 4, "warmup-steps": 4, "optimizer": "adamw", "momentum": 0.9})
    assert work_of(run, 1, 2) == pytest.approx(0.3)


@pytest.mark.parametrize("steps", [None, 0.0, 0.5, 2.5, 21.0, -1.0])
def test_steps_that_no_site_can_have_made_are_refused(steps: float | None) -> None:
    run = by_time()
    metrics = {} if steps is None else {"steps": steps}
    reply = TrainReply(sha256_of(run), 1, {"weights": pack(GLOBAL)}, 7, metrics)
    with pytest.raises(UpdateError, match="from 1 to 20") as caught:
        check_update(reply, run, sha256_of(run), 1, GLOBAL)
    assert caught.value.code is ErrorCode.BAD_REQUEST
    good = check_update(replace(reply, metrics={"steps": 5.0}), run, sha256_of(run), 1, GLOBAL)
    assert good.steps == 5
    assert good.work == pytest.approx(0.25)


def test_steps_as_rounded_by_the_exit_gate_are_taken() -> None:
    run = by_time(training={"local-steps": 1_234_567})
    reply = TrainReply(sha256_of(run), 1, {"weights": pack(GLOBAL)}, 7, {"steps": float(f"{1_234_567:.6g}")})
    assert check_update(reply, run, sha256_of(run), 1, GLOBAL).steps == 1_234_567


def test_an_update_lies_no_farther_than_the_steps_that_it_states_lead() -> None:
    """One step of a gradient shortened to 2 at a rate of 0.1 leads 0.2 away, and twenty lead 4."""
    run = by_time(training={"learning-rate": 0.1, "gradient-clipping": 2.0}, model={"channels": [4, 8]})
    assert farthest(run, 1, 0.0, made=1) == pytest.approx(0.2, rel=2e-3)
    assert farthest(run, 1, 0.0) == pytest.approx(4.0, rel=2e-3)
    moved = {**GLOBAL, "bias": torch.tensor([0.5, 0, 0, 0])}
    reply = TrainReply(sha256_of(run), 1, {"weights": pack(moved)}, 7, {"steps": 20.0})
    check_update(reply, run, sha256_of(run), 1, GLOBAL)
    with pytest.raises(UpdateError, match=r"2 steps of this .* lead 0.4") as caught:
        check_update(replace(reply, metrics={"steps": 2.0}), run, sha256_of(run), 1, GLOBAL)
    assert caught.value.code is ErrorCode.UPDATE_TOO_LARGE


def far(distances: Sequence[float], works: Sequence[float]) -> frozenset[str]:
    found = {
        f"s{place}": Update({}, distance, 1000.0, 1, work)
        for place, (distance, work) in enumerate(zip(distances, works, strict=True))
    }
    return outliers(found, by_time())


def test_a_fast_site_may_move_far_and_a_slow_one_far_for_its_steps() -> None:
    assert far([1, 1, 10], [0.1, 0.1, 1.0]) == frozenset()  # as far for its steps as the others
    assert far([1, 1, 0.7], [1.0, 1.0, 0.02]) == frozenset()  # 35 times as far for its steps
    assert far([1, 1, 10], [1.0, 1.0, 1.0]) == {"s2"}
    assert far([1, 1, 10], [1.0, 1.0, 0.5]) == {"s2"}
    assert far([1, 1, 100], [0.1, 0.1, 1.0]) == {"s2"}  # ten times as far for its steps, and a hundred times in all


def test_speed_alone_is_no_drift() -> None:
    """Three sites go the same way, one of them ten times as fast; another goes its own way."""
    drift, run = Drift(by_time()), by_time()
    ahead, aside = torch.tensor([1.0, 0.0, 0.0]), torch.tensor([0.0, 1.0, 0.0])
    for _ in range(2):
        moved = {"a": (ahead, 0.1), "b": (ahead, 0.1), "c": (10 * ahead, 1.0)}
        updates = {
            site: Update({"weights": {"w": one}}, float(one.norm()), 1e9, 1, work)
            for site, (one, work) in moved.items()
        }
        found = drift.of_round(moves_of(updates, {"w": torch.zeros(3)}, run.strategy.MODEL))
    assert not any(OWN_WAY in one for one in found.values())
    for _ in range(2):
        other = {**updates, "d": Update({"weights": {"w": aside}}, 1.0, 1e9, 1, 0.1)}
        found = drift.of_round(moves_of(other, {"w": torch.zeros(3)}, run.strategy.MODEL))
    assert found["d"][OWN_WAY] == pytest.approx(1.0)


def making(steps: float, moved: float) -> FakeSite:
    """A site that adds a number to every weight, and states so many steps."""
    good = trains(lambda request: pack({name: one + moved for name, one in unpack(request.parts["weights"]).items()}))

    def site(request: Request) -> Said:
        reply = good(request)
        return replace(reply, metrics={"steps": steps}) if isinstance(reply, TrainReply) else reply

    return site


def test_journal_watch_and_report_have_the_steps_of_each_site(tmp_path: Path) -> None:
    run = by_time(federation={"rounds": 1})
    summary = run_it(FakeGrid({"fast": making(20.0, 0.1), "slow": making(3.0, 0.2)}), run, tmp_path)
    (event,) = of_kind(tmp_path, "round")
    assert event["steps-made"] == {"fast": 20, "slow": 3}
    assert "; steps: fast 20, slow 3" in event_line(event, run.task)
    assert view_of(summary_as_dict(summary), of_kind(tmp_path, "round")).rounds[0].steps == ("fast 20", "slow 3")
    assert "<th>steps</th>" in report_page(tmp_path)
    assert "fast 20, slow 3" in report_page(tmp_path)


def test_who_states_few_steps_and_moves_as_others_do_pulls_no_more_than_five_times_the_median(tmp_path: Path) -> None:
    """By a twentieth of the work FedNova would take a move twenty times."""
    run = by_time("fednova", federation={"rounds": 1, "weighting": "equal"})
    start, move = weights_of(build_model(run)), 0.01
    sites = {"a": making(20.0, move), "b": making(20.0, move), "x": making(1.0, -move)}
    run_it(FakeGrid(sites), run, tmp_path)
    _, model, _ = load_model(tmp_path)
    weights = {"a": 1.0, "b": 1.0, "x": 5 / 20}  # of a pull that is twenty times the median's
    total = sum(weights.values())
    work = (2 * 1.0 + weights["x"] / 20) / total
    expected = work * (2 * move - weights["x"] * 20 * move) / total
    for name, one in start.items():
        assert (model[name] - one).mean().item() == pytest.approx(expected, rel=1e-3)


def test_of_two_sites_one_that_states_few_steps_pulls_no_more_than_four_times_the_other(tmp_path: Path) -> None:
    run = by_time("fednova", federation={"rounds": 1, "weighting": "equal"})
    start, move = weights_of(build_model(run)), 0.01
    run_it(FakeGrid({"a": making(20.0, move), "x": making(1.0, -move)}), run, tmp_path)
    _, model, _ = load_model(tmp_path)
    weight = 4 / 20  # of a pull that is twenty times the other's
    work = (1.0 + weight / 20) / (1 + weight)
    expected = work * (move - weight * 20 * move) / (1 + weight)
    for name, one in start.items():
        assert (model[name] - one).mean().item() == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize("steps", [1.0, 3.0, 20.0])
def test_a_single_site_is_taken_as_far_as_it_went(tmp_path: Path, steps: float) -> None:
    run = by_time("fednova", federation={"rounds": 1, "weighting": "equal", "quorum": 1})
    start = weights_of(build_model(run))
    run_it(FakeGrid({"a": making(steps, 0.01)}), run, tmp_path)
    _, model, _ = load_model(tmp_path)
    for name, one in start.items():
        torch.testing.assert_close(model[name], one + 0.01, rtol=1e-6, atol=1e-7)


def test_where_it_cannot_be_true_it_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"local-seconds lets a clock .* \[privacy\] .* take it out"):
        by_time(privacy=PRIVATE)
    with pytest.raises(ConfigError, match=r"deterministic = true promises the same bits .* take one"):
        validate(RunConfig, {**by_time().model_dump(by_alias=True), "deterministic": True})
    for kind in ("scaffold", "feddyn"):
        with pytest.raises(ConfigError, match=rf"'{kind}' .*local-seconds .*take that out, or use fednova"):
            by_time(kind)
    with pytest.raises(ConfigError, match=r"local-seconds is a key of format 2"):
        a_run(training={"local-seconds": 1.0})
    assert any("fednova" in told for told in a_run(format_=2, strategy={"kind": "fednova"}).idle)
    assert not any("fednova" in told for told in by_time("fednova").idle)
