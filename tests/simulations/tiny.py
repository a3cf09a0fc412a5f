"""Sites small enough for a unit test: 20 x 24 grey pictures with one bright disc each, written as PNG."""

from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from PIL import Image

from common.config import RunConfig, SiteConfig, SourceConfig, validate
from common.config.rundocument import RunDocument

ROWS, COLUMNS = 20, 24

RUN_TOML = """
[run]
name = "tiny"
seed = 3
deterministic = true
[run.model]
channels = [4, 8]
residual-units = 0
[run.data]
modality = "photo"
classes = ["disc"]
validation-fraction = 0.2
test-fraction = 0.2
[run.training]
patch-size = [16, 16]
local-steps = 2
batch-size = 2
[run.federation]
rounds = 2
"""
SITES = '[[sites]]\nname = "north"\ndata = [{path = "north"}]\n[[sites]]\nname = "south"\ndata = [{path = "south"}]\n'


def tiny_run(**tables: Mapping[str, object]) -> RunConfig:
    """Two rounds of two steps; `tables` change single values."""
    return validate(RunConfig, _tiny(tables))


def tiny_run_of_format(format_: int, **tables: Mapping[str, object]) -> RunConfig:
    """The same, with the keys of a later format."""
    return validate(RunConfig, {**_tiny(tables), "format": format_})


def _tiny(tables: Mapping[str, Mapping[str, object]]) -> dict[str, Any]:
    values: dict[str, Any] = {
        "name": "tiny",
        "seed": 3,
        "deterministic": True,
        "model": {"channels": [4, 8], "residual-units": 0},
        "data": {"modality": "photo", "classes": ["disc"], "validation-fraction": 0.2, "test-fraction": 0.2},
        "training": {"patch-size": [16, 16], "local-steps": 2, "batch-size": 2},
        "federation": {"rounds": 2},
    }
    for table, changes in tables.items():
        values[table] = {**values.get(table, {}), **changes}
    return values


def tiny_site(folder: Path, name: str, patients: int = 5, seed: int = 0) -> SiteConfig:
    """Write pictures of `patients` patients and describe them."""
    rng = np.random.default_rng([seed, *name.encode()])
    rows, columns = np.mgrid[:ROWS, :COLUMNS]
    for number in range(patients):
        centre = rng.uniform([6, 6], [ROWS - 6, COLUMNS - 6])
        disc = np.hypot(rows - centre[0], columns - centre[1]) < rng.uniform(3, 5)
        image = 60 + 120 * disc + rng.normal(0, 10, disc.shape)
        for kind, pixels in (("images", image), ("labels", disc * 255)):
            path = folder / kind / f"{name}-{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(path)
    return SiteConfig(name=name, data=(SourceConfig(path=str(folder.absolute()), kind="images"),))


def tiny_scenario(folder: Path) -> Path:
    """The file of a scenario of two sites, with their pictures."""
    for name in ("north", "south"):
        tiny_site(folder / name, name)
    path = folder / "mine.toml"
    path.write_text(f"{RUN_TOML}\n{SITES}")
    return path


def interrupted(monkeypatch: pytest.MonkeyPatch, module: ModuleType, at: int) -> list[str]:
    """Somebody presses Ctrl-C when `module` begins its at-th federation; the names of all that began, as they do."""
    begun: list[str] = []
    federate = module.federate

    def counted(grid: object, document: RunDocument, folder: Path, **options: Any) -> object:
        begun.append(folder.name)
        if len(begun) == at:
            raise KeyboardInterrupt
        return federate(grid, document, folder, **options)

    monkeypatch.setattr(module, "federate", counted)
    return begun
