"""A small archive in the form of mini-MIAS, with generated films, and the run that classifies its masses."""

from pathlib import Path

import numpy as np
from PIL import Image

from common.config import RunConfig, SiteConfig, SourceConfig, validate
from simulations.generators.mammograms import Film, draw_mammogram
from tests.simulations.tiny import tiny_run

_EDGE = 1024
_ROWS = 128
CLASSES = ["benign", "malignant"]


def write_archive(folder: Path, women: int, seed: int = 0) -> SiteConfig:
    """Two films a woman, each with a mass or more; one of them is benign and malignant by turns of the women."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = []
    for film in range(1, 2 * women + 1):
        drawn = _film(np.random.default_rng([seed, film]), wanted=(film - 1) // 2 % 2 == 1)
        pixels = np.zeros((_ROWS, _ROWS), np.uint8)
        pixels[:, : drawn.image.shape[1]] = drawn.image
        scale = _EDGE // _ROWS
        Image.fromarray(np.kron(pixels, np.ones((scale, scale), np.uint8))).save(folder / f"mdb{film:03}.pgm")
        for mass in drawn.masses:
            x, y, radius = (round(scale * one) for one in (mass.column, _ROWS - 1 - mass.row, mass.radius))
            kind = "SPIC M" if mass.malignant else "CIRC B"
            lines.append(f"mdb{film:03} G {kind} {x} {y} {radius}")
    (folder / "Info.txt").write_text("\n".join(lines) + "\n")
    return SiteConfig(name=folder.name, data=(SourceConfig(path=str(folder.absolute()), kind="mias"),))


def mass_run(**tables: dict[str, object]) -> RunConfig:
    """Benign against malignant, in three folds."""
    own: dict[str, dict[str, object]] = {
        "data": {
            "modality": "MG",
            "classes": CLASSES,
            "validation-fraction": 0.0,
            "folds": 3,
        },
        "preprocessing": {"rows": _ROWS},
        "training": {"patch-size": [32, 32]},
    }
    return tiny_run(**{name: {**own.get(name, {}), **tables.get(name, {})} for name in {**own, **tables}})


def region_run(**tables: dict[str, object]) -> RunConfig:
    """The same by a small network that classifies regions, one round of two steps; [task] is taken as it is given."""
    values = mass_run(federation={"rounds": 1}).model_dump(by_alias=True)
    values |= {
        "format": 2,
        "model": {"architecture": "cnn", "dims": 2, "channels": [4, 8]},
        "task": {"kind": "classification", "of": "region"},
    }
    for table, changes in tables.items():
        values[table] = changes if table in ("task", "model") else {**values[table], **changes}
    return validate(RunConfig, values)


def _film(rng: np.random.Generator, *, wanted: bool) -> Film:
    """A film with a mass of the wanted kind; others may be there."""
    while True:
        film = draw_mammogram(rng, _ROWS)
        if any(mass.malignant == wanted for mass in film.masses) and film.image.shape[1] <= _ROWS:
            return film
