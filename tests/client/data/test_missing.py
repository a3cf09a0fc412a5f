"""Values that are no numbers, and the padding around an image: from the file to the network."""

from pathlib import Path

import numpy as np
import pytest
from pydicom.dataset import Dataset

from client.data.check.checkup import check_site
from client.data.check.tables import document, tables
from client.data.isolate import answer_checks
from client.data.isolate.answering import answer_to
from client.data.isolate.isolation import Job, Readers, _question
from client.data.prepare.preprocess import preprocess
from client.data.quality.quality import examine
from client.data.read import sources
from client.data.study.labels import Vocabulary
from client.data.study.study import Study
from client.predict.prediction import reading
from common.config import RunConfig, SiteConfig
from common.config.rundocument import issue
from common.errors import DataError, ErrorCode
from tests.client.data.cohorts import load_cohort
from tests.client.data.studies import (
    KEY,
    ct_slices,
    read_image,
    run_config,
    save,
    segmentation,
    site,
    source,
    write_volume,
)

SHAPE = (4, 24, 30)  # z, y, x


def mending(**keys: object) -> RunConfig:
    return run_config(format=2, preprocessing={"steps": [{"kind": "missing-values", **keys}]})


@pytest.fixture
def scans(tmp_path: Path) -> SiteConfig:
    """Four volumes: without a missing value, and with 1, 20 and 200 of 2880."""
    for number, missing in enumerate((0, 1, 20, 200)):
        rng = np.random.default_rng(number)
        voxels = rng.normal(100, 20, SHAPE[::-1]).astype(np.float32)
        voxels.reshape(-1)[rng.choice(voxels.size, missing, replace=False)] = np.nan
        label = np.zeros(voxels.shape, np.uint8)
        label[9:20, 6:14, 1:3] = 1
        write_volume(tmp_path / "scans" / "images" / f"v{number}.nii.gz", voxels, np.eye(4))
        write_volume(tmp_path / "scans" / "labels" / f"v{number}.nii.gz", label, np.eye(4))
    return site(source(path="scans", label_map={"1": "lesion"}))


@pytest.mark.parametrize(
    ("run", "aside"),
    [(run_config(), [2, 3, 4]), (mending(), [4]), (mending(most=0.0001), [2, 3, 4]), (mending(most=0.1), [])],
)
def test_a_study_with_few_is_used_where_the_run_fills_them_in_and_counted(
    scans: SiteConfig, tmp_path: Path, run: RunConfig, aside: list[int]
) -> None:
    """Training and `data check` say the same, each time from what it remembers too."""
    for _ in range(2):
        cohort = load_cohort(scans, run, root=tmp_path, site_key=KEY, cache=tmp_path / "cache")
        assert [one.number for one in cohort.quarantined] == aside
        assert {one.code for one in cohort.quarantined} <= {ErrorCode.IMPLAUSIBLE}
        assert all(np.isfinite(case.images.numpy()).all() for case in cohort.cases)
        checkup = check_site(tmp_path, scans, KEY, issue(run), readers=0)
        assert [one.number for one in checkup.quarantined] == aside
    shares = {one["study"]: one.get("missing") for one in document(checkup)["studies"]}
    usable = {number: share for number, share in zip(range(1, 5), (0, 1, 20, 200), strict=True) if number not in aside}
    assert {number: share for number, share in shares.items() if number in usable} == pytest.approx(
        {number: count / 2880 for number, count in usable.items()}
    )
    told = [table for table in tables(checkup) if table.title.startswith("Values that are no numbers")]
    mended = [count for count in usable.values() if count]
    assert [table.rows for table in told] == ([((len(mended), f"{max(mended) / 2880:.2%}"),)] if mended else [])


def test_what_is_remembered_of_one_run_is_not_told_of_another_that_fills_in_more(
    scans: SiteConfig, tmp_path: Path
) -> None:
    for most, aside in ((0.001, [3, 4]), (0.1, []), (0.001, [3, 4]), (0.01, [4])):
        checkup = check_site(tmp_path, scans, KEY, issue(mending(most=most)), readers=0)
        assert [one.number for one in checkup.quarantined] == aside


@pytest.mark.parametrize(("missing", "taken"), [(8, True), (9, False), (1024, False)])
def test_as_many_as_the_run_says_are_taken_and_an_image_of_none_but_those_never(missing: int, taken: bool) -> None:
    image = np.random.default_rng(0).normal(size=(1, 32, 32)).astype(np.float32)
    image.reshape(-1)[:missing] = np.nan
    study = Study(image, None, None, None, "", "P", "k", ())
    most = 1.0 if missing == image.size else 8 / 1024
    if taken:
        assert examine(study, empty_is_negative=True, most_missing=most).missing == 8 / 1024
    else:
        with pytest.raises(DataError, match="no numbers"):
            examine(study, empty_is_negative=True, most_missing=most)


def test_a_child_that_tells_of_padding_that_is_none_is_not_believed(tmp_path: Path) -> None:
    padded_series(tmp_path / "ct")
    job = Job(sources.find_images(tmp_path / "ct")[0], None)
    header, (image, padding) = answer_to(_question("read", job), 1 << 30)
    told = answer_checks.reading(job, header, (image, padding)).study.padding
    assert told is not None
    for wrong in (padding[:-1], padding.astype(np.float32)):
        with pytest.raises(ValueError, match="not a study"):
            answer_checks.reading(job, header, (image, wrong))


def test_a_model_predicts_on_studies_that_its_run_takes(scans: SiteConfig, tmp_path: Path) -> None:
    path = tmp_path / "scans" / "images" / "v2.nii.gz"
    for run, taken in ((mending(), True), (run_config(), False)):
        with reading(run) as (find, read):
            (reference,) = find(path, None)
            if taken:
                assert np.isnan(read(reference).image).sum() == 20
            else:
                with pytest.raises(DataError, match="no numbers"):
                    read(reference)


def padded_series(folder: Path) -> np.ndarray:
    """A CT whose round field of view fills the half of each slice; returns where that is, (Z, Y, X)."""
    rows, columns = np.mgrid[: SHAPE[1], : SHAPE[2]]
    seen = np.broadcast_to(np.hypot(rows - 11.5, columns - 14.5) < 11, SHAPE)
    stored = np.random.default_rng(5).integers(900, 1200, SHAPE)
    slices: list[Dataset] = ct_slices(np.where(seen, stored, -2000), signed=True, intercept=-1024.0, slope=1.0)
    for ds in slices:
        ds.add_new("PixelPaddingValue", "SS", -2000)
    mask = np.zeros(SHAPE, bool)
    mask[1:3, 8:14, 9:20] = True
    save(folder, slices)
    save(folder, [segmentation(slices, {"Lesion": mask})], "seg{}.dcm")
    return seen


def test_padding_counts_in_no_statistic_where_the_run_knows_of_it(tmp_path: Path) -> None:
    seen = padded_series(tmp_path)
    study = read_image(tmp_path)
    assert study.padding is not None
    np.testing.assert_array_equal(study.padding, ~seen)
    tissue = study.image[0][seen]
    for keys, counted in (({}, tissue), ({"padding": False}, study.image)):
        run = run_config(format=2, preprocessing={"intensity": "zscore", "steps": [{"kind": "missing-values", **keys}]})
        image = preprocess(study, run).image[0].numpy()
        assert image[seen] == pytest.approx((tissue - counted.mean()) / counted.std(), abs=1e-3)
    plain = preprocess(study, run_config(preprocessing={"intensity": "zscore"})).image[0].numpy()
    assert plain[seen] == pytest.approx((tissue - study.image.mean()) / study.image.std(), abs=1e-3)


def test_padding_and_missing_values_cross_the_pipe_from_the_process_that_reads(
    tmp_path: Path, scans: SiteConfig
) -> None:
    seen = padded_series(tmp_path / "ct")
    (series,) = sources.find_images(tmp_path / "ct")
    labelled = sources.find(source(path="ct"), tmp_path).references[0]
    (volume,) = sources.find_images(tmp_path / "scans" / "images" / "v2.nii.gz")
    jobs = [Job(series, None), Job(labelled, Vocabulary({}, ("lesion",))), Job(volume, None, most_missing=0.01)]
    with Readers(1) as readers:
        outcomes = list(readers.read(jobs))
    unlabelled, with_label, missing = (outcome.study for outcome in outcomes if not isinstance(outcome, DataError))
    for study in (unlabelled, with_label):
        assert study.padding is not None
        np.testing.assert_array_equal(study.padding, ~seen)
    assert unlabelled.label is None
    assert with_label.label is not None
    assert with_label.label.sum() == 2 * 6 * 11
    assert missing.padding is None
    assert np.isnan(missing.image).sum() == 20
