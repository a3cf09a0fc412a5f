"""What a backend is, and what it may use of this machine or of a cluster."""

import os
import sys
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TypeAlias

import torch
from flwr.serverapp import Grid

from client.site import Site
from common.config import Device
from common.config.rundocument import RunDocument

# Opens a Flower Grid over the homes of sites, for one run, and closes it. It is started once for many runs.
Backend: TypeAlias = Callable[[Sequence[Site], RunDocument], AbstractContextManager[Grid]]


@dataclass(frozen=True)
class Resources:
    """What sites at work may use together.

    workers: sites at work at the same time, at most, from 1; None: as many as there is room for.
    threads: of a site at work; None: the cores are shared by the sites at work.
    device: where all sites train; None: as each says.
    address: of the cluster; None: none is named.
    gpus_per_site: GPUs of a site at work on a cluster, a part of one or some; None: one, where there are any.
    """

    workers: int | None = None
    threads: int | None = None
    device: Device | None = None
    address: str | None = None
    gpus_per_site: float | None = None

    @property
    def workers_here(self) -> int:
        """Sites at work at the same time on this machine: one for each core, and one alone where there is a GPU."""
        if self.workers is not None:
            return self.workers
        # Counted without a context on the GPU, after which no process could be forked.
        on_gpu = self.device != "cpu" and torch.cuda.device_count() > 0
        return 1 if on_gpu else usable_cores()


def usable_cores() -> int:
    """The cores that this process may run on."""
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1


__all__ = ["Backend", "Resources", "usable_cores"]
