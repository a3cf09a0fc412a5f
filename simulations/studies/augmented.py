"""Pictures of what augmentation makes of a crop, with its label's contour: docs/gallery.md.

    python -m simulations.studies.augmented docs/figures

draws `augmentation-NAME.jpg` for each preset and for elastic bending: the crop as it is, then six draws of it. Images
are generated, so that they may be shown: retinas for what changes places and colours, a CT slice for nnU-Net's set.
"""

import io
import sys
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image

from client.predict.overlay import panel
from common.config import TrainingConfig, validate
from common.learning.transforms import Stack, sample_crops
from common.system.files import write_atomically
from simulations.generators.anatomy import SCANNERS, draw_anatomy, scan
from simulations.generators.retina import draw_retina

_EDGE = 144  # pixels of a crop
_DRAWS = 6
_GAP = 4
_COLOUR = (0, 158, 115)  # green
_WINDOW = (-100.0, 250.0)  # HU
_QUALITY = 88
_SEED = 5
_STILL = MappingProxyType({"flips": False, "rotation-degrees": 0.0, "scaling": 0.0, "intensity": 0.0})


class Shown(NamedTuple):
    """A picture: which image, and what is done to it."""

    image: str
    changes: Mapping[str, Any]


SHOWN = MappingProxyType(
    {
        "default": Shown("retina", {}),
        "guide": Shown("retina", {"preset": "guide"}),
        "photograph": Shown("retina", {"preset": "photograph"}),
        "elastic": Shown("retina", {**_STILL, "elastic": 0.4}),
        "nnunet": Shown("ct", {"preset": "nnunet"}),
    }
)


def draw_augmentations(folder: Path) -> list[Path]:
    """Write all pictures; the same ones each time."""
    stacks = {"retina": _retina(), "ct": _ct()}
    paths = []
    for name, (image, changes) in SHOWN.items():
        path = folder / f"augmentation-{name}.jpg"
        stored = io.BytesIO()
        _strip(stacks[image], changes).save(stored, "JPEG", quality=_QUALITY)
        write_atomically(path, stored.getvalue())
        paths.append(path)
    return paths


def _strip(stack: Stack, changes: Mapping[str, Any]) -> Image.Image:
    crops = [_drawn(stack, _STILL, 1), *_drawn_each(stack, changes)]
    strip = Image.new("RGB", (len(crops) * (_EDGE + _GAP) - _GAP, _EDGE), "white")
    for number, crop in enumerate(crops):
        strip.paste(crop, (number * (_EDGE + _GAP), 0))
    return strip


def _drawn_each(stack: Stack, changes: Mapping[str, Any]) -> list[Image.Image]:
    return [_drawn(stack, changes, number) for number in range(1, 1 + _DRAWS)]


def _drawn(stack: Stack, changes: Mapping[str, Any], seed: int) -> Image.Image:
    values = {"patch-size": [_EDGE, _EDGE], "foreground-fraction": 0.0, "augmentation": dict(changes)}
    training = validate(TrainingConfig, values)
    generator = torch.Generator().manual_seed(_SEED * 100 + seed)
    (image,), (label,) = sample_crops([stack], training, generator)
    layers = [(label.numpy().astype(np.uint8), (_COLOUR,))]
    return panel(image.numpy(), layers, (0.0, 1.0), (_EDGE, _EDGE))


def _retina() -> Stack:
    """A whole eye."""
    image, label = draw_retina(np.random.default_rng([_SEED, 2]), _EDGE)
    left = (image.shape[1] - _EDGE) // 2
    picture = torch.from_numpy(image[:, left : left + _EDGE].astype(np.float32) / 255).movedim(-1, 0)
    return Stack.of(picture[None], torch.from_numpy(label[:, left : left + _EDGE].copy())[None])


def _ct() -> Stack:
    """The slice with most of a lesion."""
    rng = np.random.default_rng([_SEED, 3])
    volume, mask = scan(draw_anatomy(rng), SCANNERS["a"], rng, 24, _EDGE)
    best = int(mask.reshape(len(mask), -1).sum(1).argmax())
    low, high = _WINDOW
    shown = torch.from_numpy(((volume[best] - low) / (high - low)).clip(0, 1))
    return Stack.of(shown[None, None], torch.from_numpy(mask[best])[None])


if __name__ == "__main__":
    draw_augmentations(Path(sys.argv[1]))
