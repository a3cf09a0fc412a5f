"""One HTML file that tells a run: who took part, how good the model is, what privacy it cost.

Self-contained: styles, curves (SVG) and pictures (PNG) are inside, no script, no network, so that it can be mailed and
archived. It is made from `metrics.jsonl` and `summary.json` alone, plus `overlays/*.png` where a simulation drew some.
"""

import base64
import datetime
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from common.config import TRAIN_LOSS
from common.errors import ConfigError
from common.files import write_atomically
from common.privacy.scores import CLASS_NOISE, SCORE_NOISE
from common.tasks import Task, task_of
from common.text import counted, in_html
from server.chart import Points, colours_of, line_chart
from server.journal import JOURNAL_NAME, OVERALL, SUMMARY_NAME, Event, missing_of, not_scored, read_events

REPORT_NAME = "report.html"
OVERLAYS = "overlays"

_STYLE = """
:root { color-scheme: light dark; }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 1180px; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.6rem; margin-bottom: .2rem; } h2 { font-size: 1.15rem; margin-top: 2rem; }
.muted { opacity: .7; } .failed { color: #c0392b; font-weight: 600; }
.charts { display: grid; grid-template-columns: repeat(auto-fit, minmax(420px, 1fr)); gap: 1rem; }
.pictures { display: grid; grid-template-columns: repeat(auto-fill, minmax(300px, 1fr)); gap: 1rem; }
.pictures img { width: 100%; border-radius: 4px; }
figure { margin: 0; } figcaption { font-size: .85rem; opacity: .8; }
table { border-collapse: collapse; margin: .5rem 0; } th, td { padding: .3rem .8rem; text-align: right; }
th:first-child, td:first-child { text-align: left; }
thead th { border-bottom: 2px solid; } tbody tr + tr td { border-top: 1px solid #8884; }
svg { width: 100%; height: auto; } svg text { fill: currentColor; font-size: 12px; }
svg .title { font-size: 14px; font-weight: 600; } svg .grid { stroke: #8884; }
svg .end { text-anchor: end; } svg .middle { text-anchor: middle; }
code { font-size: .85em; overflow-wrap: anywhere; }
"""
_NOISE = (
    '<p class="muted">The sites have added noise to these scores, to protect the patients they are of; ± is its '
    "standard deviation. A score may lie outside 0 to 1.</p>"
)


def write_report(folder: Path, summary: dict[str, Any] | None = None) -> Path:
    """Write `report.html` into a run's folder.

    Args:
        folder: of a run's results.
        summary: of a run that has not ended (server/progress.py); None: what `summary.json` says.

    Raises:
        ConfigError: the folder holds no run.
    """
    if summary is None:
        summary_path = folder / SUMMARY_NAME
        if not summary_path.exists():
            raise ConfigError(f"{folder} holds no {SUMMARY_NAME}. Give the output folder of a run.")
        summary = json.loads(summary_path.read_text(encoding="utf-8"))
    events = read_events(folder / JOURNAL_NAME)
    body = [
        _head(summary, events),
        _scores(summary),
        _charts(events, summary["guarantee"], task_of(summary.get("settings")).headline),
        _guarantee(summary["guarantee"]),
        _pictures(folder / OVERLAYS),
        _rounds(events),
        _settings(summary.get("settings")),
    ]
    path = folder / REPORT_NAME
    write_atomically(path, page(f"Run {summary['name']}", "\n".join(body)).encode())
    return path


def page(title: str, body: str) -> str:
    """A whole HTML document around a body."""
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{in_html(title)}</title>'
        f'<meta name="viewport" content="width=device-width"><style>{_STYLE}</style></head>\n'
        f"<body>\n{body}\n</body></html>\n"
    )


def table(columns: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """An HTML table; numbers with three decimals, None as a dash."""
    head = "".join(f"<th>{in_html(column)}</th>" for column in columns)
    lines = ["".join(f"<td>{in_html(cell(value))}</td>" for value in row) for row in rows]
    body = "".join(f"<tr>{line}</tr>" for line in lines)
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def pictures(paths: Sequence[Path]) -> str:
    """PNG files with their names as captions, inside the page."""
    figures = [
        f'<figure><img alt="{in_html(path.stem)}" src="data:image/png;base64,'
        f'{base64.b64encode(path.read_bytes()).decode()}"><figcaption>{in_html(path.stem)}</figcaption></figure>'
        for path in paths
    ]
    return f'<div class="pictures">{"".join(figures)}</div>'


def cell(value: object) -> str:
    """A value as people read it in a table."""
    match value:
        case None:
            return "-"
        case float() if math.isnan(value):
            return "-"
        case float() if value and abs(value) < 1e-3:
            return f"{value:.1e}"
        case float():
            return f"{value:.3f}"
        case _:
            return str(value)


def score_with_noise(scores: Mapping[str, float], name: str, task: Task) -> object:
    """A score as it is shown: with the standard deviation of its noise, where the site has added some."""
    deviation = scores.get(SCORE_NOISE if name == task.headline else CLASS_NOISE)
    noised = deviation and (name == task.headline or name.startswith(task.of_class("")))
    return f"{scores[name]:.3f} ± {deviation:.3f}" if noised and name in scores else scores.get(name)


def _head(summary: dict[str, Any], events: Sequence[Event]) -> str:
    status = in_html(summary["status"])
    reason = f'<p class="failed">{in_html(summary["reason"])}</p>' if summary["reason"] else ""
    times = [event["time"] for event in events if "time" in event]
    facts = [f"{_moment(times[0])} to {_moment(times[-1])}"] if times else []
    facts += [
        f"{counted(summary['rounds'], 'round')} in {summary['seconds']:.0f} s",
        f"{summary['bytes-down'] / 1e6:.1f} MB to the sites, {summary['bytes-up'] / 1e6:.1f} MB from them",
        f"seed {summary['seed']}",
        f"run <code>{in_html(summary['run-hash'])}</code>",
    ]
    if summary["model-sha256"]:
        facts.append(f"model <code>{in_html(summary['model-sha256'])}</code>")
    style = ' class="failed"' if summary["status"] == "failed" else ""
    return (
        f"<h1>{in_html(summary['name'])} <span{style}>{status}</span></h1>{reason}"
        f'<p class="muted">{" · ".join(facts)}</p>'
    )


def _scores(summary: dict[str, Any]) -> str:
    parts, task = [], task_of(summary.get("settings"))
    for phase in ("test", "validation"):
        scores = summary["scores"].get(phase)
        if not scores or not scores["sites"]:
            continue
        names = [name for name in task.SHOWN if name in scores["mean-of-sites"]]
        names += sorted(name for name in scores["mean-of-sites"] if name.startswith(task.of_class("")))
        rows: list[list[object]] = [
            [site, *(score_with_noise(values, name, task) for name in names)]
            for site, values in [*sorted(scores["sites"].items()), ("mean of sites", scores["mean-of-sites"])]
        ]
        if scores["mean-of-patients"]:
            # What a site says of its number is rounded, and never below ten.
            patients = scores["mean-of-patients"]
            rows.append(
                ["mean of patients, by counts in steps of 5 from 10 on", *(patients.get(name) for name in names)]
            )
        lacking = not_scored(scores["sites"], task)
        noise = _NOISE if SCORE_NOISE in scores["mean-of-sites"] else "".join(_found_nothing(scores["sites"], task))
        parts.append(
            f"<h2>Scores on {phase} patients, after round {scores['round']}</h2>{table(['site', *names], rows)}{noise}"
            + (f'<p class="muted">{in_html(lacking)}</p>' if lacking else "")
        )
    return "".join(parts)


def _found_nothing(sites: Mapping[str, Mapping[str, float]], task: Task) -> Iterator[str]:
    """Sites, and classes there, of which the model finds nothing: scores such as specificity look well all the same."""
    for site, scores in sorted(sites.items()):
        if (missed := task.missed(scores)) is None:
            continue
        what = f"The model finds nothing of {missed}"
        yield f'<p class="failed">{in_html(f"{what} at {site}; its other scores there say little.")}</p>'


def _charts(events: Sequence[Event], guarantee: dict[str, Any] | None, headline: str) -> str:
    validation = [event for event in events if event["event"] == "evaluate" and event["phase"] == "validation"]
    trained = [event for event in events if event["event"] == "train"]
    void = "void" in (guarantee or {})
    colours = colours_of(str(event["site"]) for event in events if "site" in event and event["site"] != OVERALL)
    charts = [
        line_chart(
            f"{headline.capitalize()} on validation patients, by round",
            _series(validation, headline),
            colours=colours,
            emphasis=OVERALL,
        ),
        line_chart("Training loss, by round", _series(trained, TRAIN_LOSS), colours=colours),
        line_chart("Epsilon spent, by round", {} if void else _series(trained, "epsilon"), colours=colours),
    ]
    return f'<h2>Course</h2><div class="charts">{"".join(charts)}</div>' if any(charts) else ""


def _series(events: Sequence[Event], metric: str) -> dict[str, Points]:
    lines: dict[str, dict[float, float]] = {}
    for event in events:
        if metric in event:
            lines.setdefault(event["site"], {})[event["round"]] = event[metric]
    return {site: sorted(points.items()) for site, points in lines.items()}


def _guarantee(guarantee: dict[str, Any] | None) -> str:
    if guarantee is None:
        return (
            "<h2>Privacy</h2><p>This run gives no differential privacy guarantee: run.toml has no [privacy] table.</p>"
        )
    if "void" in guarantee:
        return (
            "<h2>Privacy</h2><p>This run gives no differential privacy guarantee, and no epsilon is stated: "
            f"{in_html(guarantee['void'])}.</p>"
        )
    columns = (
        "epsilon",
        "delta",
        "steps",
        "noise-multiplier",
        "gradient-noise-multiplier",
        "clipping-norm",
        "sampling-rate",
        "cohort-size-class",
    )
    rows = [[site, *(stated[column] for column in columns)] for site, stated in guarantee["sites"].items()]
    some: dict[str, Any] = next(iter(guarantee["sites"].values()), {})
    return (
        "<h2>Privacy</h2>"
        f"<p>Differential privacy for one <strong>{in_html(guarantee['unit'])}</strong>, with all of their images: "
        "what a site's updates reveal about a patient it trained on is bounded by its epsilon and delta, as its own "
        f"ledger states them. The run's target is epsilon {guarantee['target-epsilon']:g}.</p>"
        f"{table(['site', *columns], rows)}"
        f'<p class="muted">{"<br>".join(in_html(fact) for fact in _facts(some))}</p>'
    )


def _facts(stated: dict[str, Any]) -> list[str]:
    """What a site's guarantee rests on, in sentences; nothing where no site has trained."""
    if not stated:
        return []
    return [
        f"Sampling: {stated['sampling']}.",
        f"Clipping: {stated['clipping']}.",
        f"Noise: {stated['noise']}.",
        f"Accountant: {stated['accountant']}.",
        f"Held-out patients: {stated.get('held-out', 'not stated')}.",
        f"Public: {'; '.join(stated['public'])}.",
        f"Not covered: {'; '.join(stated['not-covered'])}.",
    ]


def _pictures(folder: Path) -> str:
    paths = sorted(folder.glob("*.png"))
    if not paths:
        return ""
    return f"<h2>Examples from the test patients</h2><p>Green: the label. Red: the model.</p>{pictures(paths)}"


def _rounds(events: Sequence[Event]) -> str:
    rows = [
        [
            event["round"],
            ", ".join(event["sites"]),
            ", ".join(f"{site} ({code})" for site, code in event["refused"].items()) or "-",
            ", ".join(missing_of(event)) or "-",
            f"{event['seconds']:.1f}",
            f"{(event['bytes-down'] + event['bytes-up']) / 1e6:.1f}",
        ]
        for event in events
        if event["event"] == "round"
    ]
    return f"<h2>Rounds</h2>{table(['round', 'sites', 'refused', 'missing', 'seconds', 'MB'], rows)}" if rows else ""


def _settings(settings: dict[str, Any] | None) -> str:
    """All that defined the run, under its dotted keys."""
    if settings is None:
        return ""

    def walk(values: Mapping[str, Any], above: str) -> Iterator[list[object]]:
        for key, value in values.items():
            if isinstance(value, dict):
                yield from walk(value, f"{above}{key}.")
            else:
                yield [f"{above}{key}", json.dumps(value, ensure_ascii=False)]

    rows = table(["setting", "value"], list(walk(settings, "")))
    return f"<h2>Settings</h2><details><summary>run.toml, with its defaults</summary>{rows}</details>"


def _moment(seconds: float) -> str:
    return f"{datetime.datetime.fromtimestamp(seconds, datetime.UTC):%Y-%m-%d %H:%M} UTC"
