"""The grid of the backends that have workers: sites that work as soon as they are asked, several at the same time.

A request is decoded once; the answers are handed over in the order in which the sites were asked, whoever was ready
first. So nothing depends on the number of workers: with as many threads for each site the model is, to the bit, that of
`in-process`.
"""

import logging
import secrets
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TypeAlias

import torch
from flwr.app import Message, RecordDict

from client.site import Site, asked_of
from common.config.rundocument import RunDocument
from common.console.logs import told
from common.errors import UpdateError
from common.wire.messages import Refusal, Reply, Request
from common.wire.records import reply_to_record, request_from_record
from simulations.backends.grid import SimulatedGrid, with_id
from simulations.backends.open_sites import share_of_memory
from simulations.backends.worker import Place
from simulations.backends.workers import Job, Workers

Read: TypeAlias = tuple[Path, str]  # home of a site, and what was asked of its data

_log = logging.getLogger(__name__)


@contextmanager
def opened_over(
    workers: Workers, sites: Sequence[Site], document: RunDocument, computing: int, read: set[Read]
) -> Iterator["WorkersGrid"]:
    """A grid over these workers, until its run is over; see `WorkersGrid`."""
    grid = WorkersGrid(sites, document, workers, computing, read)
    for site in sites:
        if site.has_read(document.config):
            read.add((site.home, asked_of(document.config)))
        site.let_go()  # the workers have the studies from here on
    try:
        yield grid
    finally:
        grid.close()


class WorkersGrid(SimulatedGrid):
    """Sites of one simulation that work as soon as they are asked."""

    def __init__(
        self, sites: Sequence[Site], document: RunDocument, workers: Workers, computing: int, read: set[Read]
    ) -> None:
        """Nobody is asked yet.

        Args:
            sites: of the run.
            document: the run.
            workers: who answer for the sites.
            computing: threads of each site at work.
            read: whose studies, and which, have been read somewhere; those that are read here are added.
        """
        super().__init__(sites)
        self._document, self._workers = document, workers
        self._threads = (torch.get_num_threads(), computing)
        self._read = read
        # By message: what was asked, and the job; without one what it is refused with.
        self._owed: dict[str, tuple[Message, Job | Refusal]] = {}

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Take messages in, and have the sites work."""
        decoded: dict[int, Request | Refusal] = {}
        ids, jobs = [], []
        pushed = list(messages)
        for message in pushed:
            # Names the attempt in the sites' ledgers, so it must never come twice, not even in another process.
            message_id = secrets.token_hex(16)
            ids.append(message_id)
            # All carry one record; its head alone is kept.
            if id(message.content) not in decoded:
                decoded[id(message.content)] = _request_of(message.content)
            asked = with_id(message, message_id, RecordDict())
            request = decoded[id(message.content)]
            if isinstance(request, Refusal):
                self._owed[message_id] = (asked, request)
                continue
            jobs.append(self._job(self._sites[message.metadata.dst_node_id], request, message_id))
            self._owed[message_id] = (asked, jobs[-1])
        self._workers.give(jobs)
        return ids

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Wait for the first answer that is still owed; it, and those after it that are there."""
        answers: list[Message] = []
        for message_id in message_ids:
            if message_id not in self._owed:
                continue
            message, owed = self._owed[message_id]
            if answers and isinstance(owed, Job) and not owed.reply.done():
                break
            reply: Reply = owed.reply.result() if isinstance(owed, Job) else owed
            del self._owed[message_id]
            answers.append(Message(reply_to_record(reply), reply_to=message))
        return answers

    def close(self) -> None:
        """What is not answered is not wanted any more."""
        self._workers.drop([job for _, job in self._owed.values() if isinstance(job, Job)])

    def _job(self, site: Site, request: Request, message_id: str) -> Job:
        reading, computing = self._threads
        asked = (site.home, asked_of(self._document.config))
        most = share_of_memory(self._workers.count)
        place = Place(str(site.home), reading, computing, asked in self._read, most)
        self._read.add(asked)
        return Job(site, self._document, request, message_id, place)


def _request_of(content: RecordDict) -> Request | Refusal:
    try:
        return request_from_record(content)
    except UpdateError as error:
        return Refusal("", 0, told(_log, error, "round 0"))


__all__ = ["Read", "WorkersGrid", "opened_over"]
