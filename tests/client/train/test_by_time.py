"""A site ends its round with the first step after training.local-seconds: by a clock of the test, and by sleeping."""

import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from client.train import training
from client.train.optimizer import set_rate
from common.config import RunConfig, validate
from common.config.rundocument import issue
from common.learning.network import build_model
from server.federation.events import read_events
from server.federation.rounds import federate
from simulations.backends.in_process import InProcessGrid
from simulations.scenarios.homes import make_site
from tests.client.train.test_adaptive_clipping import a_cohort
from tests.simulations.tiny import tiny_run_of_format, tiny_site


def by_time(seconds: float, *, most: int = 6, **federation: object) -> RunConfig:
    values = tiny_run_of_format(2, federation=federation).model_dump(by_alias=True, exclude_unset=True)
    training = {**values["training"], "local-steps": most, "local-seconds": seconds}
    return validate(RunConfig, {**values, "training": training, "deterministic": False})


class Clock:
    """Goes on by so much with each step's rate."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, step_s: float) -> None:
        self.now, self.rates = 1000.0, list[float]()

        def tick(optimizer: object, run: RunConfig, round_: int, step: int) -> None:
            set_rate(optimizer, run, round_, step)  # type: ignore[arg-type]  # as it came
            self.rates.append(optimizer.param_groups[0]["lr"])  # type: ignore[attr-defined]  # an optimiser's
            self.now += step_s

        monkeypatch.setattr("client.train.training.set_rate", tick)
        clock = SimpleNamespace(monotonic=lambda: self.now, perf_counter=time.perf_counter)
        monkeypatch.setattr("client.train.training.time", clock)


@pytest.mark.parametrize(
    ("step_s", "made"),
    [
        (100.0, 1),  # at least one
        (5.0, 2),  # just at the end
        (4.0, 3),  # the first after it
        (0.5, 6),  # never more than local-steps
    ],
)
def test_a_round_ends_with_the_first_step_after_the_time(
    monkeypatch: pytest.MonkeyPatch, step_s: float, made: int
) -> None:
    clock, run = Clock(monkeypatch, step_s), by_time(10.0)
    about = {"site": "north", "device": "cpu"}
    for round_ in (1, 2):
        metrics = training.train_round(build_model(run), a_cohort(), issue(run), round_=round_, **about)  # type: ignore[arg-type]
        assert metrics["steps"] == made
    assert clock.rates[made] == pytest.approx(clock.rates[0] / 2, rel=0.02)  # half of the run, whoever is slow


def test_a_slow_site_of_a_real_simulation_holds_no_round_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its steps sleep; unbounded it would make three, as long as each takes."""
    run = by_time(1.5, most=3, **{"cross-site": True})
    sites = [make_site(tmp_path, tiny_site(tmp_path / "images" / name, name, 12)) for name in ("fast", "slow")]
    train_round, at = training.train_round, []
    asked: list[int | None] = []

    def told(*given: object, **named: object) -> dict[str, float]:
        at.append(named["site"])
        asked.append(named.get("steps"))  # type: ignore[arg-type]  # a number of steps, or None
        return train_round(*given, **named)  # type: ignore[arg-type]  # as they came

    def sleeping(*given: object) -> None:
        if at[-1] == "slow":
            time.sleep(0.8)
        set_rate(*given)  # type: ignore[arg-type]  # as they came

    monkeypatch.setattr(training, "train_round", told)
    monkeypatch.setattr("client.train.training.set_rate", sleeping)
    summary = federate(InProcessGrid(sites, issue(run)), issue(run), tmp_path / "out")
    assert summary.status == "completed"
    events = read_events(tmp_path / "out" / "metrics.jsonl")
    rounds = [event["steps-made"] for event in events if event["event"] == "round"]
    assert len(rounds) == 2
    assert all(1 <= one["slow"] <= 2 and 1 <= one["fast"] <= 3 for one in rounds)
    stated = [(event["site"], event["steps"]) for event in events if event["event"] == "train"]
    assert stated == [(site, one[site]) for one in rounds for site in ("fast", "slow")]
    # The model that each trains alone makes as many steps as its update has.
    assert asked == [number for _, steps in stated for number in (None, steps)]
