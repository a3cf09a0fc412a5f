"""A web server on the loopback address: its sockets, and its thread.

uvicorn, with what it would say of a request kept silent: its lines quote paths.
"""

import contextlib
import logging
import socket
import threading
import time
from collections.abc import Iterator, Sequence
from typing import Any

import uvicorn

from common.errors import ConfigError
from common.web.connection import Connection

LOOPBACK = ("127.0.0.1", "::1")
MOST_CONNECTIONS = 64

_GRACE_S = 5  # for answers that are under way when the server stops
_STARTING_S = 30.0


def hosts_of(port: int, *, both: bool = False) -> Sequence[bytes]:
    """What a Host header may be."""
    names = ["127.0.0.1", "localhost", *(["[::1]"] if both else [])]
    return [f"{name}:{port}".encode() for name in names]


@contextlib.contextmanager
def listening(port: int, *, both: bool = False) -> Iterator[list[socket.socket]]:
    """Sockets on the loopback addresses, on one port.

    Args:
        port: 0: a free one.
        both: on ::1 too.

    Raises:
        ConfigError: the port is taken.
    """
    with contextlib.ExitStack() as opened:
        sockets: list[socket.socket] = []
        for host in LOOPBACK[: 1 + both]:
            family = socket.AF_INET6 if ":" in host else socket.AF_INET
            one = opened.enter_context(socket.socket(family, socket.SOCK_STREAM))
            one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                one.bind((host, sockets[0].getsockname()[1] if sockets else port))
            except OSError as error:
                raise ConfigError(
                    f"port {port} of {host} cannot be taken ({error.strerror}). Give another --port, or 0 for a free "
                    "one."
                ) from error
            sockets.append(one)
        yield sockets


def configured(app: Any, **more: Any) -> uvicorn.Config:
    """A server's settings: nothing of a request is logged, nothing said of the program, no time for the idle.

    Args:
        app: an ASGI application.
        more: settings of this server, by uvicorn's names.
    """
    logging.getLogger("uvicorn").setLevel(logging.CRITICAL)  # it quotes requests
    return uvicorn.Config(
        app,
        http=Connection,
        ws="none",
        loop="asyncio",
        lifespan="off",
        interface="asgi3",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_keep_alive=5,
        **more,
    )


def started(server: uvicorn.Server, sockets: list[socket.socket], name: str) -> threading.Thread:
    """The thread in which a server answers.

    Args:
        server: not started yet; its `should_exit` ends it.
        sockets: bound.
        name: of the thread.

    Raises:
        ConfigError: it does not start.
    """
    thread = threading.Thread(target=server.run, kwargs={"sockets": sockets}, name=name, daemon=True)
    thread.start()
    deadline = time.monotonic() + _STARTING_S
    while not server.started:
        if not thread.is_alive() or time.monotonic() > deadline:
            raise ConfigError("the web server did not start. Try again, or give another port.")
        time.sleep(0.01)
    return thread


@contextlib.contextmanager
def answering(app: Any, sockets: list[socket.socket]) -> Iterator[None]:
    """The web server, in a thread.

    Args:
        app: an ASGI application.
        sockets: bound.

    Raises:
        ConfigError: it does not start.
    """
    server = uvicorn.Server(configured(app, limit_concurrency=MOST_CONNECTIONS, timeout_graceful_shutdown=_GRACE_S))
    thread = started(server, sockets, "web")
    try:
        yield
    finally:
        server.should_exit = True
        thread.join()


__all__ = ["LOOPBACK", "MOST_CONNECTIONS", "answering", "configured", "hosts_of", "listening", "started"]
