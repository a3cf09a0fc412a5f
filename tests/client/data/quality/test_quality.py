"""The quality gate lets real images through and stops wrong ones, each with its code."""

import hashlib
import io
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from client.data.isolate.answering import Job, check_study
from client.data.quality.picture import EDGE_PIXELS, thumbnail
from client.data.quality.quality import (
    PERCENTILES,
    examine,
    facts_from_json,
    facts_to_json,
    without_duplicates,
)
from client.data.read import sources
from client.data.study.drawing import COLOURS
from client.data.study.labels import Vocabulary
from client.data.study.study import Reference, Study
from common.errors import DataError, ErrorCode
from simulations.generators.phantoms import SCANNERS, write_study
from tests.client.data.studies import source

REAL = os.environ.get("WARDROUND_DATA")
needs_data = pytest.mark.skipif(REAL is None, reason="WARDROUND_DATA is not set")


def body(shape: tuple[int, ...] = (3, 17, 23), intercept: float = 0.0) -> np.ndarray:
    """(1, *shape) of a CT in HU: air around a box of soft tissue with bone in it."""
    rng = np.random.default_rng(0)
    image = rng.normal(-1000, 5, (1, *shape)).astype(np.float32)
    image[..., 3:-3, 3:-3] = rng.normal(50, 10, image[..., 3:-3, 3:-3].shape)
    image[..., 6, 6] = 900
    return image + np.float32(intercept)


def study(image: np.ndarray | None = None, label: np.ndarray | None = None, **values: Any) -> Study:
    """A study with one class; its label marks a corner unless given."""
    image = body() if image is None else image
    if label is None:
        label = np.zeros(image.shape[1:], np.uint8)
        label[..., :2, :3] = 1
    defaults: dict[str, Any] = {
        "spacing_mm": (2.0, 0.8, 0.7)[-label.ndim :],
        "affine": None,
        "modality": "CT",
        "patient": "P",
        "key": "k",
        "files": (),
        "classes": ("lesion",),
    }
    return Study(image, label, **(defaults | values))


def refusal(of: Study) -> str:
    """The text of the study's being implausible."""
    with pytest.raises(DataError) as caught:
        examine(of, empty_is_negative=True)
    assert caught.value.code == ErrorCode.IMPLAUSIBLE
    assert "Export" in str(caught.value)
    return str(caught.value)


def test_facts_are_those_of_the_arrays() -> None:
    image = body()
    facts = examine(study(image), empty_is_negative=False)
    assert (facts.modality, facts.shape, facts.channels) == ("CT", (3, 17, 23), 1)
    assert facts.spacing_mm == (2.0, 0.8, 0.7)
    np.testing.assert_allclose(facts.intensities, np.percentile(image, PERCENTILES), rtol=1e-5)
    assert facts.voxels == {"background": 3 * 17 * 23 - 18, "lesion": 18}
    assert facts.digest == hashlib.sha256(b"(1, 3, 17, 23)" + image.tobytes()).hexdigest()


def test_percentiles_of_a_large_image_are_close_though_sampled() -> None:
    image = np.random.default_rng(1).normal(0, 100, (1, 2048, 2050)).astype(np.float32)
    facts = examine(study(image, spacing_mm=None, modality="MR"), empty_is_negative=False)
    np.testing.assert_allclose(facts.intensities, np.percentile(image, PERCENTILES), atol=1.0)
    assert facts.intensities[0] == image.min()
    assert facts.intensities[-1] == image.max()


def test_facts_survive_json() -> None:
    for one in (study(), study(body((17, 23)), spacing_mm=None)):
        facts = examine(one, empty_is_negative=False)
        assert facts_from_json(json.loads(json.dumps(facts_to_json(facts)))) == facts


def test_label_that_marks_nothing_is_unfinished_unless_the_site_says_otherwise() -> None:
    nothing = study(label=np.zeros((3, 17, 23), np.uint8))
    with pytest.raises(DataError, match="empty-labels-are-negative") as caught:
        examine(nothing, empty_is_negative=False)
    assert caught.value.code == ErrorCode.LABEL_EMPTY
    assert not examine(nothing, empty_is_negative=True).has_foreground
    assert examine(study(), empty_is_negative=False).has_foreground


@pytest.mark.parametrize("spacing", [(2.0, 0.8, 0.0), (2.0, 700.0, 700.0), (2.0, 7e-4, 7e-4), (2.0, np.nan, 1.0)])
def test_voxels_of_impossible_size_are_refused(spacing: tuple[float, ...]) -> None:
    assert "mm large" in refusal(study(spacing_mm=spacing))


def test_image_longer_than_any_body_is_refused() -> None:
    assert "3.2 m long" in refusal(study(body((3, 8, 400)), spacing_mm=(1.0, 8.0, 8.0)))


@pytest.mark.parametrize("shape", [(7, 40), (3, 40, 7), (1, 1, 1)])
def test_image_of_a_few_pixels_is_refused(shape: tuple[int, ...]) -> None:
    image = np.arange(np.prod(shape), dtype=np.float32).reshape(1, *shape)
    assert "at least 8" in refusal(study(image, spacing_mm=None))


def test_one_thin_slice_is_enough() -> None:
    examine(study(body((1, 17, 8))), empty_is_negative=False)


def test_more_voxels_than_fit_are_refused_before_any_is_looked_at() -> None:
    image = np.broadcast_to(np.float32(0), (1, 70000, 40000, 3000))
    label = np.broadcast_to(np.uint8(0), image.shape[1:])
    assert "thousand million" in refusal(study(image, label, spacing_mm=None))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_image_with_a_value_that_is_no_number_is_refused(value: float) -> None:
    image = body()
    image[0, 1, 2, 3] = value
    assert "no numbers" in refusal(study(image))


def test_image_of_one_value_is_refused() -> None:
    assert "the value 7;" in refusal(study(np.full((1, 3, 17, 23), 7, np.float32), modality="MR"))


@pytest.mark.parametrize(
    ("image", "words"),
    [
        (body(intercept=1024), "missing"),
        (body(intercept=-1024), "twice"),
        ((body() + 1100) / 2100, "span"),
        (np.clip((body() + 160) / 400, 0, 1).round(4) * 255, "windowed"),
    ],
)
def test_ct_that_is_not_in_hounsfield_units_is_refused(image: np.ndarray, words: str) -> None:
    assert words in refusal(study(image.astype(np.float32)))
    examine(study(image.astype(np.float32), modality="MR"), empty_is_negative=False)


def test_ct_that_was_cropped_to_the_brain_passes() -> None:
    rng = np.random.default_rng(2)
    brain = np.where(rng.random((1, 3, 30, 30)) < 0.4, 0, rng.normal(35, 8, (1, 3, 30, 30)))
    brain[0, :, :2] = 1200  # some skull
    examine(study(brain.astype(np.float32)), empty_is_negative=False)


def test_ct_with_padding_below_air_and_metal_above_bone_passes() -> None:
    image = body()
    image[..., :2], image[..., 8, 8] = -3024, 30000
    examine(study(image), empty_is_negative=False)


def test_ct_of_a_dense_specimen_in_air_passes() -> None:
    image = body()
    image[image > 0] += 1000
    examine(study(image), empty_is_negative=False)


@given(st.lists(st.sampled_from("abcd"), max_size=12))
def test_every_digest_keeps_its_first_study(digests: list[str]) -> None:
    refused = DataError("unreadable", ErrorCode.UNREADABLE)
    told = without_duplicates([refused, *digests, refused], str)
    assert [one for one in told if isinstance(one, str)] == list(dict.fromkeys(digests))
    assert told[0] is told[-1] is refused
    assert len(told) == len(digests) + 2
    others = [one for one in told[1:-1] if isinstance(one, DataError)]
    assert {one.code for one in others} <= {ErrorCode.DUPLICATE}


def test_same_pixels_have_the_same_digest_and_another_shape_another_one() -> None:
    image = body((4, 16, 16))
    digest = examine(study(image), empty_is_negative=False).digest
    assert examine(study(image.copy(), patient="Q", key="j"), empty_is_negative=False).digest == digest
    assert examine(study(image.reshape(1, 4, 8, 32)), empty_is_negative=False).digest != digest
    changed = image.copy()
    changed[0, 3, 15, 15] += 1
    assert examine(study(changed), empty_is_negative=False).digest != digest


def colours(png: bytes) -> set[tuple[int, ...]]:
    """The colours of a picture that are no grey."""
    pixels = np.asarray(Image.open(io.BytesIO(png)).convert("RGB")).reshape(-1, 3)
    return {tuple(map(int, pixel)) for pixel in np.unique(pixels, axis=0) if len(set(pixel.tolist())) > 1}


@pytest.mark.parametrize("shape", [(5, 17, 23), (1, 9, 300), (33, 8), (8, 8)])
def test_thumbnail_is_a_small_png_with_the_contour(shape: tuple[int, ...]) -> None:
    label = np.zeros(shape, np.uint8)
    label[..., 2:6, 2:6] = 1
    png = thumbnail(study(body(shape), label, spacing_mm=None))
    picture = Image.open(io.BytesIO(png))
    assert (picture.format, max(picture.size)) == ("PNG", EDGE_PIXELS)
    assert colours(png) == {COLOURS[0]}


def test_thumbnail_shows_the_slice_with_the_most_label_and_each_class_in_its_colour() -> None:
    label = np.zeros((5, 17, 23), np.uint8)
    label[1, :3, :3], label[3, :9, :9], label[3, 12:, 12:] = 3, 1, 7
    assert colours(thumbnail(study(label=label, image=body(label.shape)))) == {COLOURS[0], COLOURS[6 % len(COLOURS)]}


def test_thumbnail_without_label_shows_no_colour() -> None:
    assert colours(thumbnail(study(label=np.zeros((3, 17, 23), np.uint8)))) == set()
    photo = np.random.default_rng(0).uniform(0, 255, (3, 40, 30)).astype(np.float32)
    assert colours(thumbnail(study(photo, np.zeros((40, 30), np.uint8), spacing_mm=None))) == set()


def test_thumbnail_has_square_pixels_in_mm() -> None:
    picture = Image.open(io.BytesIO(thumbnail(study(body((3, 20, 20)), spacing_mm=(1.0, 2.0, 1.0)))))
    assert picture.size == (80, 160)


def test_thumbnail_of_a_body_that_lies_on_its_head_is_turned_round() -> None:
    """A coronal slice whose rows go up: the head, at the last row, must be above."""
    image, label = body((3, 30, 30)), np.zeros((3, 30, 30), np.uint8)
    label[1, -6:, 10:20] = 1
    affine = np.eye(4)[[2, 0, 1, 3]]  # (z, y, x) steps go back, to the head, to the left
    turned = np.asarray(Image.open(io.BytesIO(thumbnail(study(image, label, affine=affine)))).convert("RGB"), int)
    rows = np.flatnonzero(np.ptp(turned, axis=2).any(axis=1))
    assert rows.max() < len(turned) / 2


def test_phantom_of_every_scanner_passes(tmp_path: Path) -> None:
    for number, scanner in enumerate(SCANNERS.values()):
        write_study(tmp_path / str(number), scanner=scanner, seed=number, slices=5, rows=64)
    references = sources.find(source(path="."), tmp_path).references
    assert len(references) == len(SCANNERS)
    for reference in references:
        facts = check_study(Job(reference, Vocabulary())).facts
        assert (facts.modality, facts.shape, facts.has_foreground) == ("CT", (5, 64, 64), True)


def test_film_that_the_archive_calls_normal_is_a_finding(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 255, (1024, 1024), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "mdb003.pgm")
    (tmp_path / "Info.txt").write_text("mdb003 D NORM\n")
    reference = Reference("mias", "mdb003", "mdb003", (tmp_path / "mdb003.pgm",), (tmp_path / "Info.txt",))
    facts = check_study(Job(reference, Vocabulary())).facts
    assert (facts.modality, facts.has_foreground) == ("MG", False)


@needs_data
@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"path": "vessels", "csv": "sites.csv"}, 10),
        ({"path": "hippocampus"}, 20),
        ({"path": "mini_mias"}, 20),
    ],
)
def test_real_images_pass(values: dict[str, Any], expected: int) -> None:
    references = sources.find(source(**values), Path(str(REAL))).references
    step = len(references) // expected
    refused = set()
    for reference in references[: expected * step : step]:
        try:
            assert len(check_study(Job(reference, Vocabulary())).thumbnail) < 30_000
        except DataError as error:
            refused.add(error.code)
    assert refused <= {ErrorCode.NO_LABEL}  # films whose finding has no place


@needs_data
def test_real_ct_and_mr_pass_and_ct_of_a_few_values_does_not() -> None:
    # As for prediction: two of the collection's label files have the UID of another, which sets their series aside.
    found = sources.find_images(Path(str(REAL)) / "dicom_labelled")
    images = [sources.read(one, None) for one in found if one.problem is None]
    wrong = [one for one in images if one.modality == "CT" and np.ptp(one.image) <= 20]
    assert wrong
    assert len(images) - len(wrong) >= 6
    for one in images:
        if one in wrong:
            refusal(one)
        else:
            examine(one, empty_is_negative=False)
