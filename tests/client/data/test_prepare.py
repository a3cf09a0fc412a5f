"""Preparing, restoring and the data check are three folds over one list of steps."""

import numpy as np
import pytest

from client.data.prepare import STEPS, Geometry, Step
from client.data.prepare import preprocess as under_test
from client.data.prepare.preprocess import preprocess, refusal, restore
from client.data.prepare.step import Image, Label
from client.data.study.study import Study
from common.config import RunConfig, sha256_of
from common.errors import DataError, ErrorCode
from tests.client.data.studies import run_config

VOLUME = Geometry((5, 20, 30), 1, (3.0, 1.0, 1.0))
PICTURE = Geometry((20, 30), 3, None)


class Upside(Step):
    """Turns rows upside down: a step that must be taken back for a prediction to lie right."""

    name = "upside"

    def refuse(self, before: Geometry, run: RunConfig) -> DataError | None:
        return DataError("one slice has no rows to turn", ErrorCode.UNSUPPORTED) if before.shape[0] == 1 else None

    def apply(self, image: Image, label: Label | None, before: Geometry, run: RunConfig) -> tuple[Image, Label | None]:
        return image[:, :, ::-1].copy(), None if label is None else label[:, ::-1].copy()

    def invert(self, labels: Label, before: Geometry, run: RunConfig) -> Label:
        return labels[:, ::-1].copy()


@pytest.fixture
def with_upside(monkeypatch: pytest.MonkeyPatch) -> RunConfig:
    monkeypatch.setattr(under_test, "STEPS", (*STEPS, Upside()))
    return run_config(format=2, preprocessing={"steps": ["upside"], "spacing-mm": [2.0, 2.0]})


def study(shape: tuple[int, int, int] = (5, 20, 30)) -> Study:
    label = np.zeros(shape, np.uint8)
    label[:, :6, 4:20] = 1
    affine = np.diag([1.0, 1.0, 3.0, 1.0])[[2, 1, 0, 3]]
    return Study(label[None].astype(np.float32), label, (3.0, 1.0, 1.0), affine, "CT", "", "", ())


def test_a_named_step_is_applied_in_its_place_and_taken_back(with_upside: RunConfig) -> None:
    one, plain = study(), run_config(preprocessing={"spacing-mm": [2.0, 2.0]})
    (image, label), (usual, usual_label) = preprocess(one, with_upside), preprocess(one, plain)
    assert label is not None
    assert usual_label is not None
    np.testing.assert_array_equal(image, usual.flip(2))
    np.testing.assert_array_equal(label, usual_label.flip(1))
    assert one.label is not None
    np.testing.assert_array_equal(restore(label, one, with_upside), one.label)


def test_a_step_that_the_run_does_not_name_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    run = run_config()
    before = preprocess(study(), run)[0]
    monkeypatch.setattr(under_test, "STEPS", (*STEPS, Upside()))
    np.testing.assert_array_equal(preprocess(study(), run)[0], before)


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
        (VOLUME, run_config(format=2, preprocessing={"steps": ["sharpen"]}), "does not have: sharpen"),
    ],
)
def test_refusals_of_the_shipped_steps_need_no_pixel(geometry: Geometry, run: RunConfig, why: str) -> None:
    told = refusal(geometry, run)
    assert told is not None
    assert why in str(told)
    assert told.code is ErrorCode.UNSUPPORTED


@pytest.mark.parametrize(("geometry", "dims"), [(VOLUME, 2), (VOLUME, 3), (PICTURE, 2)])
def test_what_fits_is_not_refused(geometry: Geometry, dims: int) -> None:
    assert refusal(geometry, run_config(dims)) is None


def test_a_run_that_names_no_step_has_the_hash_that_it_had_before() -> None:
    # Of the commit before there was the key `steps`.
    assert sha256_of(run_config()) == "90c1833abeafb4fcffc5d0cb7847170dd583e8f023a9bc738b23b605e1e985e9"
    assert sha256_of(run_config(format=2, preprocessing={"steps": ["upside"]})) != sha256_of(run_config())


def test_no_step_writes_to_the_study(with_upside: RunConfig) -> None:
    one = study()
    image = one.image.copy()
    one.image.flags.writeable = False
    preprocess(one, with_upside)
    np.testing.assert_array_equal(one.image, image)
