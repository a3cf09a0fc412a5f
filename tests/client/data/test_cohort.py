import hashlib
import hmac
import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

import numpy as np
import pytest
import torch
from PIL import Image

from client.data.cohort import Cohort
from client.data.deidentify.pseudonym import cohort_id, pseudonym
from client.data.isolate import child
from client.data.read import sources
from client.site import open_site
from client.train.training import train_round
from common.config import RunConfig, SourceConfig
from common.config.rundocument import issue
from common.errors import ConfigError, DataError, ErrorCode
from common.learning.checkpoint import pack, sha256
from common.learning.network import build_model
from tests.client.data.cohorts import load_cohort
from tests.client.data.studies import KEY, photo_run, run_config, site, source, write_ct, write_pair

RUN = photo_run(rows=16)


def load(root: Path, *sources: SourceConfig, run: RunConfig = RUN, **values: object) -> Cohort:
    return load_cohort(site(*sources, **values), run, root=root, site_key=KEY)


def assert_same_cohort(one: Cohort, other: Cohort) -> None:
    """Equal in names, order, splits and every bit of the tensors."""

    def told(cohort: Cohort) -> list[object]:
        return [
            (case.patient, case.key, case.split, case.images.shape, case.labels.shape, case.images.dtype)
            for case in cohort.cases
        ]

    assert told(one) == told(other)
    assert (one.quarantined, one.cohort_id, one.declared_size) == (
        other.quarantined,
        other.cohort_id,
        other.declared_size,
    )
    for a, b in zip(one.cases, other.cases, strict=True):
        assert a.images.numpy().tobytes() == b.images.numpy().tobytes()
        assert a.labels.numpy().tobytes() == b.labels.numpy().tobytes()


def splits(cohort: Cohort) -> dict[str, str]:
    return {case.patient: case.split for case in cohort.cases}


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    for name in ("p1L", "p1R", "p2L", "p3L", "p4L", "p5L", "p6L"):
        write_pair(tmp_path, name)
    return tmp_path


def test_photographs_are_one_sample_each(pictures: Path) -> None:
    cohort = load(pictures, source(path="."))
    case = cohort.cases[0]
    assert (case.images.shape, case.images.dtype) == ((1, 3, 16, 25), torch.float32)
    assert (case.labels.shape, case.labels.dtype) == ((1, 16, 25), torch.uint8)


def test_series_gives_its_slices_to_a_2d_model_and_itself_to_a_3d_one(tmp_path: Path) -> None:
    mask = write_ct(tmp_path)
    (flat,) = load(tmp_path, source(path="."), run=run_config()).cases
    (solid,) = load(tmp_path, source(path="."), run=run_config(3)).cases
    assert flat.images.shape == (5, 1, 24, 31)
    assert solid.images.shape == (1, 1, 5, 24, 31)
    assert (flat.labels.numpy() == mask).all()
    assert (solid.labels[0].numpy() == mask).all()


def test_both_eyes_of_one_patient_are_on_the_same_side(pictures: Path) -> None:
    cohort = load(pictures, source(path=".", patient_pattern="(p.)"))
    both = cohort.cases_of(pseudonym(KEY, "p1"))
    assert len(both) == 2
    assert both[0].split == both[1].split
    assert cohort.size == 6
    assert sum(len(cohort.patients(split)) for split in ("train", "validation", "test")) == 6


def test_pseudonym_is_hmac_sha256_under_the_site_key() -> None:
    assert pseudonym(KEY, "P1") == hmac.digest(KEY, b"P1", hashlib.sha256).hex()[:16]


def test_key_changes_the_names_and_nothing_else(pictures: Path) -> None:
    one = load(pictures, source(path="."))
    other = load_cohort(site(source(path=".")), RUN, root=pictures, site_key=b"x" * 32)
    assert [case.split for case in one.cases] == [case.split for case in other.cases]
    assert all(torch.equal(a.images, b.images) for a, b in zip(one.cases, other.cases, strict=True))
    assert not {case.patient for case in one.cases} & {case.patient for case in other.cases}


def test_cohort_keeps_its_ledger_name_when_studies_are_added(pictures: Path) -> None:
    before = load(pictures, source(path="."))
    write_pair(pictures, "p9L")
    after = load(pictures, source(path="."))
    assert before.cohort_id == after.cohort_id == cohort_id(KEY)
    assert (before.size, after.size) == (7, 8)


def test_bad_studies_are_quarantined_with_their_codes_and_the_rest_is_used(pictures: Path) -> None:
    write_pair(pictures, "q1", mask=np.zeros((9, 9), np.uint8))
    (pictures / "labels" / "p2L.png").unlink()
    (pictures / "images" / "p3L.png").write_bytes(b"broken")
    cohort = load(pictures, source(path="."))
    assert len(cohort.cases) == 5
    assert {(study.key, study.code) for study in cohort.quarantined} == {
        (pseudonym(KEY, "q1"), ErrorCode.GEOMETRY_MISMATCH),
        (pseudonym(KEY, "p2L"), ErrorCode.NO_LABEL),
        (pseudonym(KEY, "p3L"), ErrorCode.UNREADABLE),
    }


def test_nothing_usable_says_what_was_found(pictures: Path) -> None:
    for mask in (pictures / "labels").iterdir():
        mask.unlink()
    with pytest.raises(DataError, match=r"7 found in 1 source\(s\) \(7 no-label\)") as error:
        load(pictures, source(path="."))
    assert error.value.code is ErrorCode.NO_DATA


def test_empty_folder_and_no_source_are_no_data(tmp_path: Path) -> None:
    for given in ((source(path="."),), ()):
        with pytest.raises(DataError) as error:
            load(tmp_path, *given)
        assert error.value.code is ErrorCode.NO_DATA


def test_wrong_configuration_stops_with_a_configuration_error(pictures: Path) -> None:
    with pytest.raises(ConfigError, match="label-map names the class 'vesel'"):
        load(pictures, source(path=".", label_map={"255": "vesel"}))


def test_two_sources_are_split_as_each_would_be_alone(tmp_path: Path) -> None:
    for name in ("a1", "a2", "a3", "a4", "a5"):
        write_pair(tmp_path / "a", name)
    for name in ("b1", "b2", "b3"):
        write_pair(tmp_path / "b", name)
    a, b = source(path="a"), source(path="b")
    pooled = splits(load(tmp_path, a, b))
    assert pooled == splits(load(tmp_path, a)) | splits(load(tmp_path, b))


def test_patient_in_two_sources_is_on_one_side(tmp_path: Path) -> None:
    for folder, count in (("a", 9), ("b", 4)):
        for number in range(count):
            write_pair(tmp_path / folder, f"p{number}")
    cohort = load(tmp_path, source(path="a"), source(path="b"))
    assert len(cohort.cases) == 13
    assert cohort.size == 9
    assert all(len({case.split for case in cohort.cases_of(patient)}) == 1 for patient in splits(cohort))


@pytest.mark.parametrize(("patients", "given", "declared"), [(9, None, 10), (5, None, 5), (9, 42, 42), (9, 9, 9)])
def test_declared_size_is_rounded_up_unless_given(
    tmp_path: Path, patients: int, given: int | None, declared: int
) -> None:
    for number in range(patients):
        write_pair(tmp_path, f"p{number}")
    assert load(tmp_path, source(path="."), cohort_size=given).declared_size == declared


def test_one_patient_declares_five_and_trains(tmp_path: Path) -> None:
    write_pair(tmp_path, "a")
    cohort = load(tmp_path, source(path="."))
    assert cohort.declared_size == 5
    assert cohort.cases[0].split == "train"


def test_negative_study_is_used_and_counted(pictures: Path) -> None:
    write_pair(pictures, "negative", mask=np.zeros((20, 31), np.uint8))
    cohort = load(pictures, source(path=".", empty_labels_are_negative=True))
    assert (len(cohort.cases), cohort.quarantined) == (8, ())
    assert [bool(case.labels.any()) for case in cohort.cases].count(False) == 1
    assert {tuple(case.images.shape[2:]) for case in cohort.cases} == {(16, 25)}


def test_no_patient_attribute_reaches_cases_summary_quarantine_or_log(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_ct(tmp_path / "SECRETFOLDER" / "1", patient="SECRET1")
    write_ct(tmp_path / "SECRETFOLDER" / "2", patient="SECRET2")
    (tmp_path / "SECRETFOLDER" / "2" / "002.dcm").unlink()
    (tmp_path / "SECRETFOLDER" / "odd.dcm").write_bytes(b"\0" * 128 + b"DICM" + b"\xff" * 300)  # pydicom logs its path
    caplog.set_level(logging.DEBUG)
    caplog.clear()  # what highdicom said while writing
    cohort = load(tmp_path, source(path="SECRETFOLDER"), run=run_config())
    assert [study.code for study in cohort.quarantined] == [ErrorCode.UNREADABLE, ErrorCode.MISSING_SLICES]
    told = [repr(cohort.quarantined), repr(cohort.cases), caplog.text]
    for text in told:
        for secret in ("SECRET", "NAME^", "19700101", "1.2.826."):
            assert secret not in text


@pytest.fixture
def no_decoding(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """From when it is called, reading a study from its files fails the test."""

    def read(*_: object) -> NoReturn:
        raise AssertionError("a study was decoded")

    def forbid() -> None:
        monkeypatch.setattr(sources, "read", read)
        monkeypatch.setattr(child, "_COMMAND", ("/nonexistent/python",))

    return forbid


@pytest.mark.parametrize("dims", [2, 3])
def test_cohort_from_the_cache_equals_the_one_from_the_files_without_decoding(
    tmp_path: Path, dims: int, no_decoding: Callable[[], None]
) -> None:
    for number in (1, 2, 3):
        write_ct(tmp_path / "ct" / str(number), (5, 24, 31 + number), patient=f"P{number}")
    where, run, cache = site(source(path="ct")), run_config(dims), tmp_path / "home" / "cache"
    plain, first = (load_cohort(where, run, root=tmp_path, site_key=KEY, cache=folder) for folder in (None, cache))
    no_decoding()
    second = load_cohort(where, run, root=tmp_path, site_key=KEY, cache=cache)
    for cohort in (first, second):
        assert_same_cohort(cohort, plain)


def test_training_from_the_cache_gives_the_same_bits(tmp_path: Path, no_decoding: Callable[[], None]) -> None:
    for number in range(4):
        write_ct(tmp_path / "ct" / str(number), (3, 24, 31), patient=f"P{number}")
    run = run_config(
        model={"dims": 2, "channels": [4, 8], "residual-units": 0},
        training={"patch-size": [16, 16], "local-steps": 2, "batch-size": 2},
        deterministic=True,
    )

    def digest(cache: Path | None) -> str:
        cohort = load_cohort(site(source(path="ct")), run, root=tmp_path, site_key=KEY, cache=cache)
        model = build_model(run)
        train_round(model, cohort, issue(run), round_=1, site="north", device="cpu")
        return sha256(pack(model.state_dict()))

    from_files = digest(None)
    assert digest(tmp_path / "cache") == from_files
    no_decoding()
    assert digest(tmp_path / "cache") == from_files


def test_changed_new_and_removed_studies_are_seen_through_the_cache(pictures: Path, tmp_path: Path) -> None:
    cache = tmp_path / "home" / "cache"
    where = site(source(path=".", empty_labels_are_negative=True))
    load_cohort(where, RUN, root=pictures, site_key=KEY, cache=cache)
    write_pair(pictures, "p2L", mask=np.zeros((20, 31), np.uint8))
    write_pair(pictures, "p9L")
    for kind in ("images", "labels"):
        (pictures / kind / "p5L.png").unlink()
    cached = load_cohort(where, RUN, root=pictures, site_key=KEY, cache=cache)
    assert_same_cohort(cached, load_cohort(where, RUN, root=pictures, site_key=KEY))
    assert [bool(case.labels.any()) for case in cached.cases].count(False) == 1
    assert len(list(cache.rglob("*.case"))) == 7


def test_bad_study_stays_out_and_is_not_cached(pictures: Path, tmp_path: Path) -> None:
    cache, where = tmp_path / "home" / "cache", site(source(path="."))
    (pictures / "images" / "p3L.png").write_bytes(b"broken")
    cohorts = [load_cohort(where, RUN, root=pictures, site_key=KEY, cache=cache) for _ in range(2)]
    assert [[study.code for study in cohort.quarantined] for cohort in cohorts] == [[ErrorCode.UNREADABLE]] * 2
    assert len(list(cache.rglob("*.case"))) == 6


def test_two_sources_with_equal_keys_do_not_share_an_entry(tmp_path: Path) -> None:
    write_pair(tmp_path / "a", "p1")
    write_pair(tmp_path / "b", "p1", mask=np.zeros((20, 31), np.uint8))
    where = site(source(path="a"), source(path="b", empty_labels_are_negative=True))
    plain, _, cached = (
        load_cohort(where, RUN, root=tmp_path, site_key=KEY, cache=folder)
        for folder in (None, tmp_path / "cache", tmp_path / "cache")
    )
    assert_same_cohort(cached, plain)
    assert len(list((tmp_path / "cache").rglob("*.case"))) == 2


def test_damaged_entry_and_unwritable_cache_leave_the_cohort_as_it_is(
    pictures: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    cache, where = tmp_path / "home" / "cache", site(source(path="."))
    plain = load_cohort(where, RUN, root=pictures, site_key=KEY)
    load_cohort(where, RUN, root=pictures, site_key=KEY, cache=cache)
    damaged = sorted(cache.rglob("*.case"))[2]
    damaged.write_bytes(damaged.read_bytes()[:-1])
    assert_same_cohort(load_cohort(where, RUN, root=pictures, site_key=KEY, cache=cache), plain)
    assert "is damaged; its content is made again" in caplog.text
    caplog.clear()
    (tmp_path / "file").write_text("where the cache would stand")
    assert_same_cohort(load_cohort(where, RUN, root=pictures, site_key=KEY, cache=tmp_path / "file"), plain)
    assert caplog.text.count("cannot be written") == 1


@pytest.mark.parametrize("readers", [1, 2])
def test_number_of_readers_changes_no_bit_and_no_order(tmp_path: Path, readers: int) -> None:
    for number in range(4):
        write_ct(tmp_path / "ct" / str(number), (5, 24, 31 + number), patient=f"P{3 - number}")
    (tmp_path / "ct" / "2" / "002.dcm").unlink()
    (tmp_path / "ct" / "odd.dcm").write_bytes(b"\0" * 128 + b"DICM" + b"\xff" * 300)
    plain, apart = (
        load_cohort(site(source(path="ct")), run_config(), root=tmp_path, site_key=KEY, readers=count)
        for count in (0, readers)
    )
    assert_same_cohort(apart, plain)
    assert apart.quarantined == plain.quarantined
    assert [study.code for study in apart.quarantined] == [ErrorCode.UNREADABLE, ErrorCode.MISSING_SLICES]


@pytest.mark.parametrize("cached", [False, True])
def test_same_image_with_another_label_is_told_as_that_also_from_the_cache(
    pictures: Path, tmp_path: Path, cached: bool
) -> None:
    (pictures / "images" / "other.png").write_bytes((pictures / "images" / "p3L.png").read_bytes())
    with Image.open(pictures / "labels" / "p3L.png") as label:
        mask = np.array(label)
    mask[:2] = mask.max()
    Image.fromarray(mask).save(pictures / "labels" / "other.png")
    cache = tmp_path / "home" / "cache" if cached else None
    for _ in range(2):
        cohort = load_cohort(site(source(path=".")), RUN, root=pictures, site_key=KEY, cache=cache)
        (study,) = cohort.quarantined
        assert (study.number, study.code) == (5, ErrorCode.LABEL_CONFLICT)
        assert "pixel for pixel that of study " in study.reason
        assert len(cohort.cases) == 7


@pytest.mark.parametrize("cached", [False, True])
def test_same_image_twice_is_used_once_also_from_the_cache(pictures: Path, tmp_path: Path, cached: bool) -> None:
    cache = tmp_path / "home" / "cache"
    for kind in ("images", "labels"):
        content = (pictures / kind / "p3L.png").read_bytes()
        (pictures / kind / "other.png").write_bytes(content)
    for _ in range(2):
        cohort = load_cohort(site(source(path=".")), RUN, root=pictures, site_key=KEY, cache=cache if cached else None)
        assert [(study.number, study.code) for study in cohort.quarantined] == [(5, ErrorCode.DUPLICATE)]
        assert len(cohort.cases) == 7


def test_unfinished_label_is_left_out_unless_empty_means_negative(pictures: Path, tmp_path: Path) -> None:
    cache = tmp_path / "home" / "cache"
    write_pair(pictures, "negative", mask=np.zeros((20, 31), np.uint8))
    for negative, codes in ((False, [ErrorCode.LABEL_EMPTY]), (True, []), (False, [ErrorCode.LABEL_EMPTY])):
        where = site(source(path=".", empty_labels_are_negative=negative))
        cohort = load_cohort(where, RUN, root=pictures, site_key=KEY, cache=cache)
        assert [study.code for study in cohort.quarantined] == codes


def test_splits_are_kept_when_studies_join(pictures: Path, tmp_path: Path) -> None:
    where = site(source(path=".", patient_pattern=r"(p\d+)"))

    def splits() -> dict[str, str]:
        cohort = load_cohort(where, RUN, root=pictures, site_key=KEY, splits=tmp_path / "splits.sealed")
        return {case.patient: case.split for case in cohort.cases}

    before = splits()
    for number in range(20, 40):
        write_pair(pictures, f"p{number}L")
    after = splits()
    assert len(after) == len(before) + 20
    assert before.items() <= after.items()


def test_site_keeps_its_cohort_in_its_home(tmp_path: Path, no_decoding: Callable[[], None]) -> None:
    home = tmp_path / "home"
    write_pair(tmp_path / "data", "p1")
    write_pair(tmp_path / "data", "p2")
    home.mkdir()
    (home / "site.toml").write_text('name = "north"\n[[data]]\npath = "../data"\n')
    first = open_site(home).cohort(RUN)
    no_decoding()
    open_site(home).let_go()  # as after a restart
    again = open_site(home).cohort(RUN)
    assert again is not first
    assert_same_cohort(again, first)
    assert len(list((home / "cache").rglob("*.case"))) == 2


@pytest.mark.skipif("WARDROUND_DATA" not in os.environ, reason="WARDROUND_DATA is not set")
@pytest.mark.parametrize(
    ("camera", "pattern", "patients"), [("drive", None, 20), ("chasedb1", r"(Image_\d+)[LR]", 10), ("hrf", None, 24)]
)
def test_real_photographs_load_with_their_published_vessel_share(
    camera: str, pattern: str | None, patients: int
) -> None:
    root = Path(os.environ["WARDROUND_DATA"])
    where = source(path="vessels", csv="sites.csv", where={"site": camera}, patient_pattern=pattern)
    cohort = load(root, where, run=photo_run(rows=128))
    assert (cohort.size, cohort.quarantined) == (patients, ())
    table = (root / "vessels" / "sites.csv").read_text().splitlines()[1:]
    shares = [float(row.split(",")[-1]) for row in table if row.startswith(camera + ",")]
    # The table's share is of the field of view or the whole picture; ours of the picture, after resizing.
    labels = torch.cat([case.labels.flatten() for case in cohort.cases])
    assert 0.6 < float((labels == 1).double().mean()) / np.mean(shares) < 1.1


@pytest.mark.skipif("WARDROUND_DATA" not in os.environ, reason="WARDROUND_DATA is not set")
def test_real_volumes_load_in_3d() -> None:
    run = run_config(
        3, data={"modality": "MR", "classes": ["anterior", "posterior"]}, preprocessing={"spacing-mm": [1, 1, 1]}
    )
    cohort = load(Path(os.environ["WARDROUND_DATA"]), source(path="hippocampus"), run=run)
    assert (cohort.size, cohort.quarantined) == (130, ())
    assert sorted({int(value) for case in cohort.cases for value in case.labels.unique()}) == [0, 1, 2]
