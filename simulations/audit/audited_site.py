"""A hospital made for the privacy audit: patients whose gradients are known, and what it releases about them.

A patient is a picture of 8 x 8 random black and white pixels under a random mask. Its gradient is then larger than the
clipping norm by orders of magnitude, and nearly at right angles to every other patient's: what one patient adds to an
update can be told from what the others add. The pictures go the whole way, PNG files, readers, cohort, crops, and the
crop is the picture: nothing in a gradient is left to chance.

The auditor sits where the coordinator sits: it chooses the weights that are sent, and sees what comes back. All is
counted in clips: an update is scaled so that one patient in one step adds at most 1 to it.
"""

import random
import secrets
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import nn

from client.site import Site
from client.train.answer import answer
from common.config import RunConfig, SiteConfig, SourceConfig, validate
from common.config.rundocument import issue
from common.errors import ErrorCode, FederationError, PrivacyError
from common.learning.checkpoint import pack, unpack
from common.learning.network import build_model, weights_of
from common.losses.terms import dice_ce
from common.privacy.charges import Charge
from common.wire.messages import TrainReply, TrainRequest
from simulations.audit.bounds import Values
from simulations.scenarios.homes import make_site

EDGE = 8
# Gradients of these patients are 1 to 5 long, 10,000 times the clip.
CLIP = 1e-4
# How far one clip moves the weights: too little to change the gradients, enough to stand out from float32's rounding.
_CLIP_IN_WEIGHTS = 1e-5

Pictures = NDArray[np.uint8]  # (slices, 2, EDGE, EDGE): image 0 or 255, mask 0 or 1


@dataclass(frozen=True, eq=False)
class Release:
    """One update as it left the site, and what the ledger says about it."""

    sum: Values  # (parameters): sum of the clipped gradients plus noise, in clips
    charge: Charge  # the row that it added to the ledger


def draw_patients(count: int, rng: np.random.Generator, slices: int = 1) -> list[Pictures]:
    """Patients of random pictures; the further slices of one differ from its first in a single pixel."""
    patients = []
    for _ in range(count):
        first = rng.integers(0, 2, (2, EDGE, EDGE), dtype=np.uint8) * np.array([255, 1], np.uint8)[:, None, None]
        pictures = np.repeat(first[None], slices, axis=0)
        for number in range(1, slices):
            pictures[number, 0].flat[number] ^= 1
        patients.append(pictures)
    return patients


def write_patients(folder: Path, patients: Sequence[Pictures]) -> None:
    """Write the patients' pictures; a patient's place in the list names its files."""
    for kind in ("images", "labels"):
        (folder / kind).mkdir(parents=True, exist_ok=True)
    for patient, pictures in enumerate(patients):
        for number, (image, mask) in enumerate(pictures):
            name = f"p{patient:05}-{number}.png"
            Image.fromarray(image).save(folder / "images" / name)
            Image.fromarray(mask * 255).save(folder / "labels" / name)


def open_audited(
    home: Path,
    name: str,
    images: Path,
    declared: int,
    only: Iterable[int] = (),
    *,
    kind: Literal["images", "nifti"] = "images",
) -> Site:
    """A site with the patients of a folder, or `only` some of them, that declares to have `declared`."""
    source = SourceConfig(
        path=str(images.absolute()),
        kind=kind,
        patient_pattern=r"p(\d+)-",
        empty_labels_are_negative=True,
        patients=tuple(f"{patient:05}" for patient in only),
    )
    config = SiteConfig(name=name, data=(source,), cohort_size=declared, threads=1, device="cpu")
    return make_site(home, config)


def audited_run(
    *,
    name: str | None = None,
    declared: int,
    epsilon: float,
    sampling_rate: float,
    steps: int,
    rounds: int = 1,
    crops: int = 1,
    channels: Sequence[int] = (16, 32),
    patch: Sequence[int] = (EDGE, EDGE),
    dropout: float = 0.0,
    delta: float | None = None,
    shipped_augmentation: bool = False,
    preset: str | None = None,
) -> RunConfig:
    """A private run that is plain to see through: SGD without momentum, decay or schedule.

    Crops are left as they are, or drawn and changed by the settings that a run has where it names none, or by a preset
    (common/config/augmentation.py). Without a name
    it gets one of its own, so that what other audits of a site have spent does not count for it.
    """
    values: dict[str, Any] = {
        "name": name or f"audit-{secrets.token_hex(4)}",
        "model": {"dims": len(patch), "channels": channels, "residual-units": 0, "dropout": dropout},
        "data": {
            "modality": "photo" if len(patch) == 2 else "CT",
            "classes": ["mark"],
            "validation-fraction": 0.0,
            "test-fraction": 0.0,
        },
        "preprocessing": {"intensity": "window", "window": [0.0, 255.0]},
        "training": {
            "patch-size": patch,
            "local-steps": steps,
            "optimizer": "sgd",
            "momentum": 0.0,
            "weight-decay": 0.0,
            "schedule": "constant",
            "learning-rate": _CLIP_IN_WEIGHTS * sampling_rate * declared / CLIP,
        },
        "federation": {"rounds": rounds},
        "privacy": {
            "target-epsilon": epsilon,
            "delta": delta,
            "sampling-rate": sampling_rate,
            "clipping-norm": CLIP,
            "crops-per-patient": crops,
        },
    }
    if preset is not None:
        values["format"] = RunConfig.LATEST
        values["training"] |= {"augmentation": {"preset": preset}}
    elif not shipped_augmentation:
        still = {"flips": False, "rotation-degrees": 0.0, "scaling": 0.0, "intensity": 0.0}
        values["training"] |= {"foreground-fraction": 0.0, "augmentation": still}
    return validate(RunConfig, values, "the audit's run")


def release(site: Site, run: RunConfig, *, round_: int, attempt: str) -> Release:
    """Let the site train for a round, always from the run's first weights, through the client's own door.

    Raises:
        PrivacyError: the update was not charged once and as a whole.
    """
    known = len(site.ledger.entries())
    start, document = weights_of(build_model(run)), issue(run)
    with _same_seeds():
        reply = answer(TrainRequest(document.hash, round_, {"weights": pack(start)}), document, site, attempt)
    if not isinstance(reply, TrainReply):
        raise FederationError(f"the audited site answered with {type(reply).__name__}, expected an update.")
    end = unpack(reply.parts["weights"])
    moved = torch.cat([(start[name].double() - end[name].double()).flatten() for name in start]).numpy()
    charges = site.ledger.entries()[known:]
    if len(charges) != 1:
        raise PrivacyError(
            f"an update left the audited site with {len(charges)} new charges in its ledger, expected 1. The "
            "accounting of this installation is broken: train nothing with it.",
            ErrorCode.INTERNAL,
        )
    return Release(moved / _CLIP_IN_WEIGHTS, charges[0])


def directions(run: RunConfig, patients: Iterable[Pictures]) -> Values:
    """(patients, parameters): each one's clipped gradient in clips, by plain autograd on the first picture.

    It shares no code with the engine under audit, and nothing with the reading of images.
    """
    model = build_model(run)
    names = {parameter: name for name, parameter in model.named_parameters()}
    if list(names.values()) != list(model.state_dict()):
        raise FederationError("the audited network has weights that are no parameters; choose one without buffers.")
    return np.stack([_direction(model, pictures[0]) for pictures in patients])


def tensor_parts(run: RunConfig, values: Values) -> list[Values]:
    """An update cut into the network's tensors."""
    ends = np.cumsum([tensor.numel() for tensor in weights_of(build_model(run)).values()])
    return np.split(values, ends[:-1])


@contextmanager
def _same_seeds() -> Iterator[None]:
    """Begin with the same state of the usual generators each time, so that noise drawn from one shows; then restore."""
    before, numpy_before = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        random.seed(0)
        np.random.seed(0)
        try:
            yield
        finally:
            random.setstate(before)
            np.random.set_state(numpy_before)


def _direction(model: nn.Module, picture: NDArray[np.uint8]) -> Values:
    image = torch.from_numpy(picture[0]).float()[None, None] / 255
    loss = dice_ce(model(image), torch.from_numpy(picture[1]).long()[None])
    gradient = torch.cat([part.double().flatten() for part in torch.autograd.grad(loss, list(model.parameters()))])
    return np.asarray((gradient / max(float(gradient.norm()), CLIP)).numpy())
