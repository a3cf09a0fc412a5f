"""`data preview`: before and after each change of the first studies, in pictures and in numbers."""

import io
import json
import stat
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from client.commands.main import app
from client.data.check.pictures import before_and_after, side
from client.data.check.preview import NUMBERS_NAME, PAGE_NAME, preview_site, write_preview
from client.data.keep.forgotten import Forgotten
from client.home.folder import FORGOTTEN_NAME
from common.config import RunConfig
from common.preparation import Geometry, Voxels
from tests.client.data.studies import KEY, run_config, site, source, write_ct, write_volume

STEPS = [
    {"kind": "missing-values"},
    {"kind": "gaussian"},
    {"kind": "crop-to-foreground", "threshold": -500.0},
    {"kind": "clahe"},
]
SHAPE = (5, 24, 31)


def a_run(**preprocessing: object) -> RunConfig:
    return run_config(format=2, preprocessing={"steps": STEPS, "spacing-mm": [1.0, 1.0], **preprocessing})


@pytest.fixture
def hospital(tmp_path: Path) -> Path:
    """A site's home with three series whose patients have names."""
    for number in range(3):
        write_ct(tmp_path / "data" / f"series{number}", SHAPE, patient=f"SECRET{number}")
    home = tmp_path / "home"
    home.mkdir()
    return home


def test_each_change_is_shown_with_the_numbers_of_its_arrays(hospital: Path) -> None:
    run, where, done = a_run(), site(source(path="../data", label_map={"Lesion": "lesion"})), []
    shown = preview_site(hospital, where, KEY, run, studies=2, progress=lambda *of: done.append(of))
    assert done == [(0, 2), (1, 2), (2, 2)]
    assert [one.number for one in shown] == [1, 2]
    assert all(one.problem is None for one in shown)
    names = [change.name for change in shown[0].changes]
    assert names == [
        *("orientation", "channels", "missing-values", "gaussian", "crop-to-foreground"),
        *("resampling", "intensity", "clahe"),
    ]
    by_name = {change.name: change for change in shown[0].changes}
    assert by_name["orientation"].size == SHAPE
    assert by_name["channels"].changed == 0
    assert by_name["gaussian"].changed == pytest.approx(1, abs=0.01)
    assert by_name["resampling"].changed is None
    assert (by_name["intensity"].lowest, by_name["intensity"].highest) == (0, 1)
    assert [by_name[name].place for name in ("channels", "gaussian", "clahe")] == ["always", "acquired", "scaled"]
    picture = Image.open(io.BytesIO(by_name["gaussian"].picture))
    assert picture.width > 2 * picture.height  # two slices of 24 x 31 side by side


def test_the_page_stays_at_the_site_and_names_nobody(hospital: Path, tmp_path: Path) -> None:
    where = site(source(path="../data", label_map={"Lesion": "lesion"}))
    page = write_preview(tmp_path / "out", preview_site(hospital, where, KEY, a_run(), studies=1), a_run())
    files = sorted(path for path in (tmp_path / "out").rglob("*") if path.is_file())
    assert [path.name for path in files if path.suffix == ".png"][:2] == ["01-orientation.png", "02-channels.png"]
    assert {path.name for path in files if path.suffix != ".png"} == {PAGE_NAME, NUMBERS_NAME}
    for path in files:
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
        assert b"SECRET" not in path.read_bytes()
        assert b"series" not in path.read_bytes()
    (study,) = json.loads((tmp_path / "out" / NUMBERS_NAME).read_text())
    assert len(study["changes"]) == page.read_text().count("<img") == 8


def test_a_study_that_is_refused_says_so_and_the_others_go_on(hospital: Path) -> None:
    voxels = np.random.default_rng(0).normal(0, 300, SHAPE[::-1]).astype(np.float32)
    voxels[0, 0, :3] = np.nan
    write_volume(hospital.parent / "scans" / "images" / "a.nii.gz", voxels, np.eye(4))
    label = np.zeros(voxels.shape, np.uint8)
    label[9:20, 6:14, 1:3] = 1
    write_volume(hospital.parent / "scans" / "labels" / "a.nii.gz", label, np.eye(4))
    where = site(
        source(path="../scans", label_map={"1": "lesion"}), source(path="../data", label_map={"Lesion": "lesion"})
    )
    refused, *others = preview_site(hospital, where, KEY, run_config(), studies=2)
    assert refused.problem is not None
    assert "no numbers" in str(refused.problem)
    assert others[0].problem is None
    mended, *_ = preview_site(hospital, where, KEY, a_run(), studies=1)
    by_name = {change.name: change for change in mended.changes}
    assert by_name["missing-values"].changed == pytest.approx(3 / voxels.size)


def test_the_forgotten_are_not_shown(hospital: Path) -> None:
    where = site(source(path="../data", label_map={"Lesion": "lesion"}))
    Forgotten(hospital / FORGOTTEN_NAME, KEY).add(hospital / FORGOTTEN_NAME, "SECRET0")
    assert len(preview_site(hospital, where, KEY, None, studies=9)) == 2


def test_both_sides_have_one_window_and_missing_values_are_marked() -> None:
    image = np.linspace(0, 100, 400).reshape(1, 20, 20).astype(np.float32)
    image[0, 5, 5] = np.nan
    label = np.zeros((20, 20), np.uint8)
    label[8:12, 8:12] = 1
    geometry = Geometry((20, 20), 1, None)
    made = Voxels((np.nan_to_num(image) / 2).astype(np.float32), label)
    pixels = np.asarray(before_and_after(Voxels(image, label), geometry, made, geometry, same_units=True, edge=20))
    assert pixels.shape == (20, 46, 3)
    assert tuple(pixels[5, 5]) == (213, 94, 0)
    assert tuple(pixels[8, 8]) == tuple(pixels[8, 34]) == (230, 159, 0)
    assert pixels[19, 19, 0] == 255
    assert 120 < pixels[19, 45, 0] < 130


def test_a_slice_has_the_proportions_of_its_millimetres() -> None:
    """Of several, that with the most label; 20 rows of 3 mm and 40 columns of 0.5 mm: thrice as high as wide."""
    image = np.zeros((1, 5, 20, 40), np.float32)
    image[0, 4, :, 20:] = 100
    label = np.zeros((5, 20, 40), np.uint8)
    label[1, 5, 5], label[4, 5:9, 5:9] = 1, 1
    drawn = side(Voxels(image, label), Geometry((5, 20, 40), 1, (2.0, 3.0, 0.5)), (0.0, 100.0), 90)
    assert drawn.size == (30, 90)
    pixels = np.asarray(drawn)
    assert pixels[80, 10].tolist() == [0, 0, 0]
    assert pixels[80, 20].tolist() == [255, 255, 255]


def test_the_command_refuses_a_folder_that_is_full_or_among_the_images(hospital: Path, tmp_path: Path) -> None:
    run = CliRunner().invoke
    assert run(app, ["data", "add", str(tmp_path / "data"), "--home", str(hospital)]).exit_code == 0
    for out, says in ((tmp_path / "data" / "preview", "among the images"), (tmp_path / "data", "not empty")):
        told = run(app, ["data", "preview", "--home", str(hospital), "--out", str(out)])
        assert told.exit_code == 1
        assert says in told.output
    told = run(app, ["data", "preview", "--home", str(hospital), "--out", str(tmp_path / "out"), "--studies", "1"])
    assert told.exit_code == 0, told.output
    assert "intensity" in told.output
    assert (tmp_path / "out" / PAGE_NAME).is_file()
