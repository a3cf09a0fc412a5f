"""Text from elsewhere is one line of visible signs, on a terminal, in a log, in a page and in JSON."""

import io
import json
import logging
import sys
from collections.abc import Iterator

import pytest
import typer
from typer.testing import CliRunner

from common.console.cli import live_table, new_app, note, progress, say, show_json, show_table
from common.console.logs import log_to
from common.errors import ConfigError
from common.text import as_json, counted, shown, sized
from tests.foreign import FOREIGN, MARK, hidden

FOREIGN_TEXTS = pytest.mark.parametrize("text", FOREIGN.values(), ids=FOREIGN)


@pytest.mark.parametrize(
    ("count", "said"),
    [
        *((0, "0 B"), (640, "640 B"), (999, "999 B"), (1000, "1 kB"), (11_064, "11.1 kB"), (49_999, "50 kB")),
        *((999_499, "999 kB"), (999_500, "1 MB"), (30_000_000, "30 MB"), (2**30, "1.07 GB"), (2**60, "1152922 TB")),
    ],
)
def test_size_has_three_digits_and_a_unit_in_which_it_is_not_nothing(count: int, said: str) -> None:
    assert sized(count) == said


@pytest.fixture(autouse=True)
def _restore() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)


@FOREIGN_TEXTS
def test_what_is_shown_is_one_line_that_nothing_obeys(text: str) -> None:
    assert hidden(shown(text), boxes=True) == []
    assert "\n" not in shown(text)
    assert MARK in shown(text)


@pytest.mark.parametrize(
    "text",
    [
        "st-mary",
        "Prüfung für Zürich",
        "Łódź",
        "心臓の病変",
        "سرطان الثدي",
        "Nguye\u0302\u0303n",
        "a\\b",
        "[1, 2]",
        "x" * 5000,
        "",
    ],
)
def test_what_people_write_stays_as_it_is(text: str) -> None:
    assert shown(text) == text


def test_an_escape_says_what_was_there() -> None:
    assert shown("a\x1b[2J\nb\u202ec\x9b") == "a\\x1b[2J\\nb\\u202ec\\x9b"


def test_a_count_agrees_with_its_noun() -> None:
    assert [counted(number, "site") for number in (0, 1, 2)] == ["0 sites", "1 site", "2 sites"]
    assert [counted(number, "study", "studies") for number in (1, 3)] == ["1 study", "3 studies"]


@FOREIGN_TEXTS
def test_json_is_printable_ascii_and_gives_the_text_back(text: str) -> None:
    assert json.loads(as_json([text])) == [text]
    assert as_json([text]).replace("\n", "").isascii()
    assert as_json([text]).replace("\n", "").isprintable()


@pytest.fixture
def app() -> typer.Typer:
    made = new_app("Testing.")

    @made.command()
    def table(text: str) -> None:
        show_table(text, [text, "b"], [[text, [text]], [None, 1]])

    @made.command()
    def line(text: str) -> None:
        say(text)
        note(text)

    @made.command()
    def fail(text: str) -> None:
        raise ConfigError(text)

    @made.command()
    def refuse(text: str) -> None:
        raise OSError(13, text, text)

    @made.command()
    def work(text: str) -> None:
        with progress(text, 2) as advance:
            advance(2, text)

    @made.command()
    def data(text: str) -> None:
        show_json({text: [text]})

    return made


@FOREIGN_TEXTS
@pytest.mark.parametrize("command", ["table", "line", "fail", "refuse", "work", "data"])
def test_every_way_out_of_a_command_is_safe(app: typer.Typer, command: str, text: str) -> None:
    done = CliRunner().invoke(app, [command, text])
    assert done.exit_code == (command in ("fail", "refuse")), done.output
    assert MARK in done.output
    assert hidden(done.output) == []
    assert not any(one.startswith(("error: forged", "All is well", "policy")) for one in done.output.split("\n"))


@FOREIGN_TEXTS
def test_what_moves_on_a_terminal_is_safe(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only what rich itself writes to move the cursor and to colour is there beside the text."""
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm")
    screen = io.StringIO()
    monkeypatch.setattr(sys, "stderr", screen)
    with progress(text, 2) as advance:
        advance(1, text)
    with live_table() as show:
        show(text, text, [text], [[text]])
    written = screen.getvalue()
    assert MARK in written
    assert not any(part in written for part in ("\x1b]8", "\x1b[2J", "\x9b", "\u202e", "\u200b", "\x08", "💀"))


@FOREIGN_TEXTS
def test_a_record_is_one_line_of_the_log_and_its_traceback_is_indented(text: str) -> None:
    stream = io.StringIO()
    log_to(logging.INFO, [logging.StreamHandler(stream)])
    try:
        raise ValueError(text)
    except ValueError as error:
        logging.getLogger(text).warning("refused: %s", error, exc_info=True)
    first, *below = stream.getvalue().rstrip("\n").split("\n")
    assert MARK in first
    assert hidden(stream.getvalue(), boxes=True) == []
    assert all(line.startswith("    ") for line in below)
    assert any(MARK in line for line in below)
