"""Weights of a MONAI bundle as a model that a run may start from: `[initial]` of run.toml.

A bundle is a folder with models/model.safetensors or models/model.pt, or such a file. Nothing of it is executed: a
pickle is read in a process apart (simulations/exchange/pickled.py), TorchScript is refused, and of its configuration
only classes of monai.networks.nets with plain arguments are built, to hold their outputs against ours.

Tensors are matched by name, without what a wrapper put before all names. A normalisation that the bundle has without
weights gets ours as they begin, 1 and 0, which change nothing. Statistics over patients (batch norm) have no place in a
network of ours and are refused.
"""

import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from common.config import RunConfig, canonical, sha256_of
from common.errors import ConfigError
from common.learning.checkpoint import Manifest, pack, save_model, sha256
from common.learning.network import build_model, weights_of
from common.system.environment import PACKAGES, for_child
from simulations.exchange.foreign_network import inputs_of, largest_of, network_of, shortened

# Largest difference of an output from the bundle's own network, as in simulations/exchange/gate.py.
MOST_OUTPUT = 1e-4
_NAMES = ("models/model.safetensors", "models/model.pt", "model.safetensors", "model.pt")
_NORMALISATIONS = (nn.InstanceNorm2d, nn.InstanceNorm3d, nn.GroupNorm, nn.LayerNorm)
_STATISTICS = ("running_mean", "running_var", "num_batches_tracked")
_LONGEST_S = 600.0
# Values that a layer of either network may put out where the two are compared: 2 GiB.
_MOST_VALUES = 2**29


@dataclass(frozen=True)
class Imported:
    """A model to start from. fresh: tensors that were drawn. neutral: that normalise and change nothing. renamed: how
    many have another name in the bundle. apart: largest difference of outputs; None: not compared, and then why.
    """

    path: Path
    sha256: str
    tensors: int
    fresh: tuple[str, ...]
    neutral: int
    renamed: int
    apart: float | None
    not_compared: str | None


def import_bundle(bundle: Path, run: RunConfig, out: Path, *, new_head: bool = False) -> Imported:
    """Write the model that a run may start from.

    Args:
        bundle: its folder, or a file of weights.
        run: whose network it shall be.
        out: receives model.safetensors and model.json.
        new_head: draw those tensors of the last block anew whose shape differs, from the run's seed.

    Raises:
        ConfigError: there are no weights, they cannot be read, do not fit, or make another network than the bundle's.
    """
    network = build_model(run).eval()
    theirs = _read(_weights_file(bundle))
    if statistics := [name for name in theirs if name.endswith(_STATISTICS)]:
        raise ConfigError(
            f"the bundle's network keeps statistics over patients ({statistics[0]}), which no network here does: its "
            "outputs would differ. Use a bundle whose network normalises by instance or group."
        )
    ours = weights_of(network)
    names = _names(ours, theirs, network)
    fresh = _differing(ours, theirs, names, _head_names(network, run), new_head=new_head)
    state = {name: tensor.clone() for name, tensor in ours.items()}
    for name, their_name in names.items():
        if name not in fresh:
            state[name] = _single(theirs[their_name], their_name)
    network.load_state_dict(state, strict=False)
    renamed = sum(name != their_name for name, their_name in names.items())
    apart, why_not = _apart(bundle, run, network, theirs, of_head=bool(fresh))
    if apart is not None and not apart <= MOST_OUTPUT:
        raise ConfigError(
            f"with these weights the run's network does not say what the bundle's own says: an output differs by "
            f"{apart:.2g}, at most {MOST_OUTPUT:g} is allowed. Set [model] as the bundle's network_def has it."
        )
    weights = pack(state)
    manifest = Manifest(canonical(run), sha256_of(run), 0, (), sha256(weights))
    save_model(out, weights, manifest)
    neutral = len(ours) - len(names)
    return Imported(out, manifest.sha256, len(ours), tuple(fresh), neutral, renamed, apart, why_not)


def _weights_file(bundle: Path) -> Path:
    path = bundle if bundle.is_file() else next((bundle / name for name in _NAMES if (bundle / name).is_file()), None)
    if path is None:
        scripted = (
            " Its models/model.ts is TorchScript, a program, and is not run here."
            * (bundle / "models" / "model.ts").exists()
        )
        raise ConfigError(f"{bundle} holds no {' or '.join(_NAMES[:2])}.{scripted} Give a MONAI bundle's folder.")
    if path.suffix not in (".safetensors", ".pt", ".pth"):
        raise ConfigError(f"{path.name} is not read: give weights as .safetensors, or a state dict as .pt.")
    return path


def _read(path: Path) -> dict[str, Tensor]:
    if path.suffix == ".safetensors":
        data = path.read_bytes()
    else:
        command = [sys.executable, "-P", "-m", "simulations.exchange.pickled", str(path.absolute())]
        environment = for_child(PYTHONPATH=str(PACKAGES))
        try:
            done = subprocess.run(  # noqa: S603 - our own interpreter and module
                command, capture_output=True, check=False, timeout=_LONGEST_S, env=environment
            )
        except subprocess.TimeoutExpired as error:
            raise ConfigError(
                f"{path.name} was not read within {_LONGEST_S:.0f} s. Give it as .safetensors."
            ) from error
        if done.returncode:
            last = (done.stderr.decode(errors="replace").strip().splitlines() or ["no reason given"])[-1]
            raise ConfigError(
                f"{path.name} is no state dict that can be read without running code ({last[:200]}). Save the weights "
                "alone, torch.save(network.state_dict(), ...), or give them as .safetensors."
            )
        data = done.stdout
    try:
        return safetensors.torch.load(data)
    except (SafetensorError, KeyError, ValueError, RuntimeError) as error:
        raise ConfigError(f"{path.name} holds no safetensors. Give the weights of a MONAI bundle.") from error


def _names(ours: Mapping[str, Tensor], theirs: Mapping[str, Tensor], network: nn.Module) -> dict[str, str]:
    """Our name -> theirs, of all tensors but normalisations that the bundle has without weights."""
    normalising = {
        f"{place}.{name}"
        for place, module in network.named_modules()
        if isinstance(module, _NORMALISATIONS)
        for name, _ in module.named_parameters(recurse=False)
    }
    known, given = shortened(ours), {short: name for name, short in shortened(theirs).items()}
    found = {name: given[short] for name, short in known.items() if short in given}
    lacking = [name for name in ours if name not in found and name not in normalising]
    beyond = [name for name in theirs if name not in found.values()]
    if not lacking and not beyond:
        return found
    raise ConfigError(
        f"the bundle's weights are of another network than the run's: {len(lacking)} tensors are lacking"
        f"{_such(lacking)}, {len(beyond)} are unknown{_such(beyond)}. Set [model] as the bundle's network_def has it."
    )


def _differing(
    ours: Mapping[str, Tensor],
    theirs: Mapping[str, Tensor],
    names: Mapping[str, str],
    head: set[str],
    *,
    new_head: bool,
) -> list[str]:
    """Our names of the tensors that have another shape: of the head alone, and only where it may be drawn anew."""
    differing = [name for name, their_name in names.items() if ours[name].shape != theirs[their_name].shape]
    for name in differing:
        sizes = f"{list(theirs[names[name]].shape)} where the run's has {list(ours[name].shape)}"
        if name not in head:
            raise ConfigError(
                f"the bundle's {name} is {sizes}. Set [model] and [data] as the bundle's network_def has it."
            )
        if not new_head:
            raise ConfigError(
                f"the bundle's last block has other outputs than the run's classes need: {name} is {sizes}. Add "
                "--new-head to draw it anew."
            )
    return differing


def _head_names(network: nn.Module, run: RunConfig) -> set[str]:
    head = {id(parameter) for parameter in run.model.head(network).parameters()}
    return {name for name, parameter in network.named_parameters() if id(parameter) in head}


def _single(tensor: Tensor, name: str) -> Tensor:
    if not tensor.is_floating_point():
        raise ConfigError(f"the bundle's {name} holds {tensor.dtype}, expected floating point numbers.")
    single = tensor.to(torch.float32)
    if not bool(single.isfinite().all()):
        raise ConfigError(f"the bundle's {name} holds numbers that are not finite. Use other weights.")
    return single


@torch.inference_mode()
def _apart(
    bundle: Path, run: RunConfig, network: nn.Module, state: Mapping[str, Tensor], *, of_head: bool
) -> tuple[float | None, str | None]:
    """The largest difference from the bundle's own network, of its outputs or of what its head is given; or why not."""
    own, why_not = network_of(bundle, state)
    if own is None:
        return None, why_not
    generator = torch.Generator().manual_seed(0)
    stride = run.model.stride
    size = (2, run.data.channels, *(stride * (2 + n) for n in range(run.model.dims)))
    if max(largest_of(one, size) for one in (network, own)) > _MOST_VALUES:
        raise ConfigError(
            f"to hold the bundle's network against the run's, on images of {' x '.join(map(str, size[2:]))} voxels, a "
            f"layer would take more than {_MOST_VALUES >> 28} GiB. Use a bundle and a [model] with fewer levels and "
            "strides of 2."
        )
    images = torch.randn(size, generator=generator)
    try:
        if not of_head:
            ours, theirs = network(images), own(images)
        else:
            place = next(name for name, module in network.named_modules() if module is run.model.head(network))
            ours, theirs = inputs_of(network, place, images), inputs_of(own, place, images)
    except (RuntimeError, AttributeError, ValueError, TypeError) as error:
        return None, f"the bundle's own network does not take the run's images ({type(error).__name__})"
    if not isinstance(theirs, Tensor) or theirs.shape != ours.shape:
        return None, "the bundle's own network puts out something else than one tensor of the same shape"
    return float((ours - theirs).abs().max() / max(1.0, float(theirs.abs().max()))), None


def _such(names: list[str]) -> str:
    return f" (such as {names[0]})" if names else ""


__all__ = ["MOST_OUTPUT", "Imported", "import_bundle"]
