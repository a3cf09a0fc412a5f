"""Pictures of test cases with the label's contour and the model's, for the report of a simulation.

Only simulations draw them: the images are the researcher's own. A deployed coordinator never sees a pixel.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image
from torch import Tensor, nn

from client.data.cohort import Case
from client.predict.overlay import display_size, panel
from client.site import Site
from common.config import RunConfig
from common.learning.checkpoint import load_model
from common.learning.inference import predict_stack
from common.learning.network import build_model
from simulations.backends.open_sites import OpenSites, share_of_memory

LABEL_COLOUR = (0, 158, 115)  # green
MODEL_COLOUR = (213, 60, 40)  # red
MOST_SITES = 50


def draw_overlays(out: Path, sites: Sequence[Site], *, per_site: int = 2, most_sites: int = MOST_SITES) -> list[Path]:
    """Draw the first test cases of each site with the run's final model.

    Args:
        out: a finished run's folder; receives overlays/<site> <n>.png, and with several classes one of each class that
            the case has: <site> <n> <class>.png. Nothing, where its task draws nothing.
        sites: the simulated hospitals.
        per_site: cases of each.
        most_sites: of which some are drawn, the first ones: a page of thousands of pictures shows nothing more.
    """
    run, state, _ = load_model(out)
    if not run.task.DRAWS:
        return []
    model = build_model(run)
    model.load_state_dict(state)
    folder = out / "overlays"
    folder.mkdir(exist_ok=True)
    paths = []
    opened = OpenSites(share_of_memory(1))
    for site in sites[:most_sites]:
        cohort = site.cohort(run)
        opened.used(site)
        for number, patient in enumerate(cohort.patients("test")[:per_site], start=1):
            case = cohort.cases_of(patient)[0]
            for index, name in enumerate(run.data.classes, start=1):
                several = len(run.data.classes) > 1
                if several and not run.task.marks(case.labels, index).any():
                    continue
                path = folder / f"{site.config.name} {number}{f' {name}' if several else ''}.png"
                _draw(model, case, run, index).save(path)
                paths.append(path)
    return paths


def _draw(model: nn.Module, case: Case, run: RunConfig, index: int) -> Image.Image:
    image, label, predicted = _plane(model, case, run, index)
    pairs = ((label, LABEL_COLOUR), (predicted, MODEL_COLOUR))
    layers = [(mask.numpy().astype(np.uint8), (colour,)) for mask, colour in pairs]
    return panel(image.numpy(), layers, None, display_size(label.shape))


def _plane(model: nn.Module, case: Case, run: RunConfig, index: int) -> tuple[Tensor, Tensor, Tensor]:
    """The plane with the most of class `index`: image (C, H, W), that class in label and prediction (H, W) bool."""
    # (S, C, H, W): with a 3D model the one volume's planes take the place of the slices.
    if run.model.dims == 2:
        images, labels = case.images, run.task.marks(case.labels, index)
        best = int(labels.flatten(1).count_nonzero(1).argmax())
        predicted = run.task.marks(predict_stack(model, images[best : best + 1], run, "cpu")[0], index)
        return images[best], labels[best], predicted
    labels = run.task.marks(case.labels[0], index)
    best = int(labels.flatten(1).count_nonzero(1).argmax())
    predicted = run.task.marks(predict_stack(model, case.images, run, "cpu")[0, best], index)
    return case.images[0, :, best], labels[best], predicted


__all__ = ["draw_overlays"]
