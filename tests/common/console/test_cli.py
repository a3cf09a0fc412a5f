"""Commands explain expected failures in one message, print tables for people and programs, and keep stdout clean."""

import errno
import json
import logging
import os
from collections.abc import Iterator

import pytest
import typer
from click.testing import Result
from typer.testing import CliRunner

from common.console.cli import JsonFlag, configure_logging, new_app, progress, show_table
from common.errors import ConfigError
from common.system.environment import flower_variables


@pytest.fixture
def app() -> typer.Typer:
    made = new_app("Testing.")
    below = new_app("Commands below a command.")
    made.add_typer(below, name="below")

    @made.command()
    def table(as_json: JsonFlag = False) -> None:
        rows: list[list[object]] = [["a", 0.5], ["b", None], ["c", 2e-5], ["d", float("nan")]]
        show_table("Title", ["name", "value"], rows, as_json=as_json)

    @made.command()
    def work() -> None:
        with progress("rounds", 3) as advance:
            for done in (1, 2, 3):
                advance(done, f"step {done}")

    @made.command()
    def scores() -> None:
        with progress("rounds", 9) as advance:
            for done in (1, 2, 3):
                advance(done, f"step {done}")
                advance(done, f"score {done}", result=True)

    @made.command()
    def environment() -> None:
        typer.echo(os.environ["FLWR_TELEMETRY_ENABLED"])

    @below.command()
    def refuse() -> None:
        raise ConfigError("rounds is 0, expected at least 1. Set it in run.toml.")

    @below.command()
    def full() -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "results/model")

    @below.command()
    def bug() -> None:
        raise ZeroDivisionError

    return made


@pytest.fixture(autouse=True)
def _restore() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)


def call(app: typer.Typer, *arguments: str) -> Result:
    return CliRunner().invoke(app, list(arguments))


def test_expected_failure_is_one_message_on_stderr_and_exit_code_1(app: typer.Typer) -> None:
    done = call(app, "below", "refuse")
    assert (done.exit_code, done.stdout) == (1, "")
    assert done.stderr == "error: rounds is 0, expected at least 1. Set it in run.toml.\n"


def test_full_disk_is_explained(app: typer.Typer) -> None:
    done = call(app, "below", "full")
    assert done.exit_code == 1
    refused = "error: the system refused: No space left on device (results/model)."
    assert done.stderr == f"{refused} Free some space on that disk, then run this again.\n"


def test_bug_is_not_dressed_up_as_an_expected_failure(app: typer.Typer) -> None:
    assert isinstance(call(app, "below", "bug").exception, ZeroDivisionError)


def test_wrong_usage_is_exit_code_2(app: typer.Typer) -> None:
    assert call(app, "tabel").exit_code == 2
    assert call(app, "table", "--jsn").exit_code == 2


def test_what_was_meant_by_a_command_with_a_typo_is_said_once(app: typer.Typer) -> None:
    said = call(app, "tabel").stderr
    assert said.count("Did you mean") == 1
    assert "'table'" in said


def test_table_for_programs_keeps_values(app: typer.Typer) -> None:
    rows = json.loads(call(app, "table", "--json").stdout)
    values = {"a": 0.5, "b": None, "c": 2e-5, "d": None}
    assert rows == [{"name": name, "value": value} for name, value in values.items()]


def test_table_for_people_rounds_but_never_to_nothing(app: typer.Typer) -> None:
    text = call(app, "table").stdout
    assert "0.500" in text
    assert "2.0e-05" in text
    assert "None" not in text
    assert "nan" not in text


def test_progress_is_plain_lines_away_from_a_terminal_and_ends_with_the_last(app: typer.Typer) -> None:
    done = call(app, "work")
    assert done.stdout == ""
    lines = done.stderr.splitlines()
    assert lines[0] == "rounds 1/3 step 1"
    assert lines[-1] == "rounds 3/3 step 3"


def test_a_result_is_a_line_however_soon_it_follows_and_mere_progress_is_thinned(app: typer.Typer) -> None:
    lines = call(app, "scores").stderr.splitlines()
    assert lines == ["rounds 1/9 step 1", "rounds 1/9 score 1", "rounds 2/9 score 2", "rounds 3/9 score 3"]


def test_commands_run_with_flower_kept_quiet(app: typer.Typer, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in flower_variables():
        monkeypatch.delenv(name, raising=False)
    assert call(app, "environment").stdout == "0\n"


def test_users_own_setting_wins(app: typer.Typer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLWR_TELEMETRY_ENABLED", "1")
    assert call(app, "environment").stdout == "1\n"


def test_verbose_tells_the_story(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging(verbose=False)
    logging.getLogger("common.x").info("hidden")
    configure_logging(verbose=True)
    logging.getLogger("common.x").info("shown")
    told = capsys.readouterr()
    assert "shown" in told.err
    assert "hidden" not in told.err
    assert told.out == ""
