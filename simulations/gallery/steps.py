"""The gallery's sections on preparation: every kind of [[preprocessing.steps]], and what every run has besides."""

import inspect
from collections.abc import Callable, Iterator, Mapping

import numpy as np
from PIL import Image

from client.data.check.pictures import before_and_after
from client.data.prepare.preprocess import Stage, stages
from client.data.study.study import Study
from common.config import RunConfig, validate
from common.preparation import STEP_CHOICE, Geometry, Step, Voxels
from simulations.gallery import images
from simulations.gallery.page import Entry

_EDGE = 176
# Of each kind an image that it is for, and settings that show on one so small.
_SHOWN: Mapping[str, tuple[Callable[[], tuple[Voxels, Geometry]], Mapping[str, object]]] = {
    "missing-values": (images.broken, {}),
    "n4": (images.shaded, {"shrink": 2, "iterations": 50}),
    "gaussian": (images.noisy, {"sigma": 1.5}),
    "median": (images.speckled, {}),
    "bilateral": (images.noisy, {"strength": 3.0}),
    "non-local-means": (images.noisy, {}),
    "breast-region": (images.film, {}),
    "pectoral-muscle": (images.film, {}),
    "crop-to-foreground": (images.ct, {"threshold": -500.0, "margin": 4}),
    "field-of-view": (images.fundus, {}),
    "equalisation": (images.fundus, {}),
    "clahe": (images.fundus, {"clip-limit": 0.02}),
}


def steps() -> Iterator[Entry]:
    """Every kind, in the order of its table; of one without an image of its own the CT."""
    for kind, member in STEP_CHOICE.by_name.items():
        image, keys = _SHOWN.get(kind, (images.ct, {}))
        step = member.model_validate({"kind": kind, **keys})
        if not isinstance(step, Step):
            continue
        voxels, before = image()
        exact = step.on(voxels, before)
        made = exact.apply(voxels, before)
        picture = before_and_after(voxels, before, made, exact.after(before), same_units=True, edge=_EDGE)
        written = "".join(f", {key} = {_toml(value)}" for key, value in keys.items())
        yield Entry(kind, _about(member), f'steps = [{{ kind = "{kind}"{written} }}]', picture)


def intensities() -> Iterator[Entry]:
    """Windows and scalings of one CT, each side with a window of its own; and axes and spacing."""
    voxels, before = images.ct()
    shown: dict[str, tuple[str, Mapping[str, object]]] = {
        "window-lung": ("From low to high to [0, 1]; a name stands for two values.", {"window": "lung"}),
        "window-soft-tissue": ("The same image through another window.", {"window": "soft-tissue"}),
        "window-bone": ("And through a wide one.", {"window": "bone"}),
        "percentile": ("From the 0.5th and 99.5th percentile of the study to [0, 1].", {}),
        "min-max": ("From its lowest and highest value to [0, 1].", {"intensity": "min-max"}),
        "zscore": ("Mean 0 and variance 1; the right side shows -2 to 2.", {"intensity": "zscore"}),
        "zscore-foreground": (
            "The same, of what is brighter than Otsu's threshold.",
            {"intensity": "zscore-foreground"},
        ),
    }
    for name, (says, keys) in shown.items():
        preprocessing = {"intensity": "window", **keys} if "window" in keys else {"intensity": name, **keys}
        scaled = next(one for one in _stages(voxels, before, preprocessing) if type(one.asked).__name__ == "Intensity")
        ends = (-2.0, 2.0) if name.startswith("zscore") else (0.0, 1.0)
        yield Entry(name, says, _table(preprocessing), _pictured(scaled, ends))
    coarse = {"spacing-mm": [6.0, 6.0]}
    moved = next(one for one in _stages(voxels, before, coarse) if type(one.asked).__name__ == "Resampling")
    says = "One spacing at all sites: linear for images, nearest for labels."
    yield Entry("resampling", says, _table(coarse), _pictured(moved))


def _pictured(stage: Stage, window: tuple[float, float] | None = None) -> Image.Image:
    return before_and_after(
        stage.given, stage.before, stage.made, stage.after, same_units=True, window=window, edge=_EDGE
    )


def _stages(voxels: Voxels, before: Geometry, preprocessing: Mapping[str, object]) -> Iterator[Stage]:
    run = validate(
        RunConfig,
        {
            "name": "gallery",
            "data": {"modality": "CT", "classes": ["lesion"]},
            "preprocessing": dict(preprocessing),
            "training": {"patch-size": [16, 16]},
            "federation": {"rounds": 1},
        },
    )
    affine = np.diag([*(before.spacing_mm or (1.0, 1.0, 1.0)), 1.0])[[2, 1, 0, 3]]
    yield from stages(Study(voxels.image, voxels.label, before.spacing_mm, affine, "CT", "", "", ()), run)


def _table(preprocessing: Mapping[str, object]) -> str:
    return "[preprocessing]\n" + "\n".join(f"{key} = {_toml(value)}" for key, value in preprocessing.items())


def _toml(value: object) -> str:
    return f'"{value}"' if isinstance(value, str) else str(value).lower() if isinstance(value, bool) else str(value)


def _about(member: type) -> str:
    """The first sentence of what its file says."""
    return (inspect.getdoc(inspect.getmodule(member)) or "").partition("\n")[0]


__all__ = ["intensities", "steps"]
