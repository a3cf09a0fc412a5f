"""The web server of STOW-RS, in the process that waits: its socket, its thread, and how long a handshake may take.

uvicorn, with what it would say of a request kept silent: its lines quote paths.
"""

import asyncio
import re
import socket
import ssl
from functools import partial
from pathlib import Path

import uvicorn

from client.pacs.arrivals.arriving import Arrivals
from client.pacs.arrivals.settings import ANOTHER, TLS_FILES, Stowing
from client.pacs.arrivals.stow import Bounds, Stow
from client.pacs.problems import PacsError, not_to_be_had
from client.pacs.tls import HANDSHAKE_S, to_us
from common.errors import ConfigError
from common.web.connection import Connection
from common.web.listening import configured, started

_MOST_CONNECTIONS = 32
_MOST_HEAD = 16 << 10  # bytes: a request's first line and headers
# RFC 6750 2.1; so short a one could be guessed.
_TOKEN = re.compile(r"[A-Za-z0-9._~+/-]{16,4096}=*", re.ASCII)
_HOSTS = ("127.0.0.1", "localhost", "[::1]")


class Web:
    """The server at its port, until its `shutdown`."""

    def __init__(self, settings: Stowing, arrivals: Arrivals, bounds: Bounds | None = None) -> None:
        """Open it.

        Args:
            settings: where, and for whom.
            arrivals: takes what comes.
            bounds: of it.

        Raises:
            PacsError: the port is not to be had, or a file cannot be used.
        """
        proven = settings.token is not None or settings.ca is not None
        # Who needs no proof must at least be no page of a browser whose own name was made to mean this machine.
        ends = ("", f":{settings.port}")  # some senders leave the port out
        hosts = () if proven else [f"{name}{end}" for name in {*_HOSTS, settings.host} for end in ends]
        app = Stow(arrivals, None if settings.token is None else _token_in(settings.token), hosts, bounds).app
        context = to_us(ssl.SSLContext, settings.certificate, settings.key, settings.ca, TLS_FILES)
        self._socket = _bound(settings)
        self._server = _Server(
            configured(
                app,
                h11_max_incomplete_event_size=_MOST_HEAD,
                limit_concurrency=_MOST_CONNECTIONS,
                timeout_graceful_shutdown=1,
                ssl_context_factory=None if context is None else lambda *_: context,
            )
        )
        try:
            self._thread = started(self._server, [self._socket], "stow")
        except ConfigError as error:
            self._socket.close()
            raise PacsError(str(error)) from error

    def shutdown(self) -> None:
        """Close it."""
        self._server.should_exit = True
        self._thread.join()
        self._socket.close()


class _Server(uvicorn.Server):
    """uvicorn's own way to listen has no bound of a handshake but a minute."""

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listen."""
        loop, tls = asyncio.get_running_loop(), self.config.ssl
        made = partial(Connection, self.config, self.server_state, {})
        patience_s = None if tls is None else HANDSHAKE_S
        self.servers = [
            await loop.create_server(made, sock=one, ssl=tls, ssl_handshake_timeout=patience_s) for one in sockets or ()
        ]
        self.started = True


def _bound(settings: Stowing) -> socket.socket:
    opened = socket.socket(socket.AF_INET6 if ":" in settings.address else socket.AF_INET, socket.SOCK_STREAM)
    try:
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        opened.bind((settings.address, settings.port))
    except OSError as error:
        opened.close()
        raise not_to_be_had(settings.where, error, ANOTHER) from error
    return opened


def _token_in(path: str) -> str:
    """The one line of a file.

    Raises:
        PacsError: it cannot be read, or holds something else. What it holds is not repeated.
    """
    try:
        text = Path(path).read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise PacsError(f"{path} cannot be read. Expected one line: the token that senders show.") from error
    if not _TOKEN.fullmatch(text):
        raise PacsError(
            f"{path} holds no token. Expected one line of at least 16 letters, digits and - . _ ~ + /, such as of: "
            "openssl rand -hex 32"
        )
    return text


__all__ = ["Web"]
