"""Layers that are faster on a CPU compute what torch's own do: values, gradients, and nothing else changes."""

import copy
import ctypes
import hashlib
import subprocess
import sys
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from common.models.faster import faster

CASES: list[tuple[Callable[[], nn.Module], tuple[int, ...]]] = [
    (lambda: nn.Conv2d(8, 8, 3, padding=1), (3, 8, 17, 12)),
    (lambda: nn.Conv2d(1, 8, 3, padding=1), (3, 1, 9, 12)),
    (lambda: nn.Conv2d(8, 2, 1), (3, 8, 9, 12)),
    (lambda: nn.Conv2d(8, 16, 3, stride=2, padding=1, bias=False), (1, 8, 9, 12)),
    (lambda: nn.Conv2d(8, 8, 3, groups=8), (3, 8, 9, 12)),
    (lambda: nn.Conv2d(8, 8, 3, padding=1, padding_mode="reflect"), (3, 8, 9, 12)),
    (lambda: nn.Conv2d(96, 100, 3, padding=1), (2, 96, 5, 6)),
    (lambda: nn.Conv3d(3, 3, 3, padding=1), (2, 3, 5, 6, 7)),
    (lambda: nn.Conv3d(1, 4, (1, 3, 3)), (2, 1, 5, 6, 7)),
    (lambda: nn.ConvTranspose2d(16, 8, 2, stride=2), (3, 16, 5, 6)),
    (lambda: nn.ConvTranspose3d(6, 3, 3, stride=2, padding=1, output_padding=1), (2, 6, 3, 4, 5)),
    (lambda: nn.MaxPool2d(2), (3, 8, 9, 12)),
    (lambda: nn.MaxPool3d(2), (2, 3, 5, 6, 7)),
    (lambda: nn.InstanceNorm2d(8, affine=True), (3, 8, 9, 12)),
    (lambda: nn.InstanceNorm2d(8), (3, 8, 9, 12)),
    (lambda: nn.InstanceNorm3d(3, affine=True), (1, 3, 5, 6, 7)),
    (lambda: nn.GroupNorm(4, 8), (3, 8, 9, 12)),
    (nn.PReLU, (3, 8, 9, 12)),
    (lambda: nn.PReLU(8), (3, 8, 9, 12)),
]
NAMES = [f"{number}-{type(make()).__name__}" for number, (make, _) in enumerate(CASES)]
M_PERTURB = -6  # of glibc's mallopt: what memory is filled with, bits turned, when it is handed out
# Of a sum in another order, as a share of the largest value.
ROUNDING = {torch.float32: 1e-5, torch.bfloat16: 4e-2}


def computed(layer: nn.Module, values: Tensor, weighing: Tensor | None = None) -> list[Tensor]:
    """Outputs, and the gradients of their weighed sum with respect to the input and to each weight."""
    values = values.clone(memory_format=torch.preserve_format).requires_grad_()
    outputs: Tensor = layer(values)
    weighing = torch.rand(outputs.shape, generator=torch.Generator().manual_seed(7)) if weighing is None else weighing
    found = torch.autograd.grad((outputs.float() * weighing).sum(), [values, *layer.parameters()])
    return [outputs.detach(), *found]


def pair(make: Callable[[], nn.Module]) -> tuple[nn.Module, nn.Module]:
    torch.manual_seed(0)
    theirs = make()
    for weights in theirs.parameters():
        nn.init.normal_(weights)
    return faster(copy.deepcopy(theirs)), theirs


@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("last", [False, True], ids=["channel by channel", "channels last"])
@pytest.mark.parametrize(("make", "shape"), CASES, ids=NAMES)
def test_values_and_gradients_are_torchs_own(
    make: Callable[[], nn.Module], shape: tuple[int, ...], last: bool, kind: torch.dtype
) -> None:
    ours, theirs = pair(make)
    assert type(ours) is not type(theirs)
    values = torch.randn(shape)
    layout = torch.channels_last if len(shape) == 4 else torch.channels_last_3d
    arranged = values.clone(memory_format=layout) if last else values
    with torch.autocast("cpu", torch.bfloat16, enabled=kind is torch.bfloat16):
        mine = computed(ours, arranged)
    for one, other in zip(mine, computed(theirs, values), strict=True):
        assert one.shape == other.shape
        assert float((one.float() - other).abs().max()) <= ROUNDING[kind] * float(other.abs().max())


def test_weights_keep_their_names_shapes_strides_and_values() -> None:
    for make, _ in CASES:
        ours, theirs = pair(make)
        mine, known = (
            [(name, one.shape, one.stride(), one.tolist()) for name, one in layer.state_dict().items()]
            for layer in (ours, theirs)
        )
        assert mine == known


def test_a_layer_in_two_places_stays_one_and_a_derived_class_stays_what_it_is() -> None:
    class Own(nn.Conv2d):
        pass

    layer, own = nn.Conv2d(2, 2, 3), Own(2, 2, 3)
    inner = nn.Sequential(layer)
    faster(nn.Sequential(layer, inner, own))
    assert type(layer) is not nn.Conv2d
    assert inner[0] is layer
    assert type(own) is Own


@pytest.mark.parametrize(("make", "shape"), CASES, ids=NAMES)
def test_each_sample_of_vmap_is_the_one_alone(make: Callable[[], nn.Module], shape: tuple[int, ...]) -> None:
    ours, _ = pair(make)
    values = torch.randn(2, *shape)
    together = torch.func.vmap(ours)(values)
    for one, alone in zip(together, values, strict=True):
        torch.testing.assert_close(one, ours(alone), rtol=1e-4, atol=1e-4)


DOWN, UP = (
    lambda: nn.Conv2d(16, 2, 3, stride=2, padding=1),
    lambda: nn.ConvTranspose2d(16, 31, 3, stride=2, padding=1),
)


@pytest.mark.parametrize(
    ("make", "edges"),
    [
        *((make, edges) for make in (DOWN, UP) for edges in ((2, 1), (8, 1), (1, 1))),
        *((DOWN, edges) for edges in ((9, 2), (2, 2), (33, 2))),
        (lambda: nn.Conv2d(16, 2, 7, stride=2, padding=3), (12, 2)),
        (lambda: nn.Conv2d(16, 2, 2, stride=2), (16, 3)),
        (lambda: nn.Conv2d(16, 2, (3, 1), stride=(1, 2), padding=(1, 0)), (12, 2)),
        (lambda: nn.Conv2d(16, 2, 3, stride=3, padding=1), (12, 2)),
        (lambda: nn.Conv2d(16, 2, 3, padding="valid"), (12, 3)),
        (lambda: nn.Conv2d(16, 2, 3, stride=2, dilation=2), (16, 6)),
    ],
)
def test_images_of_one_voxel_in_half_precision_do_not_take_what_memory_held(
    make: Callable[[], nn.Module], edges: tuple[int, int]
) -> None:
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        pytest.skip("this C library cannot fill memory that it hands out")
    ours, theirs = pair(make)
    values = torch.randn(3, 16, *edges)
    mallopt(M_PERTURB, 0x7F ^ 0xFF)
    try:
        with torch.autocast("cpu", torch.bfloat16):
            mine = computed(ours, values)
    finally:
        mallopt(M_PERTURB, 0)
    for one, other in zip(mine, computed(theirs, values), strict=True):
        assert float((one.float() - other).abs().max()) <= 1e-4 * float(other.abs().max())


def test_running_statistics_stay_torchs_own() -> None:
    ours, theirs = pair(lambda: nn.InstanceNorm2d(8, track_running_stats=True))
    values = 3 + torch.randn(3, 8, 9, 12)
    for training in (True, False):
        ours.train(training)
        theirs.train(training)
        torch.testing.assert_close(ours(values), theirs(values))
        torch.testing.assert_close(ours.state_dict(), theirs.state_dict())


@pytest.mark.parametrize("samples", [1, 3])
@pytest.mark.parametrize("make", [nn.InstanceNorm2d, lambda count: nn.InstanceNorm2d(count, affine=True)])
def test_norm_of_a_single_voxel_is_refused_as_by_torch(make: Callable[[int], nn.Module], samples: int) -> None:
    ours, _ = pair(lambda: make(8))
    with pytest.raises(ValueError, match="more than 1 spatial element"):
        ours(torch.randn(samples, 8, 1, 1))


def test_norm_without_weights_takes_as_many_channels_as_come() -> None:
    ours, theirs = pair(lambda: nn.InstanceNorm2d(8))
    values = torch.randn(3, 6, 9, 12)
    with pytest.warns(UserWarning, match="num_features"):
        torch.testing.assert_close(ours(values), theirs(values))


def test_beside_a_cpu_in_vmap_and_in_an_export_a_layer_is_torchs_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where torch's own PReLU keeps what is infinite, lerp has no number."""
    ours, _ = pair(nn.PReLU)
    values = torch.full((2, 1, 2, 2), torch.inf)
    assert ours(values).isnan().all()
    assert torch.func.vmap(ours)(values).isinf().all()
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    assert ours(values).isinf().all()
    ours.to("meta")(values.to("meta"))


PROGRAM = """
import hashlib, torch
from torch import nn
from common.models.faster import faster
torch.manual_seed(0)
network = faster(nn.Sequential(
    nn.Conv2d(1, 8, 3, padding=1), nn.InstanceNorm2d(8, affine=True), nn.PReLU(), nn.MaxPool2d(2),
    nn.Conv2d(8, 16, 3, padding=1), nn.ConvTranspose2d(16, 8, 2, stride=2), nn.Conv2d(8, 2, 1)))
optimizer = torch.optim.AdamW(network.parameters(), 1e-2)
for _ in range(3):
    optimizer.zero_grad()
    with torch.autocast("cpu", torch.bfloat16):
        outputs = network(torch.rand(4, 1, 32, 32))
    outputs.float().square().mean().backward()
    optimizer.step()
print(hashlib.sha256(b"".join(one.detach().numpy().tobytes() for one in network.parameters())).hexdigest())
"""


def test_two_processes_train_to_the_same_bits() -> None:
    found = {
        subprocess.run([sys.executable, "-c", PROGRAM], check=True, capture_output=True, text=True).stdout
        for _ in range(2)
    }
    assert len(found) == 1
    assert len(found.pop().strip()) == hashlib.sha256().digest_size * 2
