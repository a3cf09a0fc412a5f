"""What a backend is, and what it may use of this machine."""

import os
import sys
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TypeAlias

from flwr.serverapp import Grid

from client.site import Site
from common.config.rundocument import RunDocument

# Opens a Flower Grid over the homes of sites, for one run, and closes it. It is started once for many runs.
Backend: TypeAlias = Callable[[Sequence[Site], RunDocument], AbstractContextManager[Grid]]


@dataclass(frozen=True)
class Resources:
    """What sites at work may use together.

    workers: sites at work at the same time, at most; from 1.
    threads: of a site at work; None: those that torch takes in this process, shared by the sites at work.
    """

    workers: int = 1
    threads: int | None = None


def usable_cores() -> int:
    """The cores that this process may run on."""
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1


__all__ = ["Backend", "Resources", "usable_cores"]
