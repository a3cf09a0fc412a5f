"""A line between a hospital and its coordinator that can be cut, fall silent, lose packets, or break connections off.

Bytes pass as they are: TLS ends at the two programs, not here. Packets are lost by the kernel, in the network namespace
that the whole federation lives in. Source: nft(8), statements `numgen` and `drop`.
"""

import random
import re
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from tests import loopback

_CHUNK = 65536


def why_lossless() -> str | None:
    """Why no line can lose packets here; None where it can."""
    if not loopback.entered():
        return "the kernel gives no network of its own; it takes root"
    return None if shutil.which("nft") else "nft is not installed (Debian: nftables)"


class Line:
    """Relays from a free port of 127.0.0.1 to another port, for as long as the process lives."""

    def __init__(self, target: int) -> None:
        self._target = target
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._passing = threading.Event()  # cleared: what comes waits here
        self._passing.set()
        self.lost = 0  # packets, by `lossy`
        self._is_cut = False
        self._ends: set[socket.socket] = set()
        threading.Thread(target=self._accept, daemon=True, name="line").start()

    @contextmanager
    def cut(self) -> Iterator[None]:
        """Every connection is broken off, and none can be made: the machine behind the line is unreachable."""
        self._is_cut = True
        self.break_off()
        try:
            yield
        finally:
            self._is_cut = False

    @contextmanager
    def silent(self) -> Iterator[None]:
        """Connections stay and new ones are made, and no byte passes: a firewall that drops, a tunnel that hangs."""
        self._passing.clear()
        try:
            yield
        finally:
            self._passing.set()

    @contextmanager
    def lossy(self, percent: int) -> Iterator[None]:
        """Of the packets in each direction, so many in a hundred do not arrive, drawn anew for each."""
        table = f"inet line-{self.port}"
        chain = f"add table {table}\nadd chain {table} input {{ type filter hook input priority 0; }}\n"
        rules = "".join(
            f"add rule {table} input tcp {end} {self.port} numgen random mod 100 < {percent} counter drop\n"
            for end in ("dport", "sport")
        )
        _nft(chain + rules)
        try:
            yield
        finally:
            self.lost += sum(map(int, re.findall(r"counter packets (\d+)", _nft(f"list table {table}\n"))))
            _nft(f"delete table {table}\n")

    def flaky(self, seconds: float, chance: random.Random) -> None:
        """For so long, connections break off in the middle of whatever they carry."""
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            time.sleep(chance.uniform(0.05, 1.5))
            self.break_off()

    def break_off(self) -> None:
        """Reset all connections that there are."""
        for end in list(self._ends):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def _accept(self) -> None:
        while True:
            near, _ = self._listener.accept()
            if self._is_cut:
                near.close()
                continue
            try:
                far = socket.create_connection(("127.0.0.1", self._target))
            except OSError:
                near.close()
                continue
            self._ends |= {near, far}
            for source, sink in ((near, far), (far, near)):
                threading.Thread(target=self._pump, args=(source, sink), daemon=True).start()

    def _pump(self, source: socket.socket, sink: socket.socket) -> None:
        with suppress(OSError):
            while chunk := source.recv(_CHUNK):
                self._passing.wait()
                sink.sendall(chunk)
        for end in (source, sink):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()
            self._ends.discard(end)


def _nft(script: str) -> str:
    return subprocess.run(["nft", "-f", "-"], input=script, text=True, check=True, capture_output=True).stdout
