"""wardround-server runs compare and runs diff: two runs beside each other."""

from typing import Annotated

import typer

from common.console.cli import JsonFlag, note, show_table
from common.errors import ConfigError
from server.archive.compare import compare, diff
from server.commands.options import AsOption, HomeOption, KeyOption, asked
from server.registry import operators
from server.views.sentences import NOISE

First = Annotated[str, typer.Argument(metavar="A", help="A run's name, or the first digits of its hash.")]
Second = Annotated[str, typer.Argument(metavar="B", help="Another one's.")]


def runs_compare(
    first: First,
    second: Second,
    *,
    home: HomeOption = None,
    json: JsonFlag = False,
    by: AsOption = operators.FIRST,
    key: KeyOption = None,
) -> None:
    """What two completed runs differ in: rounds, sites, epsilon, scores; B less A, with an interval where one is known.

    Example: `wardround-server runs compare lesions lesions-2`
    """
    from server.archive.record import kept  # noqa: PLC0415 - loads jinja2

    opened, registry, _ = asked(home, "runs-compare", by, key)
    one, other = (registry.proposal(name) for name in (first, second))
    if one.run_hash == other.run_hash:
        raise ConfigError(f"{first!r} and {second!r} are one run. Name two: see `wardround-server runs`.")
    found = compare(kept(opened, one), kept(opened, other), (one.run, other.run))
    rows: list[tuple[object, ...]] = [
        (each.what, each.site or None, each.first, each.second, each.by, each.low, each.high) for each in found
    ]
    title = f"{one.name} {one.run_hash[:8]} (A) and {other.name} {other.run_hash[:8]} (B)"
    columns = ["what", "site", "A", "B", "B less A", "low", "high"]
    if json:
        columns, rows = [*columns, "warning"], [(*row, each.warning) for row, each in zip(rows, found, strict=True)]
    show_table(title, columns, rows, as_json=json)
    for each in found:
        if each.warning is not None:
            note(f"Warning: {each.warning}")
    if any(each.low is not None for each in found):
        note("low and high: 95 % of what the noise that hospitals added leaves open; other patients are not in it.")
    if any(isinstance(each.by, float) for each in found):
        note("B less A is of the exact numbers, and may be off by one in its last digit from those shown.")
    if any(each.noised for each in found):
        note(NOISE)


def runs_diff(
    first: First,
    second: Second,
    *,
    home: HomeOption = None,
    json: JsonFlag = False,
    by: AsOption = operators.FIRST,
    key: KeyOption = None,
) -> None:
    """The keys in which the documents of two runs differ, defaults included.

    Example: `wardround-server runs diff lesions lesions-2`
    """
    _, registry, _ = asked(home, "runs-diff", by, key)
    one, other = (registry.proposal(name) for name in (first, second))
    title = f"{one.name} {one.run_hash[:8]} (A) and {other.name} {other.run_hash[:8]} (B)"
    show_table(title, ("key", "A", "B"), diff(one.run, other.run), as_json=json)
    if one.run_hash == other.run_hash:
        note(f"{first!r} and {second!r} are one run: no key can differ. Name two: see `wardround-server runs`.")


__all__ = ["runs_compare", "runs_diff"]
