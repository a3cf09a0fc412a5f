"""Does one patient move the others? Sensitivity without the noise, and guesses at who was there through it.

Clipping bounds what a patient adds. It does not bound what a patient changes for others: a crop, a flip or a dropout
mask that is drawn after somebody else's, a mean over everybody. So here crops are smaller than the images, are rotated,
zoomed, flipped and changed in brightness as a run does by default, and one patient's absence is measured wherever the
patient stands: first, in the middle, last.

    apart      each step's sum of clipped gradients with everybody, and without one patient, under one site key, with
               the noise taken out: the distance must be at most one clip
    attack     whole rounds through the client's door, ledger and noise included, at the epsilon that is claimed; an
               auditor who knows both sums guesses from the update whether the first patient was there. Who knows more
               can be told nothing more, so the bound on epsilon is about the mechanism and not about cleverness

What is measured stands where the engine asks for its noise (`common.privacy.engine.noised`): all that a step will
release passes there.
"""

import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal
from unittest.mock import patch

import nibabel
import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from client.home.sitekey import KEY_NAME
from client.site import Site
from common.config import RunConfig
from common.privacy import engine
from common.privacy.accountant import epsilon
from simulations.audit.audited_site import audited_run, open_audited, release
from simulations.audit.bounds import Values

# Rounding in single precision is below a tenth of it; see common/privacy/noise.py, which pays for 2^-12.
TOLERANCE = 2.0**-12

_PATIENTS = 9
_PLACES = {"first": 0, "middle": _PATIENTS // 2, "last": _PATIENTS - 1}
_STEPS = 2
_IMAGE, _PATCH = {2: (40, 36), 3: (20, 24, 18)}, {2: (16, 16), 3: (8, 8, 8)}
# Two voxels deep at the network's lowest level, where other kernels run.
_FLAT_PATCH = (4, 8, 8)
_ATTACKED = 40  # patients: the more of them move with the first one, the better it is seen
_EPSILON, _DELTA = 1.0, 1e-4  # of a trial; a larger delta would excuse good guesses

Study = tuple[NDArray[np.uint8], NDArray[np.uint8]]  # image 0..255 and mask 0 or 1, both (*spatial)


@dataclass(frozen=True)
class Setting:
    """What a run has beside the shipped defaults."""

    dims: int
    crops: int  # of a patient in a step
    dropout: float = 0.0
    flat: bool = False  # volumes of few slices
    preset: str | None = None  # of how crops are changed; None: the shipped defaults

    @property
    def name(self) -> str:
        """For people."""
        crops = "1 crop" if self.crops == 1 else f"{self.crops} crops"
        more = f"{', dropout' if self.dropout else ''}{', flat' if self.flat else ''}"
        return f"{self.dims}D, {crops}{more}{'' if self.preset is None else f', {self.preset}'}"

    @property
    def patch(self) -> tuple[int, ...]:
        """Size of a crop."""
        return _FLAT_PATCH if self.flat else _PATCH[self.dims]


SETTINGS = (
    *(Setting(dims, crops, dropout) for dims in (2, 3) for crops, dropout in ((1, 0.0), (4, 0.0), (4, 0.2))),
    Setting(3, 4, flat=True),
    Setting(2, 4, preset="guide"),
    Setting(3, 4, preset="nnunet"),
)


@dataclass(frozen=True)
class Moved:
    """How far one patient's absence moves a step's sum at most, in clips, by where the patient stands."""

    setting: Setting
    by_place: dict[str, float]

    @property
    def most(self) -> float:
        """Of all places."""
        return max(self.by_place.values())


@dataclass(frozen=True)
class Guesses:
    """What the attack brought."""

    trials: int
    guesses: int
    correct: int
    epsilon: float  # of one trial, from what the ledger was charged
    delta: float
    moved: float  # in clips: mean distance of the two sums


def sensitivity(folder: Path, rng: np.random.Generator, settings: Sequence[Setting] = SETTINGS) -> Iterator[Moved]:
    """Measure every setting; `folder` is empty and receives the sites."""
    for dims in sorted({setting.dims for setting in settings}):
        sites = _sites(folder / f"{dims}d", _studies(dims, _PATIENTS, rng), _PLACES)
        for setting in settings:
            if setting.dims == dims:
                yield _moved(setting, sites)


def attack(folder: Path, rng: np.random.Generator, trials: int) -> Guesses:
    """Guess in so many runs whether the first patient was there; nothing is said of the half that is least sure.

    Args:
        folder: empty; receives the sites.
        rng: images, and the coin that is guessed.
        trials: runs of one round.
    """
    sites = _sites(folder, _studies(2, _ATTACKED, rng), {"first": 0})
    there = rng.random(trials) < 0.5
    scores, distances, charge = np.empty(trials), np.empty(trials), None
    for trial in range(trials):
        run = _attacked_run(trial)
        sums, updates = {}, {}
        for name, site in sites.items():
            with _recorded(noise=True) as seen:
                made = release(site, run, round_=1, attempt="once")
            sums[name], updates[name], charge = seen[0] / run_clip(run), made.sum, made.charge
        apart = sums["everybody"] - sums["first"]
        shown = updates["everybody" if there[trial] else "first"]
        distances[trial] = np.linalg.norm(apart)
        scores[trial] = (shown - (sums["everybody"] + sums["first"]) / 2) @ apart / max(distances[trial], 1e-12)
    assert charge is not None  # noqa: S101 - for the type checker: there is at least one trial
    order = np.argsort(scores)
    each = trials // 4
    correct = int((~there[order[:each]]).sum() + there[order[-each:]].sum())
    claimed = epsilon([(charge.noise_multiplier, charge.sampling_rate, charge.steps)], charge.delta)
    return Guesses(trials, 2 * each, correct, claimed, charge.delta, float(distances.mean()))


def run_clip(run: RunConfig) -> float:
    """The clipping norm of a private run."""
    assert run.privacy is not None  # noqa: S101 - for the type checker
    return run.privacy.clipping_norm


def _moved(setting: Setting, sites: dict[str, Site]) -> Moved:
    run = audited_run(
        declared=_PATIENTS,
        epsilon=1e4,
        sampling_rate=1.0,
        steps=_STEPS,
        crops=setting.crops,
        patch=setting.patch,
        dropout=setting.dropout,
        shipped_augmentation=True,
        preset=setting.preset,
    )
    sums = {}
    for name, site in sites.items():
        with _recorded(noise=False) as seen:
            release(site, run, round_=1, attempt=setting.name)
        sums[name] = np.stack(seen) / run_clip(run)
    everybody = sums.pop("everybody")
    return Moved(setting, {place: float(np.linalg.norm(everybody - few, axis=1).max()) for place, few in sums.items()})


def _attacked_run(trial: int) -> RunConfig:
    """One crop, one round of one step, everybody in it; each trial is a run of its own, with crops of its own."""
    return audited_run(
        name=f"attack-{trial}",
        declared=_ATTACKED,
        epsilon=_EPSILON,
        delta=_DELTA,
        sampling_rate=1.0,
        steps=1,
        patch=_PATCH[2],
        shipped_augmentation=True,
    )


@contextmanager
def _recorded(*, noise: bool) -> Iterator[list[Values]]:
    """What each step is about to release; without noise it releases zeros, so that all steps begin at one model."""
    seen: list[Values] = []
    real = engine.__dict__["noised"]

    def record(sums: Sequence[Tensor], **settings: float) -> list[Tensor]:
        seen.append(torch.cat([one.double().flatten() for one in sums]).numpy())
        noisy: list[Tensor] = real(sums, **settings) if noise else [torch.zeros_like(one) for one in sums]
        return noisy

    with patch.object(engine, "noised", record):
        yield seen


def _sites(folder: Path, studies: Sequence[Study], absent: dict[str, int]) -> dict[str, Site]:
    """One hospital with everybody, and for each place one without the patient there; all under the same key."""
    _write(folder / "data", studies)
    kind: Literal["images", "nifti"] = "images" if studies[0][0].ndim == 2 else "nifti"
    everybody = open_audited(folder, "everybody", folder / "data", len(studies), kind=kind)
    sites = {"everybody": everybody}
    for name, left_out in absent.items():
        (folder / name).mkdir()
        shutil.copy2(everybody.home / KEY_NAME, folder / name / KEY_NAME)
        others = [index for index in range(len(studies)) if index != left_out]
        sites[name] = open_audited(folder, name, folder / "data", len(studies), others, kind=kind)
    return sites


def _studies(dims: int, count: int, rng: np.random.Generator) -> list[Study]:
    """Noise under a random mask in coarse blocks: another crop has another gradient."""
    studies = []
    for _ in range(count):
        image = rng.integers(0, 256, _IMAGE[dims], dtype=np.uint8)
        blocks = rng.integers(0, 2, [-(-edge // 4) for edge in _IMAGE[dims]], dtype=np.uint8)
        mask = np.kron(blocks, np.ones((4,) * dims, np.uint8))[tuple(slice(edge) for edge in _IMAGE[dims])]
        studies.append((image, mask))
    return studies


def _write(folder: Path, studies: Sequence[Study]) -> None:
    for kind in ("images", "labels"):
        (folder / kind).mkdir(parents=True)
    for patient, (image, mask) in enumerate(studies):
        for kind, array in (("images", image), ("labels", mask)):
            if array.ndim == 2:
                values = array * 255 if kind == "labels" else array
                Image.fromarray(values).save(folder / kind / f"p{patient:05}-0.png")
            else:
                volume = nibabel.Nifti1Image(array, np.eye(4))  # type: ignore[no-untyped-call]  # nibabel leaves it
                nibabel.save(volume, folder / kind / f"p{patient:05}-0.nii.gz")


__all__ = ["SETTINGS", "TOLERANCE", "Guesses", "Moved", "Setting", "attack", "sensitivity"]
