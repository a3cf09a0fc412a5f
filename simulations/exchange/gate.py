"""Does a bundle say what we say? It is run without us on images made up for it, and its answers are held against ours.

Two images, one that goes through the network at once and one that goes in windows; as NIfTI, turned and with a spacing
of its own, or as a picture. Three things are compared: the image as prepared, the network's outputs for that image, and
the labels on the image's own grid. Ours are computed in float32, as the bundle's are.
"""

import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
import safetensors.torch
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from client.data.prepare.preprocess import as_samples, preprocess, restore
from client.data.read import images, nifti
from client.data.study.study import Reference, Study
from common.config import RunConfig
from common.errors import ConfigError
from common.learning.inference import outputs
from common.system.environment import for_child
from simulations.exchange import outside
from simulations.exchange.inference import by_slices, of_volumes, prepares_alike

# Largest difference of an output, as a share of the largest output, or of 1 where that is smaller; of a prepared value,
# as intensities are of the order of 1; and of voxels whose label differs, since near a tie rounding decides.
MOST_OUTPUT, MOST_PREPARED, MOST_LABELS = 1e-4, 1e-4, 1e-3
_LONGEST_S = 1800.0
# Sizes of the images along the first axis: one goes through the network at once, one in windows.
_PATCHES = (0.7, 2.6)


@dataclass(frozen=True)
class Agreement:
    """The largest differences over the images; None: not compared, because steps are left out."""

    outputs: float
    prepared: float | None
    labels: float | None  # share of voxels


def compare(bundle: Path, run: RunConfig, network: nn.Module, weights: bytes | None = None) -> Agreement:
    """Run a bundle without us, and the model with us.

    Args:
        bundle: its folder.
        run: of the model.
        network: the model, on the CPU.
        weights: what its models/model.pt shall hold, where they may not lie on a disk; None: it is there.

    Raises:
        ConfigError: MONAI cannot run it, or says something else than we do.
    """
    with tempfile.TemporaryDirectory() as folder:
        paths = [
            _write_image(Path(folder) / str(number), run, patches, np.random.default_rng(number))
            for number, patches in enumerate(_PATCHES)
        ]
        theirs = _outside(bundle, paths, weights)
        found = [_compared(one, _study(path, run), run, network) for one, path in zip(theirs, paths, strict=True)]
    whole = Agreement(
        float(np.max([one.outputs for one in found])),
        _largest([one.prepared for one in found]),
        _largest([one.labels for one in found]),
    )
    for what, value, most in (
        ("an output of the network", whole.outputs, MOST_OUTPUT),
        ("a value of the prepared image", whole.prepared, MOST_PREPARED),
        ("the share of labels", whole.labels, MOST_LABELS),
    ):
        if value is not None and not value <= most:
            raise ConfigError(
                f"the bundle does not say what the model says: {what} differs by {value:.2g}, at most {most:g} is "
                "allowed. Nothing was written. Report this with the run's run.toml."
            )
    return whole


def _compared(theirs: dict[str, Tensor], study: Study, run: RunConfig, network: nn.Module) -> Agreement:
    exact = run.model_copy(update={"deterministic": True})  # float32
    # Their padded image, by our windows: padded to what the network takes, it is padded no further.
    ours = outputs(network, as_samples(theirs["image"], run.model.dims), exact, "cpu")
    their_outputs = as_samples(theirs["outputs"], run.model.dims)
    apart = float((ours - their_outputs).abs().max() / max(1.0, float(ours.abs().max())))
    if not prepares_alike(run):
        return Agreement(apart, None, None)
    image, _, way = preprocess(study, run)
    unpadded = _cropped(theirs["image"], image.shape[1:])
    samples = as_samples(image, run.model.dims)
    answers = run.task.answer(outputs(network, samples, exact, "cpu"))
    labels = restore(answers.reshape(image.shape[1:]).to(torch.uint8), way)
    saved = theirs["labels"][0].numpy().transpose()  # MONAI's axes reversed
    return Agreement(apart, float((unpadded - image).abs().max()), float((saved != labels).mean()))


def _outside(bundle: Path, paths: Sequence[Path], weights: bytes | None) -> list[dict[str, Tensor]]:
    command = [sys.executable, "-I", "-B", outside.__file__, str(bundle.absolute()), *map(str, paths)]
    try:
        done = subprocess.run(  # noqa: S603 - our own interpreter and file
            command, input=weights or b"", capture_output=True, check=False, timeout=_LONGEST_S, env=for_child()
        )
    except subprocess.TimeoutExpired as error:
        raise ConfigError(f"MONAI did not run the bundle within {_LONGEST_S:.0f} s. Nothing was written.") from error
    if done.returncode:
        last = (done.stderr.decode(errors="replace").strip().splitlines() or ["no reason given"])[-1]
        raise ConfigError(f"MONAI alone cannot run the bundle: {last}. Nothing was written.")
    return [safetensors.torch.load(Path(f"{path}.safetensors").read_bytes()) for path in paths]


def _write_image(folder: Path, run: RunConfig, patches: float, rng: np.random.Generator) -> Path:
    """An image of about so many patches, once prepared, and of odd size."""
    folder.mkdir()
    shape = [max(3, edge - 3) for edge in run.training.patch_size]
    shape[0] = max(3, round(patches * run.training.patch_size[0]) | 1)
    low, high = run.preprocessing.window or (0.0, 1000.0)
    if not of_volumes(run):
        if run.preprocessing.rows is not None:
            shape = [round(edge * 1.3) for edge in (run.preprocessing.rows, run.preprocessing.rows * patches)]
        pixels = 255 * _texture([*shape, run.data.channels][: 2 + (run.data.channels > 1)], rng)
        Image.fromarray(pixels.astype(np.uint8)).save(path := folder / "image.png")
        return path
    # Finer than the run's grid by other factors along each axis, so that all of resampling is used.
    wanted = run.preprocessing.spacing_mm or (1.0,) * run.model.dims
    spacing = [mm * factor for mm, factor in zip(wanted, (1.2, 0.7, 0.8), strict=False)]
    if run.preprocessing.spacing_mm is not None:
        shape = [max(3, round(edge * mm / own)) for edge, mm, own in zip(shape, wanted, spacing, strict=True)]
    if by_slices(run):
        shape, spacing = [5, *shape], [3.0, *spacing]
    voxels = low + (high - low) * (1.5 * _texture(shape, rng) - 0.25)
    x, y, z = reversed(spacing)
    affine = np.array([[-x, 0, 0, 40.0], [0, y, 0, -30.0], [0, 0, -z, 20.0], [0, 0, 0, 1.0]])
    file = nib.Nifti1Image(voxels.astype(np.float32).transpose(), affine)  # type: ignore[no-untyped-call]  # nibabel's
    nib.save(file, path := folder / "image.nii.gz")
    return path


def _texture(shape: Sequence[int], rng: np.random.Generator) -> NDArray[np.float64]:
    """Waves and noise, from 0 to 1."""
    waves = sum(
        np.sin(rng.uniform(0.1, 0.6) * np.arange(edge)).reshape(_along(axis, len(shape)))
        for axis, edge in enumerate(shape)
    )
    values: NDArray[np.float64] = np.asarray(waves) + rng.normal(0, 0.5, tuple(shape))
    values -= values.min()
    values /= values.max()
    return values


def _along(axis: int, axes: int) -> list[int]:
    return [-1 if one == axis else 1 for one in range(axes)]


def _study(path: Path, run: RunConfig) -> Study:
    if of_volumes(run):
        return nifti.read(Reference("nifti", "", path.name, (path,)), None)
    return images.read(Reference("images", "", path.name, (path,)), None)


def _cropped(padded: Tensor, size: Sequence[int]) -> Tensor:
    for axis, edge in enumerate(size, start=1):
        padded = padded.narrow(axis, (padded.shape[axis] - edge) // 2, edge)
    return padded


def _largest(values: Sequence[float | None]) -> float | None:
    """NaN where one is, as Python's would not be."""
    known = [value for value in values if value is not None]
    return float(np.max(known)) if known else None


__all__ = ["MOST_LABELS", "MOST_OUTPUT", "MOST_PREPARED", "Agreement", "compare"]
