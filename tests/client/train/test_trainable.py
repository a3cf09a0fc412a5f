"""With trainable = "norm-and-head" a round changes normalisations, activations and the head, and nothing else."""

import copy
import re
from typing import Any

import pytest
import torch
from torch import nn

from client.data.cohort import Cohort
from client.train.training import train_round
from common.config import RunConfig, validate
from common.config.rundocument import issue
from common.errors import ConfigError
from common.learning.checkpoint import pack, unpack
from common.learning.network import build_model
from tests.client.train.test_training import PRIVACY, make_case, make_cohort, make_run

PRIVATE = {**PRIVACY, "target_epsilon": 50.0}
PLACES: dict[str, dict[str, Any]] = {"plain": {}, "private": {"privacy": PRIVATE}}


def a_run(norm: str = "instance", dims: int = 2, trainable: str = "norm-and-head", **changes: Any) -> RunConfig:
    patch = (32, 32) if dims == 2 else (16, 16, 16)
    training = {"trainable": trainable, "patch_size": patch, "learning_rate": 1e-2}
    return make_run(training, model={"dims": dims, "channels": (4, 8, 16), "norm": norm}, **changes)


def a_cohort(dims: int) -> Cohort:
    if dims == 2:
        return make_cohort(make_case("a"), make_case("b"), make_case("c"))
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(1, 1, 20, 20, 20, generator=generator)
    case = make_case("a")
    return make_cohort(type(case)("a", "0", "train", images, (images[:, 0] > 0.7).to(torch.uint8)))


def trained(run: RunConfig, cohort: Cohort) -> tuple[nn.Module, dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """The network as it was, and the tensors sent to the site and sent back."""
    model = build_model(run)
    as_built, before = copy.deepcopy(model), unpack(pack(model.state_dict()))
    train_round(model, cohort, issue(run), round_=1, site="north", device="cpu")
    return as_built, before, unpack(pack(model.state_dict()))


def chosen(model: nn.Module) -> set[str]:
    """What may change, told by hand: all that is no convolution, and of the last layer everything."""
    found = set()
    for name, module in model.named_modules():
        own = {f"{name}.{key}" for key, _ in module.named_parameters(recurse=False)}
        # MONAI numbers a U-Net's outer layers 0 (down), 1 (what lies below) and 2 (up, which ends in the classes).
        if not re.search("conv", type(module).__name__, re.IGNORECASE) or name.startswith("model.2."):
            found |= own
    return found


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("norm", ["instance", "group"])
@pytest.mark.parametrize("place", PLACES)
def test_only_normalisation_activation_and_head_change(place: str, norm: str, dims: int) -> None:
    run = a_run(norm, dims, **PLACES[place])
    model, before, after = trained(run, a_cohort(dims))
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    allowed = chosen(model)
    assert changed <= allowed
    # Privately every weight gets noise, so all that may change does; plainly nearly all.
    assert len(changed) > 0.8 * len(allowed)
    assert any(before[name].ndim > 2 for name in changed), "the head is a convolution"
    assert 0 < len(allowed) < len(before)


@pytest.mark.parametrize("place", PLACES)
def test_all_weights_change_otherwise(place: str) -> None:
    _, before, after = trained(a_run(trainable="all", **PLACES[place]), a_cohort(2))
    frozen = {name for name in before if torch.equal(before[name], after[name])}
    assert not [name for name in frozen if before[name].ndim > 1]


def test_few_of_the_weights_are_trained() -> None:
    model = build_model(a_run())
    allowed = chosen(model)
    sizes = {name: parameter.numel() for name, parameter in model.named_parameters()}
    assert sum(sizes[name] for name in allowed) < 0.35 * sum(sizes.values())


def test_an_update_names_every_tensor_also_those_that_did_not_change() -> None:
    run = a_run()
    _, before, after = trained(run, a_cohort(2))
    assert list(after) == list(before) == sorted(build_model(run).state_dict())


def test_plain_round_repeats_bit_for_bit_when_part_is_frozen() -> None:
    first, second = (pack(trained(a_run(), a_cohort(2))[2]) for _ in range(2))
    assert first == second


def test_weight_decay_leaves_frozen_weights_alone() -> None:
    run = a_run()
    heavy = run.model_copy(update={"training": run.training.model_copy(update={"weight_decay": 0.5})})
    model, before, after = trained(heavy, a_cohort(2))
    assert {name for name in before if not torch.equal(before[name], after[name])} <= chosen(model)


def test_unknown_part_is_refused() -> None:
    values = a_run().model_dump(by_alias=True)
    values["training"]["trainable"] = "head"
    with pytest.raises(ConfigError, match="norm-and-head"):
        validate(RunConfig, values, "run.toml")
