"""Ray nodes that somebody starts by `ray start`, each with its own processes, object store and temporary folder.

They listen on loopback only. Ray does so by a variable that it has for systems on which a cluster is one machine, and
then refuses a second node; so `ray start` itself is told that there may be one, at the same address.
"""

import contextlib
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import psutil

from simulations.backends.ray_cluster import NO_WAY_OUT
from tests.patience import PATIENCE_S

_START = """
import sys
from ray._private import ray_constants, services
ray_constants.ENABLE_RAY_CLUSTER = True
services.node_ip_address_from_perspective = lambda *_: "127.0.0.1"
from ray.scripts.scripts import cli
cli(sys.argv[1:])
"""
_STARTED = "Ray runtime started"
_LEAST_STORE_BYTES = 80 << 20


class RayNode:
    """One `ray start --block`, until it is killed."""

    def __init__(self, temporary: Path, *arguments: str, cpus: int = 1) -> None:
        said = ["start", "--block", "--disable-usage-stats", f"--num-cpus={cpus}", f"--temp-dir={temporary}"]
        said += [f"--object-store-memory={_LEAST_STORE_BYTES}", "--min-worker-port=0", "--max-worker-port=0"]
        environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
        self._process = subprocess.Popen(
            [sys.executable, "-c", _START, *said, *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=environment | {"RAY_USAGE_STATS_ENABLED": "0", "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0", **NO_WAY_OUT},
            start_new_session=True,
        )
        assert self._process.stdout is not None
        told = []
        for line in self._process.stdout:
            told.append(line)
            if _STARTED in line:
                return
        self.kill()
        raise RuntimeError("".join(told))

    def pids(self) -> set[int]:
        """Of all its processes, those of its workers among them."""
        return {one.pid for one in psutil.Process(self._process.pid).children(recursive=True)}

    def is_alive(self) -> bool:
        """Whether the process that somebody started goes on."""
        return self._process.poll() is None

    def kill(self) -> None:
        """As if the machine lost its power."""
        with contextlib.suppress(psutil.NoSuchProcess):
            every = [*psutil.Process(self._process.pid).children(recursive=True), psutil.Process(self._process.pid)]
            for one in every:
                with contextlib.suppress(psutil.NoSuchProcess):
                    one.kill()
            psutil.wait_procs(every, timeout=PATIENCE_S)
        self._process.wait()


@contextmanager
def cluster(*second: str, cpus: int = 1) -> Iterator[tuple[str, RayNode, RayNode]]:
    """Address, head and second node of a cluster; second: arguments of that node."""
    address = f"127.0.0.1:{_free_port()}"
    with TemporaryDirectory(dir="/tmp") as one, TemporaryDirectory(dir="/tmp") as other:
        head = RayNode(
            Path(one),
            "--head",
            f"--port={address.rpartition(':')[2]}",
            f"--ray-client-server-port={_free_port()}",
            "--include-dashboard=false",
            cpus=cpus,
        )
        try:
            node = RayNode(Path(other), f"--address={address}", "--include-log-monitor=false", *second, cpus=cpus)
            try:
                yield address, head, node
            finally:
                node.kill()
        finally:
            head.kill()


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])
