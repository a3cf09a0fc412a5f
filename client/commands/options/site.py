"""What the commands of wardround-client share: the home folder, a run by file or name, progress."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Annotated, Any, TypeAlias

import typer

from client.home import kept
from client.home.folder import DEFAULT, ENVIRONMENT, FORGOTTEN_NAME, SITE_NAME, advice, check_kind
from client.home.sitekey import site_key
from client.home.version import VERSIONS
from client.rules import approvals
from common.config.rundocument import RunDocument, from_file
from common.console.cli import Advance, advise, note, progress
from common.errors import ConfigError

HOME = DEFAULT


def site_file(home: Path) -> Path:
    """The site.toml of a home folder, which must be there."""
    path = home / SITE_NAME
    if not path.exists():
        raise ConfigError(
            f"{home} is no site's folder: it has no {SITE_NAME}. Join first with `wardround-client join INVITATION`, "
            "or name the site's folder with --home or WARDROUND_HOME."
        )
    return path


def _existing(context: typer.Context, home: Path) -> Path:
    """A folder that was mistyped is an error, and not a site of which nothing is known."""
    if not context.resilient_parsing:
        site_file(home)
    return _made(context, home)


def _existing_or_made(context: typer.Context, home: Path) -> Path:
    """As `_existing`; but the first site of all, and a folder that a person has made for another, may become one."""
    if not context.resilient_parsing and home != HOME and not home.is_dir():
        raise ConfigError(
            f"there is no folder {home}. Correct --home or WARDROUND_HOME; for a new site there, make the folder first."
        )
    return _made(context, home)


def _made(context: typer.Context, home: Path) -> Path:
    if not context.resilient_parsing and (home / SITE_NAME).exists():
        VERSIONS.open(home, note)
    return home


def _as_it_is(_context: typer.Context, home: Path) -> Path:
    return home


def _home(check: Callable[[typer.Context, Path], Path]) -> Any:
    def given(context: typer.Context, home: Path) -> Path:
        advise(context, advice(home))
        if not context.resilient_parsing:
            check_kind(home)
        return check(context, home)

    about = "The site's folder: settings, keys, ledger, logs."
    return typer.Option("--home", envvar=ENVIRONMENT, help=about, callback=given)


# Of a site that is there; of one that may begin with this command; of one that this command makes.
Home: TypeAlias = Annotated[Path, _home(_existing)]
FirstHome: TypeAlias = Annotated[Path, _home(_existing_or_made)]
NewHome: TypeAlias = Annotated[Path, _home(_made)]
# Which must not be one yet.
NoHome: TypeAlias = Annotated[Path, _home(_as_it_is)]


def run_of(home: Path, run: str) -> RunDocument:
    """A run given as a file, or a proposed one."""
    return from_file(Path(run)) if Path(run).is_file() else approvals.find(home, run).document


def personal_of(home: Path) -> Callable[[str], bytes]:
    """The hash of a run -> the personal model that this site keeps of it."""
    return partial(kept.personal, home, site_key(home))


def forgotten_of(home: Path) -> Callable[[str], bool]:
    """Whether a patient, by the raw id, takes no part at this site any more (`data forget`)."""
    from client.data.keep.forgotten import Forgotten  # noqa: PLC0415 - image libraries

    path = home / FORGOTTEN_NAME
    return Forgotten(path, site_key(home)).has if path.exists() else lambda _patient: False


PersonalFlag: TypeAlias = Annotated[
    bool, typer.Option("--personal", help="The model that this site has of its own from the same run.")
]


@contextmanager
def counted_progress(label: str) -> Iterator[Callable[[int, int], None]]:
    """Progress over things whose number is known with the first."""
    with ExitStack() as stack:
        advance: Advance | None = None

        def step(done: int, total: int) -> None:
            nonlocal advance
            if advance is None:
                advance = stack.enter_context(progress(label, total))
            advance(done, "")

        yield step
