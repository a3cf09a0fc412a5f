"""Patients' gradients, however computed, against plain autograd on one crop at a time."""

import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from opacus import GradSampleModule
from torch import Tensor, nn
from torch.nn import functional

from common.errors import ErrorCode, PrivacyError
from common.losses.terms import dice_ce
from common.privacy.gradients import Strategy, patient_gradients
from common.privacy.patient import Loss, Patient
from tests import ROOT
from tests.common.networks import NETWORKS, Network, batch_of_one

_SINGLE = 2e-5  # relative, between two orders of summation in single precision
DOCS = ROOT / "docs" / "privacy-engine.md"


@pytest.fixture(autouse=True)
def _one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def distance(model: nn.Module, loss: Loss, patients: Sequence[Patient], strategy: Strategy, **bound: int) -> float:
    """Largest relative error of a patient's gradient."""
    found = patient_gradients(model, loss, patients, strategy, **bound)
    rows = torch.cat([found.of[parameter].flatten(1) for parameter in model.parameters()], 1)
    truth = torch.stack([batch_of_one(model, loss, patient) for patient in patients])
    return float(((rows - truth).norm(dim=1) / truth.norm(dim=1)).max())


def double(patients: Sequence[Patient]) -> list[Patient]:
    return [Patient(crops.double(), labels) for crops, labels, _ in patients]


@pytest.mark.parametrize("strategy", Strategy)
@pytest.mark.parametrize("network", NETWORKS, ids=lambda network: network.name)
def test_gradients_are_those_of_a_batch_of_one(network: Network, strategy: Strategy) -> None:
    counts = (2, 2) if strategy is Strategy.VECTORISED else (3, 1)
    loss = functional.cross_entropy  # dice_ce is of single precision
    assert distance(network.model().double(), loss, double(network.patients(counts)), strategy) < 1e-10
    if strategy is not Strategy.VECTORISED:  # which single precision does not always suffice for: see the docs
        assert distance(network.model(), network.loss, network.patients(counts), strategy) < _SINGLE


@pytest.mark.parametrize("network", NETWORKS, ids=lambda network: network.name)
def test_table_in_the_docs_is_what_is_found(network: Network) -> None:
    cells = [network.name, network.changed]
    for strategy in Strategy:
        error = distance(network.model(), network.loss, network.patients((1, 1)), strategy)
        cells.append("yes" if error < _SINGLE else "no: over 0.1 % off in single precision" if error > 1e-3 else "?")
    cells.append(opacus_hooks(network))
    assert f"| {' | '.join(cells)} |" in DOCS.read_text(encoding="utf-8").splitlines()


def opacus_hooks(network: Network) -> str:
    """What Opacus' hooks make of a network."""
    model, patients = network.model(), network.patients((1, 1))
    truth = torch.stack([batch_of_one(model, network.loss, patient) for patient in patients])
    wrapped = GradSampleModule(model)
    crops = torch.cat([patient.crops for patient in patients])
    labels = torch.cat([patient.labels for patient in patients])
    try:
        network.loss(wrapped(crops), labels).backward()
    except RuntimeError as error:
        in_place = "is a view and is being modified inplace" in str(error)
        return "no: changes a hooked output in place" if in_place else str(error)
    rows = torch.cat([parameter.grad_sample.flatten(1) for parameter in wrapped.parameters()], 1)
    assert float(((rows - truth).norm(dim=1) / truth.norm(dim=1)).max()) < _SINGLE
    return "yes"


class Weighed(nn.Module):
    """A layer between a learned input and a head, so that it is met both first and further on."""

    def __init__(self, layer: nn.Module, first: nn.Module | None = None):
        super().__init__()
        self.first = first or nn.Identity()
        self.layer = layer

    def forward(self, value: Tensor) -> Tensor:
        output: Tensor = self.layer(self.first(value)).sin()
        return output


def squares(outputs: Tensor, labels: Tensor) -> Tensor:
    weights = torch.linspace(-1, 2, outputs[0].numel(), dtype=outputs.dtype).view(1, *outputs.shape[1:])
    return (outputs * weights + labels.view(-1, *[1] * (outputs.ndim - 1))).square().mean()


def random_patients(shape: tuple[int, ...], counts: tuple[int, ...] = (2, 1, 3)) -> list[Patient]:
    generator = torch.Generator().manual_seed(1)
    return [
        Patient(
            torch.randn((count, *shape), generator=generator, dtype=torch.float64),
            torch.randn(count, generator=generator, dtype=torch.float64),
        )
        for count in counts
    ]


CONVOLUTIONS = [
    (nn.Conv1d(4, 6, 3, stride=2, padding=1), (4, 9)),
    (nn.Conv1d(4, 6, 3, bias=False, dilation=2), (4, 9)),
    (nn.Conv2d(4, 6, (3, 2), stride=(2, 1), padding=(0, 1), dilation=(1, 2), groups=2), (4, 8, 7)),
    (nn.Conv2d(4, 8, 3, groups=4, bias=False), (4, 5, 6)),
    (nn.Conv2d(4, 4, (3, 4), padding="same"), (4, 5, 6)),
    (nn.Conv2d(4, 4, 3, padding="valid"), (4, 5, 6)),
    (nn.Conv2d(4, 4, 3, padding=1, padding_mode="reflect"), (4, 5, 6)),
    (nn.Conv2d(4, 4, 3, padding=(1, 2), padding_mode="circular"), (4, 5, 6)),
    (nn.Conv3d(2, 4, 3, stride=(1, 2, 2), padding=1, groups=2), (2, 4, 5, 6)),
    (nn.ConvTranspose1d(4, 6, 3, stride=2, padding=1, output_padding=1), (4, 5)),
    (nn.ConvTranspose2d(4, 6, 3, stride=(3, 2), padding=1, output_padding=(2, 1), groups=2), (4, 3, 5)),
    (nn.ConvTranspose2d(4, 6, 3, dilation=2, bias=False), (4, 3, 5)),
    (nn.ConvTranspose3d(2, 4, (2, 3, 2), stride=2, groups=2), (2, 3, 2, 3)),
]
OTHERS = [
    (nn.Linear(5, 3), (5,)),
    (nn.Linear(5, 3, bias=False), (4, 5)),
    (nn.Linear(5, 3), (2, 4, 5)),
    (nn.GroupNorm(2, 4), (4, 3, 5)),
    (nn.GroupNorm(1, 4), (4, 6)),
    (nn.InstanceNorm1d(4, affine=True), (4, 6)),
    (nn.InstanceNorm2d(4, affine=True), (4, 3, 5)),
    (nn.InstanceNorm3d(4, affine=True), (4, 3, 2, 2)),
    (nn.LayerNorm(5), (4, 5)),
    (nn.LayerNorm((3, 5)), (3, 5)),
    (nn.LayerNorm((3, 5), bias=False), (4, 3, 5)),
    (nn.PReLU(), (4, 5)),
    (nn.PReLU(4), (4,)),
    (nn.PReLU(4), (4, 3, 5)),
]


@pytest.mark.parametrize(("layer", "shape"), [*CONVOLUTIONS, *OTHERS], ids=lambda value: str(value).replace(" ", ""))
@pytest.mark.parametrize("deep", [False, True], ids=["first", "after another"])
def test_every_covered_layer_gives_each_patient_their_gradient(
    layer: nn.Module, shape: tuple[int, ...], deep: bool
) -> None:
    first = nn.Conv1d(shape[0], shape[0], 1) if deep and len(shape) == 2 else nn.PReLU(init=0.3) if deep else None
    model = Weighed(layer, first).double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.linspace(-0.9, 1.1, parameter.numel()).view(parameter.shape))
    assert distance(model, squares, random_patients(shape), Strategy.BOOK_KEEPING) < 1e-10


def test_single_volumes_in_single_precision_take_the_fast_kernel_and_agree() -> None:
    model = nn.Sequential(nn.Conv3d(1, 4, 3, stride=2, padding=1), nn.Conv3d(4, 4, 3, groups=2), nn.Conv3d(4, 2, 1))
    patients = [Patient(one.crops.float(), one.labels.float()) for one in random_patients((1, 9, 8, 7), (1, 1))]
    assert distance(model, squares, patients, Strategy.BOOK_KEEPING) < 1e-5


class Twice(nn.Module):
    """One layer called twice, and two layers that share their weight."""

    def __init__(self):
        super().__init__()
        self.again, self.one, self.two = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4)
        self.two.weight = self.one.weight

    def forward(self, value: Tensor) -> Tensor:
        output: Tensor = self.two(self.again(self.one(self.again(value)).tanh()).tanh())
        return output


def test_layers_called_twice_and_weights_used_twice_add_up() -> None:
    assert distance(Twice().double(), squares, random_patients((4,)), Strategy.BOOK_KEEPING) < 1e-10


def test_vectorised_gradients_refuse_weights_used_twice() -> None:
    with pytest.raises(PrivacyError, match=r"share 'one\.weight'"):
        patient_gradients(Twice().double(), squares, random_patients((4,), (1, 1)), Strategy.VECTORISED)


@pytest.mark.parametrize("strategy", Strategy)
def test_the_network_is_left_as_it_was(strategy: Strategy) -> None:
    network = next(network for network in NETWORKS if network.name == "DynUNet")  # holds its layers under two names
    model = network.model()
    before = {name: (id(one), one.clone()) for name, one in model.named_parameters()}
    patient_gradients(model, dice_ce, network.patients((1, 1)), strategy)
    assert {name: id(one) for name, one in model.named_parameters()} == {name: one[0] for name, one in before.items()}
    assert all(torch.equal(one, before[name][1]) and one.grad is None for name, one in model.named_parameters())
    assert not any(module._forward_hooks for module in model.modules())


@pytest.mark.parametrize("strategy", Strategy)
def test_frozen_layers_are_passed_through(strategy: Strategy) -> None:
    frozen = nn.BatchNorm1d(4).eval()  # of a kind that book-keeping does not cover
    model = nn.Sequential(nn.Linear(4, 4), frozen, nn.Linear(4, 4), nn.PReLU(), nn.Linear(4, 2)).double()
    model[:2].requires_grad_(False)
    model[4].bias.requires_grad_(False)
    patients = random_patients((4,), (2, 2))
    found = patient_gradients(model, squares, patients, strategy)
    for row, (crops, labels, _) in enumerate(patients):
        wanted = [parameter for parameter in model.parameters() if parameter.requires_grad]
        truth = torch.autograd.grad(squares(model(crops), labels), wanted)
        assert set(found.of) == set(wanted)
        for parameter, gradient in zip(wanted, truth, strict=True):
            torch.testing.assert_close(found.of[parameter][row], gradient)


@pytest.mark.parametrize("size", [1, 2, 3, 5, 9])
@pytest.mark.parametrize("strategy", Strategy)
def test_a_patient_with_more_crops_than_the_bound_goes_in_pieces(strategy: Strategy, size: int) -> None:
    seen: list[int] = []
    model = nn.Sequential(nn.Linear(4, 3), nn.PReLU()).double()
    model.register_forward_pre_hook(lambda _, inputs: seen.append(len(inputs[0])))
    patients = random_patients((4,), (5, 5))
    found = patient_gradients(model, squares, patients, strategy, max_crops=size)
    assert sum(seen) in (10, 5)  # of vectorised patients one is seen
    assert max(seen) <= max(size, 10 if size >= 5 else 0)
    losses = [squares(model(crops), labels) for crops, labels, _ in patients]
    torch.testing.assert_close(found.losses, torch.stack(losses).detach())
    assert distance(model, squares, patients, strategy, max_crops=size) < 1e-10


class _Scaled(nn.Module):
    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1))

    def forward(self, value: Tensor) -> Tensor:
        return value * self.scale


class _Windows(nn.Module):
    """Folds an axis into the batch, as transformers of windows do."""

    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(4, 4)

    def forward(self, value: Tensor) -> Tensor:
        output: Tensor = self.inner(value.reshape(-1, 4)).reshape(len(value), -1)
        return output


class _Tampering(nn.Module):
    """Changes a layer's input after the layer has used it."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(8, 8), nn.PReLU()

    def forward(self, value: Tensor) -> Tensor:
        self.first(value)
        output = self.first(value)
        value.mul_(2)
        changed: Tensor = self.second(output)
        return changed


class _Nothing(nn.Module):
    def __init__(self, returned):
        super().__init__()
        self.inner, self.returned = nn.Linear(8, 8), returned

    def forward(self, value: Tensor) -> Any:
        return self.returned(self.inner(value))


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        (nn.Sequential(nn.Linear(8, 8), _Scaled()), r"'1' \(_Scaled\) is of a kind"),
        (nn.Sequential(nn.Embedding(3, 3)), r"'0' \(Embedding\) is of a kind"),
        (nn.utils.parametrizations.weight_norm(nn.Linear(8, 8)), "is of a kind"),
        (nn.Sequential(nn.Linear(8, 8), _Windows()), r"'1\.inner' \(Linear\) .* not the batch"),
        (nn.Sequential(nn.Flatten(0), nn.Linear(48, 8)), r"'1' \(Linear\) .* not the batch"),
        (_Tampering(), r"'first' \(Linear\) has its input changed in place"),
        (_Nothing(lambda value: [value, value]), "does not return one tensor"),
        (_Nothing(lambda value: value[:1]), "does not return one tensor"),
    ],
)
def test_what_is_not_covered_is_refused_by_name(model: nn.Module, reason: str) -> None:
    with pytest.raises(PrivacyError, match=reason) as caught:
        patient_gradients(model.double(), squares, random_patients((8,)), Strategy.BOOK_KEEPING)
    assert caught.value.code is ErrorCode.UNSUPPORTED
    assert "one at a time" in str(caught.value)
    assert not any(module._forward_hooks for module in model.modules())


@pytest.mark.parametrize("strategy", Strategy)
def test_a_gradient_that_is_not_finite_leaves_its_neighbours_alone(strategy: Strategy) -> None:
    model, patients = nn.Linear(4, 2).double(), random_patients((4,), (1, 1))
    truth = batch_of_one(model, squares, patients[0])
    patients[1].crops[0, 0] = math.inf
    found = patient_gradients(model, squares, patients, strategy)
    rows = torch.cat([found.of[parameter].flatten(1) for parameter in model.parameters()], 1)
    torch.testing.assert_close(rows[0], truth)
    assert not rows[1].isfinite().all()


@pytest.mark.parametrize("strategy", [Strategy.ONE_AT_A_TIME, Strategy.BOOK_KEEPING])
def test_a_layer_without_influence_is_refused(strategy: Strategy) -> None:
    model = nn.ModuleDict({"used": nn.Linear(4, 2), "forgotten": nn.Linear(2, 2)}).double()
    model.forward = model["used"].forward
    with pytest.raises(PrivacyError, match="unused parameter"):
        patient_gradients(model, squares, random_patients((4,)), strategy)
