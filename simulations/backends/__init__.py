"""Where the sites of a simulation work: one file each, and one line in `BACKENDS`.

A backend is started once for a command, and opens a Flower Grid over site homes for each run; the sites answer as at a
hospital (client/train/answer.py).
"""

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from typing import TypeAlias

from common.errors import ConfigError
from simulations.backends import in_process, processes, ray
from simulations.backends.backend import Backend, Resources, usable_cores
from simulations.backends.in_process import opened

Start: TypeAlias = Callable[[Resources], AbstractContextManager[Backend]]

BACKENDS: Mapping[str, Start] = {
    "processes": processes.started,
    "in-process": in_process.started,
    "ray": ray.started,
}
ONE_PROCESS, ON_CLUSTER = "in-process", "ray"


def started(name: str | None, sites: int, resources: Resources) -> AbstractContextManager[Backend]:
    """A backend, for as long as it is used.

    Args:
        name: of `BACKENDS`; None: processes, where more than one site can work at the same time here.
        sites: the most that a run of it will have.
        resources: what it may use.

    Raises:
        ConfigError: there is no such backend, or it has no use for some of these.
    """
    if name is None:
        name = ONE_PROCESS if min(sites, resources.workers_here) == 1 else next(iter(BACKENDS))
    if name != ON_CLUSTER and (resources.address, resources.gpus_per_site) != (None, None):
        raise ConfigError(f"--address and --gpus-per-site are of a cluster. Add --backend {ON_CLUSTER}.")
    try:
        return BACKENDS[name](resources)
    except KeyError as error:
        raise ConfigError(f"there is no backend {name!r}. There is {', '.join(BACKENDS)}.") from error


__all__ = ["BACKENDS", "Backend", "Resources", "Start", "opened", "started", "usable_cores"]
