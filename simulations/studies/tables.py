"""What a study found, for a page, for a paper and for other programs. Every study writes these beside its own files.

    scores.csv     a row for each model, seed, site and measure
    patients.csv   a row for each model, seed, site, patient and measure, where single patients have scores
    NAME.tex       the summary for LaTeX with the package booktabs

A patient is a pseudonym of the study's folder: the same patient has another one in another folder. `as_parquet` writes
the two long tables once more for who has pyarrow.
"""

import csv
import io
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from types import MappingProxyType
from typing import TypeAlias

from common.errors import ConfigError
from common.system.files import write_atomically

Table: TypeAlias = tuple[Sequence[str], Sequence[Sequence[object]]]  # column names and rows

SCORES_NAME, PATIENTS_NAME = "scores.csv", "patients.csv"
_COLUMNS = ("model", "seed", "split", "site", "measure", "value")
_OF_PATIENTS = ("model", "seed", "split", "site", "patient", "measure", "value")
_ESCAPES = MappingProxyType(
    {
        **{sign: f"\\{sign}" for sign in "&%$#_{}"},
        "\\": r"\textbackslash{}",
        "~": r"\textasciitilde{}",
        "^": r"\textasciicircum{}",
        "<": r"\textless{}",
        ">": r"\textgreater{}",
        "|": r"\textbar{}",
        '"': r"{\char34}",  # \textquotedbl is not in the encoding that LaTeX begins with
        "\n": " ",
    }
)


@dataclass(frozen=True)
class Score:
    """One row of the long form. split: whose patients. patient: a pseudonym; None: of the site as a whole."""

    model: str
    seed: int
    split: str
    site: str
    measure: str
    value: float
    patient: str | None = None


def write(
    out: Path, name: str, title: str, summary: Table, *, scores: Iterable[Score], patients: Iterable[Score] = ()
) -> None:
    """Write the files of a study; see the module.

    Args:
        out: its folder.
        name: of the .tex file, and its label.
        title: its caption.
        summary: what the .tex file shows.
        scores: of sites.
        patients: of single patients; none: patients.csv is not written.
    """
    write_csv(out / SCORES_NAME, (_COLUMNS, [[getattr(one, key) for key in _COLUMNS] for one in scores]))
    if rows := [[getattr(one, key) for key in _OF_PATIENTS] for one in patients]:
        write_csv(out / PATIENTS_NAME, (_OF_PATIENTS, rows))
    write_atomically(out / f"{name}.tex", latex(summary, title, f"tab:{name}").encode())


def of_sites(model: str, seed: int, split: str, scores: Mapping[str, Mapping[str, float]]) -> list[Score]:
    """Rows of the scores of one model, by site and measure."""
    return [
        Score(model, seed, split, site, measure, value)
        for site, values in scores.items()
        for measure, value in values.items()
    ]


def of_patients(model: str, seed: int, scores: Mapping[str, Mapping[str, Mapping[str, float]]]) -> list[Score]:
    """Rows of the scores of single test patients of one model, by site, pseudonym and measure."""
    return [
        Score(model, seed, "test", site, measure, value, patient)
        for site, patients in scores.items()
        for patient, values in patients.items()
        for measure, value in values.items()
    ]


def write_csv(path: Path, table: Table) -> None:
    """A head and a line for each row; None is an empty cell."""
    sheet = io.StringIO()
    writer = csv.writer(sheet, lineterminator="\n")
    writer.writerow(table[0])
    writer.writerows(table[1])
    write_atomically(path, sheet.getvalue().encode())


def markdown(columns: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """A head, a rule and a line for each row; None becomes a dash."""
    lines: list[Sequence[object]] = [columns, ["---"] * len(columns), *rows]
    return "\n".join(f"| {' | '.join('-' if cell is None else str(cell) for cell in line)} |" for line in lines)


def latex(table: Table, caption: str, label: str) -> str:
    """A floating table with rules of booktabs: the first column to the left, the others to the right.

    What LaTeX would read as a command is escaped; None becomes a dash, and numbers have three decimals.
    """
    columns, rows = table
    lines = [
        "% needs \\usepackage{booktabs}",
        "\\begin{table}",
        "  \\centering",
        f"  \\caption{{{escaped(caption)}}}",
        f"  \\label{{{label}}}",
        f"  \\begin{{tabular}}{{l{'r' * (len(columns) - 1)}}}",
        "    \\toprule",
        _line(columns),
        "    \\midrule",
        *map(_line, rows),
        "    \\bottomrule",
        "  \\end{tabular}",
        "\\end{table}",
    ]
    return "\n".join(lines) + "\n"


def escaped(text: str) -> str:
    """As LaTeX shows it letter by letter."""
    return "".join(_ESCAPES.get(sign, sign) for sign in text)


def check_parquet() -> None:
    """Look for what writes Parquet, before anything is trained.

    Raises:
        ConfigError: it is not installed.
    """
    if find_spec("pyarrow") is None:
        raise ConfigError(
            "--parquet needs pyarrow, which is not installed. Install it with pip install 'wardround[parquet]', or "
            f"leave the option out: {SCORES_NAME} and {PATIENTS_NAME} hold the same."
        )


def as_parquet(out: Path) -> list[Path]:
    """Write scores.parquet and, where there is one to write, patients.parquet beside the CSV files of a study."""
    from pyarrow import csv as arrow_csv  # noqa: PLC0415 - an extra
    from pyarrow import float64, int64, parquet, string  # noqa: PLC0415

    # A pseudonym of digits alone stays a word.
    types = dict.fromkeys(_OF_PATIENTS, string()) | {"seed": int64(), "value": float64()}
    options = arrow_csv.ConvertOptions(column_types=types)
    written = []
    for path in (out / SCORES_NAME, out / PATIENTS_NAME):
        if path.exists():
            stored = io.BytesIO()
            parquet.write_table(arrow_csv.read_csv(path, convert_options=options), stored)
            written.append(path.with_suffix(".parquet"))
            write_atomically(written[-1], stored.getvalue())
    return written


def spread(values: Iterable[float]) -> str | None:
    """The mean, with its range where there are several; None of nothing."""
    several = list(values)
    if not several:
        return None
    mean = f"{statistics.fmean(several):.3f}"
    return mean if len(several) == 1 else f"{mean} ({min(several):.3f}-{max(several):.3f})"


def signed(values: Sequence[float]) -> str | None:
    """As `spread`, with the sign, which here says better or worse."""
    if not values:
        return None
    mean = f"{statistics.fmean(values):+.3f}"
    return mean if len(values) == 1 else f"{mean} ({min(values):+.3f} to {max(values):+.3f})"


def _line(cells: Iterable[object]) -> str:
    words = ("--" if one is None else f"{one:.3f}" if isinstance(one, float) else escaped(str(one)) for one in cells)
    line = " & ".join(words)
    # After the end of a line [ begins its distance from the next, and * keeps both on one page.
    return f"    {'{}' if line.startswith(('[', '*')) else ''}{line} \\\\"


__all__ = [
    "PATIENTS_NAME",
    "SCORES_NAME",
    "Score",
    "Table",
    "as_parquet",
    "check_parquet",
    "escaped",
    "latex",
    "markdown",
    "of_patients",
    "of_sites",
    "signed",
    "spread",
    "write",
    "write_csv",
]
