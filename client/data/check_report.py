"""The report of a check: report.json for programs, report.html for people.

The page is one file without script, and nothing in it comes from elsewhere. It holds pictures of patients, so both
files are for their owner only. Names, paths and free text from the studies are not in them: `client.data.check_tables`.
"""

import base64
import json
import re
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

from client.data.check_tables import Table, counts, document, shown_names, tables
from client.data.checkup import Checkup, Outcome
from client.data.drawing import COLOURS
from client.data.labels import BACKGROUND
from common.files import write_private
from common.text import in_html

JSON_NAME = "report.json"
HTML_NAME = "report.html"

# More pictures than this make a page that no browser likes.
MOST_PICTURES = 500

_NUMBER = re.compile(r"-?[\d.]+(e[+-]?\d+)?( %)?")
_PROSE = 60  # characters
_WARNING = (
    "This page shows patients. It stays at the site: do not send it, and do not put it where others can read it. Names "
    "are replaced by pseudonyms under this site's key; that is pseudonymised, not anonymised. Faces in head scans are "
    "not removed, here nor in what training reads."
)
_STYLE = """
:root { color-scheme: light dark; --line: #8885; --soft: #8881; --good: #1a7f4b; --bad: #b3402a; }
@media (prefers-color-scheme: dark) { :root { --good: #5ecb94; --bad: #f0937c; } }
* { box-sizing: border-box; }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 1080px; margin: 0 auto; padding: 1.5rem 1rem 4rem; }
h1 { font-size: 1.5rem; margin: 0; } h2 { font-size: 1.1rem; margin: 2.2rem 0 .5rem; }
p { margin: .3rem 0; max-width: 75ch; } .muted { opacity: .75; font-size: .9rem; }
.warning { border-left: 4px solid var(--bad); background: var(--soft); padding: .6rem .9rem; margin: 1rem 0; }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(150px, 1fr)); gap: .8rem; margin: 1.2rem 0; }
.tile { border: 1px solid var(--line); border-radius: 6px; padding: .6rem .9rem; }
.tile strong { display: block; font-size: 1.7rem; line-height: 1.2; font-variant-numeric: tabular-nums; }
.good strong { color: var(--good); } .bad strong { color: var(--bad); }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: .35rem 1.6rem .35rem 0; text-align: left; vertical-align: top; border-bottom: 1px solid var(--line); }
.number { text-align: right; } td { white-space: nowrap; } td.prose { white-space: normal; min-width: 17rem; }
thead th { border-bottom: 2px solid var(--line); font-size: .85rem; white-space: nowrap; }
.studies { display: grid; grid-template-columns: repeat(auto-fill, minmax(170px, 1fr)); gap: 1rem; }
figure { margin: 0; break-inside: avoid; }
.picture { background: #000; height: 160px; display: grid; place-items: center; border-radius: 4px; }
.picture img { display: block; max-width: 100%; }
figcaption { font-size: .8rem; line-height: 1.4; margin-top: .3rem; } code { font-size: .95em; }
.legend { display: flex; flex-wrap: wrap; gap: .2rem 1.2rem; padding: 0; margin: .4rem 0 1rem; list-style: none; }
i { display: inline-block; width: .8em; height: .8em; margin-right: .4em; }
@media print { body { max-width: none; padding: 0; font-size: 11px; } * { print-color-adjust: exact; } }
"""


def page(checkup: Checkup) -> str:
    """The whole HTML document: no script, nothing from elsewhere."""
    shown = shown_names(checkup)
    about = "labels as found" if checkup.run is None else f"as the run {in_html(checkup.run.name)} reads them"
    found = counts(checkup)
    tiles = [
        ("usable studies", found["usable"], "good"),
        ("quarantined", found["quarantined"], "bad" if found["quarantined"] else ""),
        ("ignored", found["ignored"], ""),
        ("patients", found["patients"], ""),
    ]
    body = [
        f"<header><h1>Data of {in_html(checkup.site)}</h1>",
        f'<p class="muted">Checked {datetime.now(UTC):%Y-%m-%d %H:%M} UTC, {about}. '
        f"Wardround {in_html(version('wardround'))}.</p></header>",
        f'<p class="warning" role="note">{_WARNING}</p>',
        '<div class="tiles">',
        *(f'<div class="tile {kind}"><strong>{count}</strong>{what}</div>' for what, count, kind in tiles),
        "</div>",
        *(_html_table(table) for table in tables(checkup)),
        _gallery(checkup, shown),
    ]
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta http-equiv="Content-Security-Policy" content="default-src \'none\'; img-src data:; '
        "style-src 'unsafe-inline'\">"
        f'<meta name="viewport" content="width=device-width"><title>Data of {in_html(checkup.site)}</title>'
        f"<style>{_STYLE}</style></head>\n<body>\n" + "\n".join(body) + "\n</body></html>\n"
    )


def write_reports(folder: Path, checkup: Checkup) -> Path:
    """Write report.json and report.html, for their owner only.

    Returns:
        The page.
    """
    write_private(folder / JSON_NAME, f"{json.dumps(document(checkup), indent=1)}\n".encode())
    write_private(folder / HTML_NAME, page(checkup).encode())
    return folder / HTML_NAME


def _html_table(table: Table) -> str:
    kinds = [_kind(column) for column in zip(*table.rows, strict=True)]
    head = "".join(f'<th scope="col"{k}>{in_html(name)}</th>' for k, name in zip(kinds, table.columns, strict=True))
    lines = ("".join(f"<td{k}>{_cell(value)}</td>" for k, value in zip(kinds, row, strict=True)) for row in table.rows)
    body = "".join(f"<tr>{line}</tr>" for line in lines)
    title = in_html(table.title)
    return (
        f'<section><h2>{title}</h2><div class="scroll" tabindex="0" role="region" aria-label="{title}"><table>'
        f"<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div></section>"
    )


def _kind(column: Iterable[object]) -> str:
    """Numbers stand right, sentences wrap."""
    texts = [str(value) for value in column if value is not None]
    if all(_NUMBER.fullmatch(text) for text in texts):
        return ' class="number"'
    return ' class="prose"' if any(len(text) > _PROSE for text in texts) else ""


def _cell(value: object) -> str:
    return "&ndash;" if value is None else in_html(str(value))


def _gallery(checkup: Checkup, shown: Mapping[str, str]) -> str:
    usable = checkup.usable[:MOST_PICTURES]
    if not usable:
        return ""
    some = f" The first {len(usable)} of {len(checkup.usable)}." if len(usable) < len(checkup.usable) else ""
    figures = "".join(_figure(study, shown) for study in usable)
    return (
        f"<section><h2>Studies</h2><p>The slice with the most label, or the middle one.{some}</p>"
        f'{_legend(usable, shown)}<div class="studies">{figures}</div></section>'
    )


def _legend(studies: Iterable[Outcome], shown: Mapping[str, str]) -> str:
    """Which colour is which class, where it is the same in all studies; else their captions say it."""
    orders = {tuple(study.facts.voxels)[1:] for study in studies if study.facts is not None}
    if len(orders) != 1:
        return ""
    (order,) = orders
    items = "".join(f"<li>{_swatch(place)}{in_html(shown[name])}</li>" for place, name in enumerate(order))
    return f'<ul class="legend">{items}</ul>'


def _swatch(place: int) -> str:
    red, green, blue = COLOURS[place % len(COLOURS)]
    return f'<i style="background:rgb({red},{green},{blue})"></i>'


def _figure(study: Outcome, shown: Mapping[str, str]) -> str:
    if study.checked is None:
        return ""
    facts = study.checked.facts
    size = " &times; ".join(map(str, facts.shape))
    spacing = (
        "" if facts.spacing_mm is None else f"<br>{' &times; '.join(f'{edge:.3g}' for edge in facts.spacing_mm)} mm"
    )
    marked = [
        f"{_swatch(place)}{in_html(shown[name])}"
        for place, (name, count) in enumerate((n, c) for n, c in facts.voxels.items() if n != BACKGROUND)
        if count
    ]
    none = "no foreground" if facts.voxels else "label not looked at"
    split = f" · {study.split}" if study.split else ""
    data = base64.b64encode(study.checked.thumbnail).decode()
    return (
        f'<figure><div class="picture"><img alt="Study {study.number}: one slice with the contour of its label" '
        f'src="data:image/png;base64,{data}"></div>'
        f"<figcaption><strong>{study.number}</strong> <code>{study.name}</code>{split}<br>"
        f"{in_html(facts.modality)} {size}{spacing}<br>{', '.join(marked) or none}</figcaption></figure>"
    )


__all__ = ["page", "write_reports"]
