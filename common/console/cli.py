"""What the three command lines share: errors as one message, tables, progress, logging.

All that a command shows passes here, and through `common.text.shown`: text of another side, of a file or of a header
is neither markup nor a command to a terminal. A command that a message advises gets the --home of the one in hand
(common/advice.py). Results go to stdout, everything else to stderr. Exit code 0 means
success, 1 a failure that was explained in one message, 2 a usage error. Commands import heavy modules (torch, flwr)
inside their bodies, so that `--help` answers at once and Flower reads the environment set here.

    app = new_app("Simulate a federation on one machine.")

    @app.command()
    def run(scenario: str, json: JsonFlag = False) -> None: ...
"""

import datetime
import errno
import logging
import math
import os
import re
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib import metadata
from inspect import get_annotations, unwrap
from typing import Annotated, Any, NoReturn, Protocol, TypeAlias

import click
import typer
from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text
from typer.core import TyperArgument, TyperGroup
from typer.models import ArgumentInfo

from common.advice import Advice
from common.console.logs import log_to
from common.errors import ConfigError, WardroundError
from common.system.environment import flower_variables
from common.text import as_json as json_text
from common.text import shown

# Torch's threads spin while they wait for each other. Beside other work on the same cores that made a training step 35
# times slower than on one thread (0.70 s against 0.02 s); sleeping instead, 2.5 times.
_TORCH_ENVIRONMENT = {"OMP_WAIT_POLICY": "PASSIVE"}
_PLAIN_LINE_EVERY_S = 2.0
_SHOWN_DIGITS = 12
_ADVICE = "wardround.advice"  # of click's context, which a group shares with its commands

# Of a command, with `no_run`.
TAKES_NO_RUN = {"allow_extra_args": True}

JsonFlag: TypeAlias = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]


class Advance(Protocol):
    """Called as work goes on."""

    def __call__(self, done: int, text: str, /, *, result: bool = False) -> None:
        """Show how much is done and a short note; result: it says what came of the work, and nobody may miss it."""


def new_app(help_text: str) -> typer.Typer:
    """A typer app whose commands may raise WardroundError: the user sees the message, the exit code is 1."""
    return typer.Typer(
        cls=_Commands,
        help=help_text,
        no_args_is_help=True,
        add_completion=False,
        # click says what may have been meant itself (8.5), and both would say it twice.
        suggest_commands=not hasattr(click.exceptions, "NoSuchCommand"),
        # A pretty traceback prints local variables, and those may name patients.
        pretty_exceptions_enable=False,
        rich_markup_mode="markdown",
    )


class Digest(str):
    """A hash: whole in JSON, its first twelve digits in a table."""

    __slots__ = ()


def show_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[object]], *, as_json: bool = False) -> None:
    """Print rows to stdout: a table for people, or with `as_json` a list of objects keyed by column.

    Rows hold values: numbers, truth values, lists, moments (aware datetimes), None. They stay that in JSON, whose keys
    are the columns in kebab-case; a table shows them as people write them.
    """
    if as_json:
        keys = [re.sub(r"[^a-z0-9]+", "-", column.lower()).strip("-") for column in columns]
        show_json([dict(zip(keys, row, strict=True)) for row in rows])
        return
    Console(width=None if sys.stdout.isatty() else 160).print(_table(title, columns, rows))


def show_json(value: Any) -> None:
    """Print a value to stdout as JSON."""
    typer.echo(json_text(value))


def say(message: object) -> None:
    """Print one line of the result to stdout."""
    typer.echo(_told(message))


def note(message: object) -> None:
    """Tell the user something on stderr, in one line, which leaves stdout to the result."""
    typer.echo(_told(message), err=True)


def confirm(question: str, *, yes: bool = False) -> None:
    """Ask a person, unless they have said yes before; anything but a yes ends the command.

    Raises:
        ConfigError: nobody answered.
    """
    if yes:
        return
    try:
        said = typer.confirm(question)
    except typer.Abort as error:  # the end of the input, or Ctrl-C
        raise ConfigError(
            "nobody answered, and nothing was done. Answer y or n on a terminal, or give --yes."
        ) from error
    if not said:
        note("Nothing was done.")
        raise typer.Exit(1)


def no_run(context: typer.Context, *instead: str) -> None:
    """Of a command that takes no run: whoever gives one means another command.

    Args:
        context: of a command with `TAKES_NO_RUN`.
        instead: what to type, with RUN for the run's name.

    Raises:
        click.UsageError: there is an argument.
    """
    if context.args:
        run = shown(context.args[0])
        commands = " or ".join(words.replace("RUN", run) for words in instead)
        raise click.UsageError(advice_in_hand()(f"this takes no run. See {commands}."), context)


@contextmanager
def live_table() -> Iterator[Callable[[str, str, Sequence[str], Sequence[Sequence[object]]], None]]:
    """A line and a table on a terminal's stderr that change in place.

    Yields:
        A function to call with the line, the table's title, its columns and its rows.
    """
    with Live(console=Console(stderr=True), refresh_per_second=4) as live:
        yield lambda line, title, columns, rows: live.update(Group(Text(_told(line)), _table(title, columns, rows)))


@contextmanager
def progress(label: str, total: int) -> Iterator[Advance]:
    """A progress bar on a terminal, plain lines elsewhere; both on stderr. Of lines that are no results, and come fast,
    only some are written.

    Yields:
        A function to call with the number done and a short note.
    """
    console = Console(stderr=True)
    if console.is_terminal:
        columns = (
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("{task.fields[note]}", markup=False),
        )
        with Progress(*columns, console=console) as bar:
            task = bar.add_task(shown(label), total=total, note="")

            def advance(done: int, text: str, *, result: bool = False) -> None:  # noqa: ARG001 - shown alike
                bar.update(task, completed=done, note=shown(text))

            yield advance
    else:
        yield _plain_lines(label, total)


def pairs(entries: Sequence[str] | None, option: str) -> dict[str, str]:
    """The entries KEY=VALUE of an option that may be repeated.

    Raises:
        ConfigError: one has no key or no value.
    """
    found = [entry.partition("=") for entry in entries or ()]
    if bad := [entry for entry, (key, _, value) in zip(entries or (), found, strict=True) if not (key and value)]:
        raise ConfigError(f"{option} {bad[0]!r} is not of the form KEY=VALUE. Write for example {option} 1=lesion.")
    return {key.strip(): value.strip() for key, _, value in found}


def advise(context: click.Context, advice: Advice) -> None:
    """From the option --home of a command: what its advice is completed with, until the command has ended."""
    context.meta[_ADVICE] = advice


def advice_in_hand() -> Advice:
    """Of the command that this thread carries out; none outside of one."""
    context = click.get_current_context(silent=True)
    found = None if context is None else context.meta.get(_ADVICE)
    return found if isinstance(found, Advice) else Advice()


def configure_logging(*, verbose: bool = False) -> None:
    """Log to stderr: warnings, and with `verbose` the story of what happens."""
    log_to(logging.INFO if verbose else logging.WARNING, advice=advice_in_hand())


# What to do about what the system refuses.
_REMEDIES = {
    errno.ENOENT: " Check the path; what belongs to a home is restored from a backup.",
    errno.ENOSPC: " Free some space on that disk, then run this again.",
    errno.EDQUOT: " Free some space in that account's quota, then run this again.",
    errno.EACCES: " Run this as the account that owns the folder, or change its mode.",
    errno.EPERM: " Run this as the account that owns the folder, or change its mode.",
    errno.EROFS: " Choose a folder that can be written to.",
}


class _Commands(TyperGroup):
    """A command group that explains expected failures in one message; it and all its commands know --version."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        _completed(self)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        found = super().get_command(ctx, cmd_name)
        return None if found is None else _completed(found)

    def invoke(self, ctx: click.Context) -> Any:
        for key, value in (flower_variables() | _TORCH_ENVIRONMENT).items():
            os.environ.setdefault(key, value)
        try:
            return super().invoke(ctx)
        except WardroundError as error:
            _fail(str(error), error)
        except OSError as error:
            # A reader that closed the pipe (`| head`) is no failure of ours; click ends quietly.
            if isinstance(error, BrokenPipeError):
                raise
            place = f" ({error.filename})" if error.filename else ""
            remedy = _REMEDIES.get(error.errno or 0, "")
            _fail(f"the system refused: {error.strerror or error}{place}.{remedy}", error)


def _completed(command: click.Command) -> click.Command:
    """The command, with the option --version beside --help, and with what is said of its arguments.

    Since click's arguments have a help of their own (8.5), typer's (0.20) is set to None when they are made.
    """
    described = get_annotations(unwrap(command.callback), eval_str=True) if command.callback else {}
    for parameter in command.params:
        if isinstance(parameter, TyperArgument) and parameter.help is None:
            about = getattr(described.get(parameter.name or ""), "__metadata__", ())
            parameter.help = next((one.help for one in about if isinstance(one, ArgumentInfo)), None)
    if not any("--version" in parameter.opts for parameter in command.params):
        command.params.append(
            click.Option(
                ["--version"],
                is_flag=True,
                is_eager=True,
                expose_value=False,
                callback=_show_version,
                help="Print the version and exit.",
            )
        )
    return command


def _show_version(ctx: click.Context, _parameter: click.Parameter, value: bool) -> None:
    if value:
        say(f"wardround {metadata.version('wardround')}")
        ctx.exit()


def _fail(message: str, cause: Exception) -> NoReturn:
    note(f"error: {message}")
    raise typer.Exit(1) from cause


def _told(message: object) -> str:
    return shown(advice_in_hand()(str(message)))


def _plain_lines(label: str, total: int) -> Advance:
    last = -_PLAIN_LINE_EVERY_S

    def advance(done: int, text: str, *, result: bool = False) -> None:
        nonlocal last
        now = time.monotonic()
        if done < total and now - last < _PLAIN_LINE_EVERY_S and not result:
            return
        last = now
        note(f"{label} {done}/{total} {text}".rstrip())

    return advance


def _table(title: str, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> Table:
    table = Table(title=Text(shown(title)), title_justify="left", title_style="bold")
    for column in columns:
        table.add_column(Text(shown(column)), overflow="fold")
    for row in rows:
        table.add_row(*(Text(_told(_cell(value))) for value in row))
    return table


def _cell(value: object) -> str:  # noqa: PLR0911 - one a kind of value
    match value:
        case None | "" | [] | ():
            return "-"
        case bool():
            return "yes" if value else "no"
        case float() if math.isnan(value):
            return "-"
        case float():
            return f"{value:.1e}" if 0 < abs(value) < 1e-3 else f"{value:.3f}"
        case Digest():
            return value[:_SHOWN_DIGITS]
        case datetime.datetime():
            return f"{value.astimezone():%Y-%m-%d %H:%M:%S}"
        case list() | tuple():
            return ", ".join(map(_cell, value))
        case Mapping():
            return ", ".join(f"{key} {_cell(entry)}" for key, entry in value.items())
    return str(value)
