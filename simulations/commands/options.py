"""Options that several of the simulation's commands share."""

from pathlib import Path
from typing import Annotated, Literal, TypeAlias

import typer

from common.config import Device

ScenarioArgument = Annotated[str, typer.Argument(help="Name of a shipped scenario, or path of a scenario file.")]
OutOption = Annotated[Path, typer.Option("--out", help="Folder for results. A run found there goes on.")]
DataOption = Annotated[
    Path | None, typer.Option("--data", help="Folder of the images. Default: WARDROUND_DATA/NAME, of the scenario.")
]
RoundsOption = Annotated[int | None, typer.Option("--rounds", min=1, help="Instead of the scenario's.")]
ThreadsOption = Annotated[
    int | None,
    typer.Option("--threads", min=1, help="Threads of each site at work; 1 for results that are equal elsewhere."),
]
DeviceOption = Annotated[
    Device | None,
    typer.Option("--device", help="Where all sites train: auto, cpu or cuda. Without it as the scenario says."),
]
BackendOption = Annotated[
    str | None,
    typer.Option(
        "--backend",
        envvar="WARDROUND_BACKEND",
        help="Where the sites work, see `wardround-sim list backends`. Default: processes, where there are two cores.",
    ),
]
WorkersOption = Annotated[
    int | None, typer.Option("--workers", min=1, help="Sites at work at the same time. Default: one for each core.")
]
AddressOption = Annotated[
    str | None,
    typer.Option(
        "--address",
        help="Of the cluster of --backend ray, HOST:PORT. Default: RAY_ADDRESS, or a cluster of this machine alone.",
    ),
]
GpusOption = Annotated[
    float | None,
    typer.Option(
        "--gpus-per-site",
        min=0,
        help="Of each site at work on the cluster; 0.5: two share one. Default: 1, where there are any.",
    ),
]
VerboseOption = Annotated[bool, typer.Option("--verbose", help="Tell more on stderr.")]
ParquetOption = Annotated[
    bool, typer.Option("--parquet", help="The long tables as Parquet too; needs wardround[parquet].")
]
# What `list` shows.
Listed: TypeAlias = Literal[
    "networks", "tasks", "losses", "strategies", "steps", "partitions", "shifts", "faults", "backends"
]
