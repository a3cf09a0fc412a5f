"""Preparing, restoring and the data check are three folds over one list of changes."""

from itertools import pairwise

import numpy as np
import pytest

from client.data.prepare import changes_of
from client.data.prepare import preprocess as under_test
from client.data.prepare.preprocess import preprocess, refusal, restore, stages
from client.data.study.study import Study
from common.config import RunConfig, sha256_of
from common.errors import DataError, ErrorCode
from common.preparation import Change, Geometry, Voxels
from common.preparation.step import Label
from tests.client.data.studies import blob, run_config

VOLUME = Geometry((5, 20, 30), 1, (3.0, 1.0, 1.0))
PICTURE = Geometry((20, 30), 3, None)


class Upside(Change):
    """Turns rows upside down: a change that must be taken back for a prediction to lie right."""

    def refuse(self, before: Geometry) -> DataError | None:
        return DataError("one slice has no rows to turn", ErrorCode.UNSUPPORTED) if before.shape[0] == 1 else None

    def apply(self, voxels: Voxels, before: Geometry) -> Voxels:
        label = None if voxels.label is None else voxels.label[:, ::-1].copy()
        return Voxels(voxels.image[:, :, ::-1].copy(), label)

    def invert(self, labels: Label, before: Geometry) -> Label:
        return labels[:, ::-1].copy()


RESAMPLED = run_config(preprocessing={"spacing-mm": [2.0, 2.0]})


@pytest.fixture
def with_upside(monkeypatch: pytest.MonkeyPatch) -> RunConfig:
    monkeypatch.setattr(under_test, "changes_of", lambda run: (*changes_of(run), Upside()))
    return RESAMPLED


def study(shape: tuple[int, int, int] = (5, 20, 30)) -> Study:
    label = np.zeros(shape, np.uint8)
    label[:, :6, 4:20] = 1
    affine = np.diag([1.0, 1.0, 3.0, 1.0])[[2, 1, 0, 3]]
    return Study(label[None].astype(np.float32), label, (3.0, 1.0, 1.0), affine, "CT", "", "", ())


def test_a_change_is_made_in_its_place_and_taken_back(monkeypatch: pytest.MonkeyPatch) -> None:
    one = study()
    usual, usual_label, _ = preprocess(one, RESAMPLED)
    monkeypatch.setattr(under_test, "changes_of", lambda run: (*changes_of(run), Upside()))
    image, label, way = preprocess(one, RESAMPLED)
    assert label is not None
    assert usual_label is not None
    assert one.label is not None
    np.testing.assert_array_equal(image, usual.flip(2))
    np.testing.assert_array_equal(label, usual_label.flip(1))
    np.testing.assert_array_equal(restore(label, way), one.label)


def test_steps_stand_in_their_places_in_the_order_of_the_list() -> None:
    kinds = ["gaussian", "crop-to-foreground", "gaussian", "clahe", "clahe"]
    run = run_config(format=2, preprocessing={"steps": [{"kind": kind} for kind in kinds]})
    names = [getattr(change, "kind", type(change).__name__) for change in changes_of(run)]
    assert names == ["Orientation", "Channels", *kinds[:3], "Resampling", "Intensity", *kinds[3:]]


def test_what_the_data_check_refuses_is_what_preparing_refuses(with_upside: RunConfig) -> None:
    """One list of refusals: by geometry alone, without a pixel, and when the study is prepared."""
    flat = study((1, 20, 30))
    told = refusal(Geometry(flat.image.shape[1:], 1, flat.spacing_mm), with_upside)
    assert told is not None
    with pytest.raises(DataError, match=str(told)) as raised:
        preprocess(flat, with_upside)
    assert raised.value.code is told.code is ErrorCode.UNSUPPORTED


@pytest.mark.parametrize(
    ("geometry", "run", "why"),
    [
        (PICTURE, run_config(3), "takes volumes"),
        (PICTURE, run_config(preprocessing={"spacing-mm": [1.0, 1.0]}), "does not know its spacing"),
        (Geometry((20, 30), 2, None), run_config(), "2 channels"),
    ],
)
def test_refusals_of_the_shipped_changes_need_no_pixel(geometry: Geometry, run: RunConfig, why: str) -> None:
    told = refusal(geometry, run)
    assert told is not None
    assert why in str(told)
    assert told.code is ErrorCode.UNSUPPORTED


@pytest.mark.parametrize(("geometry", "dims"), [(VOLUME, 2), (VOLUME, 3), (PICTURE, 2)])
def test_what_fits_is_not_refused(geometry: Geometry, dims: int) -> None:
    assert refusal(geometry, run_config(dims)) is None


@pytest.mark.parametrize(
    ("geometry", "keys", "words"),
    [
        (Geometry((20, 30), 1, None), {"spacing-mm": [2.0, 2.0]}, ("DICOM", "NIfTI", "train with rows")),
        (Geometry((900, 9000, 9000), 1, (1.0, 1.0, 1.0)), {"spacing-mm": [0.1, 0.1]}, ("coarser spacing-mm",)),
        (VOLUME, {"steps": [{"kind": "median", "radius": 10, "volume": True}]}, ("smaller radius",)),
        (Geometry((5, 4, 4), 1, (3.0, 1.0, 1.0)), {"steps": [{"kind": "n4"}]}, ("train without the step",)),
    ],
)
def test_what_is_refused_under_a_finished_model_is_no_advice_to_edit_its_run(
    geometry: Geometry, keys: dict[str, object], words: tuple[str, ...]
) -> None:
    """A prediction prepares by the same changes as training, long after run.toml could be changed."""
    run = run_config(format=2, data={"modality": "MR", "classes": ["lesion"]}, preprocessing=keys)
    told = refusal(geometry, run)
    assert told is not None
    assert "run.toml" not in str(told)
    for word in words:
        assert word in str(told)


def test_a_run_that_names_no_step_has_the_hash_that_it_had_before() -> None:
    # Of the commit before there was the key `steps`.
    assert sha256_of(run_config()) == "90c1833abeafb4fcffc5d0cb7847170dd583e8f023a9bc738b23b605e1e985e9"
    steps = [{"kind": "gaussian"}]
    assert sha256_of(run_config(format=2, preprocessing={"steps": steps})) != sha256_of(run_config())


def test_no_change_writes_to_the_study(with_upside: RunConfig) -> None:
    one = study()
    image = one.image.copy()
    one.image.flags.writeable = False
    preprocess(one, with_upside)
    np.testing.assert_array_equal(one.image, image)


def cropping(**keys: object) -> RunConfig:
    step = {"kind": "crop-to-foreground", **keys}
    return run_config(3, format=2, preprocessing={"steps": [step], "spacing-mm": [2.0, 1.0, 1.0]})


def test_a_crop_follows_the_voxels_and_labels_find_back_from_it() -> None:
    """The box of this study, by hand: blob is an ellipsoid in the middle of a darker rest."""
    body = blob((9, 40, 30))
    turned = np.zeros((4, 4))
    turned[:3, :3] = np.array([[0.0, 0, 1], [0, -1, 0], [1, 0, 0]]) * (2.0, 1.0, 1.0)  # back and front exchanged
    turned[3, 3] = 1
    one = Study(100 * body[None].astype(np.float32), body, (2.0, 1.0, 1.0), turned, "CT", "", "", ())
    image, label, way = preprocess(one, cropping(margin=1))
    held = [np.flatnonzero(body.any(axis=axes)) for axes in ((1, 2), (0, 2), (0, 1))]
    assert image.shape[1:] == tuple(part[-1] - part[0] + 3 for part in held)
    assert label is not None
    np.testing.assert_array_equal(label.bool(), image[0] > 0.5)
    np.testing.assert_array_equal(restore(label, way), body)
    assert restore(np.ones(way.shape, np.uint8), way).sum() == label.numel()


def test_each_study_has_a_box_of_its_own_and_its_own_way_back() -> None:
    run = cropping(threshold=0.5)
    studies = [study(), study((5, 40, 30)), study((2, 20, 50))]
    prepared = [preprocess(one, run) for one in studies]
    for one, (_, label, way) in zip(studies, prepared, strict=True):
        assert one.label is not None
        assert label is not None
        assert label.all()  # of these the box holds nothing but the label
        np.testing.assert_array_equal(restore(label, way), one.label)


def test_a_box_that_would_cut_the_label_sets_the_study_aside() -> None:
    one = study()
    assert one.label is not None
    label = one.label.copy()
    label[:, -3:] = 2
    cut = Study(one.image, label, one.spacing_mm, one.affine, "CT", "", "", ())
    with pytest.raises(DataError, match="cut off 100% of a class") as refused:
        preprocess(cut, cropping())
    assert refused.value.code is ErrorCode.LABEL_DOUBTFUL
    unlabelled = Study(one.image, None, one.spacing_mm, one.affine, "CT", "", "", ())
    assert preprocess(unlabelled, cropping()).image.shape[1:] == (8, 6, 16)  # 5 slices of 3 mm


def test_the_geometry_alone_tells_the_largest_that_a_crop_can_be() -> None:
    assert refusal(VOLUME, cropping()) is None
    large = Geometry((5, 60_000, 60_000), 1, (3.0, 1.0, 1.0))
    told = refusal(large, cropping())
    assert told is not None
    assert told.code is ErrorCode.UNSUPPORTED


def test_stages_are_what_preparing_does_one_by_one() -> None:
    one, run = study(), cropping()
    seen = list(stages(one, run))
    assert seen[0].given.image is one.image
    for earlier, later in pairwise(seen):
        assert later.given is earlier.made
        assert later.before is earlier.after
        assert later.made.image.shape[1:] == later.after.shape
    np.testing.assert_array_equal(seen[-1].made.image, preprocess(one, run).image)
