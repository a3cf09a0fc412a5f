"""An evaluation as files, for their owner only (0600): they show patients, and stay at the site.

    patients.csv    a row for each patient, the worst first, under the pseudonyms of the site
    summary.json    the figures, with no patient's name; it does not leave by itself either
    report.html     both for a person, with plots and the worst cases' pictures; one file, no script, no network

Of several sites each has a folder of its name, and all together the three files beside these folders.
"""

import base64
import csv
import io
from collections.abc import Mapping
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from client.evaluate.findings import LEVEL, SEED, Table, told
from client.evaluate.model import Evaluated, Evaluation
from common.errors import ConfigError, ErrorCode
from common.measures.intervals import RESAMPLES
from common.pages.html import Picture, render
from common.system.files import write_private
from common.text import as_json

CSV_NAME, JSON_NAME, HTML_NAME = "patients.csv", "summary.json", "report.html"
FORMAT = 1


def write(folder: Path, evaluation: Evaluation, one: Evaluated) -> Path:
    """Write the three files of one site, or of all together.

    Returns:
        The page.

    Raises:
        ConfigError: DISK_FULL, the folder does not take them.
    """
    contents = {
        CSV_NAME: as_csv(one.findings.patients),
        JSON_NAME: f"{as_json(summary(evaluation, one))}\n",
        HTML_NAME: page(evaluation, one),
    }
    try:
        for name, text in contents.items():
            write_private(folder / name, text.encode())
    except OSError as error:
        raise ConfigError(
            f"--out cannot be written ({error.strerror}). Give an --out that is writable and has space.",
            ErrorCode.DISK_FULL,
        ) from error
    return folder / HTML_NAME


def refuse_to_overwrite(folder: Path) -> None:
    """Keep an earlier evaluation.

    Raises:
        ConfigError: there is one.
    """
    if any((folder / name).exists() for name in (CSV_NAME, JSON_NAME, HTML_NAME)):
        raise ConfigError("--out holds an earlier evaluation already. Give another --out, or --overwrite.")


def summary(evaluation: Evaluation, one: Evaluated) -> dict[str, Any]:
    """The figures; no patient is named, and the scores of the worst one are among them."""
    return {
        "format": FORMAT,
        "run": evaluation.run.name,
        "run-hash": evaluation.manifest.run_hash,
        "model-sha256": evaluation.manifest.sha256,
        "task": evaluation.run.task.kind,
        "classes": list(evaluation.run.data.classes),
        "site": one.site,
        "split": one.wanted,
        "patients": one.patients,
        "studies": one.studies,
        "left-out": one.left_out,
        "trained-here": one.took_part,
        "trained-on": one.seen,
        "intervals": {"level": LEVEL, "resamples": RESAMPLES, "seed": SEED, "drawn": "patients"},
        **one.findings.summary,
    }


def as_csv(table: Table) -> str:
    """A table with commas; what is not known is empty."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(table.columns)
    writer.writerows(["" if value is None else value for value in row] for row in table.rows)
    return text.getvalue()


def page(evaluation: Evaluation, one: Evaluated) -> str:
    """The whole HTML document."""
    found = one.findings
    what, figure = found.headline
    return render(
        "client/evaluate/report.html",
        title=f"{evaluation.run.name} at {one.site}",
        when=f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC",
        version=version("wardround"),
        model=evaluation.manifest.sha256,
        split="all patients" if one.wanted == "all" else f"{one.wanted} patients",
        warning=warning(one),
        tiles=[
            ("patients", one.patients),
            ("studies", one.studies),
            (what, told(figure) or "-"),
            ("studies left out", ", ".join(f"{count} {code}" for code, count in one.left_out.items()) or "0"),
        ],
        tables=found.tables,
        plots=found.plots,
        pictures=[Picture(shown.caption, base64.b64encode(shown.png).decode()) for shown in found.pictures],
        patients=found.patients,
    )


def warning(one: Evaluated) -> str | None:
    """What is to be said of patients that the model knows."""
    if not one.seen:
        return None
    told_of: Mapping[str, str] = {"train": "it was trained on", "validation": "its rounds were watched on"}
    parts = [f"{count} that {told_of[split]}" for split, count in sorted(one.seen.items())]
    return (
        f"The model was trained here, and among the {one.patients} patients scored there are {' and '.join(parts)}. "
        "Their scores say little of patients it has never seen: score --split test."
    )


__all__ = ["CSV_NAME", "HTML_NAME", "JSON_NAME", "as_csv", "page", "refuse_to_overwrite", "summary", "warning", "write"]
