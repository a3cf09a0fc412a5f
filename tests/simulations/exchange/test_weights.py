"""A run starts from a bundle's weights, of which nothing is executed, and says what the bundle's own network says."""

import json
import pickle
import re
import resource
from pathlib import Path
from typing import Any

import pytest
import torch
from monai.networks.nets.unet import UNet
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from common.errors import ConfigError
from common.learning.checkpoint import load_model as read_model
from common.learning.network import load_model
from common.models import NETWORKS
from simulations.exchange import foreign_network
from simulations.exchange.weights import Imported, import_bundle
from tests.patience import PATIENCE_S
from tests.simulations.exchange.models import run_of

NETWORK: dict[str, Any] = {
    "_target_": "UNet",
    "spatial_dims": 2,
    "in_channels": "@channels",
    "out_channels": 3,
    "channels": [4, 8],
    "strides": [2],
    "num_res_units": 1,
    "norm": ["INSTANCE", {"affine": True}],
}


def _bundle(folder: Path, changes: dict[str, Any] | None = None, rename: str = "") -> tuple[Path, nn.Module]:
    """A bundle as MONAI's training leaves it, and its network."""
    definition = NETWORK | (changes or {})
    arguments = {key: value for key, value in definition.items() if key != "_target_"} | {"in_channels": 1}
    torch.manual_seed(7)
    network = UNet(**arguments)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape))
    (folder / "models").mkdir(parents=True)
    (folder / "configs").mkdir()
    state = {f"{rename}{name}": tensor for name, tensor in network.state_dict().items()}
    save_file(state, folder / "models" / "model.safetensors")
    (folder / "configs" / "inference.json").write_text(json.dumps({"channels": 1, "network_def": definition}))
    return folder, network.eval()


def _taken(bundle: Path, out: Path, **options: Any) -> Imported:
    return import_bundle(bundle, run_of(), out, **options)


def _outputs(folder: Path, images: Tensor) -> Tensor:
    run, state, _ = read_model(folder)
    with torch.no_grad():
        found: Tensor = load_model(run, state).eval()(images)
    return found


def test_a_run_starts_where_the_bundle_ended(tmp_path: Path) -> None:
    """As MONAI's handlers keep it: a state dict beside the epoch, pickled."""
    bundle, network = _bundle(tmp_path / "bundle")
    (bundle / "models" / "model.safetensors").unlink()
    torch.save({"model": network.state_dict(), "epoch": 3}, bundle / "models" / "model.pt")
    done = _taken(bundle, tmp_path / "start")
    assert (done.fresh, done.neutral, done.renamed, done.not_compared) == ((), 0, 0, None)
    images = torch.rand((2, 1, 12, 20), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(_outputs(tmp_path / "start", images), network(images), rtol=0, atol=1e-5)


def test_normalisations_without_weights_are_begun_as_what_changes_nothing(tmp_path: Path) -> None:
    bundle, network = _bundle(tmp_path / "bundle", {"norm": "INSTANCE"})
    done = _taken(bundle, tmp_path / "start")
    assert done.neutral > 0
    images = torch.rand((1, 1, 8, 8), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(_outputs(tmp_path / "start", images), network(images), rtol=0, atol=1e-5)


def test_another_head_is_refused_or_drawn_anew_and_named(tmp_path: Path) -> None:
    bundle, _ = _bundle(tmp_path / "bundle", {"out_channels": 7})
    with pytest.raises(ConfigError, match=r"--new-head"):
        _taken(bundle, tmp_path / "start")
    done = _taken(bundle, tmp_path / "start", new_head=True)
    assert done.fresh
    assert all(name.startswith("model.2.") for name in done.fresh)
    assert done.apart is not None
    assert done.apart < 1e-5


def test_another_network_is_refused(tmp_path: Path) -> None:
    bundle, _ = _bundle(tmp_path / "bundle", {"channels": [4, 12]})
    with pytest.raises(ConfigError, match="where the run's has"):
        _taken(bundle, tmp_path / "start", new_head=True)
    bundle, _ = _bundle(tmp_path / "deeper", {"channels": [4, 8, 16], "strides": [2, 2]})
    with pytest.raises(ConfigError, match="of another network"):
        _taken(bundle, tmp_path / "start")


def _changed(bundle: Path, name: str, tensor: Tensor | None) -> None:
    """With one tensor more, another, or one less."""
    path = bundle / "models" / "model.safetensors"
    state = {key: value.clone() for key, value in load_file(path).items()}
    state.pop(name, None)
    save_file(state if tensor is None else {**state, name: tensor}, path)


def test_a_tensor_too_many_or_too_few_is_another_network(tmp_path: Path) -> None:
    bundle, network = _bundle(tmp_path / "bundle")
    _changed(bundle, "model.9.weight", torch.zeros(3))
    with pytest.raises(ConfigError, match=r"0 tensors are lacking, 1 are unknown \(such as model\.9\.weight\)"):
        _taken(bundle, tmp_path / "start")
    _changed(bundle, "model.9.weight", None)
    convolution = next(name for name, one in network.named_parameters() if one.ndim == 4)
    _changed(bundle, convolution, None)
    with pytest.raises(ConfigError, match=r"1 tensors are lacking.*0 are unknown"):
        _taken(bundle, tmp_path / "start")


def test_weights_are_floating_point_numbers_of_any_width(tmp_path: Path) -> None:
    bundle, network = _bundle(tmp_path / "bundle")
    name, weights = next((name, one) for name, one in network.state_dict().items() if one.ndim == 4)
    _changed(bundle, name, weights.half())
    assert _taken(bundle, tmp_path / "start").not_compared is None
    assert read_model(tmp_path / "start")[1][name].dtype == torch.float32
    for wrong, why in ((weights.long(), "holds torch.int64"), (weights / 0, "not finite")):
        _changed(bundle, name, wrong)
        with pytest.raises(ConfigError, match=why):
            _taken(bundle, tmp_path / "other")


def test_a_network_that_says_another_thing_with_the_same_weights_is_refused(tmp_path: Path) -> None:
    """Leaky ReLU has no weights, PReLU has: by name all fits but for one."""
    bundle, _ = _bundle(tmp_path / "bundle", {"norm": "INSTANCE"})
    config = json.loads((bundle / "configs" / "inference.json").read_text())
    config["network_def"]["adn_ordering"] = "ADN"
    (bundle / "configs" / "inference.json").write_text(json.dumps(config))
    with pytest.raises(ConfigError, match="does not say what the bundle's own says"):
        _taken(bundle, tmp_path / "start")


def test_statistics_over_patients_are_refused(tmp_path: Path) -> None:
    bundle, _ = _bundle(tmp_path / "bundle", {"norm": "BATCH"})
    with pytest.raises(ConfigError, match="statistics over patients"):
        _taken(bundle, tmp_path / "start")


def test_what_a_wrapper_put_before_all_names_is_not_part_of_them(tmp_path: Path) -> None:
    bundle, network = _bundle(tmp_path / "bundle", rename="module.backbone.")
    done = _taken(bundle, tmp_path / "start")
    assert done.renamed == len(network.state_dict())
    assert done.apart is not None
    assert done.apart < 1e-5


class _Code:
    def __init__(self, place: str) -> None:
        self.place = place

    def __reduce__(self) -> tuple[Any, tuple[str, str]]:
        return open, (self.place, "w")


def test_a_pickle_that_is_a_program_is_not_run(tmp_path: Path) -> None:
    bundle, _ = _bundle(tmp_path / "bundle")
    (bundle / "models" / "model.safetensors").unlink()
    torch.save({"model": _Code(str(tmp_path / "ran"))}, bundle / "models" / "model.pt", pickle_module=pickle)
    with pytest.raises(ConfigError, match="without running code"):
        _taken(bundle, tmp_path / "start")
    assert not (tmp_path / "ran").exists()


def test_expressions_and_classes_of_a_bundle_are_not_evaluated(tmp_path: Path) -> None:
    bundle, _ = _bundle(tmp_path / "bundle")
    config = bundle / "configs" / "inference.json"
    for definition in (
        {"_target_": "UNet", "channels": f"$open({str(tmp_path / 'ran')!r}, 'w')"},
        {"_target_": "os.mkdir"},
    ):
        config.write_text(json.dumps({"network_def": definition}))
        done = _taken(bundle, tmp_path / "start")
        assert done.apart is None
        assert done.not_compared
    assert not (tmp_path / "ran").exists()


def test_only_networks_that_a_run_can_have_are_built_and_none_that_fetches_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """MONAI's DenseNet121 fetches weights from the network, where an argument says so."""
    asked: list[str] = []

    def fetch(url: str, **_: Any) -> dict[str, Tensor]:
        asked.append(url)
        return {}

    monkeypatch.setattr("monai.networks.nets.densenet.load_state_dict_from_url", fetch)
    bundle, _ = _bundle(tmp_path / "bundle")
    fetching = {"_target_": "DenseNet121", "spatial_dims": 2, "in_channels": 3, "out_channels": 3, "pretrained": True}
    (bundle / "configs" / "inference.json").write_text(json.dumps({"network_def": fetching}))
    assert _taken(bundle, tmp_path / "start").not_compared
    assert asked == []


def test_every_kind_of_network_that_is_built_from_monai_may_be_compared() -> None:
    told = [network.model_validate({}).described(1, 2) for network in NETWORKS]
    named = set(re.findall(r"monai\.networks\.nets\.(\w+)", json.dumps(told)))
    assert named == set(foreign_network._KINDS)


@pytest.mark.timeout(PATIENCE_S)
@pytest.mark.parametrize(
    "definition",
    [
        {"_target_": "UNet", "channels": "@a0"},
        {"_target_": "@list::7"},
        {"_target_": "@list::" + "9" * 5000},
        NETWORK | {"num_res_units": 10**9},
        NETWORK | {"channels": [4000, 4000], "strides": [1], "spatial_dims": 3},
    ],
    ids=["references that multiply", "beyond a list", "a long number", "a thousand million layers", "1.7 TB"],
)
def test_a_configuration_that_would_fill_memory_or_never_end_is_not_followed(
    tmp_path: Path, definition: dict[str, Any]
) -> None:
    bundle, _ = _bundle(tmp_path / "bundle")
    multiplying = {f"a{depth}": [f"@a{depth + 1}"] * 10 for depth in range(30)} | {"a30": 1}
    config = {"network_def": definition, "list": [1], "channels": 1, **multiplying}
    (bundle / "configs" / "inference.json").write_text(json.dumps(config))
    done = _taken(bundle, tmp_path / "start")
    assert done.apart is None
    assert done.not_compared


def test_strides_that_would_fill_memory_are_refused_before_any_of_it_is_taken(tmp_path: Path) -> None:
    """By hand: of 1 x 1 x 2 voxels such strides make 2 x 3 x 3000 x 2600 x 14 values, 2.6 GB."""
    bundle, _ = _bundle(tmp_path / "bundle", {"spatial_dims": 3})
    config = {"channels": 1, "network_def": NETWORK | {"spatial_dims": 3, "strides": [[3000, 2600, 7]]}}
    (bundle / "configs" / "inference.json").write_text(json.dumps(config))
    run = run_of(
        model={"dims": 3}, training={"patch-size": [4, 4, 4]}, preprocessing={"intensity": "window", "window": [0, 1]}
    )
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(ConfigError, match="more than 2 GiB"):
        import_bundle(bundle, run, tmp_path / "start")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 2**20  # KiB


@pytest.mark.parametrize("size", [(2, 1, 4, 6), (1, 1, 8, 8)])
def test_the_largest_layer_is_what_a_real_pass_puts_out(tmp_path: Path, size: tuple[int, ...]) -> None:
    _, network = _bundle(tmp_path / "bundle")
    found: list[int] = []
    for module in network.modules():
        module.register_forward_hook(lambda _module, _inputs, output: found.append(output.numel()))
    largest = foreign_network.largest_of(network, size)
    found.clear()
    network(torch.zeros(size))
    assert largest == max(found) > 0


def test_a_program_in_place_of_weights_is_named(tmp_path: Path) -> None:
    (tmp_path / "bundle" / "models").mkdir(parents=True)
    (tmp_path / "bundle" / "models" / "model.ts").touch()
    with pytest.raises(ConfigError, match="TorchScript"):
        _taken(tmp_path / "bundle", tmp_path / "start")
