"""A Ray cluster: joined, or made for one command; and how many sites find room on its nodes.

What is made here listens on loopback only, and has its files in a folder that goes with it. Ray tells its makers how it
is used unless it is told not to: here it is.
"""

import logging
import os
import signal
import socket
import tempfile
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeAlias

from common.errors import ConfigError
from common.system.environment import own_as_for_child
from common.text import counted
from simulations.backends.backend import Resources, usable_cores

EXTRA = "pip install 'wardround[ray]'"
ADDRESS_VARIABLE = "RAY_ADDRESS"

# CPUs and GPUs of each node.
Nodes: TypeAlias = Sequence[tuple[int, int]]

# Whatever it is told, the head of a cluster (2.55.1) asks for a cloud's metadata when it starts, and one of `ray start`
# tells Ray's makers that reports are off: both by `requests`, which finds no proxy here. Nothing else of it takes one.
NO_WAY_OUT = {"http_proxy": "http://127.0.0.1:9", "https_proxy": "http://127.0.0.1:9", "no_proxy": ""}

_LOCAL, _FOUND, _LOOPBACK = "local", "auto", ("127.0.0.1", "localhost", "::1")
_KNOCK_S = 10.0


@dataclass(frozen=True)
class Need:
    """What a site at work wants of a node; gpus: a part of one, or a whole number."""

    cpus: int
    gpus: float

    def places(self, nodes: Nodes) -> int:
        """How many sites can work at the same time."""
        return sum(min(cpus // self.cpus, self._on(gpus)) if self.gpus else cpus // self.cpus for cpus, gpus in nodes)

    def _on(self, gpus: int) -> int:
        """How many share so many GPUs; a part of a GPU is on one GPU."""
        return gpus * int(1 / self.gpus) if self.gpus <= 1 else gpus // int(self.gpus)

    def __str__(self) -> str:
        """In words."""
        gpus = f"{self.gpus:g} of a GPU" if self.gpus < 1 else counted(int(self.gpus), "GPU")
        return f"{counted(self.cpus, 'CPU')} and {gpus}" if self.gpus else counted(self.cpus, "CPU")

    def refused_by(self, nodes: Nodes) -> str:
        """Why no node has room for a site, in words."""
        have = ", ".join(f"{counted(cpus, 'CPU')} and {counted(gpus, 'GPU')}" for cpus, gpus in nodes)
        return (
            f"no node of the Ray cluster has room for a site, which wants {self}; the nodes that live have: "
            f"{have or 'none'}. Add a node, or give fewer --threads or a smaller --gpus-per-site."
        )


def most_threads(nodes: Nodes, at_once: int, gpus: float) -> int:
    """The most threads of each site with which so many can work at the same time; 1 where they cannot.

    Args:
        nodes: of the cluster.
        at_once: sites.
        gpus: of each.
    """
    most = max((cpus for cpus, _ in nodes), default=1)
    return next((count for count in range(most, 1, -1) if Need(count, gpus).places(nodes) >= at_once), 1)


def gpus_of(resources: Resources, nodes: Nodes) -> float:
    """GPUs of each site at work.

    Raises:
        ConfigError: neither a part of one nor a whole number is wanted.
    """
    if resources.gpus_per_site is None:
        return float(resources.device != "cpu" and any(gpus for _, gpus in nodes))
    share = resources.gpus_per_site
    if share < 0 or (share > 1 and share != int(share)):
        raise ConfigError(f"--gpus-per-site is {share:g}, expected a part of one, such as 0.5, or a whole number.")
    return share


@contextmanager
def connected(resources: Resources) -> Iterator[Any]:
    """Ray, with the cluster whose address is given or stands in RAY_ADDRESS, else with one of this machine alone.

    Raises:
        ConfigError: Ray is not installed, or there is no such cluster.
    """
    address = resources.address or os.environ.get(ADDRESS_VARIABLE) or _LOCAL
    if "://" in address:
        raise ConfigError(
            f"{address} is an address of Ray's client. Give the cluster's, HOST:PORT, on a machine that is its node."
        )
    ray = _library(loopback=address == _LOCAL or address.rpartition(":")[0] in _LOOPBACK)
    before = signal.getsignal(signal.SIGTERM)
    with _local(ray, resources) if address == _LOCAL else _joined(ray, address):
        try:
            yield ray
        finally:
            ray.shutdown()
            if threading.current_thread() is threading.main_thread():
                signal.signal(signal.SIGTERM, before)  # Ray has taken it


@contextmanager
def _joined(ray: Any, address: str) -> Iterator[None]:
    if address != _FOUND:
        _knock(address)
    _init(ray, f"no Ray cluster of which this machine is a node answers at {address}", address=address)
    yield


def _knock(address: str) -> None:
    """Refuse at once an address where nothing listens, for which Ray waits minutes."""
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=_KNOCK_S).close()
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"no Ray cluster is at {address!r} ({error}). Give HOST:PORT of one that `ray start --head` has started."
        ) from error


@contextmanager
def _local(ray: Any, resources: Resources) -> Iterator[None]:
    settings: dict[str, Any] = {"num_gpus": 0} if resources.device == "cpu" else {}
    settings["num_cpus"] = max(usable_cores(), (resources.workers or 1) * (resources.threads or 1))
    # Not where TMPDIR says: the path of a socket has 103 bytes at most. Ray has its sockets and its logs there.
    with tempfile.TemporaryDirectory(prefix="wardround-", dir="/tmp", ignore_cleanup_errors=True) as folder:
        with own_as_for_child(**NO_WAY_OUT):
            failure = "Ray could not be started on this machine"
            _init(ray, failure, address=_LOCAL, include_dashboard=False, _temp_dir=folder, **settings)
        if any(node["NodeManagerAddress"] not in _LOOPBACK for node in ray.nodes()):
            ray.shutdown()
            raise ConfigError(
                "this program has loaded Ray before, which would listen on the network. Set "
                "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER=0 before it is loaded, or give the address of a cluster."
            )
        yield


def _init(ray: Any, failure: str, **settings: Any) -> None:
    try:
        ray.init(logging_level=logging.ERROR, log_to_driver=False, **settings)
    except (OSError, RuntimeError, ValueError, ray.exceptions.RayError) as error:
        raise ConfigError(f"{failure}. Ray says: {str(error).strip().partition(chr(10))[0]}") from error


def _library(*, loopback: bool) -> Any:
    os.environ.update(RAY_USAGE_STATS_ENABLED="0", RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO="0")
    if loopback:
        # Named for other systems, where Ray is on one machine only: it takes 127.0.0.1 then, and listens there alone.
        os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"
    try:
        import ray  # noqa: PLC0415 - an extra
    except ImportError as error:
        raise ConfigError(f"Ray is not installed. Install it: {EXTRA}") from error
    return ray


__all__ = ["EXTRA", "NO_WAY_OUT", "Need", "Nodes", "connected", "gpus_of", "most_threads"]
