"""The networks: shapes, reproducible weights, no batch statistics, finite gradients."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import nn

from common.config import RunConfig
from common.errors import ConfigError, UpdateError
from common.learning.network import build_model, load_model, tensor_shapes, weights_of
from common.models import NETWORKS, Network


def make_run(dims: int = 2, patch: tuple[int, ...] = (16, 16), seed: int = 0, **model: Any) -> RunConfig:
    return RunConfig.model_validate(
        {
            "name": "test",
            "model": {"dims": dims, "channels": (4, 8, 16), **model},
            "data": {"modality": "CT", "channels": 1, "classes": ("liver", "lesion")},
            "training": {"patch_size": patch},
            "federation": {"rounds": 1},
            "seed": seed,
        }
    )


@pytest.mark.parametrize("norm", ["instance", "group"])
@pytest.mark.parametrize(("dims", "spatial"), [(2, (20, 12)), (3, (8, 12, 4))])
def test_logits_have_one_channel_per_class_and_the_size_of_the_image(
    norm: str, dims: int, spatial: tuple[int, ...]
) -> None:
    model = build_model(make_run(dims, (8,) * dims, norm=norm))
    assert model(torch.zeros(3, 1, *spatial)).shape == (3, 3, *spatial)


def test_same_seed_gives_the_same_weights_and_another_seed_others() -> None:
    first, same, other = (build_model(make_run(seed=seed)).state_dict() for seed in (1, 1, 2))
    assert all(torch.equal(first[name], same[name]) for name in first)
    assert any(not torch.equal(first[name], other[name]) for name in first)


def test_building_leaves_the_global_random_state_alone() -> None:
    before = torch.random.get_rng_state()
    build_model(make_run(seed=7))
    assert torch.equal(before, torch.random.get_rng_state())


def test_names_and_shapes_are_those_of_the_built_model() -> None:
    run = make_run()
    assert tensor_shapes(run) == {name: tuple(one.shape) for name, one in build_model(run).state_dict().items()}


@pytest.mark.parametrize("norm", ["instance", "group"])
@pytest.mark.parametrize("residual_units", [0, 1, 2])
def test_one_sample_does_not_change_the_output_of_another(norm: str, residual_units: int) -> None:
    model = build_model(make_run(norm=norm, residual_units=residual_units)).train()
    batch = torch.rand(2, 1, 16, 16, generator=torch.Generator().manual_seed(0))
    other = batch.clone()
    other[1] = 5.0
    torch.testing.assert_close(model(batch)[0], model(other)[0])
    assert not list(model.buffers())


def test_every_weight_receives_a_gradient() -> None:
    model = build_model(make_run())
    model(torch.rand(2, 1, 16, 16)).square().mean().backward()
    assert all(weights.grad is not None and weights.grad.isfinite().all() for weights in model.parameters())


@pytest.mark.parametrize("slope", [-0.5, 0.0, 0.25, 0.8, 1.0, 1.7])
def test_activation_and_its_gradients_are_those_of_torch_prelu(slope: float) -> None:
    ours = next(module for module in build_model(make_run()).modules() if isinstance(module, nn.PReLU))
    assert type(ours) is not nn.PReLU
    theirs = nn.PReLU()
    results = []
    for module in (ours, theirs):
        nn.init.constant_(module.weight, slope)
        values = torch.linspace(
            -3, 3, 50, dtype=torch.float64
        ).requires_grad_()  # 50 points miss 0, where it has a kink
        module.double()(values).square().sum().backward()
        results.append((module(values), values.grad, module.weight.grad))
    for mine, reference in zip(*results, strict=True):
        torch.testing.assert_close(mine, reference)


def test_crops_that_shrink_to_one_voxel_are_refused_with_instance_norm() -> None:
    with pytest.raises(ConfigError, match="patch-size"):
        build_model(make_run(patch=(4, 4)))
    assert build_model(make_run(patch=(4, 4), norm="group"))(torch.zeros(1, 1, 4, 4)).shape == (1, 3, 4, 4)


@pytest.mark.parametrize(("norm", "kind"), [("instance", nn.InstanceNorm2d), ("group", nn.GroupNorm)])
def test_normalisation_is_the_one_asked_for_with_weights_of_its_own(norm: str, kind: type[nn.Module]) -> None:
    found = [module for module in build_model(make_run(norm=norm)).modules() if "Norm" in type(module).__name__]
    assert found
    # Or our faster one, which derives from it and from no other.
    assert all(kind in (type(module), *type(module).__bases__) for module in found)
    assert all(len(list(module.parameters())) == 2 for module in found)


def test_network_with_given_weights_is_the_one_that_was_built_and_loaded_to_the_bit() -> None:
    run = make_run()
    state = {name: torch.randn_like(one) for name, one in build_model(run).state_dict().items()}
    before = torch.random.get_rng_state()
    loaded, built = load_model(run, state), build_model(run)
    assert torch.equal(torch.random.get_rng_state(), before)
    built.load_state_dict(state)
    assert [(name, one.requires_grad) for name, one in loaded.named_parameters()] == [
        (name, one.requires_grad) for name, one in built.named_parameters()
    ]
    image = torch.randn(2, run.data.channels, *run.training.patch_size)
    assert torch.equal(loaded(image), built(image))
    assert all(one.device.type == "cpu" for one in (*loaded.parameters(), *loaded.buffers()))


@pytest.mark.parametrize("change", ["missing", "more", "shape", "type"])
def test_weights_of_another_network_are_not_loaded(change: str) -> None:
    run = make_run()
    state = build_model(run).state_dict()
    name = next(iter(state))
    match change:
        case "missing":
            del state[name]
        case "more":
            state["more"] = torch.zeros(1)
        case "shape":
            state[name] = state[name][:1]
        case "type":
            state[name] = state[name].double()
    with pytest.raises(UpdateError, match="do not fit"):
        load_model(run, state)


@pytest.mark.parametrize("kind", NETWORKS, ids=lambda kind: str(kind.model_fields["architecture"].default))
def test_each_loaded_network_is_its_own(kind: type[Network]) -> None:
    """As one that was built and given the weights: by layers, answers and gradients; and no other's, nor a pattern."""
    run = RunConfig.model_validate(
        {
            "format": 2,
            "name": "test",
            "model": {"architecture": kind.model_fields["architecture"].default},
            "data": {"modality": "CT", "classes": ("liver",)},
            "task": {"kind": "segmentation" if kind.DENSE else "classification"},
            "training": {"patch_size": (64, 64)},
            "federation": {"rounds": 1},
        }
    )
    built = build_model(run)
    state = {name: tensor.clone() for name, tensor in weights_of(built).items()}
    first, second = load_model(run, state), load_model(run, state)
    assert str(first) == str(built)
    assert [type(one) for one in first.modules()] == [type(one) for one in built.modules()]
    for part in (nn.Module.modules, nn.Module.parameters, _containers):
        assert not {id(one) for one in part(first)} & {id(one) for one in part(second)}
    _refers_to_its_own(first)
    image = torch.rand(2, 1, 64, 64, generator=torch.Generator().manual_seed(1))
    for network in (built, first, second):
        torch.manual_seed(0)
        network(image).square().mean().backward()
    for one, other in zip(built.parameters(), first.parameters(), strict=True):
        assert (one.stride(), one.requires_grad, other.device.type) == (other.stride(), other.requires_grad, "cpu")
        assert one.grad is not None
        assert other.grad is not None
        assert torch.equal(one.grad, other.grad)
    with torch.no_grad():
        for one in first.parameters():
            one.add_(1)
    first.requires_grad_(False)
    first.register_forward_hook(lambda *_: torch.zeros(1))
    for network in (second, load_model(run, state)):
        assert all(torch.equal(one, state[name]) for name, one in weights_of(network).items())
        assert all(one.requires_grad for one in network.parameters())
        assert network.eval()(image).shape[0] == 2
    assert all(torch.equal(one, state[name]) for name, one in weights_of(built).items())


def _containers(network: nn.Module) -> Iterator[object]:
    """In which a module keeps its hooks, its parts and whatever else; what is changed of one must be no other's."""
    for module in network.modules():
        yield from (value for value in vars(module).values() if isinstance(value, dict | list | set))


def _refers_to_its_own(network: nn.Module) -> None:
    """A module that another keeps in a list of its own, where torch does not look, is one of the network's too."""
    own = {id(one) for one in network.modules()}
    for value in _containers(network):
        if isinstance(value, list):
            assert all(id(one) in own for one in value if isinstance(one, nn.Module))
