"""What a message advises can be copied: each command in it exists, and carries the --home of the command in hand."""

import ast
import logging
import re
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
import typer
from typer.testing import CliRunner

from client.commands.main import app as client_app
from client.home import folder as sites
from common.advice import WITHOUT_HOME, Advice
from common.console.cli import advice_in_hand, advise, new_app, note, say, show_table
from common.console.logs import log_to
from common.errors import ConfigError
from common.pages.html import advised
from server.commands.main import app as server_app
from server.home import folder as coordinators
from tests import ROOT
from tests.rooms import modules

APPS = {"wardround-client": client_app, "wardround-server": server_app}
NAMED = re.compile(r"(.?)(wardround-(?:client|server)) ([a-z][a-z-]*)((?: [a-z][a-z-]*)?)")
NORTH = Advice("wardround-client", " --home '/srv/no rth'")


def commands(app: typer.Typer) -> Iterator[tuple[str, click.Command]]:
    """All commands, by their words."""

    def below(command: click.Command, words: str) -> Iterator[tuple[str, click.Command]]:
        yield words, command
        if isinstance(command, click.Group):
            for name in command.list_commands(click.Context(command)):
                found = command.get_command(click.Context(command), name)
                assert found is not None
                yield from below(found, f"{words} {name}".strip())

    yield from below(typer.main.get_command(app), "")


def messages() -> Iterator[tuple[str, str]]:
    """Every text in our code that is no docstring, with what stands in its braces left out; and every template."""
    for path in modules("client", "server", "common"):
        if path.name == "advice.py":
            continue
        tree = ast.parse(path.read_text(encoding="utf-8"))
        inner = {id(part) for node in ast.walk(tree) if isinstance(node, ast.JoinedStr) for part in ast.walk(node)}
        inner -= {id(node) for node in ast.walk(tree) if isinstance(node, ast.JoinedStr)}
        docs = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
        for node in ast.walk(tree):
            if id(node) in docs or id(node) in inner:
                continue
            if isinstance(node, ast.JoinedStr):
                parts = [part.value if isinstance(part, ast.Constant) else "{}" for part in node.values]
                yield str(path.relative_to(ROOT)), "".join(map(str, parts))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                yield str(path.relative_to(ROOT)), node.value
    for package in ("client", "server", "common"):
        for path in (ROOT / package).rglob("*.html"):
            yield str(path.relative_to(ROOT)), path.read_text(encoding="utf-8")


def test_every_command_that_a_message_names_exists_and_is_marked_as_one() -> None:
    known = {program: {words for words, _ in commands(app)} for program, app in APPS.items()}
    found = []
    for place, text in messages():
        for sign, program, first, second in NAMED.findall(text):
            assert first in known[program], f"{place}: {program} {first}"
            if any(one.startswith(f"{first} ") for one in known[program]) and second:
                assert f"{first}{second}" in known[program] | {first}, f"{place}: {program} {first}{second}"
            found.append((place, sign, text))
    assert len(found) > 60
    unmarked = [(place, text) for place, sign, text in found if sign not in ("`", ">")]
    assert unmarked == []


def test_commands_that_look_into_no_folder_are_known() -> None:
    without = [
        f"{program} {words}"
        for program, app in APPS.items()
        for words, command in commands(app)
        if not isinstance(command, click.Group) and all("--home" not in one.opts for one in command.params)
    ]
    assert sorted(without) == sorted(WITHOUT_HOME)


def test_own_commands_get_the_folder_and_nothing_else_does() -> None:
    assert NORTH("see `wardround-client data check`, then `wardround-client start`.") == (
        "see `wardround-client data check --home '/srv/no rth'`, then `wardround-client start --home '/srv/no rth'`."
    )
    for untouched in (
        "`wardround-server requests`",
        "`wardround-client serve MODEL`",
        "`wardround-client start --home /x`",
        "`chmod 700 x`",
        "wardround-client start",
    ):
        assert NORTH(untouched) == untouched
        assert advised(untouched, NORTH) == untouched
    assert Advice()("`wardround-client start`") == "`wardround-client start`"


def test_page_is_completed_without_what_a_person_is_writing_and_escaped() -> None:
    odd = Advice("wardround-server", " --home '/srv/<b>'")
    typed = "<textarea>`wardround-server run`</textarea>"
    page = f"<p><code>wardround-server start</code> or `wardround-server stop`</p>{typed}"
    assert advised(page, odd) == (
        "<p><code>wardround-server start --home &#39;/srv/&lt;b&gt;&#39;</code> or "
        f"`wardround-server stop --home &#39;/srv/&lt;b&gt;&#39;`</p>{typed}"
    )


def test_folder_is_named_only_where_the_command_would_look_elsewhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for side, usual in ((sites, "wardround-site"), (coordinators, "wardround-server")):
        monkeypatch.delenv(side.ENVIRONMENT, raising=False)
        assert side.advice(Path(usual)).option == ""
        assert side.advice(Path("north")).option == f" --home {tmp_path / 'north'}"
        monkeypatch.setenv(side.ENVIRONMENT, str(tmp_path / "north"))
        assert side.advice(Path("north")).option == ""
        assert side.advice(Path(usual)).option == f" --home {tmp_path / usual}"


def test_everything_a_command_shows_is_completed_until_it_has_ended() -> None:
    app = new_app("Testing.")
    below = new_app("Below.")
    app.add_typer(below, name="below")

    @below.command()
    def work(context: typer.Context) -> None:
        advise(context, NORTH)
        say("`wardround-client start`")
        note("`wardround-client start`")
        show_table("Table", ("what", "detail"), [("agent", "`wardround-client start`")])
        log_to(logging.WARNING, advice=advice_in_hand())
        logging.getLogger("tests").warning("see `wardround-client %s`", "start")
        raise ConfigError("see `wardround-client start`.")

    done = CliRunner().invoke(app, ["below", "work"])
    assert done.exit_code == 1
    assert done.output.count("wardround-client start") == 5
    assert done.output.count("`wardround-client start --home '/srv/no rth'`") == 5
    assert advice_in_hand() == Advice()


def test_site_that_is_elsewhere_is_named_in_what_its_commands_advise(tmp_path: Path) -> None:
    home = tmp_path / "no rth"
    home.mkdir(mode=0o700)
    (home / "site.toml").write_text('name = "north"\n')
    for words in (["data", "check"], ["start"], ["approve", "lesions", "--timeout", "0"]):
        done = CliRunner().invoke(client_app, [*words, "--home", str(home)])
        assert done.exit_code == 1, done.output
        advised = re.findall(r"`(wardround-client [^`]*)`", done.output.replace("\n", " "))
        assert advised, done.output
        assert all(one.endswith(f" --home '{home}'") for one in advised), advised
