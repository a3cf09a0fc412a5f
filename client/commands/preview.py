"""wardround-client data preview: what preparation makes of a hospital's own studies, in pictures."""

import itertools
from pathlib import Path
from typing import Annotated

import typer

from client.commands.options import HOME, Home, counted_progress, run_of
from client.site import open_site
from common.console.cli import JsonFlag, note, show_table
from common.errors import ConfigError, DataError, ErrorCode
from common.text import counted


def data_preview(
    *,
    out: Annotated[Path, typer.Option("--out", help="A new or empty folder for pictures and numbers.")],
    home: Home = HOME,
    run: Annotated[str | None, typer.Option(help="A run.toml, or the name or hash of a proposed run.")] = None,
    studies: Annotated[int, typer.Option("--studies", min=1, max=200, help="How many, from the first.")] = 5,
    as_json: JsonFlag = False,
) -> None:
    """Show what a run's preparation makes of the first studies, before and after each step.

    Writes pictures, index.html and numbers.json. They show patients, and stay at the site.

    Example: `wardround-client data preview --run run.toml --out preview`
    """
    from client.data.check.preview import COLUMNS, numbers, preview_site, write_preview  # noqa: PLC0415 - torch

    site = open_site(home)
    if not site.config.data:
        raise ConfigError("this site has no data yet. Add a folder with 'wardround-client data add PATH'.")
    _check_new(out, [home / Path(source.path).expanduser() for source in site.config.data])
    config = None if run is None else run_of(home, run).config
    with counted_progress("studies") as advance:
        shown = preview_site(site.home, site.config, site.key, config, studies=studies, progress=advance)
    page = write_preview(out, shown, config)
    show_table("Preparation", COLUMNS, list(numbers(shown)), as_json=as_json)
    for study in shown:
        if study.problem is not None:
            note(f"study {study.number} is set aside: {study.problem}")
    note(f"{counted(len(shown), 'study', 'studies')}. Pictures, to look at here and not to send: {page}")
    if all(study.problem is not None for study in shown):
        raise DataError("none of these studies can be prepared. See the reasons above.", ErrorCode.NO_DATA)


def _check_new(out: Path, sources: list[Path]) -> None:
    """Refuse a folder that holds something, or lies among the images, where pictures would be taken for studies."""
    if out.exists() and (not out.is_dir() or any(itertools.islice(out.iterdir(), 1))):
        raise ConfigError("--out is there and not empty. Give a new folder.")
    if any(out.resolve().is_relative_to(source.resolve()) for source in sources):
        raise ConfigError("the pictures would lie among the images. Choose an --out outside of the site's sources.")
