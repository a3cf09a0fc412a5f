"""Many hospitals in one process, for what they cost their coordinator: the agents' protocol, and a stub for the work.

    python -m simulations.bench.stub_sites SITES.json

Each site has what a hospital has towards the coordinator: a certificate and connections of its own, a held call for
messages and one for proposals, heartbeats, an audit log, a receipt for each update and the exchange of checkpoints. It
approves every run. An update is the model that came with a few numbers moved, another few at each site, and made at
once. No torch, no data, no policy. Ends on SIGTERM, and then writes beside SITES.json what it has done and met.
"""

import base64
import contextlib
import json
import logging
import signal
import struct
import sys
import threading
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Any

import grpc
import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from client.agent.fleet import HEARTBEAT_S, SHORTEST_PAUSE_S, Fleet, LostMessageError
from client.agent.loop import CALL_TIMEOUT_S, PROPOSALS_WAIT_S, UPKEEP_S
from client.trail.log_exchange import LogExchange
from client.trail.outbox import Parcel
from common.audit import receipts
from common.audit.log import AuditLog
from common.console.logs import log_to
from common.errors import WardroundError
from common.flower.packing import reply_to
from common.system.files import write_atomically
from common.tasks import SCORE_NAMES
from common.wire import channels
from common.wire.messages import EvaluateReply, Reply, Request, TrainReply, TrainRequest
from common.wire.records import reply_to_record, request_from_record
from common.wire.wardround_pb2 import AnswerProposalRequest, ListProposalsRequest
from common.wire.wardround_pb2_grpc import CoordinationStub

REPORT_NAME = "sites-report.json"
# Threads that do what is due every second, for all sites together.
_UPKEEP_THREADS = 4
_MOVED = 1024  # numbers at the end of a part that a site moves
_POLICY = "0" * 64
_SCORE = 0.5
# Of a reply: it is dropped, as an agent does.
_NOT_TAKEN = (grpc.StatusCode.FAILED_PRECONDITION, grpc.StatusCode.INVALID_ARGUMENT)


@dataclass(frozen=True)
class Membership:
    """What an enrolled site has; all sites of a process share the first three."""

    gateway: str
    root_pem: bytes
    log_key: bytes
    name: str
    key_pem: bytes
    certificate_pem: bytes
    receipt_key: bytes

    def to_dict(self) -> dict[str, str]:
        """As SITES.json has it."""
        return {
            name: value if isinstance(value, str) else base64.b64encode(value).decode()
            for name, value in vars(self).items()
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, str]) -> "Membership":
        """Inverse of `to_dict`."""
        text = ("gateway", "name")
        return cls(**{key: one if key in text else base64.b64decode(one) for key, one in values.items()})  # type: ignore[arg-type]  # by name


class StubSite:
    """One site; its calls are made by three threads, one of which it shares with others."""

    def __init__(self, home: Path, member: Membership, number: int, stop: threading.Event) -> None:
        """Open its log and its connection.

        Args:
            home: a folder for its audit log.
            member: what it has been given.
            number: from 0; updates of sites of other numbers are other ones.
            stop: set at the end.
        """
        home.mkdir(exist_ok=True)
        self.name, self._number, self._stop, self._root_pem = member.name, number, stop, member.root_pem
        self.met: Counter[str] = Counter()  # failures of calls by code, messages, updates
        connect = partial(
            channels.secure_channel, member.gateway, member.root_pem, member.key_pem, member.certificate_pem
        )
        self._channel = connect()
        self._fleet = Fleet(self._channel, stop, lambda most: connect(max_receive_bytes=most))
        self._coordination: Any = CoordinationStub(self._channel)  # type: ignore[no-untyped-call]  # generated code
        self._key = Ed25519PrivateKey.from_private_bytes(member.receipt_key)
        self._log = AuditLog(home / "audit.sqlite", f"site/{member.name}", self._key, coordinator_key=member.log_key)
        self._exchange = LogExchange(home, self._log, member.log_key)
        self._runs: set[int] = set()  # of which Flower was asked
        self._beat_at = time.monotonic() + HEARTBEAT_S / 2
        self._connected = False
        self._last: Parcel | None = None  # asked for the same again, a site sends the same

    def serve(self) -> None:
        """Answer messages until the end."""
        while not self._stop.is_set():
            try:
                self._fleet.activate()
                self._connected = True
                self._coordination.ListProposals(ListProposalsRequest(), timeout=CALL_TIMEOUT_S)
                while not self._stop.is_set():
                    if (delivery := self._fleet.pull()) is not None:
                        self._answer(*delivery)
            except (grpc.RpcError, WardroundError) as error:
                self._note(error)

    def watch_proposals(self) -> None:
        """Approve every run that is open, until the end."""
        revision, told = 0, set[str]()
        while not self._stop.is_set():
            try:
                request = ListProposalsRequest(revision=revision, wait_s=PROPOSALS_WAIT_S)
                reply = self._coordination.ListProposals(request, timeout=PROPOSALS_WAIT_S + CALL_TIMEOUT_S)
                for run_hash in {one.run_hash for one in reply.proposals if one.open} - told:
                    answer = AnswerProposalRequest(run_hash=run_hash, approved=True)
                    self._coordination.AnswerProposal(answer, timeout=CALL_TIMEOUT_S)
                    told.add(run_hash)
                revision = reply.revision
            except grpc.RpcError as error:
                self._note(error)

    def tend(self) -> None:
        """What is due: a heartbeat, receipts, checkpoints. Once a second."""
        if not self._connected or self._stop.is_set():
            return
        try:
            if time.monotonic() >= self._beat_at:
                self._beat_at = time.monotonic() + HEARTBEAT_S / 2
                self._fleet.heartbeat()
            if self._exchange.is_due:
                self._exchange.exchange(self._coordination, self._root_pem)
                self.met["exchanges"] += 1
        except (grpc.RpcError, WardroundError) as error:
            self._note(error)

    def close(self) -> None:
        """Say goodbye and hang up."""
        with contextlib.suppress(grpc.RpcError, ValueError):
            self._fleet.deactivate()
        self._channel.close()
        self._fleet.close()
        if self._exchange.conflict:
            self.met["audit conflicts"] += 1

    def _answer(self, head: Any, tree: Any) -> None:
        if head.metadata.run_id not in self._runs:
            self._fleet.run(head.metadata.run_id)
            self._runs.add(head.metadata.run_id)
        try:
            self._reply_to(head, tree)
        except (grpc.RpcError, LostMessageError) as error:
            if isinstance(error, grpc.RpcError) and error.code() not in _NOT_TAKEN:
                raise
            self._note(error)
            self._fleet.confirm(head)

    def _reply_to(self, head: Any, tree: Any) -> None:
        question = self._fleet.fetch(head, tree, channels.MAX_MESSAGE_BYTES)
        request = request_from_record(question.content)
        if isinstance(request, TrainRequest):
            self._exchange.check_receipts(self._coordination)
        reply = self._reply(request)
        parcel = None
        if isinstance(reply, TrainReply):
            if self._last is None or self._last.receipt.update != reply.sha256:
                self._last = self._parcel(request, reply)
            parcel = self._last
        self._fleet.push(reply_to(question, reply_to_record(reply)))
        self.met["replies"] += 1
        if parcel is not None:
            self._exchange.delivered(parcel)

    def _reply(self, request: Request) -> Reply:
        if isinstance(request, TrainRequest):
            parts = {name: moved(bytes(part), self._number) for name, part in request.parts.items()}
            return TrainReply(request.run_hash, request.round, parts, 10, {"train-loss": 1.0, "seconds": 0.0})
        return EvaluateReply(request.run_hash, request.round, request.phase, 10, {SCORE_NAMES[0]: _SCORE})

    def _parcel(self, request: Request, reply: TrainReply) -> Parcel:
        receipt = receipts.receipt_for(
            run=request.run_hash,
            round_=request.round,
            site=self.name,
            received=request.sha256,
            update=reply.sha256,
            size=reply.size,
            policy=_POLICY,
            time=time.time(),
            patients=reply.patients,
            spent=None,
        )
        signature = receipts.sign(receipt, self._key)
        self._log.append("round", receipts.entry_fields(receipt, signature))
        return Parcel(reply, receipt, signature)

    def _note(self, error: Exception) -> None:
        if self._stop.is_set():
            return
        name = error.code().name if isinstance(error, grpc.RpcError) else type(error).__name__
        self.met[name] += 1
        logging.getLogger(__name__).warning("%s: %s", self.name, error)
        self._stop.wait(SHORTEST_PAUSE_S)


def moved(part: bytes, number: int) -> bytes:
    """A safetensors part of float32 with its last numbers multiplied; by another factor for each site and content.

    All sites draw to one side in a round, to which one depends on what came: so no number grows for ever.
    """
    (header,) = struct.unpack("<Q", part[:8])
    values = np.frombuffer(part, dtype="<f4", offset=8 + header).copy()
    drawn = sha256(part).digest()
    step = 1e-3 * (1 + number + drawn[0] / 256)
    values[-_MOVED:] *= np.float32(1 + step if drawn[1] % 2 else 1 / (1 + step))
    return part[: 8 + header] + values.tobytes()


def main(path: Path) -> None:
    """Run all sites of a file until SIGTERM."""
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    log_to(logging.WARNING)
    members = [Membership.from_dict(one) for one in json.loads(path.read_bytes())]
    sites = [StubSite(path.parent / one.name, one, index, stop) for index, one in enumerate(members)]
    threads = [threading.Thread(target=run) for one in sites for run in (one.serve, one.watch_proposals)]
    threads += [threading.Thread(target=_tend, args=(sites[n::_UPKEEP_THREADS], stop)) for n in range(_UPKEEP_THREADS)]
    for thread in threads:
        thread.daemon = True  # a call may be held for 20 s
        thread.start()
    stop.wait()
    for one in sites:
        one.close()
    met = sum((one.met for one in sites), Counter())
    write_atomically(path.parent / REPORT_NAME, json.dumps(met).encode())


def _tend(sites: list[StubSite], stop: threading.Event) -> None:
    while not stop.wait(UPKEEP_S):
        for one in sites:
            one.tend()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
