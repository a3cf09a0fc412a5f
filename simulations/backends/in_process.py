"""In this process, one site after another, through the same ClientApp as in a deployment.

Messages are copied deeply on the way in and out, so that nothing is shared which a wire would not carry; the
model's bytes are immutable and cost nothing. A site works when its answer is looked for, one at a time: memory holds
one model in training whatever the number of sites, and an interrupted look leaves the rest undone.
"""

import copy
import secrets
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

from flwr.app import Context, Message, RecordDict
from flwr.serverapp import Grid

from client.app import client_app
from client.site import Site
from common.config.rundocument import RunDocument
from simulations.backends.backend import Backend, Resources
from simulations.backends.grid import SimulatedGrid, with_id
from simulations.backends.open_sites import OpenSites, share_of_memory


class InProcessGrid(SimulatedGrid):
    """Sites of one simulation that work when they are asked."""

    def __init__(self, sites: Sequence[Site], document: RunDocument) -> None:
        super().__init__(sites)
        self._client_app = client_app(lambda context: self._sites[context.node_id])
        self._run_config = {"run": document.text}
        self._states = {node: RecordDict() for node in self._sites}
        self._waiting: dict[str, Message] = {}
        self._open = OpenSites(share_of_memory(1))
        for site in sites:
            if site.has_read(document.config):
                self._open.used(site)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Take messages in; the sites see copies."""
        ids = []
        for message in messages:
            # Names the attempt in the sites' ledgers, so it must never come twice, not even in another process.
            message_id = secrets.token_hex(16)
            self._waiting[message_id] = with_id(copy.deepcopy(message), message_id)
            ids.append(message_id)
        return ids

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Let the first site that still owes one of these answers work, and return its answer."""
        for message_id in message_ids:
            if (message := self._waiting.pop(message_id, None)) is not None:
                return [copy.deepcopy(self._work(message))]
        return []

    def _work(self, message: Message) -> Message:
        node = message.metadata.dst_node_id
        context = Context(
            run_id=1,
            node_id=node,
            node_config={"home": str(self._sites[node].home)},
            state=self._states[node],
            run_config=dict(self._run_config),
        )
        try:
            return self._client_app(message, context)
        finally:
            self._open.used(self._sites[node])


@contextmanager
def opened(sites: Sequence[Site], document: RunDocument) -> Iterator[Grid]:
    """The backend: nothing to start, nothing to end."""
    yield InProcessGrid(sites, document)


@contextmanager
def started(_resources: Resources) -> Iterator[Backend]:
    """As many threads as torch has, all for the one site at work."""
    yield opened


__all__ = ["InProcessGrid", "opened", "started"]
