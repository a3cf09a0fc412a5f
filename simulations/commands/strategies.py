"""`wardround-sim compare --strategies`: the strategies that a scenario names, each without and with its faults.

Heavy modules are imported inside the function: see common/console/cli.py.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from common.config import RunConfig
from common.console.cli import progress, show_json, show_table
from common.errors import ConfigError
from simulations.api.preparation import tells

if TYPE_CHECKING:
    from client.site import Site
    from simulations.backends import Backend
    from simulations.scenarios.scenario import CompareConfig


def compare_strategies(
    run: RunConfig,
    wanted: "CompareConfig",
    sites: "Sequence[Site]",
    out: Path,
    *,
    seeds: Sequence[int],
    backend: "Backend",
    as_json: bool,
) -> None:
    """Train and score them all, and show the table.

    Raises:
        ConfigError: the scenario names none.
    """
    from simulations.studies import strategies as study  # noqa: PLC0415

    if not wanted.strategies:
        raise ConfigError(
            "the scenario names no strategies to compare. Add them to its table [compare], such as strategies = "
            '[{ kind = "fedavg" }, { kind = "fedmedian" }].'
        )
    with progress("models", len(wanted.strategies) * (1 + len(wanted.faults)) * len(seeds)) as advance:
        tell, finished = tells(advance)
        rows = study.strategies(
            run,
            wanted.strategies,
            wanted.faults,
            sites,
            out,
            seeds=seeds,
            backend=backend,
            tell=tell,
            finished=finished,
        )
    if as_json:
        show_json(study.as_data(rows))
    else:
        show_table(f"{run.name}: strategies", *study.summary_rows(rows, run.task))
