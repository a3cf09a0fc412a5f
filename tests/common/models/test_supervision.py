"""Further answers in training: gradients reach their heads, patients stay apart, and nothing else changes."""

import copy
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from monai.bundle.config_parser import ConfigParser
from torch import Tensor, nn

from client.train.training import _Loss
from common.config import RunConfig
from common.config.rundocument import issue
from common.learning.checkpoint import load_model, sha256
from common.learning.inference import predict_stack
from common.learning.network import build_model, weights_of
from common.models import NETWORK_CHOICE, layers
from common.models.network import LAYERS
from common.privacy.gradients import Strategy, patient_gradients
from common.privacy.patient import Patient
from server.federation.rounds import federate
from simulations.backends.in_process import InProcessGrid
from simulations.scenarios.homes import make_site
from tests.simulations.tiny import tiny_run_of_format, tiny_site

NETWORKS: dict[str, dict[str, Any]] = {
    "wnet": {"architecture": "wnet", "channels": (4, 8), "auxiliary-loss": 0.5},
    "plain-unet": {
        **{"architecture": "plain-unet", "filters": 2, "levels": 5, "norm": "instance"},
        **{"dropout": 0.0, "deep-supervision": True},
    },
    "dynunet": {"architecture": "dynunet", "channels": (4, 8, 8, 16), "deep-supervision": True},
}
ANSWERS = {"wnet": 2, "plain-unet": 3, "dynunet": 2}
# Of the answers beside the first, at 16 voxels: side by side so many repeat one.
REPEATS = {"wnet": [1], "plain-unet": [2, 4], "dynunet": [2]}
OFF = {"auxiliary-loss": 0.0, "deep-supervision": False}


def a_run(name: str, dims: int = 2, *, off: bool = False, **tables: Any) -> RunConfig:
    settings = NETWORKS[name] | {"dims": dims}
    if off:
        settings |= {key: value for key, value in OFF.items() if key in settings}
    training = {"patch-size": (32,) * dims, **tables.pop("training", {})}
    tables = {"training": training, "data": {"classes": ["disc", "ring"]}, **tables}
    values = tiny_run_of_format(2).model_dump(by_alias=True) | {"model": settings}
    for table, changes in tables.items():
        values[table] = {**(values[table] or {}), **changes}
    return RunConfig.model_validate(values)


def images(dims: int, samples: int = 2) -> Tensor:
    return torch.rand(samples, 1, *(32,) * dims, generator=torch.Generator().manual_seed(1))


def labels(dims: int, samples: int = 2) -> Tensor:
    return torch.randint(3, (samples, *(32,) * dims), generator=torch.Generator().manual_seed(2))


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("name", NETWORKS)
def test_the_first_answer_is_the_networks_and_the_others_stand_beside_it_in_training(name: str, dims: int) -> None:
    network = build_model(a_run(name, dims))
    batch = images(dims, 1)
    together, alone = network.train()(batch), network.eval()(batch)
    assert alone.shape == (1, 3, *(32,) * dims)
    first, *others = together.chunk(ANSWERS[name], 1)
    torch.testing.assert_close(first, alone)
    for other, repeat in zip(others, REPEATS[name], strict=True):
        assert other.shape == alone.shape
        blocks = other.unfold(-1, repeat, repeat)
        assert torch.equal(blocks, blocks[..., :1].expand_as(blocks))
        assert float((other - alone).abs().max()) > 1e-3


@pytest.mark.parametrize("name", NETWORKS)
def test_a_network_without_further_answers_has_the_weights_that_it_had(name: str) -> None:
    plain, more = (weights_of(build_model(a_run(name, off=off))) for off in (True, False))
    added = {key for key in more if key.startswith("heads.")}
    assert bool(added) == (name != "wnet")
    assert sum(one.numel() for key, one in more.items() if key not in added) == sum(
        one.numel() for one in {one.data_ptr(): one for one in plain.values()}.values()
    )


@pytest.mark.parametrize("name", NETWORKS)
def test_gradients_reach_every_head_and_the_loss_is_the_weighted_mean(name: str) -> None:
    run = a_run(name)
    network = build_model(run).train()
    loss = _Loss(run.task, run.model.auxiliary)
    outputs, truth = network(images(2)), labels(2)
    weights = [1.0, *run.model.auxiliary]
    assert weights == {"wnet": [1, 0.5], "plain-unet": [1, 0.5, 0.25], "dynunet": [1, 0.5]}[name]
    found = loss(outputs, truth)
    by_hand = [
        float(run.task.loss(one, truth)) * weight
        for one, weight in zip(outputs.chunk(len(weights), 1), weights, strict=True)
    ]
    assert float(found.detach()) == pytest.approx(sum(by_hand) / sum(weights), rel=1e-5)
    found.backward()
    start = "first.head." if name == "wnet" else "heads."
    heads = {key: one for key, one in network.named_parameters() if key.startswith(start)}
    assert len(heads) == 2 * (ANSWERS[name] - 1)  # weight and bias
    assert all(one.grad is not None and bool(one.grad.any()) for one in heads.values())


def test_the_first_half_of_wnet_learns_from_its_own_answer_too() -> None:
    """By hand: what comes through the second half, and half of what its own answer brings, by the weights' sum."""

    def gradient(value: Tensor, network: nn.Module) -> Tensor:
        return torch.autograd.grad(value, dict(network.named_parameters())["first.head.weight"])[0]

    run, plain = a_run("wnet"), build_model(a_run("wnet", off=True)).train()
    batch, truth = images(2), labels(2)
    through = gradient(run.task.loss(plain(batch), truth), plain)
    own = gradient(run.task.loss(plain.get_submodule("first")(batch), truth), plain)
    network = build_model(run).train()
    both = gradient(_Loss(run.task, run.model.auxiliary)(network(batch), truth), network)
    torch.testing.assert_close(both, (through + 0.5 * own) / 1.5)


@pytest.mark.parametrize(("dtype", "within"), [(torch.float64, 1e-10), (torch.float32, 1e-4)], ids=str)
@pytest.mark.parametrize("way", list(Strategy), ids=str)
@pytest.mark.parametrize("name", NETWORKS)
def test_each_patients_gradient_is_that_of_a_batch_of_their_own(
    name: str, way: Strategy, dtype: torch.dtype, within: float
) -> None:
    """Which is computed in float64. `within`: of the largest entry of a layer, or of 0.1 where that is larger."""
    run = a_run(name)
    exact = build_model(run).double().train()
    network = copy.deepcopy(exact).to(dtype)
    loss = _Loss(run.task, run.model.auxiliary)
    places = [(images(2, 3)[[place]], labels(2, 3)[[place]]) for place in range(3)]
    found = patient_gradients(network, loss, [Patient(crops.to(dtype), truth, 1) for crops, truth in places], way)
    for place, (crops, truth) in enumerate(places):
        alone = torch.autograd.grad(loss(exact(crops.double()), truth), list(exact.parameters()))
        for parameter, expected in zip(network.parameters(), alone, strict=True):
            atol = within * max(float(expected.abs().max()), 0.1)
            torch.testing.assert_close(found.of[parameter][place].double(), expected, rtol=0.0, atol=atol)


@pytest.mark.parametrize(("name", "private"), [*((name, False) for name in NETWORKS), ("wnet", True)])
def test_a_federation_trains_and_predicts_with_it(name: str, private: bool, tmp_path: Path) -> None:
    privacy: dict[str, Any] = (
        {"privacy": {"target-epsilon": 8.0, "sampling-rate": 0.5, "crops-per-patient": 2}} if private else {}
    )
    federation = {"rounds": 1, "quorum": 1}
    run = a_run(name, data={"classes": ["disc"]}, federation=federation, **privacy)
    site = make_site(tmp_path, tiny_site(tmp_path / "data", "north"))
    document = issue(run)
    summary = federate(InProcessGrid([site], document), document, tmp_path / "out")
    read, state, manifest = load_model(tmp_path / "out")
    assert (read, manifest.sha256) == (run, summary.model_sha256)
    assert state.keys() == weights_of(build_model(run)).keys()
    network = build_model(run)
    network.load_state_dict(state)
    assert predict_stack(network, images(2, 1), run, "cpu").shape == (1, 32, 32)
    assert sha256((tmp_path / "out" / "model.safetensors").read_bytes()) == manifest.sha256


@pytest.mark.parametrize("name", NETWORKS)
def test_a_bundle_builds_it_from_its_description(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """By MONAI's own parser; what it answers in use is the first answer."""
    settings = a_run(name).model
    scripts = ModuleType("scripts")
    scripts.__dict__["layers"] = layers
    monkeypatch.setitem(sys.modules, "scripts", scripts)
    monkeypatch.setitem(sys.modules, LAYERS, layers)
    built = ConfigParser({"network": json.loads(json.dumps(settings.described(1, 3)))}).get_parsed_content("network")
    ours = settings.build(1, 3).eval()
    built.load_state_dict(ours.state_dict())
    torch.testing.assert_close(built.eval()(images(2)), ours(images(2)), rtol=0, atol=0)


@pytest.mark.parametrize(
    "settings",
    [
        {"architecture": "dynunet", "channels": [4, 8, 16]},
        {"architecture": "plain-unet", "levels": 3},
    ],
)
def test_what_has_no_level_to_answer_is_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="needs 4 levels"):
        NETWORK_CHOICE.by_name[settings["architecture"]].model_validate({**settings, "deep-supervision": True})


@pytest.mark.parametrize("name", NETWORKS)
def test_heads_that_fine_tuning_would_leave_as_they_are_drawn_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match="norm-and-head"):
        a_run(name, training={"trainable": "norm-and-head"})
