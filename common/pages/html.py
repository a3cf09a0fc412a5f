"""Pages for people, from templates that escape what is put into them.

A template is a file beside the module that fills it, called by its path below our packages: `render(path, name=...)`.
Whatever is put in is made fit to be shown (common/text.py) and then escaped, in text and in quoted attributes alike;
only what another template made stands as it is. What a template asks for and is not given is an error. A page extends
common/pages/page.html: one file, without script, and nothing in it comes from elsewhere.
"""

import base64
import math
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from common.system.environment import PACKAGES
from common.text import shown


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


__all__ = ["Markup", "Picture", "cell", "fragment", "picture", "render"]
