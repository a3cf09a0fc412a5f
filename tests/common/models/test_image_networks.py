"""Networks that answer an image as a whole: shapes, samples that stay apart, gradients, private steps, windows."""

import json
import math
import sys
from types import ModuleType
from typing import Any

import pytest
import torch
from monai.bundle.config_parser import ConfigParser
from torch import Tensor, nn
from torch.nn import functional

from common.config import RunConfig
from common.errors import ConfigError
from common.learning.inference import outputs, predict_stack
from common.learning.network import build_model, freeze, load_model, weights_of
from common.models import NETWORK_CHOICE, layers
from common.models.network import LAYERS
from common.models.resnet import ResNet
from common.privacy.autotune import choose
from common.privacy.engine import private_optimizer, private_step
from common.privacy.patient import Patient

SMALL: dict[str, dict[str, Any]] = {
    "resnet": {"filters": 4, "depth": 10},
    "resnet-instance": {"filters": 4, "depth": 10, "norm": "instance"},
    "resnet-50": {"filters": 4, "depth": 50},
    "cnn": {"channels": (4, 8, 16)},
}
NAMES = [(2, name) for name in SMALL] + [(3, "resnet"), (3, "cnn")]
EVERY = [pytest.param(dims, name, id=f"{name}-{dims}d") for dims, name in NAMES]


def run_of(dims: int, name: str, **task: Any) -> RunConfig:
    edge = 40 if "instance" in name else 24 if "resnet" in name else 16
    return RunConfig.model_validate(
        {
            "format": 2,
            "name": "test",
            "model": {"architecture": name.partition("-")[0], "dims": dims, **SMALL[name]},
            "task": {"kind": "classification", **task},
            "data": {"modality": "CT", "classes": ("liver", "lesion")},
            "training": {"patch_size": (edge,) * dims},
            "federation": {"rounds": 1},
        }
    )


def crops(run: RunConfig, count: int, seed: int = 0) -> Tensor:
    return torch.rand((count, 1, *run.training.patch_size), generator=torch.Generator().manual_seed(seed))


def marks(run: RunConfig, *classes: int) -> Tensor:
    return torch.tensor(classes).view(-1, *[1] * run.model.dims).expand(-1, *run.training.patch_size)


@pytest.mark.parametrize(("dims", "name"), EVERY)
def test_images_of_any_size_have_one_answer(dims: int, name: str) -> None:
    run = run_of(dims, name)
    model = build_model(run)
    assert model(crops(run, 2)).shape == (2, 3)
    for spatial in ((15, 12), (50, 90)) if dims == 2 else ((17, 19, 13),):
        found = outputs(model.eval(), torch.rand(1, 1, *spatial), run, "cpu")
        assert found.shape == (1, 3)
        assert found.isfinite().all()


@pytest.mark.parametrize(("dims", "name"), EVERY)
def test_a_sample_does_not_change_the_output_of_another(dims: int, name: str) -> None:
    run = run_of(dims, name)
    model = build_model(run).train()
    batch = crops(run, 2)
    other = batch.clone()
    other[1] = 5.0
    torch.testing.assert_close(model(batch)[0], model(other)[0])
    assert next(model.buffers(), None) is None


@pytest.mark.parametrize(("dims", "name"), EVERY)
def test_every_weight_has_a_gradient_and_the_head_is_less_than_all(dims: int, name: str) -> None:
    run = run_of(dims, name)
    model = build_model(run)
    run.task.loss(model(crops(run, 3)), marks(run, 0, 1, 2)).backward()
    for parameter, weights in model.named_parameters():
        assert weights.grad is not None, parameter
        assert weights.grad.isfinite().all(), parameter
        assert weights.ndim == 1 or float(weights.grad.abs().max()) > 0, parameter
    loaded = load_model(run, weights_of(model)).eval()
    assert torch.equal(loaded(crops(run, 1)), model.eval()(crops(run, 1)))
    freeze(model, run.model_copy(update={"training": run.training.model_copy(update={"trainable": "head"})}))
    trainable = sum(one.numel() for one in model.parameters() if one.requires_grad)
    assert 0 < sum(one.numel() for one in run.model.head(model).parameters()) <= trainable
    assert trainable < 0.7 * sum(one.numel() for one in model.parameters())


@pytest.mark.parametrize(("dims", "name"), EVERY)
def test_private_steps_move_the_weights(dims: int, name: str) -> None:
    run = run_of(dims, name)
    model = build_model(run).train()
    patients = [Patient(crops(run, 2, seed), marks(run, seed, seed), seed) for seed in range(3)]
    optimizer = private_optimizer(
        model,
        torch.optim.SGD(model.parameters(), lr=0.1),
        noise_multiplier=1e-3,
        clipping_norm=1.0,
        expected_patients=3,
    )
    before = {key: one.clone() for key, one in weights_of(model).items()}
    loss = run.task.loss
    assert private_step(model, optimizer, patients, loss, plan=choose(model, loss, patients[0], 3)) is not None
    moved = math.sqrt(sum(float((one - before[key]).square().sum()) for key, one in weights_of(model).items()))
    assert 0.01 < moved < 0.1 * 1.1


@pytest.mark.parametrize("task", [{}, {"multi-label": True}])
@pytest.mark.parametrize(("dims", "name"), [(2, "resnet"), (2, "resnet-instance"), (2, "cnn"), (3, "cnn")])
def test_a_network_learns(dims: int, name: str, task: dict[str, Any]) -> None:
    """Bright, striped or neither, which every network must tell in a few steps."""
    run = run_of(dims, name, **task)
    model = build_model(run).train()
    images = 0.3 * torch.rand((3, 1, *run.training.patch_size), generator=torch.Generator().manual_seed(0))
    images[1] += 0.6
    images[2, ..., ::2] += 0.6
    labels = marks(run, 0, 1, 2)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.003 if "resnet" in name else 0.01)
    for _ in range(40):
        optimizer.zero_grad()
        run.task.loss(model(images), labels).backward()
        optimizer.step()
    answers = predict_stack(model, images, run, "cpu")
    rows = [run.task.count(answers[one : one + 1], labels[one : one + 1], 2) for one in range(3)]
    assert run.task.scores(rows, run.data.classes)["balanced-accuracy"] == 1.0


@pytest.mark.parametrize(("dims", "name"), EVERY)
def test_a_bundle_builds_the_same_network_from_its_description(
    dims: int, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By MONAI's own parser, from what JSON keeps of it."""
    run = run_of(dims, name)
    scripts = ModuleType("scripts")
    scripts.__dict__["layers"] = layers
    monkeypatch.setitem(sys.modules, "scripts", scripts)
    monkeypatch.setitem(sys.modules, LAYERS, layers)
    described = json.loads(json.dumps(run.model.described(1, 3)))
    built, ours = ConfigParser({"network": described}).get_parsed_content("network"), run.model.build(1, 3).eval()
    built.load_state_dict(ours.state_dict())
    torch.testing.assert_close(built.eval()(crops(run, 1)), ours(crops(run, 1)), rtol=0, atol=0)


def test_windows_cover_a_large_image_and_count_alike() -> None:
    """Of a network that says the mean of what it sees: each window once, the corners too."""

    class Mean(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            return images.flatten(2).mean(2).expand(-1, 3)

    run = run_of(2, "cnn")
    image = torch.zeros(1, 1, 40, 55)
    image[..., -1, -1] = 256.0  # alone in the last window
    found = outputs(Mean(), image, run, "cpu")
    rows, columns = 3, 5  # of 16 voxels with at most 12 between two starts: 24 / 12 and 39 / 12, rounded up, and one
    torch.testing.assert_close(found, torch.full((1, 3), 1 / (rows * columns)))


def test_weights_are_as_many_as_published() -> None:
    """torchvision's resnet18 and resnet50 for 3 channels and 1000 classes: 11,689,512 and 25,557,032."""
    for depth, published in ((18, 11_689_512), (50, 25_557_032)):
        model = ResNet.model_validate({"depth": depth}).build(3, 1000)
        # MONAI's shortcuts have a bias, which the norm behind takes away.
        biases = sum(one.numel() for key, one in model.named_parameters() if key.endswith("downsample.0.bias"))
        assert sum(one.numel() for one in model.parameters()) - biases == published


def test_crops_that_vanish_are_refused() -> None:
    for name, edge in (("resnet-instance", 32), ("resnet", 16)):
        run = run_of(2, name)
        small = run.model_copy(update={"training": run.training.model_copy(update={"patch_size": (edge, edge)})})
        with pytest.raises(ConfigError, match=f"more than {edge}"):
            build_model(small)


def test_slices_of_a_volume_may_be_fewer_than_its_rows() -> None:
    """A crop of 8 slices of 24 x 24: what torch's bfloat16 cannot do is only in the plane."""
    run = run_of(3, "resnet")
    flat = run.model_copy(update={"training": run.training.model_copy(update={"patch_size": (8, 24, 24)})})
    assert build_model(flat)(torch.rand(1, 1, 8, 24, 24)).shape == (1, 3)


@pytest.mark.parametrize("name", ["resnet", "resnet-50"])
def test_no_layer_writes_to_its_input_and_no_mean_depends_on_the_order_of_threads(name: str) -> None:
    modules = list(build_model(run_of(2, name)).modules())
    assert any(isinstance(one, nn.ReLU) for one in modules)
    assert not any(getattr(one, "inplace", False) for one in modules)
    assert not any("Pool" in type(one).__name__ and "Max" not in type(one).__name__ for one in modules)


def test_a_cnn_drops_what_goes_into_its_head_in_training_alone() -> None:
    run = run_of(2, "cnn")
    dropping = run.model_copy(update={"model": run.model.model_copy(update={"dropout": 0.5})})
    model, images = build_model(dropping), crops(run, 1)
    assert not torch.equal(model.train()(images), model(images))
    assert torch.equal(model.eval()(images), model(images))


@pytest.mark.parametrize("dims", [2, 3])
def test_a_cnn_is_what_it_says_layer_by_layer(dims: int) -> None:
    """With torch's functions: twice a convolution, group norm and ReLU, pooling between the levels, a mean, a layer."""
    run = run_of(dims, "cnn")
    model, values = build_model(run).eval(), crops(run, 2)
    weights = {key: one.detach() for key, one in model.named_parameters()}
    convolution = functional.conv2d if dims == 2 else functional.conv3d
    pooling = functional.max_pool2d if dims == 2 else functional.max_pool3d
    for level in range(3):
        values = values if level == 0 else pooling(values, 2)
        for at in (0, 3):
            block, norm = f"down.{level}.{at}", f"down.{level}.{at + 1}"
            values = convolution(values, weights[f"{block}.weight"], weights[f"{block}.bias"], padding=1)
            values = functional.group_norm(values, 4, weights[f"{norm}.weight"], weights[f"{norm}.bias"]).relu()
    expected = values.flatten(2).mean(2) @ weights["head.weight"].T + weights["head.bias"]
    torch.testing.assert_close(model(crops(run, 2)), expected)


@pytest.mark.parametrize("name", ["cnn", "plain-unet"])
def test_convolutions_begin_as_strong_as_he_says(name: str) -> None:
    """He et al., ICCV 2015: a variance of 2 by the inputs of each output, so that a signal keeps its size."""
    table = {"architecture": name, **({"channels": (64, 64)} if name == "cnn" else {"filters": 64, "levels": 2})}
    layer = next(
        one
        for one in NETWORK_CHOICE.by_name[name].model_validate(table).build(1, 2).modules()  # type: ignore[attr-defined]
        if isinstance(one, nn.Conv2d) and one.in_channels == 64
    )
    assert float(layer.weight.detach().var()) == pytest.approx(2 / (64 * 9), rel=0.05)
    assert layer.bias is not None
    assert not layer.bias.any()
