"""Sites with pictures of an organ and a lesion that overlaps it: 32 x 36 grey pixels, a table, a mask of each class."""

import csv
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from common.config import RunConfig, SiteConfig, SourceConfig, validate

CLASSES = ("organ", "lesion")
_ROWS, _COLUMNS = 32, 36


def overlapping_run(**tables: dict[str, Any]) -> RunConfig:
    """Two short rounds of a small network, on crops smaller than the picture."""
    values: dict[str, Any] = {
        "format": 2,
        "name": "overlapping",
        "seed": 3,
        "deterministic": True,
        "model": {"channels": [8, 16], "residual-units": 0},
        "task": {"kind": "segmentation", "multi-label": True},
        "data": {"modality": "photo", "classes": list(CLASSES), "validation-fraction": 0.2, "test-fraction": 0.2},
        "preprocessing": {"intensity": "window", "window": [0.0, 255.0]},
        "training": {"patch-size": [24, 24], "local-steps": 2, "batch-size": 4},
        "federation": {"rounds": 2},
    }
    for table, changes in tables.items():
        values[table] = {**values.get(table, {}), **changes}
    return validate(RunConfig, values)


def pictures(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Image, organ and lesion: the lesion begins within the organ and reaches out of it; both are brightest."""
    rows, columns = np.mgrid[:_ROWS, :_COLUMNS]
    centre = rng.uniform([12, 12], [_ROWS - 12, _COLUMNS - 12])
    radius, angle = rng.uniform(6, 9), rng.uniform(0, 2 * np.pi)
    edge = centre + radius * np.array([np.sin(angle), np.cos(angle)])
    organ = np.hypot(rows - centre[0], columns - centre[1]) < radius
    lesion = np.hypot(rows - edge[0], columns - edge[1]) < rng.uniform(3, 5)
    image = 50 + 50 * organ + 100 * lesion + rng.normal(0, 8, organ.shape)
    return image.clip(0, 255).astype(np.uint8), organ, lesion


def overlapping_site(folder: Path, name: str, patients: int = 10, seed: int = 0) -> SiteConfig:
    """Write a picture of each patient, its masks and the table."""
    rng = np.random.default_rng([seed, *name.encode()])
    folder.mkdir(parents=True, exist_ok=True)
    rows = [("image", "id", "mask")]
    for number in range(patients):
        image, organ, lesion = pictures(rng)
        for kind, pixels in (("image", image), ("organ", organ), ("lesion", lesion)):
            Image.fromarray(pixels if kind == "image" else pixels * np.uint8(255)).save(folder / f"{number}-{kind}.png")
        rows.append((f"{number}-image.png", f"{name}-{number}", f"organ={number}-organ.png|lesion={number}-lesion.png"))
    with (folder / "table.csv").open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows(rows)
    return SiteConfig(name=name, data=(SourceConfig(path=str(folder.absolute()), csv="table.csv"),))
