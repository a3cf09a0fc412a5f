"""What the commands of wardround-client share: the home folder, a run by file or name, progress."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Annotated, TypeAlias

import typer

from client import approvals
from client.site import SITE_NAME
from common.cli import Advance, progress
from common.config import RunConfig, load
from common.errors import ConfigError

Home: TypeAlias = Annotated[
    Path, typer.Option("--home", envvar="WARDROUND_HOME", help="The site's folder: settings, keys, ledger, logs.")
]
HOME = Path("wardround-site")


def site_file(home: Path) -> Path:
    """The site.toml of a home folder, which must be there."""
    path = home / SITE_NAME
    if not path.exists():
        raise ConfigError(
            f"{path} does not exist. Join first with 'wardround-client join INVITATION', or name the site's folder "
            "with --home or WARDROUND_HOME."
        )
    return path


def run_of(home: Path, run: str) -> RunConfig:
    """A run given as a file, or a proposed one."""
    return load(RunConfig, Path(run)) if Path(run).is_file() else approvals.find(home, run).run


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
