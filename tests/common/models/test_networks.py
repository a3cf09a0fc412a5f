"""Every network that answers each voxel: shapes, weights, samples that stay apart, gradients, and private steps."""

import json
import math
import sys
from types import ModuleType
from typing import Any, ClassVar, Literal

import pytest
import torch
from monai.bundle.config_parser import ConfigParser
from torch import Tensor, nn

from common.config import RunConfig, validate
from common.errors import ConfigError
from common.learning.inference import outputs
from common.learning.network import build_model, freeze, load_model, tensor_shapes, weights_of
from common.losses.terms import dice_ce
from common.models import NETWORKS, Network, layers
from common.models.network import LAYERS
from common.models.plain_unet import PlainUNet
from common.models.wnet import WNet
from common.privacy.autotune import choose
from common.privacy.engine import private_optimizer, private_step
from common.privacy.patient import Patient

# Of a size that a test can train; the stride stays at 4, with segnet at 8.
SMALL: dict[str, dict[str, Any]] = {"plain-unet": {"filters": 4, "levels": 3, "dropout": 0.0}}
EVERY = [
    pytest.param(dims, member.model_fields["architecture"].default, id=f"{member.__name__}-{dims}d")
    for dims in (2, 3)
    for member in NETWORKS
    if member.DENSE
]


def run_of(dims: int, architecture: str, **model: Any) -> RunConfig:
    small = SMALL.get(architecture, {"channels": (4, 8, 16)})
    return RunConfig.model_validate(
        {
            "name": "test",
            "model": {"architecture": architecture, "dims": dims, **small, **model},
            "data": {"modality": "CT", "channels": 1, "classes": ("liver", "lesion")},
            "training": {"patch_size": (16,) * dims},
            "federation": {"rounds": 1},
        }
    )


def crops(count: int, *spatial: int, seed: int = 0) -> Tensor:
    return torch.rand((count, 1, *spatial), generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(("dims", "architecture"), EVERY)
def test_outputs_have_the_size_of_the_image(dims: int, architecture: str) -> None:
    run = run_of(dims, architecture)
    spatial = (run.model.stride, 3 * run.model.stride, 2 * run.model.stride)[:dims]
    assert build_model(run)(crops(2, *spatial)).shape == (2, 3, *spatial)


@pytest.mark.parametrize(("dims", "architecture"), EVERY)
def test_images_of_any_size_are_answered(dims: int, architecture: str) -> None:
    spatial = (15, 12) if dims == 2 else (17, 19, 13)
    run = run_of(dims, architecture)
    with torch.no_grad():
        found = outputs(build_model(run).eval(), crops(1, *spatial), run, "cpu")
    assert found.shape == (1, 3, *spatial)
    assert found.isfinite().all()


@pytest.mark.parametrize(("dims", "architecture"), EVERY)
def test_a_sample_does_not_change_the_output_of_another(dims: int, architecture: str) -> None:
    model = build_model(run_of(dims, architecture)).train()
    batch = crops(2, *(16,) * dims)
    other = batch.clone()
    other[1] = 5.0
    torch.testing.assert_close(model(batch)[0], model(other)[0])


@pytest.mark.parametrize(("dims", "architecture"), EVERY)
def test_the_image_reaches_the_answer_and_the_loss_every_weight(dims: int, architecture: str) -> None:
    model = build_model(run_of(dims, architecture))
    labels = torch.randint(3, (2, *(16,) * dims), generator=torch.Generator().manual_seed(1))
    assert not torch.equal(model(crops(2, *(16,) * dims)), model(crops(2, *(16,) * dims, seed=1)))
    dice_ce(model(crops(2, *(16,) * dims)), labels).backward()
    for name, weights in model.named_parameters():
        assert weights.grad is not None, name
        assert weights.grad.isfinite().all(), name
        # Of convolutions each must tell: what a skip connection carries, too. A bias before a norm moves nothing.
        assert weights.ndim == 1 or float(weights.grad.abs().max()) > 1e-7, name


@pytest.mark.parametrize(("dims", "architecture"), EVERY)
def test_weights_follow_from_the_seed_and_load_again(dims: int, architecture: str) -> None:
    run = run_of(dims, architecture)
    first, other = weights_of(build_model(run)), weights_of(build_model(run.model_copy(update={"seed": 1})))
    assert all(torch.equal(one, first[name]) for name, one in weights_of(build_model(run)).items())
    assert any(not torch.equal(one, first[name]) for name, one in other.items())
    assert tensor_shapes(run) == {name: tuple(one.shape) for name, one in first.items()}
    images = crops(1, *(16,) * dims)
    loaded, built = load_model(run, other).eval(), build_model(run.model_copy(update={"seed": 1})).eval()
    assert torch.equal(loaded(images), built(images))


@pytest.mark.parametrize(("dims", "architecture"), EVERY)
def test_fine_tuning_trains_the_head_and_less_than_all(dims: int, architecture: str) -> None:
    run = run_of(dims, architecture)
    run = run.model_copy(update={"training": run.training.model_copy(update={"trainable": "head"})})
    model = build_model(run)
    freeze(model, run)
    trainable = sum(one.numel() for one in model.parameters() if one.requires_grad)
    assert 0 < sum(one.numel() for one in run.model.head(model).parameters()) <= trainable
    assert trainable < 0.7 * sum(one.numel() for one in model.parameters())


@pytest.mark.parametrize(("dims", "architecture"), EVERY)
def test_private_steps_move_the_weights_of_every_network(dims: int, architecture: str) -> None:
    model = build_model(run_of(dims, architecture)).train()
    patients = [
        Patient(crops(2, *(16,) * dims, seed=seed), torch.randint(3, (2, *(16,) * dims)), seed) for seed in range(3)
    ]
    optimizer = private_optimizer(
        model,
        torch.optim.SGD(model.parameters(), lr=0.1),
        noise_multiplier=1e-3,
        clipping_norm=1.0,
        expected_patients=3,
    )
    before = {name: one.clone() for name, one in weights_of(model).items()}
    loss = private_step(model, optimizer, patients, dice_ce, plan=choose(model, dice_ce, patients[0], 3))
    assert loss is not None
    assert math.isfinite(loss)
    moved = math.sqrt(sum(float((one - before[name]).square().sum()) for name, one in weights_of(model).items()))
    assert 0.01 < moved < 0.1 * 1.1  # at most the learning rate times one clipped gradient a patient, and little noise


@pytest.mark.parametrize(("dims", "architecture"), EVERY)
def test_a_network_learns(dims: int, architecture: str) -> None:
    """A bright ball, which every network must find in a few steps."""
    run = run_of(dims, architecture)
    model = build_model(run).train()
    axes = torch.meshgrid(*[torch.arange(16.0)] * dims, indexing="ij")
    labels = (torch.stack([(axis - 8) ** 2 for axis in axes]).sum(0) < 25).long()[None]
    images = labels[:, None].float() + 0.3 * torch.randn(
        (1, 1, *(16,) * dims), generator=torch.Generator().manual_seed(0)
    )
    # Without normalisation a network wants smaller steps.
    optimizer = torch.optim.Adam(model.parameters(), lr=0.003 if architecture == "plain-unet" else 0.01)
    for _ in range(60):
        optimizer.zero_grad()
        dice_ce(model(images), labels).backward()
        optimizer.step()
    found = model.eval()(images).argmax(1) == 1
    assert 2 * (found & (labels == 1)).sum() > 0.9 * (found.sum() + (labels == 1).sum())


@pytest.mark.parametrize(("dims", "architecture"), EVERY)
def test_deterministic_kernels_are_there_and_repeat_bit_for_bit(dims: int, architecture: str) -> None:
    run = run_of(dims, architecture)
    labels = torch.randint(3, (2, *(16,) * dims), generator=torch.Generator().manual_seed(1))
    found = []
    torch.use_deterministic_algorithms(True)
    try:
        for _ in range(2):
            model = build_model(run)
            dice_ce(model(crops(2, *(16,) * dims)), labels).backward()
            found.append(torch.cat([one.grad.flatten() for one in model.parameters() if one.grad is not None]))
    finally:
        torch.use_deterministic_algorithms(False)
    assert torch.equal(*found)


def test_segnet_puts_values_back_as_torch_does() -> None:
    values, places = nn.functional.max_pool2d(crops(2, 8, 6), 2, return_indices=True)
    torch.testing.assert_close(layers._unpooled(values, places), nn.functional.max_unpool2d(values, places, [2, 2]))


@pytest.mark.parametrize(
    ("architecture", "sizes"),
    [
        ("unet", {"channels": [4] * 11}),
        ("segresnet", {"channels": [4] * 14_000}),
        ("wnet", {"channels": [1] * 2000}),
        ("dynunet", {"channels": [4, 8, 4097]}),
        ("plain-unet", {"filters": 10**9}),
        ("plain-unet", {"levels": 8}),
    ],
)
def test_a_network_that_nobody_could_build_is_refused_at_once_in_a_few_words(
    architecture: str, sizes: dict[str, Any]
) -> None:
    values = run_of(2, "unet").model_dump(by_alias=True) | {"model": {"architecture": architecture, **sizes}}
    with pytest.raises(ConfigError) as refused:
        validate(RunConfig, values, "run.toml")
    assert len(str(refused.value)) < 400


def test_plain_unet_has_the_published_number_of_weights() -> None:
    with torch.device("meta"):
        network = PlainUNet().build(1, 1)
    assert sum(one.numel() for one in network.parameters()) == 31_377_793


def test_wnet_has_about_seventy_thousand_weights() -> None:
    with torch.device("meta"):
        network = WNet().build(3, 2)
    assert 65_000 < sum(one.numel() for one in network.parameters()) < 75_000


class Buffered(Network):
    """A network that blurs by a fixed kernel, which is a buffer."""

    architecture: Literal["buffered"] = "buffered"
    seen: ClassVar[list[int]] = []

    @property
    def stride(self) -> int:
        return 1

    def build(self, inputs: int, outputs: int) -> nn.Module:
        return Blurred(inputs, outputs)

    def head(self, network: nn.Module) -> nn.Module:
        return network


class Blurred(nn.Module):
    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.register_buffer("kernel", torch.full((1, inputs, 3, 3), 1 / 9))
        self.register_buffer("calls", torch.zeros((), dtype=torch.int64))
        self.convolution = nn.Conv2d(1, outputs, 3, padding=1)

    def forward(self, images: Tensor) -> Tensor:
        kernel = self.get_buffer("kernel")
        answer: Tensor = self.convolution(nn.functional.conv2d(images, kernel, padding=1))
        return answer


class BatchNormalised(Buffered):
    """A network that keeps statistics over its samples."""

    def build(self, inputs: int, outputs: int) -> nn.Module:
        return nn.Sequential(nn.Conv2d(inputs, outputs, 3, padding=1), nn.BatchNorm2d(outputs))


def test_buffers_are_no_weights_and_come_from_the_settings() -> None:
    run = run_of(2, "unet").model_copy(update={"model": Buffered()})
    built = build_model(run)
    assert set(weights_of(built)) == set(tensor_shapes(run)) == {"convolution.weight", "convolution.bias"}
    loaded = load_model(run, {name: one + 1 for name, one in weights_of(built).items()})
    assert torch.equal(loaded.get_buffer("kernel"), built.get_buffer("kernel"))
    assert torch.equal(loaded.get_parameter("convolution.bias"), built.get_parameter("convolution.bias") + 1)


def test_a_network_with_statistics_over_patients_is_refused() -> None:
    run = run_of(2, "unet").model_copy(update={"model": BatchNormalised()})
    with pytest.raises(ConfigError, match="statistics over patients"):
        build_model(run)


@pytest.mark.parametrize(("dims", "architecture"), EVERY)
@pytest.mark.parametrize("norm", ["instance", "group"])
def test_a_bundle_builds_the_same_network_from_its_description(
    dims: int, architecture: str, norm: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By MONAI's own parser, from what JSON keeps of it."""
    if architecture == "plain-unet":
        norm = {"group": "none"}.get(norm, norm)
    settings = run_of(dims, architecture, norm=norm).model
    described = settings.described(1, 3)
    assert described is not None  # of the networks that ship each has one
    scripts = ModuleType("scripts")
    scripts.__dict__["layers"] = layers
    monkeypatch.setitem(sys.modules, "scripts", scripts)
    monkeypatch.setitem(sys.modules, LAYERS, layers)
    built = ConfigParser({"network": json.loads(json.dumps(described))}).get_parsed_content("network")
    ours = settings.build(1, 3).eval()
    built.load_state_dict(ours.state_dict())
    images = crops(1, *(4 * settings.stride,) * dims)
    torch.testing.assert_close(built.eval()(images), ours(images), rtol=0, atol=0)
