"""Scores against counts made by hand, by sets of voxels, and by MONAI."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from monai.metrics.meandice import compute_dice
from monai.metrics.meaniou import compute_iou

from common.errors import ConfigError
from common.measures.metrics import confusion
from common.tasks.segmentation import Segmentation, scores_of
from common.tasks.task import mean_scores

site_scores = Segmentation().scores
ORGAN = ("liver", "lesion")


def scores(prediction: torch.Tensor, target: torch.Tensor, classes: tuple[str, ...]) -> dict[str, float]:
    return scores_of(confusion(prediction, target, len(classes)), classes)


def labels(*values: int) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.int64)


def test_scores_are_the_ratios_worked_out_by_hand() -> None:
    # hit 2, extra 1, missed 1, clear 4
    result = scores(labels(1, 1, 1, 0, 0, 0, 0, 0), labels(1, 1, 0, 1, 0, 0, 0, 0), ("lesion",))
    assert result == pytest.approx(
        {
            "dice": 4 / 6,
            "iou": 2 / 4,
            "sensitivity": 2 / 3,
            "specificity": 4 / 5,
            "precision": 2 / 3,
            "recall": 2 / 3,
            "foreground-dice": 4 / 6,
            "dice-lesion": 4 / 6,
        }
    )


def test_a_swap_of_classes_is_wrong_by_class_but_right_as_foreground() -> None:
    result = scores(labels(0, 1, 2), labels(0, 2, 1), ORGAN)
    assert result["dice"] == result["dice-liver"] == result["dice-lesion"] == 0
    assert result["foreground-dice"] == 1


def test_empty_mask_scores_one_when_prediction_is_empty() -> None:
    assert set(scores(labels(0, 0), labels(0, 0), ORGAN).values()) == {1.0}


def test_empty_mask_scores_zero_dice_with_one_false_voxel() -> None:
    result = scores(labels(0, 1), labels(0, 0), ("lesion",))
    assert (result["dice"], result["iou"], result["precision"]) == (0, 0, 0)
    assert (result["sensitivity"], result["specificity"]) == (1, 0.5)


def test_missed_mask_scores_zero_dice() -> None:
    result = scores(labels(0, 0), labels(0, 1), ("lesion",))
    assert (result["dice"], result["sensitivity"], result["precision"]) == (0, 0, 1)


def test_a_study_without_voxels_scores_one() -> None:
    assert scores(labels(), labels(), ("lesion",))["dice"] == 1


@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 2)), min_size=1, max_size=60))
def test_dice_is_that_of_the_voxel_sets(pairs: list[tuple[int, int]]) -> None:
    prediction, target = (labels(*column) for column in zip(*pairs, strict=True))
    result = scores(prediction, target, ORGAN)
    for value, name in enumerate(ORGAN, start=1):
        found = {i for i, (got, _) in enumerate(pairs) if got == value}
        truth = {i for i, (_, want) in enumerate(pairs) if want == value}
        expected = 2 * len(found & truth) / (len(found) + len(truth)) if found or truth else 1.0
        assert result[f"dice-{name}"] == pytest.approx(expected)
    assert all(0 <= score <= 1 for score in result.values())


def test_dice_and_iou_agree_with_monai_on_volumes() -> None:
    generator = torch.Generator().manual_seed(0)
    prediction, target = (torch.randint(3, (5, 6, 7), generator=generator, dtype=torch.uint8) for _ in range(2))
    one, two = (torch.stack([part == value for value in range(3)]).unsqueeze(0) for part in (prediction, target))
    result = scores(prediction, target, ORGAN)
    assert result["dice"] == pytest.approx(float(compute_dice(one, two, include_background=False).mean()))
    assert result["iou"] == pytest.approx(float(compute_iou(one, two, include_background=False).mean()))


def test_the_matrices_of_slices_add_up_to_that_of_the_study() -> None:
    generator = torch.Generator().manual_seed(0)
    prediction, target = (torch.randint(3, (4, 5, 5), generator=generator) for _ in range(2))
    total = sum(confusion(prediction[i], target[i], 2) for i in range(4))
    assert isinstance(total, torch.Tensor)
    assert scores_of(total, ORGAN) == scores(prediction, target, ORGAN)


def test_other_shapes_and_unknown_labels_are_refused() -> None:
    with pytest.raises(ConfigError, match="shape"):
        scores(labels(0, 1), labels(0), ("lesion",))
    with pytest.raises(ConfigError, match="truth has labels outside"):
        scores(labels(0, 1), labels(0, 2), ("lesion",))


def test_mean_scores_is_the_mean_of_each() -> None:
    assert mean_scores([{"dice": 1.0, "iou": 0.5}, {"dice": 0.5, "iou": 0.0}]) == {"dice": 0.75, "iou": 0.25}
    assert mean_scores([]) == {}


def test_the_images_of_a_patient_are_scored_as_one_volume() -> None:
    """Two slices, one of them empty: the mean over slices is (0 + 1) / 2 or (1/2 + 1) / 2, the volume's Dice is 1/2."""
    hit = confusion(labels(1, 1, 0, 0), labels(1, 0, 1, 0), 1)
    empty = confusion(labels(0, 0, 0, 0), labels(0, 0, 0, 0), 1)
    false = confusion(labels(1, 0, 0, 0), labels(0, 0, 0, 0), 1)
    assert site_scores([hit + empty], ("lesion",))["dice"] == pytest.approx(1 / 2)
    assert site_scores([hit + false], ("lesion",))["dice"] == pytest.approx(2 / 5)


def test_a_class_that_no_patient_has_is_not_scored_and_lifts_no_mean() -> None:
    half = confusion(labels(1, 0, 0), labels(1, 1, 1), 2)
    without = site_scores([half, half], ORGAN)
    assert without["dice"] == without["dice-liver"] == without["foreground-dice"] == pytest.approx(1 / 2)
    assert "dice-lesion" not in without
    # One patient with the class is enough; who has none and is told so is right.
    with_one = site_scores([half, confusion(labels(2), labels(2), 2)], ORGAN)
    assert with_one["dice-lesion"] == 1


def test_a_class_that_is_predicted_where_no_patient_has_it_is_seen_in_the_specificity() -> None:
    false = confusion(labels(1, 2, 0, 0), labels(1, 0, 0, 0), 2)
    found = site_scores([false], ORGAN)
    assert found["dice"] == 1
    assert found["specificity"] == pytest.approx((1 + 3 / 4) / 2)
    assert site_scores([confusion(labels(1, 0), labels(0, 0), 1)], ("lesion",)) == {"specificity": 1 / 2}


def test_which_scores_there_are_tells_nothing_where_every_class_is_asked_for() -> None:
    healthy, ill = confusion(labels(0), labels(0), 2), confusion(labels(2), labels(2), 2)
    assert site_scores([healthy], ORGAN, every_class=True).keys() == site_scores([ill], ORGAN, every_class=True).keys()


def test_no_patients_have_no_scores() -> None:
    assert site_scores([], ORGAN) == {}
