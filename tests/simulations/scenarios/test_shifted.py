"""A shifted site has the patients, the grid and the split of the images that it was made from, and other voxels."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import Result
from PIL import Image
from typer.testing import CliRunner

from client.data.cohort import Case, deal, read_studies
from common.config import RunConfig, SiteConfig, validate
from common.errors import ConfigError
from simulations.commands.main import app
from simulations.generators.phantoms import SCANNERS, write_hospital
from simulations.scenarios.scenario import load_scenario, prepare
from simulations.scenarios.shifted import shifted_site
from simulations.shifts import Shift
from simulations.shifts.gain import Gain
from simulations.shifts.missed_regions import MissedRegions
from simulations.shifts.noise import Noise
from simulations.shifts.wrong_classes import WrongClasses
from tests.json_forms import conforms
from tests.simulations.classed import classed_run, classed_site
from tests.simulations.overlapping import overlapping_run, overlapping_site
from tests.simulations.tiny import COLUMNS, ROWS, tiny_run, tiny_scenario, tiny_site

SHIFTS = """
[[shifts]]
sites = ["north"]
kind = "gain"
gain = 0.5
offset = 10.0
"""


def a_shift(kind: type[Shift], **settings: Any) -> Shift:
    return validate(kind, {"sites": ["north"], **settings})


KEY = bytes(32)
NONE = a_shift(Gain, gain=1.0)


def cases(config: SiteConfig, run: RunConfig) -> list[Case]:
    """A site's studies as training sees them, read in this process."""
    studies = read_studies(config, run, root=Path(), site_key=KEY)
    return list(deal(studies, config, run, site_key=KEY, splits=None).cases)


def both(folder: Path, config: SiteConfig, shift: Shift, run: RunConfig) -> list[tuple[Case, Case]]:
    """Each study of a site as it is, and as its shift makes it."""
    other = shifted_site(config, [shift], run, folder / "shifted")
    pairs = list(zip(cases(config, run), cases(other, run), strict=True))
    assert pairs
    assert [one.split for one, _ in pairs] == [two.split for _, two in pairs]
    return pairs


def sim(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def test_every_split_of_a_shifted_site_is_shifted_and_its_labels_stay(tmp_path: Path) -> None:
    path = tiny_scenario(tmp_path)
    path.write_text(path.read_text() + SHIFTS)
    scenario = load_scenario(str(path))
    run = tiny_run(preprocessing={"intensity": "window", "window": [0, 255]})
    north, south = prepare(scenario, tmp_path / "out")
    assert south.config.data[0].path == str(tmp_path / "south")  # nothing is copied
    plain = tiny_site(tmp_path / "north", "north")
    pairs = list(zip(cases(plain, run), cases(north.config, run), strict=True))
    assert {one.split for one, _ in pairs} == {"train", "validation", "test"}
    for before, after in pairs:
        assert before.split == after.split
        assert (before.labels == after.labels).all()
        wanted = (before.images * 255 * 0.5 + 10).round() / 255
        assert np.allclose(after.images, wanted, atol=0.51 / 255)  # stored in 8 bits


def test_shifted_images_are_written_once_and_anew_where_the_shift_or_a_file_is_another(tmp_path: Path) -> None:
    path = tiny_scenario(tmp_path)
    path.write_text(path.read_text() + SHIFTS)
    folder = tmp_path / "out" / "shifted" / "north" / "1"

    def written() -> tuple[int, bytes]:
        prepare(load_scenario(str(path)), tmp_path / "out")
        one = folder / "000001-image.png"
        return one.stat().st_mtime_ns, one.read_bytes()

    first = written()
    assert written() == first
    path.write_text(path.read_text().replace("gain = 0.5", "gain = 0.75"))
    second = written()
    assert second[1] != first[1]
    original = tmp_path / "north" / "images" / "north-0.png"
    Image.fromarray(255 - np.asarray(Image.open(original))).save(original)
    assert written()[1] != second[1]


def test_preview_shows_what_was_done_to_whom(tmp_path: Path) -> None:
    path = tiny_scenario(tmp_path)
    path.write_text(path.read_text() + SHIFTS)
    done = sim("preview", path, "--json")
    assert done.exit_code == 0, done.output
    told = {one["site"]: one for one in json.loads(done.stdout)}
    conforms("wardround-sim preview", list(told.values()))
    assert (told["north"]["shifts"], told["south"]["shifts"]) == (["gain (gain 0.5, offset 10.0)"], [])
    for site, gain, offset in (("north", 0.5, 10), ("south", 1, 0)):
        images, masks = (
            [np.asarray(Image.open(one)) for one in sorted((tmp_path / site / kind).iterdir())]
            for kind in ("images", "labels")
        )
        assert told[site]["medians"] == pytest.approx([gain * np.median(one) + offset for one in images], abs=1)
        assert told[site]["marked"] == pytest.approx([(one > 0).mean() for one in masks])


def test_a_shift_of_no_site_is_refused(tmp_path: Path) -> None:
    path = tiny_scenario(tmp_path)
    path.write_text(path.read_text() + SHIFTS.replace('"north"', '"west"'))
    with pytest.raises(ConfigError, match=r"shifts names sites \['west'\]"):
        load_scenario(str(path))


def test_ct_keeps_its_place_its_values_and_its_label(tmp_path: Path) -> None:
    write_hospital(tmp_path / "a", scanner=SCANNERS["a"], patients=4, seed=0, slices=6, rows=48)
    run = tiny_run(
        data={"modality": "CT", "classes": ["lesion"]},
        preprocessing={"spacing-mm": [3.0, 3.0], "intensity": "window", "window": [-100, 250]},
    )
    source = {"path": str(tmp_path / "a"), "kind": "dicom", "empty-labels-are-negative": True}
    config = validate(SiteConfig, {"name": "a", "data": [source]})
    for before, after in both(tmp_path, config, NONE, run):
        assert (before.images == after.images).all()
        assert (before.labels == after.labels).all()


def test_classes_that_overlap_stay_apart(tmp_path: Path) -> None:
    config, run = overlapping_site(tmp_path / "north", "north", 4), overlapping_run()
    pairs = both(tmp_path, config, a_shift(MissedRegions, probability=1.0), run)
    for before, after in pairs:
        assert (before.images == after.images).all()
        assert (before.labels == after.labels).all()  # each class is one region
    assert any((before.labels == 3).any() for before, _ in pairs)


def test_images_that_are_classed_as_a_whole_have_other_classes(tmp_path: Path) -> None:
    config, run = classed_site(tmp_path / "north", "north", 6), classed_run()
    for before, after in both(tmp_path, config, NONE, run):
        assert (before.labels == after.labels).all()
    for before, after in both(tmp_path / "wrong", config, a_shift(WrongClasses, probability=1.0), run):
        assert (before.images == after.images).all()
        assert int(after.labels.max()) in {1, 2} - {int(before.labels.max())}


def test_deep_pictures_keep_their_depth(tmp_path: Path) -> None:
    config = tiny_site(tmp_path / "north", "north", 4)
    for path in (tmp_path / "north" / "images").iterdir():
        Image.fromarray(np.asarray(Image.open(path)).astype(np.uint16) * 200).save(path)
    for before, after in both(tmp_path, config, NONE, tiny_run()):
        assert (before.images == after.images).all()


def test_a_dark_deep_picture_is_not_cut_off_as_one_of_8_bits(tmp_path: Path) -> None:
    config = tiny_site(tmp_path / "north", "north", 4)
    for path in (tmp_path / "north" / "images").iterdir():
        Image.fromarray(np.asarray(Image.open(path)).astype(np.uint16)).save(path)
    run = tiny_run(preprocessing={"intensity": "window", "window": [0, 1000]})
    for before, after in both(tmp_path, config, a_shift(Gain, gain=3.0), run):
        assert np.allclose(after.images, before.images * 3, atol=1e-6)


def test_pictures_of_values_below_0_keep_them(tmp_path: Path) -> None:
    config = tiny_site(tmp_path / "north", "north", 4)
    for path in (tmp_path / "north" / "images").iterdir():
        values = np.asarray(Image.open(path)).astype(np.float32) - 200
        Image.fromarray(values).save(path.with_suffix(".tif"))
        path.unlink()
    run = tiny_run(preprocessing={"intensity": "window", "window": [-250, 100]})
    for before, after in both(tmp_path, config, NONE, run):
        assert (before.images == after.images).all()
        assert np.ptp(before.images) > 0.2


def test_deep_pictures_of_three_channels_are_refused_and_not_cut_off(tmp_path: Path) -> None:
    config = tiny_site(tmp_path / "north", "north", 3)
    for path in list((tmp_path / "north" / "images").iterdir()):
        deep = Image.fromarray(np.asarray(Image.open(path)).astype(np.uint16) * 200)
        for channel in range(3):
            deep.save(path.with_name(f"{path.stem}_{channel:04}.png"))
        path.unlink()
    with pytest.raises(ConfigError, match="3 channels of more than 8 bits"):
        shifted_site(config, [NONE], tiny_run(data={"channels": 3}), tmp_path / "shifted")


def test_what_a_site_sets_aside_is_not_shifted_either(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    config = tiny_site(tmp_path / "north", "north", 8)
    images, labels = tmp_path / "north" / "images", tmp_path / "north" / "labels"
    # The image of one patient under another's name, whom noise would make somebody else; and a label of all there is.
    (images / "north-1.png").write_bytes((images / "north-0.png").read_bytes())
    (labels / "north-1.png").write_bytes((labels / "north-0.png").read_bytes())
    Image.fromarray(np.full((ROWS, COLUMNS), 255, np.uint8)).save(labels / "north-2.png")
    pairs = both(tmp_path, config, a_shift(Noise, deviation=0.01), tiny_run())
    assert len(pairs) == 6
    assert "of 8 studies that are shifted some cannot be used and are left out: 1 duplicate, 1 label" in caplog.text


def test_copies_of_patients_images_are_their_owners_alone(tmp_path: Path) -> None:
    config = tiny_site(tmp_path / "north", "north", 3)
    shifted_site(config, [NONE], tiny_run(), tmp_path / "shifted")
    written = [tmp_path / "shifted", *(tmp_path / "shifted").rglob("*")]
    assert len(written) > 8
    assert all(path.stat().st_mode & 0o077 == 0 for path in written)


def test_patients_whom_the_source_has_no_more_do_not_stay(tmp_path: Path) -> None:
    config, home = tiny_site(tmp_path / "north", "north", 4), tmp_path / "shifted" / "north" / "1"
    shifted_site(config, [NONE], tiny_run(), tmp_path / "shifted")
    assert len(list(home.glob("*-image.png"))) == 4
    (tmp_path / "north" / "images" / "north-3.png").unlink()
    (tmp_path / "north" / "labels" / "north-3.png").unlink()
    shifted_site(config, [NONE], tiny_run(), tmp_path / "shifted")
    assert len(list(home.glob("*-image.png"))) == len(list(home.glob("*-mask-0.png"))) == 3


def test_an_image_that_was_edited_and_is_as_long_as_before_is_written_anew(tmp_path: Path) -> None:
    config = tiny_site(tmp_path / "north", "north", 3)
    path = tmp_path / "north" / "images" / "north-0.png"
    pixels = np.array(Image.open(path))
    Image.fromarray(pixels).save(path, compress_level=0)
    length = path.stat().st_size
    folder = Path(shifted_site(config, [NONE], tiny_run(), tmp_path / "shifted").data[0].path)
    pixels[0, 0] ^= 1
    Image.fromarray(pixels).save(path, compress_level=0)
    assert path.stat().st_size == length
    shifted_site(config, [NONE], tiny_run(), tmp_path / "shifted")
    assert (np.array(Image.open(folder / "000001-image.png")) == pixels).all()


def test_a_site_none_of_whose_studies_can_be_read_is_told(tmp_path: Path) -> None:
    config = tiny_site(tmp_path / "north", "north", 3)
    for path in (tmp_path / "north" / "images").iterdir():
        path.write_bytes(b"no picture")
    with pytest.raises(ConfigError, match="none of the 3 studies"):
        shifted_site(config, [NONE], tiny_run(), tmp_path / "shifted")
