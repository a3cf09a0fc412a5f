"""Prediction on any size, whole or in windows, without trace of the padding."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from common.config import RunConfig
from common.learning.inference import outputs, precision, predict_stack
from common.learning.network import build_model


def make_run(dims: int = 2, patch: tuple[int, ...] = (16, 16), **changes: Any) -> RunConfig:
    return RunConfig.model_validate(
        {
            "name": "test",
            "model": {"dims": dims, "channels": (4, 8, 16)},
            "data": {"modality": "CT", "channels": 1, "classes": ("liver", "lesion")},
            "training": {"patch_size": patch},
            "federation": {"rounds": 1},
            "deterministic": True,
            **changes,
        }
    )


class Threshold(nn.Module):
    """A network that labels each voxel by its value alone: 0, 1 or 2."""

    def forward(self, images: Tensor) -> Tensor:
        return torch.cat([-(images - value).abs() for value in range(3)], dim=1)


def make_image(*spatial: int) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(3, (1, *spatial), generator=generator).float()


def probabilities_of(model: nn.Module, image: Tensor, run: RunConfig) -> Tensor:
    return outputs(model, image.unsqueeze(0), run, "cpu").softmax(1)[0]


def predicted(model: nn.Module, image: Tensor, run: RunConfig) -> Tensor:
    """Labels of one image."""
    return predict_stack(model, image.unsqueeze(0), run, "cpu")[0]


@pytest.mark.parametrize("spatial", [(16, 16), (17, 31), (1, 1), (5, 40), (97, 3), (70, 81)])
def test_labels_lie_on_the_voxels_of_a_2d_image(spatial: tuple[int, ...]) -> None:
    image = make_image(*spatial)
    labels = predicted(Threshold(), image, make_run())
    assert labels.dtype == torch.int64
    assert torch.equal(labels, image[0].long())


@pytest.mark.parametrize("spatial", [(8, 8, 8), (7, 9, 11), (1, 30, 30), (25, 18, 31)])
def test_labels_lie_on_the_voxels_of_a_volume(spatial: tuple[int, ...]) -> None:
    image = make_image(*spatial)
    assert torch.equal(predicted(Threshold(), image, make_run(3, (8, 8, 8))), image[0].long())


@pytest.mark.parametrize("spatial", [(1, 1), (15, 17), (50, 70)])
def test_the_real_network_takes_any_size(spatial: tuple[int, ...]) -> None:
    run = make_run()
    model, image = build_model(run), make_image(*spatial)
    labels = predicted(model, image, run)
    assert labels.shape == spatial
    assert set(labels.unique().tolist()) <= {0, 1, 2}
    probabilities = probabilities_of(model, image, run)
    assert probabilities.shape == (3, *spatial)
    torch.testing.assert_close(probabilities.sum(0), torch.ones(spatial))


def test_the_largest_probability_is_the_label() -> None:
    run = make_run()
    model, image = build_model(run), make_image(33, 20)
    assert torch.equal(probabilities_of(model, image, run).argmax(0), predicted(model, image, run))


def test_an_image_of_the_patch_size_goes_through_the_network_unchanged() -> None:
    run = make_run()
    model, image = build_model(run), make_image(16, 16)
    with torch.no_grad():
        expected = model(image.unsqueeze(0)).softmax(1)[0]
    torch.testing.assert_close(probabilities_of(model, image, run), expected)
    assert torch.equal(predicted(model, image, run), expected.argmax(0))


def test_items_of_a_stack_are_predicted_as_if_alone() -> None:
    run = make_run()
    model = build_model(run)
    stack = torch.rand(5, 1, 20, 13, generator=torch.Generator().manual_seed(1))
    alone = torch.stack([predicted(model, image, run) for image in stack])
    assert torch.equal(predict_stack(model, stack, run, "cpu"), alone)


def test_large_stacks_are_split(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("common.learning.inference._BATCH_VOXELS", 2 * 20 * 13)
    sizes: list[int] = []
    model = Threshold()
    model.register_forward_hook(lambda _module, inputs, _output: sizes.append(len(inputs[0])))
    predict_stack(model, torch.rand(5, 1, 20, 13), make_run(), "cpu")
    assert sizes == [2, 2, 1]


def test_dropout_is_off() -> None:
    run = make_run(model={"dims": 2, "channels": (4, 8, 16), "dropout": 0.5})
    model, image = build_model(run).train(), make_image(64, 64)
    assert torch.equal(predicted(model, image, run), predicted(model, image, run))
    model.train()
    assert torch.equal(probabilities_of(model, image, run), probabilities_of(model, image, run))


def test_volumes_are_trained_in_single_precision_on_a_cpu() -> None:
    flat = make_run(deterministic=False)
    volume = make_run(3, (8, 8, 8), deterministic=False)
    assert not precision(volume, "cpu", training=True)._enabled
    native = precision(flat, "cpu")._enabled  # as the processor has it
    assert precision(flat, "cpu", training=True)._enabled == precision(volume, "cpu")._enabled == native


def test_half_precision_changes_probabilities_little_and_never_in_deterministic_runs() -> None:
    exact, fast = make_run(), make_run(deterministic=False)
    model, image = build_model(exact), make_image(32, 32)
    with precision(exact, "cpu"):
        assert model(image.unsqueeze(0)).dtype == torch.float32
    difference = probabilities_of(model, image, fast) - probabilities_of(model, image, exact)
    assert float(difference.abs().max()) < 0.05
