"""What a person types as a query, what the PACS is asked for, and what of its answer fits."""

import datetime
from pathlib import Path

import pytest

from client.pacs.pulling import Hours
from client.pacs.query import Query, Series, Study, accessions_in, query_of, wanted_series
from common.errors import ConfigError

CT, MR, SEG, SR = (
    Series(uid=f"1.{number}", modality=modality, body_part="LIVER")
    for number, modality in enumerate(("CT", "MR", "SEG", "SR"))
)


@pytest.mark.parametrize(
    ("dates", "asked"),
    [
        ("2024-01-31", "20240131"),
        ("2024-01-01..2024-06-30", "20240101-20240630"),
        ("2024-01-01..", "20240101-"),
        ("..2024-06-30", "-20240630"),
    ],
)
def test_dates_are_asked_for_as_dicom_writes_ranges(dates: str, asked: str) -> None:
    assert query_of({"dates": dates}).date_range == asked


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({}, "without a query"),
        ({"dates": "2024"}, "a day or two"),
        ({"dates": ".."}, "a day or two"),
        ({"dates": "2024-02-30"}, "day is out of range"),
        ({"dates": "2024-06-30..2024-01-01"}, "the earlier one first"),
        ({"modality": "ct"}, "a code in capitals"),
        ({"modality": "*"}, "a code in capitals"),
        ({"body-part": "LIVER\\LUNG"}, "a code in capitals"),
        ({"description": "a\\b"}, "without a backslash"),
        ({"modalty": "CT"}, "Did you mean 'modality'"),
    ],
)
def test_a_query_that_is_none_is_refused(given: dict[str, str], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        query_of(given)


@pytest.mark.parametrize(
    ("text", "numbers"),
    [
        ("accession\nA1\nA2\n", ["A1", "A2"]),
        ("\ufeffpatient,AccessionNumber\r\nx,A1\r\ny, A2 \r\n", ["A1", "A2"]),
        ("patient,Accession Number,more\nx,A1,\n\ny,A1,\n", ["A1"]),
        ("A1\nA2\n", ["A1", "A2"]),
    ],
)
def test_accession_numbers_are_read_from_a_table(tmp_path: Path, text: str, numbers: list[str]) -> None:
    (tmp_path / "list.csv").write_text(text, encoding="utf-8")
    assert accessions_in(tmp_path / "list.csv") == numbers


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "is empty"),
        ("patient,number\nx,A1\n", "no column accession"),
        ("accession\nA1\n*\n", "row 3"),
        ("accession\nDOE-JANE-19700101-LONG\n", "row 2"),
        ("accession,x\n,y\n", "row 2"),
    ],
)
def test_a_table_that_is_wrong_is_named_by_its_row_and_not_repeated(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "list.csv").write_text(text)
    with pytest.raises(ConfigError, match=said) as told:
        accessions_in(tmp_path / "list.csv")
    assert "DOE" not in str(told.value)


def test_what_a_pacs_answers_beyond_the_query_does_not_fit() -> None:
    query = Query(dates="2024-01-01..2024-06-30", description="*Liver [3]?")
    fits = Study(uid="1.2", date="20240630", description="CT liver [3]x")
    assert query.fits(fits)
    assert query.fits(Study(uid="1.2", date="20240101"))  # no description is told, and none is missed
    for wrong in (
        {"date": "20240701"},
        {"date": "20231231"},
        {"description": "CT liver 3x"},
        {"description": "liver [3]"},
    ):
        assert not query.fits(fits.model_copy(update=wrong))


def test_labels_come_with_the_images_that_are_wanted_and_not_without() -> None:
    assert wanted_series(Query(modality="CT"), [CT, MR, SEG, SR]) == ((CT, SEG), [MR, SR])
    assert wanted_series(Query(modality="PT"), [CT, MR, SEG]) == ((), [CT, MR, SEG])
    assert wanted_series(Query(body_part="LIVER", modality="CT"), [CT, SEG]) == ((CT, SEG), [])
    assert wanted_series(Query(body_part="LUNG"), [CT, SEG]) == ((), [CT, SEG])


@pytest.mark.parametrize(
    ("text", "inside", "outside"),
    [("19-06", ["19:00", "23:59", "05:59"], ["06:00", "18:59"]), ("8:30-12", ["08:30", "11:59"], ["12:00", "20:00"])],
)
def test_hours_are_a_part_of_the_day_also_over_midnight(text: str, inside: list[str], outside: list[str]) -> None:
    hours = Hours.read(text)
    assert all(hours.hold(datetime.time.fromisoformat(time)) for time in inside)
    assert not any(hours.hold(datetime.time.fromisoformat(time)) for time in outside)


@pytest.mark.parametrize("text", ["19", "19-24", "7-7", "19:60-20", "night"])
def test_hours_that_are_none_are_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="19-06"):
        Hours.read(text)
