"""Hints between processes of one machine: "look now", so that nobody polls fast and nobody waits long.

A hint is an empty datagram on a unix socket in `<home>/wake`. It carries no data and may be lost: whoever sleeps
still looks by itself after a while. Without a gateway (simulation, stock Flower) everything falls back to sleeping.

    wake = strategy_wake(home)   # in the ServerApp
    federate(..., wake=wake)
"""

import contextlib
import os
import select
import socket
import time
from collections.abc import Callable
from pathlib import Path

from common.system.files import socket_address

# With hints, looking without one is only the safety net; each look costs the SuperLink about 15 ms of CPU.
PATIENCE_S = 1.0

_FOLDER = "wake"
_GATEWAY = "gateway.sock"
_STRATEGY = "strategy-*.sock"


class Sleeper:
    """Sleeps until poked. Owns one socket file."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        path.unlink(missing_ok=True)
        self._path = path
        self._socket = _datagrams()
        with socket_address(path) as address:
            self._socket.bind(address)

    def sleep(self, seconds: float) -> bool:
        """Return True as soon as poked, False after `seconds`."""
        ready, _, _ = select.select([self._socket], [], [], seconds)
        with contextlib.suppress(BlockingIOError):
            while ready:
                self._socket.recv(1)
        return bool(ready)

    def close(self) -> None:
        """Remove the socket."""
        self._socket.close()
        self._path.unlink(missing_ok=True)


def gateway_started_at(home: Path) -> float:
    """When the gateway that listens now began to, in seconds since the epoch; 0 while none ever did."""
    try:
        return (home / _FOLDER / _GATEWAY).stat().st_ctime
    except FileNotFoundError:
        return 0.0


def gateway_sleeper(home: Path) -> Sleeper:
    """What the gateway sleeps on."""
    return Sleeper(home / _FOLDER / _GATEWAY)


def poke_gateway(home: Path) -> None:
    """Tell the gateway that there may be messages for sites."""
    _poke(home / _FOLDER / _GATEWAY)


def poke_strategies(home: Path) -> None:
    """Tell every running ServerApp that a reply or a site has arrived."""
    for path in (home / _FOLDER).glob(_STRATEGY):
        _poke(path)


def strategy_wake(home: Path | None) -> Callable[[float], None]:
    """What the strategy calls instead of `time.sleep` between two looks.

    Each call first tells the gateway to look for messages, as the strategy may just have pushed some.
    """
    if home is None or not (home / _FOLDER / _GATEWAY).exists():
        return time.sleep
    sleeper = Sleeper(home / _FOLDER / f"strategy-{os.getpid()}.sock")

    def wake(seconds: float) -> None:
        poke_gateway(home)
        sleeper.sleep(max(seconds, PATIENCE_S))

    return wake


def _datagrams() -> socket.socket:
    made = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    made.setblocking(False)  # SOCK_NONBLOCK, which would do it at once, is Linux's alone
    return made


def _poke(path: Path) -> None:
    with _datagrams() as sender:
        try:
            with socket_address(path) as address:
                sender.sendto(b"\0", address)
        except ConnectionRefusedError:
            path.unlink(missing_ok=True)  # left behind by a process that was killed
        except OSError:
            pass  # nobody there, or its queue is full of hints already
