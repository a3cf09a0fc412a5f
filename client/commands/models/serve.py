"""wardround-client serve: a model that answers on this machine alone."""

import os
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

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
