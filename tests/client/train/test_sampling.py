"""Balanced sampling takes each class as often; without it every patient is; a private run refuses it."""

from collections import Counter
from collections.abc import Iterable, Iterator

import pytest
import torch

from client.data.cohort import Case, Cohort
from client.train import training
from client.train.sampling import draw, groups_of
from client.train.training import train_round
from common.config import RunConfig, validate
from common.config.rundocument import issue
from common.errors import ConfigError
from common.learning.network import build_model
from common.tasks.classification import Classification
from common.tasks.segmentation import Segmentation

RUN = {
    "format": 2,
    "name": "rare",
    "model": {"channels": (4, 8)},
    "data": {"modality": "CT", "classes": ("organ", "lesion")},
    "training": {"patch-size": (8, 8), "local-steps": 40, "batch-size": 8, "sampling": "balanced"},
    "federation": {"rounds": 1},
}


def a_case(patient: str, *classes: int, number: int = 0) -> Case:
    labels = torch.zeros(1, 12, 12, dtype=torch.uint8)
    for index, one in enumerate(classes):
        labels[0, 2 * index : 2 * index + 2, 3:9] = one
    images = torch.rand(1, 1, 12, 12, generator=torch.Generator().manual_seed(number))
    return Case(patient, f"{patient}-{number}", "train", images, labels)


def patients() -> dict[str, tuple[Case, ...]]:
    """Nine with the organ alone, one who has a lesion in their second study, one with nothing labelled."""
    common = {f"c{number}": (a_case(f"c{number}", 1),) for number in range(9)}
    return {**common, "rare": (a_case("rare", 1), a_case("rare", 2, number=1)), "clear": (a_case("clear"),)}


def test_groups_are_the_classes_that_somebody_has() -> None:
    common = tuple(f"c{number}" for number in range(9))
    assert groups_of(patients(), 5, Segmentation()) == (("clear",), (*common, "rare"), ("rare",))


def test_an_image_of_several_classes_is_in_the_group_of_each() -> None:
    task = Classification(multi_label=True)
    marks = {"both": (1, 3), "third": (3,), "none": ()}
    cases = {}
    for name, shown in marks.items():
        labels = torch.full((1, 4, 4), task.mark(shown), dtype=torch.int32)
        cases[name] = (Case(name, name, "train", torch.rand(1, 1, 4, 4), labels),)
    assert groups_of(cases, 3, task) == (("none",), ("both",), ("both", "third"))


def test_a_patient_whose_classes_overlap_is_in_the_group_of_each() -> None:
    cases = {"both": (a_case("both", 3),), "second": (a_case("second", 2),), "none": (a_case("none"),)}
    assert groups_of(cases, 2, Segmentation(multi_label=True)) == (("none",), ("both",), ("both", "second"))


def test_crops_of_balanced_classes_are_indexed_by_the_runs_own_kind_of_label() -> None:
    values = {**RUN, "training": {**RUN["training"], "foreground-classes": "balanced"}}  # type: ignore[dict-item]
    sizes = {}
    for multi_label in (False, True):
        run = validate(RunConfig, {**values, "task": {"kind": "segmentation", "multi-label": multi_label}})
        stack = training._stack_of(a_case("both", 1, 3), run)
        sizes[multi_label] = [len(index) for index in stack.foreground]
    assert sizes == {False: [12, 12], True: [24, 12]}  # 12 voxels of 1, 12 of both


def test_every_class_is_drawn_as_often() -> None:
    generator = torch.Generator().manual_seed(0)
    drawn = Counter(draw(groups_of(patients(), 2, Segmentation()), 6000, generator))
    assert drawn["clear"] / 6000 == pytest.approx(1 / 3, abs=0.02)
    assert drawn["rare"] / 6000 == pytest.approx(1 / 3 + 1 / 30, abs=0.02)
    assert all(drawn[f"c{number}"] / 6000 == pytest.approx(1 / 30, abs=0.01) for number in range(9))


def test_one_group_is_drawn_from_uniformly() -> None:
    drawn = Counter(draw([["a", "b", "c"]], 3000, torch.Generator().manual_seed(0)))
    assert [drawn[name] / 3000 for name in "abc"] == pytest.approx([1 / 3] * 3, abs=0.03)


def test_of_one_group_nothing_is_drawn_but_its_patients() -> None:
    """As by an earlier version, which had no groups: the same numbers of the same generator."""
    generator = torch.Generator().manual_seed(3)
    by_hand = ["abcde"[int(torch.randint(5, (), generator=generator))] for _ in range(40)]
    assert list(draw(["abcde"], 40, torch.Generator().manual_seed(3))) == by_hand


@pytest.mark.parametrize("sampling", ["uniform", "balanced"])
def test_a_round_takes_patients_as_its_run_says(sampling: str, monkeypatch: pytest.MonkeyPatch) -> None:
    run = RunConfig.model_validate({**RUN, "training": {**RUN["training"], "sampling": sampling}})  # type: ignore[dict-item]
    taken: Counter[str] = Counter()
    real = training._Crops.of

    def counted(names: Iterable[str]) -> Iterator[str]:
        for name in names:
            taken[name] += 1
            yield name

    def of(
        crops: training._Crops, names: Iterable[str], generator: torch.Generator
    ) -> tuple[torch.Tensor, torch.Tensor]:
        return real(crops, counted(names), generator)

    monkeypatch.setattr(training._Crops, "of", of)
    cohort = Cohort(tuple(case for cases in patients().values() for case in cases), (), "cohort", 11)
    train_round(build_model(run), cohort, issue(run), round_=1, site="north", device="cpu")
    expected = 1 / 11 if sampling == "uniform" else 1 / 3
    assert taken["clear"] / taken.total() == pytest.approx(expected, abs=0.06)


def test_a_private_run_refuses_it_and_says_why() -> None:
    with pytest.raises(ConfigError, match=r"Poisson sampling.*use 'uniform'"):
        validate(RunConfig, {**RUN, "privacy": {"target-epsilon": 8.0}})
    assert validate(RunConfig, {**RUN, "training": {"patch-size": (8, 8)}, "privacy": {"target-epsilon": 8.0}})
