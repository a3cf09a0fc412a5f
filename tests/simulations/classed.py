"""Sites with pictures that a table classes: 20 x 24 grey pixels, with a bright disc, a dark one, or none."""

import csv
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from common.config import RunConfig, SiteConfig, SourceConfig, validate
from tests.simulations.tiny import COLUMNS, ROWS

WORDS = ("clear", "bright", "dark")  # of which a run has the last two as classes
LABEL_MAP = {"clear": "background"}


def classed_run(**tables: dict[str, Any]) -> RunConfig:
    """Two rounds of two steps of a small network, on crops of whole pictures; [model] is taken as it is given."""
    values: dict[str, Any] = {
        "format": 2,
        "name": "classed",
        "seed": 3,
        "deterministic": True,
        "model": {"architecture": "cnn", "channels": [4, 8]},
        "task": {"kind": "classification"},
        "data": {"modality": "photo", "classes": list(WORDS[1:]), "validation-fraction": 0.2, "test-fraction": 0.2},
        "training": {"patch-size": [20, 24], "local-steps": 2, "batch-size": 2},
        "federation": {"rounds": 2},
    }
    for table, changes in tables.items():
        values[table] = changes if table == "model" else {**values.get(table, {}), **changes}
    return validate(RunConfig, values)


def picture(word: str, rng: np.random.Generator) -> np.ndarray:
    """A disc as the word says, on noise."""
    rows, columns = np.mgrid[:ROWS, :COLUMNS]
    centre = rng.uniform([6, 6], [ROWS - 6, COLUMNS - 6])
    disc = np.hypot(rows - centre[0], columns - centre[1]) < rng.uniform(3, 5)
    change = {"bright": 80.0, "dark": -60.0}.get(word, 0.0)
    return np.asarray(100 + change * disc + rng.normal(0, 10, disc.shape)).clip(0, 255).astype(np.uint8)


def classed_site(
    folder: Path, name: str, patients: int = 9, seed: int = 0, words: tuple[str, ...] = WORDS
) -> SiteConfig:
    """Write a picture of each patient, and the table; the words go round."""
    rng = np.random.default_rng([seed, *name.encode()])
    folder.mkdir(parents=True, exist_ok=True)
    rows = [("image", "id", "finding")]
    for number in range(patients):
        word = words[number % len(words)]
        Image.fromarray(picture(word, rng)).save(folder / f"{name}-{number}.png")
        rows.append((f"{name}-{number}.png", f"{name}-{number}", word))
    with (folder / "table.csv").open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows(rows)
    source = SourceConfig(path=str(folder.absolute()), csv="table.csv", class_column="finding", label_map=LABEL_MAP)
    return SiteConfig(format=2, name=name, data=(source,))
