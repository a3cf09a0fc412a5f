"""In processes that stay for the whole command, as many at the same time as there are cores.

The parts of a request go once to each worker.
"""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager

import torch
from flwr.serverapp import Grid

from client.site import Site
from common.config.rundocument import RunDocument
from simulations.backends.backend import Backend, Resources
from simulations.backends.forked import ForkedWorker
from simulations.backends.nursery import Nursery
from simulations.backends.workers import Workers
from simulations.backends.workers_grid import Read, opened_over


@contextmanager
def started(resources: Resources) -> Iterator[Backend]:
    """The workers, until the end of the command."""
    nursery = Nursery()
    workers = Workers(resources.workers_here, lambda: ForkedWorker(nursery))
    try:
        yield over(workers, resources)
    finally:
        workers.stop()
        nursery.close()
        workers.join()


def over(workers: Workers, resources: Resources) -> Backend:
    """The backend of these workers."""
    read: set[Read] = set()

    def opened(sites: Sequence[Site], document: RunDocument) -> AbstractContextManager[Grid]:
        at_once = max(1, min(workers.count, len(sites)))
        computing = resources.threads or max(1, torch.get_num_threads() // at_once)
        return opened_over(workers, sites, document, computing, read)

    return opened


__all__ = ["over", "started"]
