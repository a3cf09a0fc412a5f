"""A coordinator's double that keeps each byte an agent sends: requests of all calls, their metadata, and replies
as they were put together. Proposals are heard of at once, as with the real gateway.
"""

# ruff: noqa: N802 - the methods' names are the protocol's

import queue
import threading
import time
from collections.abc import Callable
from typing import Any

from flwr.app import DEFAULT_TTL, MessageType, Metadata, RecordDict
from flwr.app.message import make_message

from common.flower.packing import object_ids, unpack_message
from common.identity import certificates
from common.wire import wardround_pb2
from common.wire.messages import Request, TrainRequest
from common.wire.records import request_to_record
from tests.client.coordinator import FLOWER_RUN, NODE_ID, Authority, Coordinator

_HOLD_S = 3.0
_CALLS = (
    *("PullMessages", "PullObject", "ConfirmMessageReceived", "PushMessages", "PushObject", "GetRun"),
    *("ActivateNode", "DeactivateNode", "SendNodeHeartbeat", "ListProposals", "AnswerProposal", "Renew"),
    *("SubmitReceipt", "ExchangeCheckpoints"),
)


class Ear(Coordinator):
    """Hears everything. `records` are the contents of replies, `heard` all bytes by call."""

    def __init__(self, authority: Authority, port: int) -> None:
        super().__init__(authority, port)
        self.heard: list[tuple[str, bytes]] = []
        self.records: queue.Queue[RecordDict] = queue.Queue()
        for name in _CALLS:
            if hasattr(self, name):
                setattr(self, name, self._kept(name, getattr(self, name)))

    def offer(self, proposal: wardround_pb2.Proposal) -> None:
        """Hold this proposal out, and no other."""
        self.proposals = [proposal]
        self._revision += 1

    def ask_in(self, request: Request, flower_run: int = FLOWER_RUN) -> None:
        """Send a request as part of one of Flower's runs."""
        kind = MessageType.TRAIN if isinstance(request, TrainRequest) else MessageType.EVALUATE
        now = certificates.now().timestamp()
        metadata = Metadata(flower_run, "", 1, NODE_ID, "", "", now, DEFAULT_TTL, kind)
        self.send(make_message(metadata, request_to_record(request)))

    def ListProposals(self, request: Any, context: Any) -> Any:
        deadline = time.monotonic() + _HOLD_S
        while request.revision == self._revision and context.is_active() and time.monotonic() < deadline:
            threading.Event().wait(0.01)
        return wardround_pb2.ListProposalsReply(revision=self._revision, proposals=self.proposals)

    def PushObject(self, request: Any, context: Any) -> Any:
        answer = super().PushObject(request, context)
        assert self._reply is not None
        if set(self._received) == set(object_ids(self._reply[1])):
            self.records.put(unpack_message(*self._reply, self._received).content)
        return answer

    def _kept(self, name: str, method: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
        def call(request: Any, context: Any) -> Any:
            metadata = b"".join(
                f"{key}=".encode() + (value if isinstance(value, bytes) else value.encode()) + b"\n"
                for key, value in context.invocation_metadata()
            )
            self.heard.append((name, metadata + request.SerializeToString()))
            return method(request, context)

        return call
