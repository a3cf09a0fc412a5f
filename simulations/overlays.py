"""Pictures of test cases with the label's contour and the model's, for the report of a simulation.

Only simulations draw them: the images are the researcher's own. A deployed coordinator never sees a pixel.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional

from client.data.cohort import Case
from client.site import Site
from common.checkpoint import load_model
from common.config import RunConfig
from common.inference import predict_stack
from common.network import build_model

LABEL_COLOUR = (0, 158, 115)  # green
MODEL_COLOUR = (213, 60, 40)  # red
EDGE = 360  # pixels of a picture's shorter edge


def draw_overlays(out: Path, sites: Sequence[Site], *, per_site: int = 2) -> list[Path]:
    """Draw the first test cases of each site with the run's final model.

    Args:
        out: a finished run's folder; receives overlays/<site> <n>.png, and with several classes one of each class that
            the case has: <site> <n> <class>.png.
        sites: the simulated hospitals.
        per_site: cases of each.
    """
    run, state, _ = load_model(out)
    model = build_model(run)
    model.load_state_dict(state)
    folder = out / "overlays"
    folder.mkdir(exist_ok=True)
    paths = []
    for site in sites:
        cohort = site.cohort(run)
        for number, patient in enumerate(cohort.patients("test")[:per_site], start=1):
            case = cohort.cases_of(patient)[0]
            for index, name in enumerate(run.data.classes, start=1):
                several = len(run.data.classes) > 1
                if several and not (case.labels == index).any():
                    continue
                path = folder / f"{site.config.name} {number}{f' {name}' if several else ''}.png"
                _draw(model, case, run, index).save(path)
                paths.append(path)
    return paths


def _draw(model: nn.Module, case: Case, run: RunConfig, index: int) -> Image.Image:
    image, label, predicted = _plane(model, case, run, index)
    low, high = image.quantile(0.01), image.quantile(0.99)
    grey = ((image - low) / (high - low).clamp(min=1e-6)).clamp(0, 1)
    scale = max(1.0, EDGE / min(image.shape[1:]))
    size = [round(edge * scale) for edge in image.shape[1:]]
    large = functional.interpolate(grey[None], size, mode="bilinear")[0].expand(3, -1, -1)
    pixels = (large.permute(1, 2, 0).numpy() * 255).astype(np.uint8)
    for mask, colour in ((label, LABEL_COLOUR), (predicted, MODEL_COLOUR)):
        pixels[_contour(functional.interpolate(mask[None, None].float(), size)[0, 0] > 0)] = colour
    return Image.fromarray(pixels)


def _plane(model: nn.Module, case: Case, run: RunConfig, index: int) -> tuple[Tensor, Tensor, Tensor]:
    """The plane with the most of class `index`: image (C, H, W), that class in label and prediction (H, W) bool."""
    # (S, C, H, W): with a 3D model the one volume's planes take the place of the slices.
    if run.model.dims == 2:
        images, labels = case.images, case.labels == index
        best = int(labels.flatten(1).count_nonzero(1).argmax())
        predicted = predict_stack(model, images[best : best + 1], run, "cpu")[0] == index
        return images[best], labels[best], predicted
    labels = case.labels[0] == index
    best = int(labels.flatten(1).count_nonzero(1).argmax())
    predicted = predict_stack(model, case.images, run, "cpu")[0, best] == index
    return case.images[0, :, best], labels[best], predicted


def _contour(mask: Tensor) -> npt.NDArray[np.bool_]:
    """The mask's border, two pixels wide, inside it."""
    inside = -functional.max_pool2d(-mask[None].float(), 5, stride=1, padding=2)[0] > 0
    border: npt.NDArray[np.bool_] = (mask & ~inside).numpy()
    return border


__all__ = ["draw_overlays"]
