"""Tables that LaTeX can read, Parquet with the types of the CSV, and a test that counts a patient once."""

import itertools
import math
import sys
from pathlib import Path

import pytest
from pyarrow import parquet

from common.errors import ConfigError
from common.tasks.classification import Classification
from common.tasks.segmentation import Segmentation
from simulations.studies import paired, tables
from simulations.studies.tables import Score
from tests.simulations.studies.longform import assert_is_latex

TASK = Segmentation()


def of_patient(model: str, seed: int, patient: str, value: float, site: str = "x") -> Score:
    return Score(model, seed, "test", site, "dice", value, patient)


def test_parquet_without_what_writes_it_is_refused_before_anything_is_trained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "path", [])
    monkeypatch.delitem(sys.modules, "pyarrow", raising=False)
    with pytest.raises(ConfigError, match=r"wardround\[parquet\]"):
        tables.check_parquet()


def test_a_pseudonym_of_digits_stays_a_word(tmp_path: Path) -> None:
    rows = [of_patient("m", 0, "0012", 0.5)]
    tables.write(tmp_path, "study", "t", (["a"], [[1]]), scores=[], patients=rows)
    tables.as_parquet(tmp_path)
    assert parquet.read_table(tmp_path / "patients.parquet").to_pylist()[0]["patient"] == "0012"
    assert parquet.read_table(tmp_path / "scores.parquet").to_pylist() == []


def test_what_latex_would_take_for_a_command_is_escaped() -> None:
    cells: list[list[object]] = [["a\\b{c}~^#$", None], ["x", 0.12345], ["[1pt] or", "*"], ["*", '"']]
    text = tables.latex((["50 % & more", "b_1"], cells), "100 %", "tab:x")
    assert "50 \\% \\& more & b\\_1 \\\\" in text
    assert "a\\textbackslash{}b\\{c\\}\\textasciitilde{}\\textasciicircum{}\\#\\$ & -- \\\\" in text
    assert "x & 0.123 \\\\" in text
    assert "    {}[1pt] or & * \\\\" in text  # no distance between two lines
    assert "    {}* & {\\char34} \\\\" in text
    assert "\\caption{100 \\%}" in text
    assert_is_latex(text, 2)


def test_the_signed_rank_test_counts_a_patient_once_whatever_the_seeds() -> None:
    # Five patients, all better by different amounts: of 2^5 signs two are as extreme.
    few = [of_patient(m, 0, str(p), 0.5 + (m == "a") * (p + 1) / 100) for m in "ab" for p in range(5)]
    (one,) = paired.paired(few, [("a", "b")], TASK)
    assert (one.patients, one.p, one.adjusted) == (5, 2 / 2**5, 2 / 2**5)
    assert one.difference.value == pytest.approx(0.03)
    twice = few + [of_patient(o.model, 1, str(o.patient), o.value + (o.model == "a") * 0.1) for o in few]
    (two,) = paired.paired(twice, [("a", "b")], TASK)
    assert (two.patients, two.p) == (5, one.p)
    assert two.difference.value == pytest.approx(0.08)
    assert two.seeds == pytest.approx((0.03, 0.13))
    assert two.difference.low is not None
    assert two.difference.high is not None
    assert 0.06 <= two.difference.low < 0.08 < two.difference.high <= 0.1


def by_all_signs(differences: list[float]) -> float:
    """Two-sided p of the signed ranks by counting all signs, without zeros; equal ones share their mean rank."""
    apart = [abs(one) for one in differences if one]
    ranks = [sum(other < one for other in apart) + (sum(other == one for other in apart) + 1) / 2 for one in apart]
    told = sum(rank for rank, one in zip(ranks, [one for one in differences if one], strict=True) if one > 0)
    middle = sum(ranks) / 2
    sums = [sum(itertools.compress(ranks, signs)) for signs in itertools.product((0, 1), repeat=len(ranks))]
    return sum(abs(one - middle) >= abs(told - middle) for one in sums) / len(sums)


@pytest.mark.parametrize(
    ("first", "second", "wanted"),
    [
        # Accuracies of few images: equal differences, which floats tell apart in their last bits.
        ([0.6, 0.8, 0.4, 1.0, 0.2], [0.4, 0.6, 0.6, 0.8, 0.0], [1, 1, -1, 1, 1]),
        # Thirty patients of whom four differ.
        ([0.5] * 26 + [0.6, 0.7, 0.8, 0.9], [0.5] * 30, [0] * 26 + [1, 2, 3, 4]),
        ([0.5, 0.5, 0.7], [0.5, 0.5, 0.5], [0, 0, 1]),
        ([0.5, 0.5], [0.5, 0.5], [0, 0]),
    ],
)
def test_the_signed_rank_test_counts_exactly_with_ties_and_with_patients_who_do_not_differ(
    first: list[float], second: list[float], wanted: list[float]
) -> None:
    rows = [of_patient(m, 0, str(p), value) for m, of in (("a", first), ("b", second)) for p, value in enumerate(of)]
    (one,) = paired.paired(rows, [("a", "b")], TASK)
    assert one.p == pytest.approx(by_all_signs(wanted))


def test_dust_of_seeds_that_cancel_is_no_difference() -> None:
    values = {("a", 0): 0.4, ("b", 0): 0.3, ("a", 1): 0.5, ("b", 1): 0.6}
    rows = [of_patient(model, seed, str(p), value) for (model, seed), value in values.items() for p in range(6)]
    (one,) = paired.paired(rows, [("a", "b")], TASK)
    assert (one.difference.value, one.p) == (0, 1)


def test_patients_of_one_model_alone_are_no_pair() -> None:
    rows = [of_patient("a", 0, "p", 0.5), of_patient("a", 0, "q", 0.5), of_patient("b", 0, "p", 0.25)]
    # A patient of another site may have the same pseudonym, and is somebody else.
    rows.append(of_patient("b", 0, "q", 0.0, site="y"))
    one, none = paired.paired(rows, [("a", "b"), ("a", "c")], TASK)
    assert (one.patients, one.difference.value) == (1, 0.25)
    assert (none.patients, none.p, none.adjusted) == (0, None, None)
    assert math.isnan(none.difference.value)


def test_holm_against_a_worked_example() -> None:
    # By hand: .01 x 4, .02 x 3, then .03 x 2 which stays, and .04 x 1 which may not lie below .06.
    assert paired.holm([0.02, 0.04, 0.01, 0.03]) == pytest.approx([0.06, 0.06, 0.04, 0.06])
    assert paired.holm([0.9, 0.8]) == [1.0, 1.0]


def test_patients_who_are_classified_have_the_share_of_right_answers() -> None:
    import torch  # noqa: PLC0415

    task = Classification()
    right, wrong = [0.0, 5.0, 1.0], [5.0, 0.0, 1.0]  # logits of none and one class, and what is shown
    rows = task.of_each([torch.tensor([right, wrong]), torch.tensor([right])], ["disc"])
    assert rows == [{"accuracy": 0.5}, {"accuracy": 1.0}]
