"""The bench prepares the same pictures on both sides, and its command prints the ratios."""

import json
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from simulations.bench import reading
from simulations.bench.reading import CACHE, MONAI_PLAIN, MONAI_SMOOTH, OURS, SECOND, Figure, measure
from simulations.commands.main import app
from simulations.generators.phantoms import SCANNERS, write_study
from tests.json_forms import conforms


def test_every_way_is_measured_on_the_same_images(tmp_path: Path) -> None:
    told: list[int] = []
    figures = measure(tmp_path, series=2, slices=3, rows=64, repeats=2, progress=lambda done, _: told.append(done))
    assert [figure.name for figure in figures] == [OURS, MONAI_SMOOTH, MONAI_PLAIN, SECOND, CACHE]
    assert {figure.images for figure in figures} == {6}
    assert all(figure.cpu_s > 0 for figure in figures)
    assert told == [1, 2, 3, 4]


def test_figures_are_per_image_and_per_second() -> None:
    figure = Figure("x", images=200, cpu_s=0.5)
    assert (figure.cpu_s_per_1000, figure.images_per_cpu_s) == (2.5, 400)


def test_both_sides_give_the_same_pictures(tmp_path: Path) -> None:
    write_study(tmp_path / "ct" / "1", scanner=SCANNERS["a"], seed=0, slices=4, rows=128)
    ways = reading._ways(tmp_path, 64)
    ((_, prepared),) = ways[OURS]().usable
    ours = prepared.images.numpy()
    (cached,) = ways[CACHE]()
    assert ours.tobytes() == cached.images.numpy().tobytes()
    assert cached.labels.shape == (4, 64, 64)
    # MONAI's first axis in the plane runs along x, ours along y.
    smooth = np.stack([np.asarray(image).transpose(0, 2, 1) for image in ways[MONAI_SMOOTH]()])
    (series,) = ways[MONAI_PLAIN]()
    plain = np.asarray(series).transpose(3, 0, 2, 1)
    for monai in (smooth, plain):
        assert monai.shape == ours.shape
        assert np.abs(monai - ours).mean() < 0.008  # shifted by one slice: 0.01


def test_command_prints_rates_and_ratios(monkeypatch: pytest.MonkeyPatch) -> None:
    def measured(folder: Path, **_: object) -> tuple[Figure, ...]:
        assert folder.is_dir()
        return Figure(OURS, 100, 0.2), Figure(MONAI_SMOOTH, 100, 0.9)

    monkeypatch.setattr(reading, "measure", measured)
    done = CliRunner().invoke(app, ["bench", "data", "--json"])
    assert done.exit_code == 0, done.output
    conforms("wardround-sim bench data", json.loads(done.stdout))
    first, second = json.loads(done.stdout)
    assert first["way"] == OURS
    assert first["images-per-cpu-s"] == 500
    assert second["cpu-s-per-1000-images"] == 9
    assert second["times-ours-from-dicom"] == pytest.approx(4.5)
