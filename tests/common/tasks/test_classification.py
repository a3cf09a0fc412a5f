"""Classification: scores against scikit-learn, losses against their formulas, and what is refused."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics
from torch import Tensor

from common.errors import ConfigError, DataError
from common.tasks.classification import Classification
from tests.simulations.classed import classed_run

CLASSES = ("bright", "dark")


def counts(logits: Tensor, marks: list[int], task: Classification) -> list[Tensor]:
    """One image a patient, as `evaluate` hands them over."""
    return [
        task.count(logits[row : row + 1], torch.full((1, 2, 3), mark), len(CLASSES)) for row, mark in enumerate(marks)
    ]


def mean_over(classes: list[int], score: Any, truth: np.ndarray, told: np.ndarray) -> float:
    return float(np.mean([score(truth == one, told[:, one] if told.ndim > 1 else told == one) for one in classes]))


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(0, 2), min_size=1, max_size=25), st.integers(0, 1000))
def test_scores_are_those_of_scikit_learn(marks: list[int], seed: int) -> None:
    task = Classification()
    logits = torch.randn((len(marks), 3), generator=torch.Generator().manual_seed(seed)).round(decimals=1)
    found = task.scores(counts(logits, marks, task), CLASSES)
    truth, chances = np.array(marks), logits.double().softmax(1).numpy()
    claimed = logits.argmax(1).numpy()
    shown = [one for one in (1, 2) if (truth == one).any()]
    told = [one for one in shown if (truth != one).any()]
    expected = {"accuracy": metrics.accuracy_score(truth, claimed)}
    if told:
        expected["auroc"] = mean_over(told, metrics.roc_auc_score, truth, chances)
        expected["auprc"] = mean_over(told, metrics.average_precision_score, truth, chances)
    if shown:
        options: dict[str, Any] = {"labels": shown, "average": "macro", "zero_division": 0}
        expected["sensitivity"] = expected["recall"] = metrics.recall_score(truth, claimed, **options)
        expected["precision"] = metrics.precision_score(truth, claimed, **options)
        expected["f1"] = metrics.f1_score(truth, claimed, **options)
    absent = [one for one in (1, 2) if (truth != one).any()]
    if absent:
        expected["specificity"] = np.mean(
            [metrics.recall_score(truth == one, claimed == one, pos_label=False, zero_division=0) for one in absent]
        )
    if len(set(marks)) > 1:
        recalls = [metrics.recall_score(truth == one, claimed == one) for one in sorted(set(marks))]
        expected["balanced-accuracy"] = np.mean(recalls)
    assert found == pytest.approx(expected, abs=1e-12)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(0, 3), min_size=1, max_size=20), st.integers(0, 1000))
def test_of_several_labels_each_class_is_scored_against_its_absence(marks: list[int], seed: int) -> None:
    task = Classification(multi_label=True)
    logits = torch.randn((len(marks), 2), generator=torch.Generator().manual_seed(seed))
    found = task.scores(counts(logits, marks, task), CLASSES)
    truth = np.array([[mark & 1, mark >> 1] for mark in marks]).astype(bool)
    claimed, chances = logits.numpy() >= 0, logits.double().sigmoid().numpy()
    told = [one for one in (0, 1) if truth[:, one].any() and not truth[:, one].all()]
    assert found["accuracy"] == pytest.approx(np.mean(truth == claimed))
    if not told:
        assert not {"auroc", "auprc", "balanced-accuracy"} & found.keys()
        return
    pairs = [(truth[:, one], chances[:, one], claimed[:, one]) for one in told]
    assert found["auroc"] == pytest.approx(np.mean([metrics.roc_auc_score(true, chance) for true, chance, _ in pairs]))
    assert found["balanced-accuracy"] == pytest.approx(
        np.mean([metrics.balanced_accuracy_score(true, said) for true, _, said in pairs])
    )


def test_a_site_with_one_class_only_tells_nothing_that_it_cannot_know() -> None:
    task = Classification()
    found = task.scores(counts(torch.randn(4, 3), [1, 1, 1, 1], task), CLASSES)
    assert not {"auroc", "auprc", "balanced-accuracy"} & found.keys()
    assert found["sensitivity"] == found["accuracy"]
    assert task.scores([], CLASSES) == {}


def test_slices_of_a_series_are_one_image_and_a_patients_images_are_several() -> None:
    task = Classification()
    series = task.count(torch.tensor([[0.0, 3.0, 0.0], [0.0, 0.0, 1.0]]), torch.full((2, 4, 4), 1), 2)
    assert series.tolist() == [[0.0, 1.5, 0.5, 1.0]]
    both = task.together([series, task.count(torch.zeros(1, 3), torch.zeros(1, 4, 4), 2)])
    assert both.shape == (2, 4)


def test_regions_are_images_of_their_own_and_none_of_them_has_no_output() -> None:
    task = Classification(of="region")
    assert (task.label, task.outputs(2)) == ("map", 2)
    labels = torch.tensor([1, 2, 2]).view(3, 1, 1).expand(3, 4, 4)
    rows = task.count(torch.tensor([[2.0, 0.0], [0.0, 1.0], [3.0, 0.0]]), labels, 2)
    assert task.scores([rows], CLASSES)["accuracy"] == pytest.approx(2 / 3)


@pytest.mark.parametrize("shape", [(6,), (6, 4, 5), (6, 2, 3, 4)])
def test_the_loss_weighs_focuses_and_smooths_each_image_by_itself(shape: tuple[int, ...]) -> None:
    weights, smoothing, gamma = (0.5, 1.0, 4.0), 0.1, 2.0
    task = Classification(class_weights=weights, label_smoothing=smoothing, focal_gamma=gamma)
    generator = torch.Generator().manual_seed(0)
    outputs = torch.randn((6, 3, *shape[1:]), generator=generator)
    marks = torch.tensor([0, 1, 2, 0, 1, 2])
    labels = marks.view(6, 1, 1).repeat(1, 4, 4)
    labels[:, :2] = 0  # a crop that leaves the image
    logits = outputs.flatten(2).mean(2).tolist() if len(shape) > 1 else outputs.tolist()
    each = []
    for row, mark in zip(logits, marks.tolist(), strict=True):
        logs = [value - math.log(sum(map(math.exp, row))) for value in row]
        soft = [-weight * log * smoothing / 3 for weight, log in zip(weights, logs, strict=True)]
        hard = -(1 - smoothing) * weights[mark] * logs[mark]
        each.append((hard + sum(soft)) * (1 - math.exp(logs[mark])) ** gamma)
    assert float(task.loss(outputs, labels)) == pytest.approx(sum(each) / 6, rel=1e-5)
    alone = [float(task.loss(outputs[one : one + 1], labels[one : one + 1])) for one in range(6)]
    assert alone == pytest.approx(each, rel=1e-5)


def test_the_loss_of_several_labels_is_of_each_class() -> None:
    task = Classification(multi_label=True, class_weights=(1.0, 3.0), focal_gamma=1.0)
    outputs = torch.tensor([[0.3, -1.0], [2.0, 0.5]])
    labels = torch.tensor([2, 3]).view(2, 1, 1).expand(2, 3, 3)
    truth = [[0, 1], [1, 1]]
    total = 0.0
    for row, told in zip(outputs.tolist(), truth, strict=True):
        for value, shown, weight in zip(row, told, (1.0, 3.0), strict=True):
            chance = 1 / (1 + math.exp(-value))
            part = -weight * math.log(chance) if shown else -math.log(1 - chance)
            total += part * abs(shown - chance)
    assert float(task.loss(outputs, labels)) == pytest.approx(total / 4, rel=1e-5)


def test_the_loss_of_several_labels_is_smoothed_towards_one_half() -> None:
    outputs, truth = torch.tensor([[0.3, -1.0], [2.0, 0.5]]), [[0.0, 1.0], [1.0, 1.0]]
    total = 0.0
    for row, told in zip(outputs.tolist(), truth, strict=True):
        for value, shown in zip(row, told, strict=True):
            chance, aim = 1 / (1 + math.exp(-value)), 0.8 * shown + 0.2 / 2
            total -= aim * math.log(chance) + (1 - aim) * math.log(1 - chance)
    labels = torch.tensor([2, 3]).view(2, 1, 1).expand(2, 3, 3)
    task = Classification(multi_label=True, label_smoothing=0.2)
    assert float(task.loss(outputs, labels)) == pytest.approx(total / 4, rel=1e-5)


def test_the_loss_of_regions_is_over_the_classes_alone() -> None:
    outputs, marks = torch.tensor([[0.3, -1.0], [2.0, 0.5], [0.1, 0.4]]), [1, 2, 2]
    labels = torch.tensor(marks).view(3, 1, 1).repeat(1, 4, 4)
    labels[:, 0] = 0  # a crop that leaves the image
    expected = metrics.log_loss(marks, outputs.double().softmax(1).numpy())
    assert float(Classification(of="region").loss(outputs, labels)) == pytest.approx(expected, rel=1e-5)


def logits_of(*chances: float) -> Tensor:
    return torch.tensor([chances], dtype=torch.float64).log()


def test_what_is_told_of_an_image_is_the_likeliest_and_of_equals_the_first() -> None:
    """Two slices, whose mean is (1, 1, 0): none of them is as likely as the first class."""
    task, share = Classification(), math.e / (2 * math.e + 1)
    told = task.tell(torch.tensor([[0.0, 2.0, 0.0], [2.0, 0.0, 0.0]]), CLASSES)
    assert told.chances == pytest.approx({"bright": share, "dark": 1 - 2 * share})
    assert told.none == pytest.approx(share)
    assert told.answer == ()
    assert task.tell(logits_of(0.4, 0.35, 0.25), CLASSES).answer == ()  # likeliest, with less than one half
    assert task.tell(logits_of(0.3, 0.3, 0.4), CLASSES).answer == ("dark",)


def test_what_is_told_where_none_of_them_is_no_answer() -> None:
    region = Classification(of="region").tell(logits_of(0.3, 0.7), CLASSES)
    assert (region.none, region.answer) == (None, ("dark",))
    assert region.chances == pytest.approx({"bright": 0.3, "dark": 0.7})
    several = Classification(multi_label=True).tell(torch.tensor([[0.0, -0.1]]), CLASSES)
    assert (several.none, several.answer) == (None, ("bright",))  # from one half on


@pytest.mark.parametrize("kind", [{}, {"of": "region"}, {"multi_label": True}])
def test_log_odds_are_those_of_the_probabilities_of_the_classes(kind: dict[str, Any]) -> None:
    task = Classification(**kind)
    logits = torch.randn((4, task.outputs(2)), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    chances = (logits.sigmoid() if task.multi_label else logits.softmax(1))[:, -2:].numpy()
    assert task.log_odds(logits).numpy() == pytest.approx(np.log(chances / (1 - chances)))


def test_a_chance_of_one_half_is_a_yes_where_an_image_shows_several() -> None:
    task = Classification(multi_label=True)
    assert task.scores(counts(torch.zeros(2, 2), [3, 3], task), CLASSES)["sensitivity"] == 1.0


def test_missed_is_where_nothing_labelled_is_found() -> None:
    assert Classification().missed({"sensitivity": 0.0}) == "what is labelled"
    assert Classification().missed({"sensitivity": 0.01}) is None
    assert Classification().missed({}) is None  # nobody here has a class


def test_marks_are_classes_or_sums_of_them() -> None:
    assert [Classification().mark(one) for one in ((), (1,), (2,), (2, 2))] == [0, 1, 2, 2]
    assert Classification(multi_label=True).mark((1, 3, 20, 3)) == 1 + 4 + 2**19
    with pytest.raises(DataError, match="shows 2 of the run's classes"):
        Classification().mark((1, 2))


@pytest.mark.parametrize(
    ("task", "data", "why"),
    [
        ({"of": "region", "multi-label": True}, {}, "one class"),
        ({"of": "region"}, {"classes": ["mass"]}, "two or more"),
        ({"multi-label": True}, {"classes": [f"c{number}" for number in range(21)]}, "20 classes at most"),
        ({"class-weights": [1.0, 2.0]}, {}, "2 entries; write 3, one for none of the classes"),
        ({"class-weights": [1.0], "multi-label": True}, {}, "1 entries; write 2, one for each class"),
        ({"kind": "segmentation"}, {}, "Use one of unet, plain-unet"),
    ],
)
def test_what_does_not_fit_is_refused(task: dict[str, Any], data: dict[str, Any], why: str) -> None:
    with pytest.raises((ConfigError, ValueError), match=why):
        classed_run(task=task, data={"classes": list(CLASSES), **data})


def test_as_many_labels_as_a_float_holds_are_taken() -> None:
    run = classed_run(task={"multi-label": True}, data={"classes": [f"c{number}" for number in range(20)]})
    assert len(run.data.classes) == 20
