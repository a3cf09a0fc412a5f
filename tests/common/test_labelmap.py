"""A value of a label map names one class or several: by hand, and by NumPy's own bits."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch

from common.labelmap import MOST_OVERLAPPING, counts, join, marks, value_of

# A liver (1) of 2 x 3, a lesion (2) that reaches out of it, and a vessel (8) at the end of the bits.
LIVER = np.array([[1, 1, 1, 0], [1, 1, 1, 0], [0, 0, 0, 0]], bool)
LESION = np.array([[0, 0, 1, 1], [0, 0, 0, 0], [0, 0, 0, 0]], bool)
VESSEL = np.array([[0, 0, 1, 0], [0, 0, 0, 0], [0, 0, 0, 1]], bool)
BITS = np.array([[1, 1, 131, 2], [1, 1, 1, 0], [0, 0, 0, 128]], np.uint8)
NUMBERS = np.array([[1, 1, 8, 2], [1, 1, 1, 0], [0, 0, 0, 8]], np.uint8)


# `labels == 2`, `label[z] == number` and the like, but not with a word.
COMPARED = re.compile(r"\blabels?\b(\[[^\]]*\])? [=!]= [a-z0-9]")
ROOT = Path(__file__).parents[2]


def test_nobody_else_compares_a_label_with_a_class() -> None:
    """The baseline is of classification, whose regions have one class each."""
    found = {
        path.relative_to(ROOT).as_posix()
        for room in ("common", "client", "server", "simulations")
        for path in (ROOT / room).rglob("*.py")
        if COMPARED.search(path.read_text(encoding="utf-8"))
    }
    assert found == {"common/labelmap.py", "simulations/diagnosis/baseline.py"}


def test_values_are_numbers_or_powers_of_two() -> None:
    assert [value_of(number, overlap=False) for number in range(9)] == list(range(9))
    assert [value_of(number, overlap=True) for number in range(9)] == [0, 1, 2, 4, 8, 16, 32, 64, 128]


@pytest.mark.parametrize("kind", ["numpy", "uint8", "int32", "int64"])
def test_a_class_is_where_it_was_drawn_whatever_lies_over_it(kind: str) -> None:
    labels = BITS if kind == "numpy" else torch.from_numpy(BITS).to(getattr(torch, kind))
    for number, mask in ((1, LIVER), (2, LESION), (8, VESSEL)):
        found = marks(labels, number, overlap=True)
        assert str(found.dtype).endswith("bool")
        np.testing.assert_array_equal(np.asarray(found), mask)
    assert not np.asarray(marks(labels, 3, overlap=True)).any()
    np.testing.assert_array_equal(np.asarray(marks(NUMBERS, 1, overlap=False)), LIVER & ~VESSEL)
    np.testing.assert_array_equal(np.asarray(marks(NUMBERS, 8, overlap=False)), VESSEL)


@pytest.mark.parametrize(("overlap", "expected"), [(True, BITS), (False, NUMBERS)])
def test_what_is_drawn_lies_beside_or_over_what_there_is(overlap: bool, expected: np.ndarray) -> None:
    labels = np.zeros(LIVER.shape, np.uint8)
    for number, mask in ((8, VESSEL), (1, LIVER), (2, LESION)):
        join(labels, mask * np.uint8(value_of(number, overlap=overlap)), overlap=overlap)
    np.testing.assert_array_equal(labels, expected)


def test_each_class_is_counted_and_what_is_none() -> None:
    assert counts(BITS, overlap=True).tolist() == [4, 6, 2, 0, 0, 0, 0, 0, 2]
    found = counts(NUMBERS, overlap=False)
    assert found.shape == (256,)
    assert {int(at): int(found[at]) for at in np.flatnonzero(found)} == {0: 4, 1: 5, 2: 1, 8: 2}


def test_counts_of_every_value_are_those_of_its_bits() -> None:
    labels = np.random.default_rng(0).integers(0, 256, (7, 9, 11), dtype=np.uint8)
    bits = np.unpackbits(labels.ravel()[:, None], axis=1, bitorder="little")
    assert bits.shape[1] == MOST_OVERLAPPING
    assert counts(labels, overlap=True).tolist() == [int((labels == 0).sum()), *bits.sum(axis=0).tolist()]
    assert counts(labels[:0], overlap=True).tolist() == [0] * 9
