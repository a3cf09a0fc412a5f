"""A study's scores against MONAI, scikit-learn and cubes worked out by hand, on a grid with thick slices."""

from typing import Any

import numpy as np
import pytest
import torch
from monai.metrics.hausdorff_distance import compute_hausdorff_distance
from sklearn.metrics import confusion_matrix, roc_auc_score

from client.data.study.study import Study
from client.evaluate.scoring import BINS, ScoredStudy, compare
from common.measures import histogram
from common.tasks.segmentation import Segmentation

SPACING = (5.0, 0.8, 0.5)  # mm
SHAPE = (6, 20, 24)


def study_of(label: np.ndarray, spacing: tuple[float, ...] | None = SPACING, region: Any = None) -> Study:
    image = np.random.default_rng(0).normal(size=(1, *label.shape)).astype(np.float32)
    return Study(image, label, spacing, None, "", "P", "k", (), ("organ", "lesion"), region=region)


def labels(seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    made = np.zeros(SHAPE, np.uint8)
    at = rng.integers(0, 3, 3)
    made[at[0] : at[0] + 4, 4 + at[1] : 13, 5 : 15 + at[2]] = 1
    made[at[0] + 1 : at[0] + 3, 7 : 9 + at[1], 8:12] = 2
    made[5, 19, 23 - at[2]] = 2
    return made


def scored(found: np.ndarray, study: Study, tolerance: float = 1.0) -> ScoredStudy:
    rng = np.random.default_rng(1)
    assert study.label is not None
    chances = [np.clip(rng.normal(60 + 100 * (study.label == k), 40), 0, 255).astype(np.uint8) for k in (1, 2)]
    return compare(study, found, chances, ("organ", "lesion"), task=Segmentation(), tolerance=tolerance)


def test_counts_distances_and_volumes_are_those_of_the_oracles() -> None:
    truth, found = labels(1), labels(2)
    result = scored(found, study_of(truth))
    assert result.physical
    np.testing.assert_array_equal(result.counts, confusion_matrix(truth.ravel(), found.ravel(), labels=[0, 1, 2]))
    for index in (1, 2):
        one, two = (torch.from_numpy(mask == index)[None, None].float() for mask in (found, truth))
        hd95 = compute_hausdorff_distance(one, two, include_background=True, percentile=95, spacing=SPACING)
        assert result.surfaces[index - 1].hd95 == pytest.approx(float(hd95), rel=1e-5)
        assert result.truth[index - 1] == pytest.approx((truth == index).sum() * 5.0 * 0.8 * 0.5 / 1000)
        assert result.found[index - 1] == pytest.approx((found == index).sum() * 2.0 / 1000)


def test_probabilities_in_steps_rank_as_they_are() -> None:
    truth = labels(1)
    rng = np.random.default_rng(5)
    steps = np.clip(rng.normal(90 + 70 * (truth == 1), 50), 0, 255).astype(np.uint8)
    task = Segmentation()
    result = compare(study_of(truth), truth, [steps, steps], ("organ", "lesion"), task=task, tolerance=1.0)
    auroc = histogram.auroc(result.chances[0])
    assert auroc is not None
    assert auroc.value == pytest.approx(roc_auc_score((truth == 1).ravel(), steps.ravel()))
    assert result.chances.shape == (2, 2, BINS)
    assert result.chances[0].sum() == truth.size


def test_classes_that_overlap_are_each_scored_by_itself() -> None:
    """A lesion in its organ, moved, partly outside: by scikit-learn and MONAI, with a field of view and without."""
    organ, lesion, region = (np.zeros(SHAPE, bool) for _ in range(3))
    organ[1:5, 4:13, 5:16], lesion[2:4, 8:15, 10:20], region[:, 2:12] = True, True, True
    found = np.roll(organ, 2, axis=2) + 2 * np.roll(lesion, -1, axis=1)
    truth = organ + 2 * lesion
    steps = [np.where(mask, 200, 50).astype(np.uint8) for mask in (organ, lesion)]
    task, names = Segmentation(multi_label=True), ("organ", "lesion")
    for view in (None, region.astype(np.uint8)):
        study = study_of(truth.astype(np.uint8), region=view)
        result = compare(study, found.astype(np.uint8), steps, names, task=task, tolerance=1.0)
        inside = np.ones(SHAPE, bool) if view is None else region
        pairs = [(labels_ & bit > 0) & inside for bit in (1, 2) for labels_ in (found, truth)]
        for index in (0, 1):
            said, shown = pairs[2 * index], pairs[2 * index + 1]
            expected = confusion_matrix(shown[inside], said[inside])
            np.testing.assert_array_equal(result.counts[index + 1], expected)
            one, two = (torch.from_numpy(mask)[None, None].float() for mask in (said, shown))
            hd95 = compute_hausdorff_distance(one, two, include_background=True, percentile=95, spacing=SPACING)
            assert result.surfaces[index].hd95 == pytest.approx(float(hd95), rel=1e-5)
            assert result.found[index] == pytest.approx(said.sum() * 5.0 * 0.8 * 0.5 / 1000)
            assert result.truth[index] == pytest.approx(shown.sum() * 5.0 * 0.8 * 0.5 / 1000)
            auroc = histogram.auroc(result.chances[index])
            assert auroc is not None
            assert auroc.value == pytest.approx(roc_auc_score(shown[inside], steps[index][inside]))


def test_outside_the_field_of_view_nothing_counts() -> None:
    """A false organ outside, and a missed one: inside all is right."""
    truth, region = labels(1), np.zeros(SHAPE, np.uint8)
    region[:, 2:17] = 255
    found = truth.copy()
    found[:, 17:] = 1
    whole, within = scored(found, study_of(truth)), scored(found, study_of(truth, region=region))
    assert (whole.inside, within.inside) == (False, True)
    inside = region > 0
    expected = confusion_matrix(truth[inside], found[inside], labels=[0, 1, 2])
    np.testing.assert_array_equal(within.counts, expected)
    assert np.trace(expected) == expected.sum() == inside.sum()
    assert within.surfaces[0].hd95 == 0 < whole.surfaces[0].hd95
    assert within.found[0] == within.truth[0] < whole.found[0]
    assert within.chances[0].sum() == inside.sum()


def test_a_picture_without_spacing_is_measured_in_pixels() -> None:
    truth = labels(1)[2]
    result = scored(np.roll(truth, 3, axis=1), study_of(truth, spacing=None))
    assert not result.physical
    assert result.surfaces[0].hd95 == 3.0
    assert result.truth[0] == (truth == 1).sum()


def test_voxels_without_a_size_have_no_distances() -> None:
    assert scored(labels(2), study_of(labels(1), spacing=(0.0, 0.8, 0.5))).surfaces == ()
