"""wardround-server metrics: the coordinator for Prometheus."""

from pathlib import Path
from typing import Annotated

import typer

from common.console.cli import JsonFlag
from server.commands.options import AsOption, HomeOption, KeyOption, asked
from server.registry import operators


def metrics(
    *,
    home: HomeOption = None,
    port: Annotated[int | None, typer.Option(min=0, max=65535, help="Serve on 127.0.0.1; 0: a free port.")] = None,
    textfile: Annotated[
        Path | None, typer.Option(help="Write this .prom file again and again, for node_exporter's textfile collector.")
    ] = None,
    every: Annotated[float, typer.Option(min=1, help="Seconds between two writings.")] = 15.0,
    json: JsonFlag = False,
    by: AsOption = operators.FIRST,
    key: KeyOption = None,
) -> None:
    """Tell Prometheus of processes, sites and runs: once, or until Ctrl-C on a port of this machine or in a file.

    On a port it is told to whoever shows the token in metrics.token of the home folder, which can read and nothing
    else.

    Example: `wardround-server metrics --port 9464 --as omar`
    """
    from common.web.measures import Family, tell  # noqa: PLC0415 - loads uvicorn
    from server.monitoring.prometheus import families  # noqa: PLC0415 - loads jinja2

    opened, registry, signer = asked(home, "watch", by, key)

    def collect() -> list[Family]:
        operators.still_may(registry, by, signer.certificate, "watch")
        return list(families(opened, registry))

    tell(collect, opened.path, port=port, file=textfile, every_s=every, as_json=json)
