"""What a person sees beside a result: each finding's largest slice, which class is which, how long a millimetre is."""

import io

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from client.data.study.drawing import COLOURS
from client.data.study.study import Study
from client.predict.overlay import MOST_PANELS, draw_overlay

EDGE = 512  # of a panel of a square image whose edge divides it


def _study(shape: tuple[int, ...], spacing_mm: tuple[float, ...] | None) -> Study:
    image = np.random.default_rng(0).random((1, *shape), np.float32)
    return Study(image, None, spacing_mm, None, "CT", "", "", ())


def _draw(study: Study, labels: NDArray[np.uint8], classes: tuple[str, ...] = ("lesion",)) -> NDArray[np.uint8]:
    return np.asarray(Image.open(io.BytesIO(draw_overlay(study, labels, classes, (0.0, 1.0)))))


def _has(picture: NDArray[np.uint8], colour: tuple[int, int, int]) -> bool:
    return bool((picture == colour).all(-1).any())


def test_each_class_and_each_finding_has_a_panel_with_its_largest_slice() -> None:
    labels = np.zeros((20, 16, 16), np.uint8)
    labels[2:5, 2:6, 2:6] = 1
    labels[3, 2:10, 2:10] = 1  # the largest of the first finding
    labels[10, 4:6, 4:6] = 1  # a second finding of the same class
    labels[17, 8:10, 8:10] = 2
    picture = _draw(_study(labels.shape, (5.0, 1.0, 1.0)), labels, ("lesion", "bone"))
    assert picture.shape[1] == 3 * EDGE
    first, second, third = (picture[:EDGE, k * EDGE : (k + 1) * EDGE] for k in range(3))
    rows = np.flatnonzero((first == COLOURS[0]).all(-1).any(1))
    assert (rows[0], rows[-1] + 1) == (2 * 32, 10 * 32)
    assert [_has(panel, COLOURS[0]) for panel in (first, second, third)] == [True, True, False]
    assert [_has(panel, COLOURS[1]) for panel in (first, second, third)] == [False, False, True]


def test_many_findings_leave_room_for_every_class() -> None:
    labels = np.zeros((40, 16, 16), np.uint8)
    labels[::2, 2:14, 2:14] = 1
    labels[31, 3:5, 3:5] = 2
    picture = _draw(_study(labels.shape, (5.0, 1.0, 1.0)), labels, ("lesion", "bone"))
    assert picture.shape[1] == MOST_PANELS * EDGE
    assert _has(picture[:EDGE], COLOURS[1])


@pytest.mark.parametrize("classes", [1, 3, 8])
def test_legend_shows_the_colour_of_every_class(classes: int) -> None:
    labels = np.zeros((16, 16), np.uint8)
    picture = _draw(_study(labels.shape, None), labels, tuple(f"a-long-name-of-class-{k}" for k in range(classes)))
    assert picture.shape[1] == EDGE
    legend = picture[EDGE:]
    assert [_has(legend, colour) for colour in COLOURS] == [k < classes for k in range(len(COLOURS))]


@pytest.mark.parametrize(("pixel_mm", "expected_mm"), [(0.2, 1), (1.0, 5), (1.5, 5), (4.0, 20), (0.001, 0.005)])
def test_scale_is_as_long_as_it_says(pixel_mm: float, expected_mm: float) -> None:
    labels = np.zeros((16, 16), np.uint8)
    picture = _draw(_study(labels.shape, (pixel_mm, pixel_mm)), labels)
    lines = (picture[EDGE:] == 255).all(-1)
    longest = max(max(map(len, "".join("x" if on else " " for on in row).split()), default=0) for row in lines)
    assert longest == pytest.approx(expected_mm / pixel_mm * EDGE / 16, abs=2)


def test_no_scale_where_no_length_is_known() -> None:
    labels = np.zeros((16, 16), np.uint8)
    heights = [_draw(_study((16, 16), spacing), labels).shape[0] for spacing in (None, (0.0, 0.0), (1.0, 1.0))]
    assert heights[0] == heights[1] < heights[2]


def test_pixels_are_square_and_a_constant_image_is_drawn() -> None:
    labels = np.zeros((3, 10, 20), np.uint8)
    study = Study(np.ones((1, 3, 10, 20), np.float32), None, (3.0, 2.0, 0.5), None, "MR", "", "", ())
    picture = np.asarray(Image.open(io.BytesIO(draw_overlay(study, labels, ["lesion"], None))))
    # 20 x 10 mm at 0.5 mm a pixel are 40 x 20, and 13 times that is nearest to 512.
    assert picture.shape[1] == 260
    assert picture.shape[0] > 520
