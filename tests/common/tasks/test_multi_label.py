"""Segmentation of classes that overlap: answers, counts and scores by hand, by scikit-learn and by MONAI."""

import math

import pytest
import torch
from monai.metrics.meandice import compute_dice
from sklearn.metrics import confusion_matrix, multilabel_confusion_matrix
from torch import Tensor

from common.config import RunConfig, canonical, parse, validate
from common.errors import ConfigError
from common.privacy.scores import score_plan
from common.tasks.classification import Classification
from common.tasks.segmentation import Segmentation, labelled, scores_of

TASK = Segmentation(multi_label=True)
CLASSES = ("liver", "lesion", "vessel")


def run_of(text: str = "", *, classes: tuple[str, ...] = CLASSES, model: str = "") -> RunConfig:
    return parse(
        RunConfig,
        f"""
format = 2
name = "overlapping"
[data]
modality = "CT"
classes = {list(classes)}
[training]
patch-size = [16, 16]
[federation]
rounds = 1
[task]
kind = "segmentation"
multi-label = true
{text}
[model]
{model}
""",
    )


def drawn(*shape: int, seed: int = 0, share: float = 0.4) -> tuple[Tensor, Tensor]:
    """Bits (*shape), and a bool map of each class (3, *shape)."""
    masks = torch.rand((3, *shape), generator=torch.Generator().manual_seed(seed)) < share
    return (masks * torch.tensor([1, 2, 4]).view(-1, *[1] * len(shape))).sum(0), masks


def test_each_class_has_an_output_and_is_there_above_one_half() -> None:
    assert TASK.outputs(3) == 3
    logits = torch.tensor([[[[0.1, -0.1, 0.0]], [[5.0, -5.0, 0.1]], [[-1.0, -1.0, 3.0]]]])  # (1, 3, 1, 3)
    assert TASK.answer(logits).tolist() == [[[1 + 2, 0, 2 + 4]]]
    assert TASK.answer(logits).dtype == torch.int64
    torch.testing.assert_close(TASK.chances(logits), 1 / (1 + (-logits).exp()))
    assert torch.equal(TASK.log_odds(logits), logits)
    every = torch.full((1, 8, 2, 2), 1.0)
    assert (TASK.answer(every).to(torch.uint8) == 255).all()


def test_counts_are_scikit_learns_and_add_up() -> None:
    (truth, shown), (answer, said) = drawn(4, 9, 11), drawn(4, 9, 11, seed=1)
    found = TASK.count(answer, truth, 3)
    expected = multilabel_confusion_matrix(shown.flatten(1).T.numpy(), said.flatten(1).T.numpy())
    assert torch.equal(found[1:], torch.from_numpy(expected))
    any_class = confusion_matrix(shown.any(0).flatten(), said.any(0).flatten())
    assert torch.equal(found[0], torch.from_numpy(any_class))
    parts = [TASK.count(answer[i : i + 1], truth[i : i + 1], 3) for i in range(4)]
    assert torch.equal(TASK.together(parts), found)
    assert [labelled(found, k) for k in (1, 2, 3)] == shown.flatten(1).sum(1).tolist()


def test_scores_are_monais_dice_of_each_class_and_means_over_patients() -> None:
    patients, dice, merged = [], [], []
    for seed in range(3):
        (truth, shown), (answer, said) = drawn(9, 11, seed=seed), drawn(9, 11, seed=10 + seed)
        patients.append(TASK.count(answer, truth, 3))
        dice.append(compute_dice(said[None].float(), shown[None].float(), include_background=True)[0])
        one, other = said.any(0), shown.any(0)
        merged.append(2 * float((one & other).sum()) / float(one.sum() + other.sum()))
    found = TASK.scores(patients, CLASSES)
    of_class = torch.stack(dice).mean(0).tolist()
    for name, value in zip(CLASSES, of_class, strict=True):
        assert found[f"dice-{name}"] == pytest.approx(value, abs=1e-6)
    assert found["dice"] == pytest.approx(sum(of_class) / 3, abs=1e-6)
    assert found["foreground-dice"] == pytest.approx(sum(merged) / 3, abs=1e-6)
    assert found["recall"] == found["sensitivity"]


def test_scores_by_hand_where_a_lesion_lies_in_its_liver() -> None:
    """Liver 6 voxels, lesion 2 of them; the liver is found but for one voxel, the lesion half, and one beside it."""
    truth = torch.tensor([[1, 1, 3, 3, 1, 1, 0, 0]])
    answer = torch.tensor([[0, 1, 1, 3, 3, 1, 0, 0]])
    found = scores_of(TASK.count(answer, truth, 2), ("liver", "lesion"))
    assert found["dice-liver"] == pytest.approx(2 * 5 / (5 + 6))
    assert found["dice-lesion"] == pytest.approx(2 * 1 / (2 + 2))
    assert found["sensitivity"] == pytest.approx((5 / 6 + 1 / 2) / 2)
    assert found["specificity"] == pytest.approx((2 / 2 + 5 / 6) / 2)
    assert found["precision"] == pytest.approx((5 / 5 + 1 / 2) / 2)
    assert found["foreground-dice"] == pytest.approx(2 * 5 / (5 + 6))


def test_a_class_that_nobody_has_is_not_scored_and_an_absent_one_that_is_not_found_is_a_one() -> None:
    truth, answer = torch.tensor([[1, 0, 0]]), torch.tensor([[1, 2, 0]])
    counts = TASK.count(answer, truth, 2)
    assert "dice-lesion" not in TASK.scores([counts], ("liver", "lesion"))
    assert TASK.scores([counts], ("liver", "lesion"), every_class=True)["dice-lesion"] == 0
    nothing = TASK.count(torch.zeros(1, 3, dtype=torch.int64), torch.zeros(1, 3, dtype=torch.int64), 2)
    assert TASK.scores([nothing], ("liver", "lesion"), every_class=True)["dice-lesion"] == 1


def test_labels_beyond_the_classes_and_other_shapes_are_refused() -> None:
    labels = torch.zeros(1, 4, dtype=torch.int64)
    with pytest.raises(ConfigError, match=r"labels outside 0\.\.3"):
        TASK.count(labels + 4, labels, 2)
    with pytest.raises(ConfigError, match="they must be equal"):
        TASK.count(labels[:, :3], labels, 2)


def test_where_a_label_shows_a_class_is_asked_of_the_task() -> None:
    labels = torch.tensor([0, 1, 2, 3])
    assert TASK.marks(labels, 2).tolist() == [False, False, True, True]
    assert Segmentation().marks(labels, 2).tolist() == [False, False, True, False]
    assert Classification(multi_label=True).marks(labels, 2).tolist() == [False, False, True, True]
    assert Classification().marks(labels, 3).tolist() == [False, False, False, True]


def test_more_classes_than_a_map_has_bits_are_refused() -> None:
    eight = tuple(f"class-{number}" for number in range(8))
    assert run_of(classes=eight).task.overlaps
    with pytest.raises(ConfigError, match=r"multi-label is for 8 classes at most, and data.classes names 9"):
        run_of(classes=(*eight, "one-more"))


def test_class_weights_are_of_the_classes_alone() -> None:
    assert run_of('[task.loss]\nkind = "focal"\nclass-weights = [1.0, 2.0, 3.0]')
    with pytest.raises(ConfigError, match=r"has 4 entries, and with multi-label the background has none: write 3"):
        run_of('[task.loss]\nkind = "focal"\nclass-weights = [0.5, 1.0, 2.0, 3.0]')


def test_a_network_that_hands_on_one_class_a_voxel_is_refused_with_those_that_do_not() -> None:
    with pytest.raises(ConfigError, match=r"'wnet' hands on one class.*Use one of unet") as refused:
        run_of(model='architecture = "wnet"')
    assert "wnet," not in str(refused.value).split("Use one of")[1]
    assert " resnet" not in str(refused.value).split("Use one of")[1]


def test_a_run_without_it_is_written_and_hashed_as_before() -> None:
    values = {
        "name": "plain",
        "data": {"modality": "CT", "classes": ["lesion"]},
        "training": {"patch-size": [16, 16]},
        "federation": {"rounds": 1},
    }
    assert "multi-label" not in canonical(validate(RunConfig, values))
    later = {**values, "format": 2, "task": {"kind": "segmentation", "multi-label": True}}
    assert '"multi-label":true' in canonical(validate(RunConfig, later)).replace(" ", "")


def test_under_privacy_one_patient_moves_the_sum_of_scores_by_as_much_as_ever() -> None:
    """K scores in [0, 1], each less 1/2, whether classes overlap or not."""
    run = run_of("[privacy]\ntarget-epsilon = 8.0")
    assert score_plan(run, 100, "test", 1.0).sensitivity == pytest.approx(math.sqrt(3) / 2)
