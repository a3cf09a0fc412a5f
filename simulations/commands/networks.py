"""`wardround-sim compare --networks`: the networks that a scenario names, each pooled, federated and private.

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


def compare_networks(
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
    from simulations.studies import networks as study  # noqa: PLC0415

    if not wanted.networks:
        raise ConfigError(
            "the scenario names no networks to compare. Add them to its table [compare], such as networks = "
            '[{ architecture = "unet" }, { architecture = "segnet" }].'
        )
    with progress("networks", len(wanted.networks)) as advance:
        tell, finished = tells(advance)
        rows = study.networks(
            run,
            wanted.networks,
            sites,
            out,
            seeds=seeds,
            config=wanted,
            backend=backend,
            tell=tell,
            finished=finished,
        )
    columns, cells = study.summary_rows(rows, run.task)
    if as_json:
        show_json(study.as_data(rows))
    else:
        show_table(f"{run.name}: networks", columns, cells)
