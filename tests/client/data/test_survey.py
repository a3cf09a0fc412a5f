"""What the check says of a site's studies for a run is what training does with them: one survey, read twice."""

from pathlib import Path
from typing import NoReturn

import numpy as np
import pytest

from client.data.check.checkup import Checkup, check_site
from client.data.cohort import Cohort
from client.data.isolate import child
from client.data.keep.forgotten import Forgotten
from client.data.prepare import changes_of
from client.data.prepare import preprocess as fold
from client.home.folder import CACHE_NAME, FORGOTTEN_NAME, SPLITS_NAME
from common.config import RunConfig, SiteConfig
from common.config.rundocument import issue
from common.errors import DataError, ErrorCode
from common.preparation import Change, Geometry, Voxels
from tests.client.data.cohorts import load_cohort
from tests.client.data.studies import (
    KEY,
    ct_slices,
    run_config,
    save,
    segmentation,
    site,
    source,
    write_pair,
    write_picture,
    write_volume,
)

SHAPE = (5, 24, 31)
GRID = np.diag([0.8, 0.8, 3.0, 1.0])
# Pictures know no spacing, so that this run can prepare none of them.
RUN = run_config(preprocessing={"spacing-mm": [1.0, 1.0]})
# What becomes of the 31 studies of `hospital`: by number, those that are set aside.
SET_ASIDE = {
    1: ErrorCode.UNREADABLE,  # odd.dcm: clear when it is found
    9: ErrorCode.MISSING_SLICES,
    10: ErrorCode.UNSUPPORTED,  # another modality
    11: ErrorCode.DUPLICATE,
    12: ErrorCode.LABEL_UNKNOWN,  # a name
    13: ErrorCode.NO_LABEL,
    14: ErrorCode.UNSUPPORTED,  # whose it is nobody knows: clear when it is found
    16: ErrorCode.GEOMETRY_MISMATCH,  # cannot be prepared; the same voxels are used as number 17
    18: ErrorCode.IMPLAUSIBLE,
    19: ErrorCode.LABEL_EMPTY,
    20: ErrorCode.LABEL_UNKNOWN,  # a value
    21: ErrorCode.NO_LABEL,
    22: ErrorCode.UNREADABLE,
    30: ErrorCode.UNREADABLE,
    31: ErrorCode.UNSUPPORTED,  # cannot be prepared
}


def a_series(folder: Path, patient: str, *, pixels: int, lost: int | None = None, **said: str) -> None:
    """A CT series and its label; pixels: the seed of them. lost: a slice that is not there. said: of its headers."""
    slices = ct_slices(np.random.default_rng(pixels).integers(0, 3000, SHAPE), patient=patient)
    mask = np.zeros(SHAPE, bool)
    mask[1:4, 6:14, 9:20] = True
    name, labels = said.pop("segment", "Lesion"), []
    if name:
        labels = [segmentation(slices, {name: mask})]
    for one in slices:
        for key, value in said.items():
            setattr(one, key, value)
    save(folder / patient, [one for number, one in enumerate(slices) if number != lost])
    save(folder / patient, labels, "seg{}.dcm")


def a_volume(
    folder: Path, name: str, *, pixels: int, grid: np.ndarray = GRID, label: int = 1, value: float | None = None
) -> None:
    """A NIfTI volume and its label map; label: the value that marks something. value: of one voxel of the image."""
    voxels = np.random.default_rng(pixels).normal(100, 20, SHAPE[::-1]).astype(np.float32)
    if value is not None:
        voxels[3, 4, 2] = value
    marked = np.zeros(voxels.shape, np.uint8)
    marked[9:20, 6:14, 1:4] = label
    write_volume(folder / "images" / f"{name}.nii.gz", voxels, grid)
    write_volume(folder / "labels" / f"{name}.nii.gz", marked, grid)


@pytest.fixture
def hospital(tmp_path: Path) -> SiteConfig:
    """A site in tmp_path/home with every kind of trouble; its sources lie beside."""
    ward, scans, films = (tmp_path / name for name in ("ward", "scans", "films"))
    for number in range(1, 9):
        a_series(ward, f"P{number}", pixels=number)
    a_series(ward, "twin-of-P3", pixels=3)
    a_series(ward, "lost-slice", pixels=20, lost=2)
    a_series(ward, "other-modality", pixels=21, Modality="MR")
    a_series(ward, "unlabelled", pixels=22, segment="")
    a_series(ward, "unknown-name", pixels=23, segment="Something else")
    (ward / "odd.dcm").write_bytes(b"\0" * 128 + b"DICM" + b"\xff" * 300)
    flat = GRID.copy()
    flat[:3, 2] = flat[:3, 1]  # two axes run the same way, each with a length
    for number in range(1, 7):
        a_volume(scans, f"v{number}-1", pixels=30 + number)
    a_volume(scans, "v1-2", pixels=40)  # a patient's second
    a_volume(scans, "P3-1", pixels=41)  # a patient of the other source
    a_volume(scans, "a0-1", pixels=42, grid=flat)
    a_volume(scans, "b0-1", pixels=42)  # the same voxels as the one that cannot be prepared
    a_volume(scans, "c0-1", pixels=43, value=np.nan)
    a_volume(scans, "d0-1", pixels=44, label=0)
    a_volume(scans, "e0-1", pixels=45, label=7)
    a_volume(scans, "nobody", pixels=46)  # found with its problem: the pattern says of no patient
    a_volume(scans, "f0-1", pixels=47)
    (scans / "labels" / "f0-1.nii.gz").unlink()
    a_volume(scans, "g0-1", pixels=48)
    (scans / "images" / "g0-1.nii.gz").write_bytes(b"\x1f\x8b no volume")
    a_volume(scans, "v2-2", pixels=5)
    write_pair(films, "film", (40, 31))
    write_pair(films, "broken", (40, 31))
    (films / "images" / "broken.png").write_bytes(b"no picture")
    write_picture(films / "labels" / "alone.png", np.zeros((9, 9), np.uint8))
    home = tmp_path / "home"
    (home / "state").mkdir(parents=True)
    for patient in ("P4", "v3"):
        Forgotten(home / FORGOTTEN_NAME, KEY).add(home / FORGOTTEN_NAME, patient)
    return site(
        source(path="../ward"),
        source(path="../scans", patient_pattern=r"(\w+)-\d", label_map={"1": "lesion"}),
        source(path="../films"),
    )


def trained(home: Path, where: SiteConfig, run: RunConfig = RUN, *, readers: int = 0) -> Cohort:
    return load_cohort(
        where,
        run,
        root=home,
        site_key=KEY,
        cache=home / CACHE_NAME,
        splits=home / SPLITS_NAME,
        forgotten=home / FORGOTTEN_NAME,
        readers=readers,
    )


def checked(home: Path, where: SiteConfig, run: RunConfig = RUN, *, readers: int = 0) -> Checkup:
    return check_site(home, where, KEY, issue(run), readers=readers)


def assert_same(checkup: Checkup, cohort: Cohort) -> None:
    """The same studies are used, in the same splits, and the same are set aside, for the same reasons."""
    aside = [
        (study.number, study.name, study.problem.code, str(study.problem))
        for study in checkup.quarantined
        if study.problem is not None
    ]
    assert aside == [(one.number, one.key, one.code, one.reason) for one in cohort.quarantined]
    used = sorted((study.name, study.patient, study.split) for study in checkup.usable)
    assert used == sorted((case.key, case.patient, case.split) for case in cohort.cases)
    assert len({split for _, _, split in used}) > 1


@pytest.mark.parametrize("readers", [0, 1])
@pytest.mark.parametrize("first", ["check", "training"])
def test_check_for_a_run_says_what_training_does(
    hospital: SiteConfig, tmp_path: Path, first: str, readers: int
) -> None:
    """At first, and when both remember what they found."""
    home = tmp_path / "home"
    for _ in range(2):
        if first == "check":
            checkup, cohort = checked(home, hospital, readers=readers), trained(home, hospital, readers=readers)
        else:
            cohort, checkup = trained(home, hospital, readers=readers), checked(home, hospital, readers=readers)
        assert {one.number: one.code for one in cohort.quarantined} == SET_ASIDE
        assert (len(checkup.studies), len(cohort.cases)) == (31, 31 - len(SET_ASIDE))
        assert_same(checkup, cohort)


class Tall(Change):
    """Refuses a body that is lower than 20 voxels, whichever axis of the file runs to the head."""

    def refuse(self, before: Geometry) -> DataError | None:
        return DataError("the body is too low", ErrorCode.UNSUPPORTED) if before.shape[0] < 20 else None

    def apply(self, voxels: Voxels, before: Geometry) -> Voxels:
        return voxels


def test_step_that_refuses_by_the_bodys_axes_refuses_the_same_studies_in_both(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fold, "changes_of", lambda run: (*changes_of(run), Tall()))
    sagittal = np.array([[0, 0, 3.0, 0], [0.8, 0, 0, 0], [0, 0.8, 0, 0], [0, 0, 0, 1]])  # columns: i, j, k in RAS
    for number in range(1, 4):
        a_volume(tmp_path / "scans", f"axial-{number}", pixels=number)
        a_volume(tmp_path / "scans", f"sagittal-{number}", pixels=10 + number, grid=sagittal)
    run, where = run_config(3), site(source(path="scans"))
    checkup, cohort = checked(tmp_path, where, run), trained(tmp_path, where, run)
    assert [one.number for one in cohort.quarantined] == [1, 2, 3]
    assert_same(checkup, cohort)


def test_check_prepares_no_image(hospital: SiteConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def prepare(*_: object, **__: object) -> NoReturn:
        raise AssertionError("an image was prepared")

    for change in changes_of(RUN):
        monkeypatch.setattr(type(change), "apply", prepare)
    assert len(checked(tmp_path / "home", hospital).usable) == 16


def test_study_whose_problem_is_clear_when_it_is_found_is_not_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(child, "_COMMAND", ("/nonexistent/python",))  # else a ReaderError
    a_volume(tmp_path / "scans", "nobody", pixels=1)
    where = site(source(path="scans", patient_pattern=r"(v)-\d"))
    with pytest.raises(DataError, match="1 unsupported") as refused:
        trained(tmp_path, where, readers=1)
    assert refused.value.code is ErrorCode.NO_DATA
    assert [study.number for study in checked(tmp_path, where, readers=1).quarantined] == [1]
