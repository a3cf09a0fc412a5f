"""Noised scores: what one patient can change, how much noise there is, and what is told when scores are missing."""

import math

import pytest
import torch

from common.config import RunConfig, validate
from common.errors import DataError, ErrorCode
from common.privacy.accountant import epsilon
from common.privacy.scores import ScorePlan, noised_scores, score_plan
from common.tasks.segmentation import Segmentation

TASK = Segmentation()
CLASSES = ("lesion", "organ")


def a_run(**data: object) -> RunConfig:
    values = {
        "name": "liver",
        "data": {"modality": "CT", "classes": CLASSES, "validation-fraction": 0.1, "test-fraction": 0.2, **data},
        "training": {"patch-size": [64, 64]},
        "federation": {"rounds": 10, "evaluate-every": 4},
        "privacy": {"target-epsilon": 4.0},
    }
    return validate(RunConfig, values)


def cost(noise: float, held_out: int = 10) -> ScorePlan:
    return ScorePlan(noise, 1e-3, held_out, math.sqrt(len(CLASSES)) / 2)


def row(lesion: float, organ: float) -> dict[str, float]:
    return {"dice-lesion": lesion, "dice-organ": organ, "dice": 0.1, "iou": 0.9}


def test_number_of_patients_that_scores_are_divided_by_is_public() -> None:
    run = a_run()
    assert [score_plan(run, 100, phase, 1.0).held_out for phase in ("validation", "test")] == [10, 20]
    assert score_plan(a_run(folds=5), 100, "test", 1.0).held_out == 20
    with pytest.raises(DataError) as caught:
        score_plan(a_run(**{"test-fraction": 0.0}), 100, "test", 1.0)
    assert caught.value.code is ErrorCode.NO_DATA


def test_all_evaluations_of_a_run_together_cost_what_the_policy_allows() -> None:
    run = a_run()
    assert run.evaluations == 4  # after rounds 4, 8 and 10, and the test
    plan = score_plan(run, 100, "test", 2.0)
    assert 1.95 <= epsilon(((plan.noise_multiplier, 1.0, 4),), plan.delta) <= 2.0
    assert plan.delta == pytest.approx(1 / 1000)


def test_mean_over_patients_is_told_where_noise_is_small() -> None:
    rows = [row(0.9, 0.5)] * 4 + [row(0.4, 1.0)] * 6
    found = noised_scores(rows, TASK, CLASSES, cost(1e-6))
    assert found["dice-lesion"] == pytest.approx(0.6, abs=1e-4)
    assert found["dice-organ"] == pytest.approx(0.8, abs=1e-4)
    assert found["dice"] == pytest.approx(0.7, abs=1e-4)


def test_patients_missing_from_a_split_draw_scores_to_a_half_and_are_not_counted() -> None:
    assert noised_scores([], TASK, CLASSES, cost(1e-6))["dice"] == pytest.approx(0.5, abs=1e-4)
    assert noised_scores([row(1.0, 1.0)] * 5, TASK, CLASSES, cost(1e-6))["dice"] == pytest.approx(0.75, abs=1e-4)


@pytest.mark.parametrize(
    "odd",
    [row(0.0, 0.0), row(1.0, 1.0), row(math.nan, math.inf), row(-5.0, 1e9), {}, {"dice-lesion": 1.0}],
)
def test_no_patient_moves_a_sum_by_more_than_is_paid_for(
    odd: dict[str, float], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[torch.Tensor] = []

    def watch(values: list[torch.Tensor], **_: object) -> list[torch.Tensor]:
        seen.append(values[0].clone())
        return values

    monkeypatch.setattr("common.privacy.noise.noised", watch)
    others = [row(0.3, 0.7)] * 9
    noised_scores(others, TASK, CLASSES, cost(1.0))
    noised_scores([*others, odd], TASK, CLASSES, cost(1.0))
    assert float((seen[1] - seen[0]).norm()) <= cost(1.0).sensitivity + 1e-12


def test_noise_has_the_deviation_that_is_told() -> None:
    draws = [noised_scores([row(0.5, 0.5)] * 10, TASK, CLASSES, cost(3.0)) for _ in range(3000)]
    for name, told in (
        ("dice-lesion", "class-score-noise"),
        ("dice-organ", "class-score-noise"),
        ("dice", "score-noise"),
    ):
        values = torch.tensor([one[name] for one in draws], dtype=torch.float64)
        # The standard error of a standard deviation from n draws is 1 / sqrt(2 n) of it: 1.3 %.
        assert float(values.std()) == pytest.approx(draws[0][told], rel=0.07)
        assert abs(float(values.mean()) - 0.5) < 5 * draws[0][told] / math.sqrt(len(draws))
    assert draws[0]["class-score-noise"] == pytest.approx(3.0 * math.sqrt(2) / 2 / 10, rel=1e-3)
    assert cost(3.0).deviation == pytest.approx(draws[0]["class-score-noise"], rel=1e-3)
