"""Hints between processes of one machine: "look now", so that nobody polls fast and nobody waits long.

A hint is a datagram on a unix socket in `<home>/wake`. It may be lost: whoever sleeps still looks by itself after a
while. One to the gateway names the nodes that messages are for, so that nobody looks for the others. Without a gateway
(simulation, stock Flower) everything falls back to sleeping.

    federate(..., wake=strategy_wake(home), hint=gateway_hint(home))   # in the ServerApp
"""

import contextlib
import os
import select
import socket
import struct
import time
from collections.abc import Callable, Collection
from pathlib import Path
from typing import TypeAlias

from common.system.files import socket_address

# With hints, looking without one is only the safety net; each look costs the SuperLink about 15 ms of CPU.
PATIENCE_S = 1.0

# Told the nodes for which there are messages now.
Hint: TypeAlias = Callable[[Collection[int]], None]

_FOLDER = "wake"
_GATEWAY = "gateway.sock"
_STRATEGY = "strategy-*.sock"
_NODE = struct.Struct("<Q")
_MOST_BYTES = 64 * 1024
# A gateway that is busy reads its hints within this time.
_FULL_S = 2.0


class Sleeper:
    """Sleeps until poked. Owns one socket file."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        path.unlink(missing_ok=True)
        self._path = path
        self._socket = _datagrams()
        with socket_address(path) as address:
            self._socket.bind(address)

    def sleep(self, seconds: float) -> set[int] | None:
        """Return as soon as poked, with the nodes that were named; None after `seconds` without."""
        ready, _, _ = select.select([self._socket], [], [], seconds)
        nodes: set[int] = set()
        with contextlib.suppress(BlockingIOError):
            while ready:
                told = self._socket.recv(_MOST_BYTES)
                nodes.update(node for (node,) in _NODE.iter_unpack(told[: len(told) // _NODE.size * _NODE.size]))
        return nodes if ready else None

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


def gateway_hint(home: Path | None) -> Hint:
    """How the strategy tells the gateway for which nodes there are messages."""
    if home is None:
        return lambda _nodes: None
    path = home / _FOLDER / _GATEWAY

    def hint(nodes: Collection[int]) -> None:
        named = list(nodes)
        for start in range(0, len(named), _MOST_BYTES // _NODE.size):
            _poke(path, b"".join(map(_NODE.pack, named[start : start + _MOST_BYTES // _NODE.size])), patience_s=_FULL_S)

    return hint


def poke_strategies(home: Path) -> None:
    """Tell every running ServerApp that a reply or a site has arrived."""
    for path in (home / _FOLDER).glob(_STRATEGY):
        if not _poke(path):
            path.unlink(missing_ok=True)  # left behind by a process that was killed


def strategy_wake(home: Path | None) -> Callable[[float], None]:
    """What the strategy calls instead of `time.sleep` between two looks."""
    if home is None or not (home / _FOLDER / _GATEWAY).exists():
        return time.sleep
    sleeper = Sleeper(home / _FOLDER / f"strategy-{os.getpid()}.sock")

    def wake(seconds: float) -> None:
        sleeper.sleep(max(seconds, PATIENCE_S))

    return wake


def _datagrams() -> socket.socket:
    made = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    made.setblocking(False)  # SOCK_NONBLOCK, which would do it at once, is Linux's alone
    return made


def _poke(path: Path, told: bytes = b"\0", *, patience_s: float = 0.0) -> bool:
    """Send a hint; False when nobody has the socket open any more.

    A gateway's is left alone then: the next one may have made its own at that place meanwhile, which nobody would find
    again once it is removed.
    """
    with _datagrams() as sender:
        try:
            with socket_address(path) as address:
                _send(sender, told, address, time.monotonic() + patience_s)
        except ConnectionRefusedError:
            return False
        except OSError:
            pass  # nobody there, or its queue is full of hints already
    return True


def _send(sender: socket.socket, told: bytes, address: str, deadline: float) -> None:
    while True:
        try:
            sender.sendto(told, address)
        except BlockingIOError:  # the queue is full
            if time.monotonic() > deadline:
                raise
            time.sleep(0.01)
        else:
            return
