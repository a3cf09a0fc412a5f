"""What commands that train begin and end with, beside what all that trains begins with (simulations/api)."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

import click

from common.config import Device
from common.console.cli import note
from common.errors import ConfigError
from simulations.api.preparation import backend_for

if TYPE_CHECKING:
    from simulations.backends import Backend


def use_backend(  # noqa: PLR0917 - the same line in each command
    name: str | None,
    sites: int,
    workers: int | None,
    threads: int | None,
    device: Device | None,
    address: str | None,
    gpus_per_site: float | None,
) -> "Backend":
    """Start a backend, which ends with the command; see `backend_for`."""
    backend = backend_for(
        name,
        sites,
        workers=workers,
        threads=threads,
        device=device,
        address=address,
        gpus_per_site=gpus_per_site,
    )
    return click.get_current_context().with_resource(backend)


def parse_seeds(text: str) -> list[int]:
    """Whole numbers with commas between."""
    try:
        return [int(part) for part in text.split(",")]
    except ValueError as error:
        raise ConfigError(f"--seeds is {text!r}, expected whole numbers with commas between, such as 0,1,2.") from error


def wanted_tables(out: Path, *, parquet: bool) -> AbstractContextManager[None]:
    """What is entered around a study: at its end its long tables are written as Parquet too, where that is asked for.

    Raises:
        ConfigError: what writes Parquet is not installed.
    """
    if not parquet:
        return nullcontext()
    from simulations.studies import tables  # noqa: PLC0415 - not needed by other commands

    tables.check_parquet()
    return _then_as_parquet(out)


@contextmanager
def _then_as_parquet(out: Path) -> Iterator[None]:
    from simulations.studies import tables  # noqa: PLC0415

    yield
    for path in tables.as_parquet(out):
        note(f"table  {path}")


@contextmanager
def goes_on() -> Iterator[None]:
    """Say on Ctrl-C that nothing that is done is lost, where the same command finds it in --out."""
    try:
        yield
    except KeyboardInterrupt:
        note("Stopped. The same command goes on from what is done.")
        raise


__all__ = ["goes_on", "parse_seeds", "use_backend", "wanted_tables"]
