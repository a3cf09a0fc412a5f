"""Pages for people, from templates that escape what is put into them.

A template is a file beside the module that fills it, called by its path below our packages: `render(path, name=...)`.
Whatever is put in is made fit to be shown (common/text.py) and then escaped, in text and in quoted attributes alike;
only what another template made stands as it is. What a template asks for and is not given is an error. A page extends
common/pages/page.html: one file, without script, and nothing in it comes from elsewhere.
"""

import base64
import math
import re
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape

from common.advice import Advice
from common.system.environment import PACKAGES
from common.text import shown

# What a person has begun to write stays as it is.
_WRITING = re.compile(r"(<textarea.*?</textarea>)", re.DOTALL)


@dataclass(frozen=True)
class Picture:
    """A PNG that stands in the page itself."""

    name: str
    data: str  # base64


def render(template: str, **values: object) -> str:
    """Fill a page's template.

    Args:
        template: its path below the folder of our packages.
        values: what it asks for.
    """
    return _environment().get_template(template).render(values)


def fragment(template: str, **values: object) -> Markup:
    """The same for a part of a page, which is put into another template as it is."""
    return Markup(render(template, **values))  # noqa: S704 - a template's own output


def advised(page: str, advice: Advice) -> str:
    """A page with the commands that it names completed."""
    escaped = replace(advice, option=str(escape(advice.option)))
    parts = _WRITING.split(page)
    parts[::2] = map(escaped, parts[::2])
    return "".join(parts)


def picture(path: Path) -> Picture:
    """A PNG file under its name."""
    return Picture(path.stem, base64.b64encode(path.read_bytes()).decode())


def cell(value: object) -> str:
    """A value as people read it in a table: numbers with three decimals, None as a dash."""
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


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(PACKAGES),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=_fit,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["cell"] = cell
    return environment


def _fit(value: object) -> object:
    return value if isinstance(value, Markup) else shown(value)


__all__ = ["Markup", "Picture", "advised", "cell", "fragment", "picture", "render"]
