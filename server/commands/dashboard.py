"""wardround-server dashboard: the coordinator in a browser on this machine."""

from typing import Annotated

import typer

from common.console.cli import JsonFlag
from server.commands.options import AsOption, HomeOption, KeyOption, opened_home, operator_passphrase
from server.registry import operators


def dashboard(  # noqa: PLR0917 - one parameter an option
    home: HomeOption = None,
    port: Annotated[int, typer.Option(min=0, max=65535, help="Of 127.0.0.1; 0: a free one.")] = 0,
    link: Annotated[bool, typer.Option("--link", help="Print another link of the one that runs, and end.")] = False,
    json: JsonFlag = False,
    by: AsOption = operators.FIRST,
    key: KeyOption = None,
) -> None:
    """Show sites and runs in a browser on this machine, until Ctrl-C; stop and resume runs there, signed by you.

    Prints a link that is good for one login; `dashboard --link`, elsewhere as the same user, another one.
    From another machine: `ssh -L PORT:127.0.0.1:PORT HOST`, with --port PORT.

    Example: `wardround-server dashboard --as admin`
    """
    from common.web.dashboard import serve_dashboard, show_fresh_link  # noqa: PLC0415 - loads uvicorn
    from server.dashboard.pages import Keyboard, dashboard_of  # noqa: PLC0415 - loads jinja2

    opened, registry = opened_home(home)
    if link:
        show_fresh_link(opened.path, port=port, as_json=json)
        return
    path = key or opened.path / "operators" / f"{by}.key"
    passphrase = operator_passphrase(path) if path.exists() else None
    operators.acting(opened, registry, "watch", by, key=key, ask=lambda _: passphrase)
    serve_dashboard(dashboard_of(opened, registry, Keyboard(by, key, passphrase)), opened.path, port=port, as_json=json)
