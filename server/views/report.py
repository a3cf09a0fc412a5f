"""One HTML file that tells a run: who took part, how good the model is, what privacy it cost.

Self-contained (server/views/report.html): curves (SVG) and pictures (PNG) are inside, no script, no network, so that it
can be mailed and archived. It is made from `metrics.jsonl` and `summary.json` alone, plus `overlays/*.png` where a
simulation drew some.
"""

from pathlib import Path
from typing import Any

from common.errors import ConfigError
from common.pages.html import picture, render
from common.system.files import write_atomically
from server.federation.events import JOURNAL_NAME, SUMMARY_NAME, read_events, read_summary
from server.views.run import view_of

REPORT_NAME = "report.html"
OVERLAYS = "overlays"


def write_report(folder: Path, summary: dict[str, Any] | None = None) -> Path:
    """Write `report.html` into a run's folder.

    Args:
        folder: of a run's results.
        summary: of a run that has not ended (server/views/progress.py); None: what `summary.json` says.

    Raises:
        ConfigError: the folder holds no run.
    """
    path = folder / REPORT_NAME
    write_atomically(path, report_page(folder, summary).encode())
    return path


def report_page(folder: Path, summary: dict[str, Any] | None = None) -> str:
    """The page itself; see `write_report`."""
    summary = read_summary(folder) if summary is None else summary
    if summary is None:
        raise ConfigError(f"{folder} holds no {SUMMARY_NAME}. Give the output folder of a run.")
    run = view_of(summary, read_events(folder / JOURNAL_NAME))
    return render(
        "server/views/report.html",
        title=f"Run {run.name}",
        run=run,
        examples=[picture(path) for path in sorted((folder / OVERLAYS).glob("*.png"))],
    )


__all__ = ["OVERLAYS", "REPORT_NAME", "report_page", "write_report"]
