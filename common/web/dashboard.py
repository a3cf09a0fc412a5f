"""A dashboard from start to stop: the sockets, the link that is shown, the web server's thread.

On a terminal the link is printed, and another one at each press of Enter, as each is good for one login. Elsewhere what
is printed may end in a log: then the link is written to `dashboard.link` in the home folder, which only the owner
reads, and what is printed is where that lies. Whoever may look into that folder, its owner, asks a running dashboard
for another one over a unix socket in it (`fresh_link`).
"""

import contextlib
import os
import select
import socket
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from common.console.cli import configure_logging, note, say, show_json
from common.console.signals import asked_to_stop
from common.errors import ConfigError
from common.system.files import socket_address, write_private
from common.web.door import Door
from common.web.listening import answering, hosts_of, listening
from common.web.login import LINK_S, Sessions
from common.web.pages import Dashboard, Pages

LINK_NAME = "dashboard.link"

_LOOK_EVERY_S = 0.2
_SOCKET = "dashboard-{}.sock"  # by its port: a home may have several
_PATIENCE_S = 5.0
_GOOD_FOR = f"Open it within {LINK_S / 60:.0f} minutes; it is good for one login."


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
    sessions, file, told = Sessions(), home / LINK_NAME, b""
    shows = sys.stdout.isatty() and not as_json
    try:
        with listening(port) as sockets:
            number = sockets[0].getsockname()[1]
            app = Door(Pages(dashboard, sessions, stopped), sessions, hosts_of(number))

            def link() -> str:
                return f"http://127.0.0.1:{number}/{sessions.place}/login#{sessions.token()}"

            with answering(app, sockets), _asked(home, number) as asked:
                if shows:
                    say(link())
                    note(f"{_GOOD_FOR} Enter shows another; so does `{dashboard.advice.program} dashboard --link`.")
                else:
                    told = f"{link()}\n".encode()
                    write_private(file, told, durable=False)
                    show_json({"address": f"http://127.0.0.1:{number}", "link": file}) if as_json else say(
                        f"Listening on 127.0.0.1:{number}. The link is in {file}"
                    )
                    note(f"It is good for one login; `{dashboard.advice.program} dashboard --link` shows another.")
                note("Ctrl-C or SIGTERM stops.")
                _wait(stopped, asked, link, at_enter=shows)
    finally:
        if told and file.exists() and file.read_bytes() == told:  # else it is another dashboard's of this home
            file.unlink(missing_ok=True)


def show_fresh_link(home: Path, *, port: int, as_json: bool) -> None:
    """Print another link of a dashboard of this home; see `fresh_link`."""
    link = fresh_link(home, port)
    if as_json:
        show_json({"address": link[: link.index("/", len("http://"))], "link": link})
    else:
        say(link)
        note(_GOOD_FOR)


def fresh_link(home: Path, port: int) -> str:
    """A new link of a dashboard that runs; the one before is void, who is logged in stays so.

    Args:
        home: the side's folder.
        port: of the dashboard; 0: the only one.

    Raises:
        ConfigError: there is none, or more than one.
    """
    with contextlib.ExitStack() as opened:
        running = {}
        for path in home.glob(_SOCKET.format(port or "*")):
            one = opened.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))
            one.settimeout(_PATIENCE_S)
            try:
                with socket_address(path) as address:
                    one.connect(address)
            except OSError:  # a killed one's
                continue
            running[path.stem.rpartition("-")[2]] = one
        if len(running) > 1:
            raise ConfigError(f"dashboards run on the ports {', '.join(sorted(running))}. Name one with --port.")
        told = b"".join(_told(one) for one in running.values())
    if not told:
        where = f" on port {port}" if port else ""
        raise ConfigError(f"no dashboard of {home} runs{where}. Start one: the same command without --link.")
    return told.decode()


def _told(asking: socket.socket) -> bytes:
    """The answer to whoever asks; nothing of a dashboard that has just ended."""
    with contextlib.suppress(OSError):
        asking.sendall(b"\n")
        return b"".join(iter(lambda: asking.recv(1024), b""))
    return b""


@contextlib.contextmanager
def _asked(home: Path, port: int) -> Iterator[socket.socket]:
    """The socket over which the owner of the folder asks for a link."""
    path = home / _SOCKET.format(port)
    path.unlink(missing_ok=True)  # a killed one's
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        with socket_address(path) as address:
            listener.bind(address)
        path.chmod(0o600)
        listener.listen()
        listener.setblocking(False)
        try:
            yield listener
        finally:
            path.unlink(missing_ok=True)


def _wait(stopped: Callable[[], bool], asked: socket.socket, link: Callable[[], str], *, at_enter: bool) -> None:
    """Until told to stop: a link for each who asks and, on a terminal, for each line."""
    at_enter = at_enter and sys.stdin.isatty()
    while not stopped():
        ready, _, _ = select.select([asked, sys.stdin] if at_enter else [asked], [], [], _LOOK_EVERY_S)
        if asked in ready:
            with contextlib.suppress(OSError):  # who asked is gone
                asking, _ = asked.accept()
                with asking:
                    asking.settimeout(_LOOK_EVERY_S)
                    if asking.recv(1):  # else they looked whether a dashboard is here
                        asking.sendall(link().encode())
        if sys.stdin in ready:
            if sys.stdin.readline():
                say(link())
            else:
                at_enter = False


__all__ = ["LINK_NAME", "fresh_link", "serve_dashboard", "show_fresh_link"]
