"""wardround-client dashboard and metrics: what tells of the site itself, on this machine alone."""

from pathlib import Path
from typing import Annotated

import typer

from client.commands.options.site import HOME, Home
from client.home.folder import check_private
from common.console.cli import JsonFlag


def dashboard(
    home: Home = HOME,
    port: Annotated[int, typer.Option(min=0, max=65535, help="Of 127.0.0.1; 0: a free one.")] = 0,
    link: Annotated[bool, typer.Option("--link", help="Print another link of the one that runs, and end.")] = False,
    as_json: JsonFlag = False,
) -> None:
    """Show this site in a browser on this machine, until Ctrl-C: runs and what they would mean, yes or no, what left.

    Prints a link that is good for one login; `dashboard --link`, elsewhere as the same user, another one.
    From another machine: `ssh -L PORT:127.0.0.1:PORT HOST`, with --port PORT.

    Example: `wardround-client dashboard`
    """
    from client.views.dashboard import dashboard_of  # noqa: PLC0415 - loads jinja2
    from common.web.dashboard import serve_dashboard, show_fresh_link  # noqa: PLC0415 - loads uvicorn

    check_private(home)
    if link:
        show_fresh_link(home, port=port, as_json=as_json)
        return
    serve_dashboard(dashboard_of(home.resolve()), home.resolve(), port=port, as_json=as_json)


def metrics(
    home: Home = HOME,
    port: Annotated[int | None, typer.Option(min=0, max=65535, help="Serve on 127.0.0.1; 0: a free port.")] = None,
    textfile: Annotated[
        Path | None, typer.Option(help="Write this .prom file again and again, for node_exporter's textfile collector.")
    ] = None,
    every: Annotated[float, typer.Option(min=1, help="Seconds between two writings.")] = 15.0,
    as_json: JsonFlag = False,
) -> None:
    """Tell Prometheus how this site is, in counts: once, or until Ctrl-C on a port of this machine or in a file.

    On a port it is told to whoever shows the token in metrics.token of the home folder, which can read and nothing
    else. No patient, study or path is told.

    Example: `wardround-client metrics --textfile /var/lib/prometheus/node-exporter/wardround.prom`
    """
    from client.views.metrics import families  # noqa: PLC0415 - with the next
    from common.web.measures import tell  # noqa: PLC0415 - loads uvicorn

    check_private(home)
    here = home.resolve()
    tell(lambda: families(here), here, port=port, file=textfile, every_s=every, as_json=as_json)
