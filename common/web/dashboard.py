"""A dashboard from start to stop: the sockets, the link that is shown, the web server's thread.

On a terminal the link is printed, and another one at each press of Enter, as each is good for one login. Elsewhere what
is printed may end in a log: then the link is written to `dashboard.link` in the home folder, which only the owner
reads, and what is printed is where that lies.
"""

import os
import select
import sys
import time
from collections.abc import Callable
from pathlib import Path

from common.console.cli import configure_logging, note, say, show_json
from common.console.signals import asked_to_stop
from common.system.files import write_private
from common.web.door import Door
from common.web.listening import answering, hosts_of, listening
from common.web.login import LINK_S, Sessions
from common.web.pages import Dashboard, Pages

LINK_NAME = "dashboard.link"

_LOOK_EVERY_S = 0.2


def serve_dashboard(dashboard: Dashboard, home: Path, *, port: int, as_json: bool) -> None:
    """Serve until Ctrl-C or SIGTERM.

    Args:
        dashboard: what is shown.
        home: the side's folder, for the link.
        port: of 127.0.0.1; 0: a free one.
        as_json: print where the link lies as JSON.

    Raises:
        ConfigError: the port is taken.
    """
    os.umask(0o077)
    stopped = asked_to_stop()
    configure_logging()
    sessions, file = Sessions(), home / LINK_NAME
    shows = sys.stdout.isatty() and not as_json
    try:
        with listening(port) as sockets:
            number = sockets[0].getsockname()[1]
            app = Door(Pages(dashboard, sessions, stopped), sessions, hosts_of(number))

            def link() -> str:
                return f"http://127.0.0.1:{number}/{sessions.place}/login#{sessions.token()}"

            with answering(app, sockets):
                if shows:
                    say(link())
                    note(f"Open it within {LINK_S / 60:.0f} minutes; it is good for one login. Enter shows another.")
                else:
                    write_private(file, f"{link()}\n".encode(), durable=False)
                    show_json({"address": f"http://127.0.0.1:{number}", "link": file}) if as_json else say(
                        f"Listening on 127.0.0.1:{number}. The link is in {file}"
                    )
                note("Ctrl-C or SIGTERM stops.")
                _wait(stopped, another=(lambda: say(link())) if shows else None)
    finally:
        file.unlink(missing_ok=True)


def _wait(stopped: Callable[[], bool], another: Callable[[], None] | None) -> None:
    """Until told to stop; on a terminal, a link for each line."""
    while not stopped():
        if another is None or not sys.stdin.isatty():
            time.sleep(_LOOK_EVERY_S)
        elif select.select([sys.stdin], [], [], _LOOK_EVERY_S)[0]:
            if sys.stdin.readline():
                another()
            else:
                another = None


__all__ = ["LINK_NAME", "serve_dashboard"]
