"""wardround-client serve, dashboard and metrics: what answers on this machine alone, a model and the site itself."""

import os
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from client.commands.options import HOME, Home
from client.home.folder import check_private
from common.console.cli import JsonFlag, configure_logging, note, say, show_json, show_table
from common.console.signals import asked_to_stop
from common.text import counted

if TYPE_CHECKING:
    from client.serve.server import Served, Started

_MIB = 1 << 20


def serve(  # noqa: PLR0917 - one parameter an option
    model: Annotated[Path, typer.Argument(help="model.safetensors or its folder.")],
    port: Annotated[int, typer.Option(min=0, max=65535, help="Of the loopback address; 0: a free one.")] = 0,
    ipv6: Annotated[bool, typer.Option("--ipv6", help="Also listen on ::1.")] = False,
    folder: Annotated[
        Path | None, typer.Option(help="Where uploads and the token lie while it runs.  [default: temporary files]")
    ] = None,
    device: Annotated[str, typer.Option(help="cpu, cuda or auto.")] = "auto",
    places: Annotated[int, typer.Option(min=1, max=1000, help="Jobs received, waiting and worked on at a time.")] = 8,
    keep: Annotated[float, typer.Option(min=1, help="Seconds until a result that nobody fetches is removed.")] = 600.0,
    most_mib: Annotated[int, typer.Option(min=1, help="Longest upload in MiB; unpacked four times as much.")] = 1024,
    as_json: JsonFlag = False,
) -> None:
    """Answer studies over HTTP on this machine alone, until Ctrl-C or SIGTERM.

    The token that each request must carry lies in a file that only you can read; its path is printed.

    Example: `wardround-client serve wardround-runs/lesions/model.safetensors --port 8123`
    """
    os.umask(0o077)
    from client.serve.server import serve as run  # noqa: PLC0415 - torch
    from client.serve.upload import Limits  # noqa: PLC0415 - with the above

    stopped = asked_to_stop()
    configure_logging()
    served = run(
        model,
        port=port,
        both=ipv6,
        folder=folder,
        device=device,
        places=places,
        keep_s=keep,
        limits=Limits(upload=most_mib * _MIB, unpacked=4 * most_mib * _MIB),
        stopped=stopped,
        started=lambda started: _show_start(started, as_json=as_json),
        told=note,
    )
    _show_end(served)


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


def _show_start(started: "Started", *, as_json: bool) -> None:
    if as_json:
        show_json(asdict(started))
        return
    say(f"Listening on {' and '.join(started.addresses)}")
    say(f"Token in {started.token}")
    note("Research software: nothing it answers is for diagnosis. Ctrl-C or SIGTERM stops after the job in hand.")


def _show_end(served: "Served") -> None:
    note(f"Stopped: {counted(served.done, 'study', 'studies')} answered, {served.failed} could not be used.")
    columns = ("ms", "volume: median", "95 %", "slice: median", "95 %")
    rows = [
        (row[0], *(f"{figure:.1f}" for figure in row[1:]))
        for row in (tuple(asdict(one).values()) for one in served.latency)
    ]
    if rows:
        show_table("Latency, model loaded and warm", columns, rows)
