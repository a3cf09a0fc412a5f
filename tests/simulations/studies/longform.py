"""What the long tables of every study hold, asked of each study by its own tests."""

import csv
import statistics
from collections.abc import Mapping
from pathlib import Path


def sheet(path: Path) -> list[dict[str, str]]:
    """The rows of a CSV by column."""
    return list(csv.DictReader(path.read_text().splitlines()))


def assert_is_latex(text: str, columns: int) -> None:
    """Each line of the table ends, and has a cell for each column; braces and environments close."""
    body = text.partition("\\toprule\n")[2].partition("    \\bottomrule")[0].replace("    \\midrule\n", "")
    lines = body.splitlines()
    assert lines
    assert all(line.endswith(" \\\\") and line.replace("\\&", "").count(" & ") == columns - 1 for line in lines)
    assert text.replace("\\{", "").count("{") == text.replace("\\}", "").count("}")
    assert text.count("\\begin{") == text.count("\\end{") == 2


def assert_long_tables(out: Path, scores: Mapping[tuple[str, int, str], Mapping[str, float]]) -> None:
    """A row for each score of a site, and patients of whom that score is the mean.

    Args:
        out: of the study.
        scores: by model, seed and site; of a segmentation.
    """
    rows = sheet(out / "scores.csv")
    told = {(one["model"], int(one["seed"]), one["site"], one["measure"]): float(one["value"]) for one in rows}
    wanted = {(*place, name): value for place, values in scores.items() for name, value in values.items()}
    assert told == wanted
    assert len(rows) == len(told)
    assert {one["split"] for one in rows} == {"test"}
    patients: dict[tuple[str, int, str, str], list[float]] = {}
    for one in sheet(out / "patients.csv"):
        place = (one["model"], int(one["seed"]), one["site"], one["measure"])
        patients.setdefault(place, []).append(float(one["value"]))
    assert patients.keys() == wanted.keys()
    for place, several in patients.items():
        assert abs(statistics.fmean(several) - wanted[place]) <= 1e-6, place
