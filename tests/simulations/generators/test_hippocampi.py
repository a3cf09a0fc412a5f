"""Generated hippocampi are volumes a site can read, with head and body where an anatomy book has them."""

from functools import cache
from pathlib import Path

import nibabel
import numpy as np
import pytest
from scipy import ndimage

from common.config import SiteConfig, SourceConfig
from simulations.generators.hippocampi import draw, write_hippocampi
from simulations.scenarios.scenario import load_scenario
from tests.client.data.cohorts import load_cohort

SEED = 11
COUNT = 40
HEAD, BODY = 1, 2


@cache
def _draw(number: int) -> tuple[np.ndarray, np.ndarray]:
    return draw(np.random.default_rng([SEED, number]))


@pytest.fixture(params=range(1, COUNT + 1))
def volume(request: pytest.FixtureRequest) -> tuple[np.ndarray, np.ndarray]:
    """Image and labels, axes (right, anterior, superior)."""
    return _draw(request.param)


def _read(folder: Path) -> dict[str, bytes]:
    """Axes and voxels of every file; how nibabel packs them is not our claim."""
    found = {}
    for path in sorted(folder.rglob("*.nii.gz")):
        volume = nibabel.Nifti1Image.from_filename(path)
        found[str(path.relative_to(folder))] = volume.affine.tobytes() + np.asarray(volume.dataobj).tobytes()
    return found


def test_a_volume_is_the_same_whatever_the_count(tmp_path: Path) -> None:
    done: list[tuple[int, int]] = []
    write_hippocampi(tmp_path / "few", count=2, seed=SEED, progress=lambda *at: done.append(at))
    write_hippocampi(tmp_path / "more", count=3, seed=SEED)
    few, more = _read(tmp_path / "few"), _read(tmp_path / "more")
    assert list(few) == [f"{kind}/{number}.nii.gz" for kind in ("images", "labels") for number in ("0001", "0002")]
    assert few.items() <= more.items()
    assert done == [(1, 2), (2, 2)]


def test_another_number_or_seed_gives_another_volume(tmp_path: Path) -> None:
    write_hippocampi(tmp_path / "one", count=3, seed=SEED)
    write_hippocampi(tmp_path / "other", count=3, seed=SEED + 1)
    volumes = {*_read(tmp_path / "one").values(), *_read(tmp_path / "other").values()}
    assert len(volumes) == 2 * 6, "every image and every label is another one"


def test_files_say_where_right_anterior_and_superior_are(tmp_path: Path) -> None:
    write_hippocampi(tmp_path, count=1, seed=SEED)
    for kind in ("images", "labels"):
        volume = nibabel.Nifti1Image.from_filename(tmp_path / kind / "0001.nii.gz")
        assert nibabel.aff2axcodes(volume.affine) == ("R", "A", "S")
        assert volume.header.get_zooms() == (1, 1, 1)


def test_head_and_body_are_both_there_and_neither_is_tiny(volume: tuple[np.ndarray, np.ndarray]) -> None:
    _, label = volume
    assert set(np.unique(label)) == {0, HEAD, BODY}
    marked = (label > 0).sum()
    assert min((label == HEAD).sum(), (label == BODY).sum()) > 0.2 * marked
    assert 0.01 < marked / label.size < 0.12


def test_head_lies_in_front_of_the_body(volume: tuple[np.ndarray, np.ndarray]) -> None:
    _, label = volume
    head, body = (ndimage.center_of_mass(label == one) for one in (HEAD, BODY))
    assert head[1] - body[1] > 8, "mm, along the anterior axis"
    assert head[2] < body[2], "the tube falls towards the front"


def test_what_is_marked_is_one_body_for_the_most_part(volume: tuple[np.ndarray, np.ndarray]) -> None:
    _, label = volume
    parts, number = ndimage.label(label > 0)
    sizes = ndimage.sum_labels(label > 0, parts, range(1, number + 1))
    assert max(sizes) > 0.9 * sum(sizes)
    # No holes either: the hippocampus is solid.
    assert (ndimage.binary_fill_holes(label > 0) & (label == 0)).sum() < 0.01 * sum(sizes)


def test_marked_voxels_are_greyer_than_the_white_matter_below(volume: tuple[np.ndarray, np.ndarray]) -> None:
    image, label = volume
    ratio = np.median(image[_core(label)]) / np.median(image[_below(label)])
    assert ratio < 1


def test_marked_voxels_are_much_greyer_than_what_lies_below_on_the_whole() -> None:
    volumes = [_draw(number) for number in range(1, COUNT + 1)]
    ratios = [np.median(image[_core(label)]) / np.median(image[_below(label)]) for image, label in volumes]
    assert np.mean(ratios) < 0.75
    assert np.ptp(ratios) > 0.2, "but contrasts differ"


def _core(label: np.ndarray) -> np.ndarray:
    return np.asarray(ndimage.binary_erosion(label > 0))


def _below(label: np.ndarray) -> np.ndarray:
    """Voxels 2 and 3 mm below a marked one; the last axis points up."""
    marked = label > 0
    downwards = np.zeros((1, 1, 7), dtype=bool)
    downwards[..., :2] = True  # offsets -3 and -2
    return np.asarray(ndimage.binary_dilation(marked, downwards) & ~ndimage.binary_dilation(marked))


def test_marked_voxels_are_more_alike_than_those_around_them() -> None:
    ratios = []
    for number in range(1, COUNT + 1):
        image, label = _draw(number)
        around = ndimage.binary_dilation(label > 0, iterations=6) & (label == 0)
        ratios.append(image[_core(label)].std() / image[around].std())
    assert np.mean(ratios) < 0.6


def test_no_threshold_finds_the_hippocampus() -> None:
    best = []
    for number in range(1, 9):
        image, label = _draw(number)
        marked = label > 0
        levels = np.quantile(image, np.linspace(0, 1, 15))
        windows = [(image >= low) & (image <= high) for low in levels for high in levels if low < high]
        best.append(max(2 * (window & marked).sum() / (window.sum() + marked.sum()) for window in windows))
    assert np.mean(best) < 0.5


def test_shapes_and_machines_differ() -> None:
    volumes = [_draw(number) for number in range(1, COUNT + 1)]
    assert len({image.shape for image, _ in volumes}) > COUNT / 2
    brightness = [np.median(image) for image, _ in volumes]
    assert max(brightness) > 3 * min(brightness)
    assert all(np.isfinite(image).all() and image.min() >= 0 for image, _ in volumes)


def test_a_site_reads_every_volume(tmp_path: Path) -> None:
    write_hippocampi(tmp_path, count=5, seed=SEED)
    run = load_scenario("hippocampus").config.run
    site = SiteConfig(name="invented", data=(SourceConfig(path=".", kind="nifti"),))
    cohort = load_cohort(site, run, root=tmp_path, site_key=b"k" * 32)
    assert not cohort.quarantined
    assert cohort.size == len(cohort.cases) == 5
    assert run.data.classes == ("anterior", "posterior")
    read = sorted(np.bincount(case.labels.numpy().ravel(), minlength=3).tolist() for case in cohort.cases)
    paths = (tmp_path / "labels" / f"{number:04}.nii.gz" for number in range(1, 6))
    written = sorted(
        np.bincount(np.asarray(nibabel.Nifti1Image.from_filename(path).dataobj).ravel()).tolist() for path in paths
    )
    assert read == written
