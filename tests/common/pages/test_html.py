"""What is put into a page is text there, whatever it says; only what a template made is more."""

from collections.abc import Iterator
from pathlib import Path

import jinja2
import pytest

import common.pages.html
from common.pages.html import Markup, cell, fragment, render
from common.text import shown
from tests.foreign import FOREIGN, Page

FOREIGN_TEXTS = pytest.mark.parametrize("text", FOREIGN.values(), ids=FOREIGN)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Where templates of these tests lie."""
    monkeypatch.setattr(common.pages.html, "PACKAGES", tmp_path)
    common.pages.html._environment.cache_clear()
    yield tmp_path
    common.pages.html._environment.cache_clear()


@FOREIGN_TEXTS
def test_text_in_a_page_is_text(folder: Path, text: str) -> None:
    (folder / "a.html").write_text('<p title="{{ text }}">{{ text }}</p>')
    page = Page(render("a.html", text=text))
    assert page.names == {"p", "title"}
    assert page.texts == [shown(text), shown(text)]


def test_only_what_a_template_made_stands_as_it_is(folder: Path) -> None:
    (folder / "part.svg").write_text("<b>{{ text }}</b>")
    (folder / "a.html").write_text("<p>{{ part }}{{ claimed }}</p>")
    part = fragment("part.svg", text="<i>")
    assert isinstance(part, Markup)
    assert render("a.html", part=part, claimed=str(part)).startswith("<p><b>&lt;i&gt;</b>&lt;b&gt;")


def test_what_a_template_is_not_given_is_an_error(folder: Path) -> None:
    (folder / "a.html").write_text("<p>{{ text }}</p>")
    with pytest.raises(jinja2.UndefinedError):
        render("a.html")


def test_cell_shows_a_number_a_small_one_a_word_and_nothing() -> None:
    assert [cell(value) for value in (0.12345, 2e-5, 0.0, 7, "word", None, float("nan"))] == [
        "0.123", "2.0e-05", "0.000", "7", "word", "-", "-",
    ]  # fmt: skip
