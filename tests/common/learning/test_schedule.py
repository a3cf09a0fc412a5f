"""Learning rates against torch's own schedulers, and what a document may say of them."""

from typing import Any

import pytest
import torch
from torch.optim import lr_scheduler

from common.config import RunConfig, validate
from common.errors import ConfigError
from common.learning.schedule import learning_rate, rates_of_round

RATE = 0.02


def a_run(rounds: int = 6, local_steps: int = 5, **training: Any) -> RunConfig:
    return validate(
        RunConfig,
        {
            "format": 2,
            "name": "schedule",
            "data": {"modality": "CT", "classes": ["lesion"]},
            "training": {"patch-size": [16, 16], "local-steps": local_steps, "learning-rate": RATE, **training},
            "federation": {"rounds": rounds},
        },
    )


def rates(run: RunConfig) -> list[float]:
    return [rate for round_ in range(1, run.federation.rounds + 1) for rate in rates_of_round(run, round_)]


def of_torch(make: Any, steps: int) -> list[float]:
    """The rates that a scheduler of torch's sets, one a step."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], RATE)
    scheduler, found = make(optimizer), []
    for _ in range(steps):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return found


@pytest.mark.parametrize("cycles", [1, 2, 3])
def test_cosine_is_torchs_with_warm_restarts(cycles: int) -> None:
    theirs = of_torch(
        lambda optimizer: lr_scheduler.CosineAnnealingWarmRestarts(optimizer, 30 // cycles, eta_min=RATE / 100), 30
    )
    assert rates(a_run(cycles=cycles)) == pytest.approx(theirs)


def test_poly_is_torchs_but_for_the_last_percent() -> None:
    theirs = of_torch(lambda optimizer: lr_scheduler.PolynomialLR(optimizer, 30, power=0.9), 30)
    assert rates(a_run(schedule="poly")) == pytest.approx([0.01 * RATE + 0.99 * rate for rate in theirs])


@pytest.mark.parametrize("schedule", ["cosine", "poly", "constant"])
def test_warm_up_rises_in_equal_parts_and_the_schedule_has_the_rest(schedule: str) -> None:
    found = rates(a_run(schedule=schedule, **{"warmup-steps": 10}))
    assert found[:10] == pytest.approx([RATE * step / 10 for step in range(1, 11)])
    assert found[10:] == rates(a_run(rounds=4, schedule=schedule))


def test_a_rate_is_that_of_its_step_in_the_whole_run() -> None:
    run = a_run(cycles=2, **{"warmup-steps": 4})
    assert rates_of_round(run, 3) == [learning_rate(run, step) for step in range(10, 15)]


@pytest.mark.parametrize("training", [{"warmup-steps": 30}, {"cycles": 31}, {"warmup-steps": 20, "cycles": 11}])
def test_what_does_not_fit_into_the_run_is_refused(training: dict[str, int]) -> None:
    with pytest.raises(ConfigError, match="do not fit into the 30 steps"):
        a_run(**training)


@pytest.mark.parametrize("training", [{"optimizer": "adamw"}, {"optimizer": "sgd", "momentum": 0.0}])
def test_nesterov_wants_sgd_with_momentum(training: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="nesterov is for"):
        a_run(nesterov=True, **training)
