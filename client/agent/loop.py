"""The process with the door: it holds the keys and the channel, and decides what is done and what leaves.

For each message (client/agent/rounds.py): approved and open? the approved bundle? allowed by the policy? Only then is
its content fetched. The run's model? budget left, and charged? Only then the worker sees it, and its answer passes the
exit gate. Whatever goes wrong becomes a Refusal with a code; the reason stays in home/logs/agent.log. No torch and no
image is imported here (a test holds this): what talks to the network never holds patient data. One message at a time.

    thread    message      pull, decide, ask the worker, reply
    thread    proposals    fetch new proposals
    thread    appraisals   appraise them, when they or the hospital's files are new; approve where the policy does
    thread    upkeep       heartbeats, answers given on the command line, the worker's life, status.json
"""

import logging
import threading
import time
from collections.abc import Callable
from pathlib import Path

import grpc
from flwr.proto.message_pb2 import Message as MessageProto
from flwr.proto.message_pb2 import ObjectTree

from client.agent import admission, health
from client.agent.admission import Admission
from client.agent.fleet import HEARTBEAT_S, LARGEST_PAUSE_S, SHORTEST_PAUSE_S, Fleet, LostMessageError
from client.agent.rounds import Rounds
from client.agent.status import DISK_FULL, FAILED, STOPPED, Status
from client.agent.worker_process import Worker
from client.home.declared import as_declared
from client.home.enrolment import renew
from client.home.folder import FORGOTTEN_NAME, POLICY_NAME, SITE_NAME
from client.home.identity import Identity
from client.home.offer import Offer
from client.proposals.appraise import Proposals
from client.rules import approvals
from client.site import changed, current_site, open_site
from client.trail.audit_trail import AuditTrail
from client.trail.log_exchange import LogExchange
from client.worker.protocol import Answer, Describe, PipeError
from common.config.rundocument import RunDocument
from common.console.logs import Trouble
from common.errors import (
    AuditError,
    EnrolmentError,
    ErrorCode,
    FederationError,
    PolicyError,
    WardroundError,
    code_of,
)
from common.flower.packing import question_of, reply_to
from common.wire.messages import Refusal
from common.wire.pushback import retry_after
from common.wire.records import reply_to_record
from common.wire.versions import OtherVersionError
from common.wire.wardround_pb2 import ListProposalsReply, ListProposalsRequest
from common.wire.wardround_pb2_grpc import CoordinationStub

PROPOSALS_WAIT_S = 20.0
CALL_TIMEOUT_S = 30.0
# Reading a large cohort for the first time.
DESCRIBE_TIMEOUT_S = 3600.0
UPKEEP_S = 1.0
# Between two tries of what the disk had no room for.
FULL_PAUSE_S = 5.0
RENEWAL_PAUSE_S = 600.0  # after one that did not succeed
# Between two looks whether a rotation to the next root, which is pinned already, is over.
ROTATION_PAUSE_S = 3600.0

# The gateway's words for "drop this message" (server/gateway/access.py).
_RUN_IS_OVER = (grpc.StatusCode.FAILED_PRECONDITION, grpc.StatusCode.INVALID_ARGUMENT)

_log = logging.getLogger(__name__)


class Agent:
    """One site's agent, from `run` until its stop event is set."""

    def __init__(self, home: Path, identity: Identity, worker: Worker) -> None:
        self._home, self._identity = home, identity
        self._stop = threading.Event()
        self._news = threading.Event()  # proposals have come
        self._failed = False
        self._renewed: Identity | None = None  # takes over between two messages
        self._renew_at = 0.0
        self._connect(identity)
        self._worker = worker
        self._offers: dict[tuple[object, ...], Offer] = {}  # by run hash and state of site.toml and the forgotten
        self._status = Status(home, identity)
        self._trail = AuditTrail(home, identity, open_site(home).key)
        self._exchange = LogExchange(home, self._trail.log, identity.log_key)
        self._proposals = Proposals(home, self._trail, self._offer)
        self._rounds = Rounds(
            home,
            Admission(home, self._fetch_proposals),
            self._trail,
            self._exchange,
            worker,
            offer=self._offer,
            stop=self._stop,
        )
        self._crashes = 0  # of the worker, as far as they are recorded
        self._trouble = Trouble(_log)

    def run(self) -> None:
        """Work until `stop` is called.

        Raises:
            FederationError: something unexpected happened.
        """
        _log.info("site %s, coordinator %s", self._identity.site, self._identity.gateway)
        self._begin()
        steps = {
            "message": self._serve,
            "proposals": self._watch_proposals,
            "appraisals": self._watch_files,
            "upkeep": self._upkeep,
        }
        threads = [
            threading.Thread(target=self._guarded, args=(step,), name=name, daemon=True) for name, step in steps.items()
        ]
        self._worker.tend()
        for thread in threads:
            thread.start()
        self._stop.wait()
        self._shut_down(threads)
        if self._failed:
            raise FederationError(
                "the agent stopped after an unexpected failure. See logs/agent.log, then start again."
            )

    def _begin(self) -> None:
        """Note the start; with a full disk, as soon as there is room."""
        while not self._stop.is_set():
            try:
                self._trail.begin(self._identity)
            except AuditError as error:
                self._wait_for_room(error)
            else:
                return

    def _wait_for_room(self, error: AuditError | OSError) -> None:
        """What could not be written is not done, and the agent lives on; any other trouble with files ends it."""
        if code_of(error) != ErrorCode.DISK_FULL:
            raise error
        self._trouble.say(f"{error}: waiting until there is room on the disk")
        self._status.update(disk=DISK_FULL)
        self._stop.wait(FULL_PAUSE_S)

    def stop(self) -> None:
        """Ask `run` to end; for any other thread."""
        self._stop.set()

    def _connect(self, identity: Identity) -> None:
        self._identity = identity
        self._channel = identity.channel()
        self._fleet = Fleet(self._channel, self._stop, identity.channel)
        self._coordination = CoordinationStub(self._channel)  # type: ignore[no-untyped-call]  # generated code

    def _guarded(self, step: Callable[[], None]) -> None:
        """A thread that ends by an exception ends the agent: half an agent would look healthy."""
        try:
            step()
        except Exception:  # noqa: BLE001 - logged, and it ends the agent
            if not self._stop.is_set():
                _log.exception("unexpected failure")
                self._failed = True
                self._stop.set()

    def _shut_down(self, threads: list[threading.Thread]) -> None:
        self._stop.set()
        self._worker.stop()
        try:
            self._fleet.deactivate()
        except (grpc.RpcError, ValueError):
            _log.info("left without a goodbye")
        self._channel.close()
        self._fleet.close()
        for thread in threads:
            thread.join(timeout=2.0)
        if not self._failed:
            try:
                self._trail.end()
            except AuditError as error:
                _log.error("the end is not recorded: %s", error)
        self._status.update(state=FAILED if self._failed else STOPPED)
        _log.info("stopped")

    # Messages

    def _serve(self) -> None:
        pause = SHORTEST_PAUSE_S
        while not self._stop.is_set():
            try:
                node_id = self._fleet.activate()
                self._status.connected(node_id, self._fleet.ahead_s)
                self._renew_at = 0.0  # what failed while the line did is tried at once
                self._catch_up()
                pause = SHORTEST_PAUSE_S
                while not self._stop.is_set() and self._renewed is None:
                    if (delivery := self._fleet.pull()) is not None:
                        self._handle(*delivery)
                self._take_over()
            except (grpc.RpcError, OtherVersionError) as error:
                if self._stop.is_set():
                    return
                self._status.away(error)
                self._take_over()
                self._stop.wait(pause)
                pause = min(2 * pause, LARGEST_PAUSE_S)
            except (AuditError, OSError) as error:
                self._wait_for_room(error)

    def _catch_up(self) -> None:
        """Before the first message: which runs are open still, whose signatures count, and whether the logs fit."""
        try:
            self._fetch_proposals()
            self._exchange.compare(self._coordination, self._identity.root_pem)
        except (WardroundError, OSError) as error:
            self._trouble.say(f"proposals: {error}")

    def _take_over(self) -> None:
        """Go on with the renewed certificate, over a new connection."""
        if self._renewed is None:
            return
        channel, fleet = self._channel, self._fleet
        self._connect(self._renewed)
        self._trail.membership(self._renewed)
        self._renewed = None
        fleet.close()
        channel.close()

    def _handle(self, head: MessageProto, tree: ObjectTree) -> None:
        """Answer one message, or drop it if its run is over."""
        started = time.monotonic()
        question = question_of(head)
        try:
            reply, parcel = self._rounds.reply(self._fleet, self._coordination, head, tree)
            if self._stop.is_set():
                return
            sent = self._fleet.push(reply_to(question, reply_to_record(reply)))
            if parcel is not None:
                self._exchange.delivered(parcel)
        except LostMessageError as error:
            _log.warning("a message is dropped: %s", error)
            self._fleet.confirm(head)
            self._stop.wait(SHORTEST_PAUSE_S)
        except grpc.RpcError as error:
            too_large = error.code() == grpc.StatusCode.RESOURCE_EXHAUSTED and retry_after(error) is None
            if error.code() not in _RUN_IS_OVER and not too_large:
                raise
            # The work was done, perhaps at a cost: that its fruit is not kept must be seen.
            why = "it takes none of this size" if too_large else error.details() or error.code().name
            _log.error("the coordinator does not take the reply to a %s: %s", question.metadata.message_type, why)
            self._status.lost(question.metadata.message_type, over=not too_large)
            self._fleet.confirm(head)
            self._stop.wait(SHORTEST_PAUSE_S)
        else:
            seconds = time.monotonic() - started
            outcome = f"refused ({reply.code})" if isinstance(reply, Refusal) else "done"
            kind = question.metadata.message_type
            where = f"run {reply.run_hash[:12]} round {reply.round}" if reply.round else "a message of no known round"
            _log.info("%s: %s %s in %.1f s, %d bytes sent", where, kind, outcome, seconds, sent)
            self._status.worked(reply, kind, seconds)

    def _offer(self, run: RunDocument) -> Offer:
        """What this site has for the run, as the worker counted it, under the number of patients declared now."""
        key = (run.hash, *changed(self._home, SITE_NAME, FORGOTTEN_NAME))
        if key not in self._offers:
            answer = self._describe(run)
            if isinstance(answer, Refusal):
                raise PolicyError("this site's data cannot be used for the run; see logs/worker.log", answer.code)
            if not isinstance(answer, Offer):
                raise PipeError("the worker did not say what it has")
            self._offers[key] = answer
        return as_declared(self._offers[key], current_site(self._home).config, run.config, self._home)

    def _describe(self, run: RunDocument) -> Answer:
        """Ask the worker what it has; once more, if it dies."""
        try:
            return self._worker.ask(Describe(run), DESCRIBE_TIMEOUT_S)
        except PipeError as error:
            if error.code != ErrorCode.WORKER_FAILED or self._stop.is_set():
                raise
            _log.warning("run %r: %s; it is asked once more", run.name, error)
        return self._worker.ask(Describe(run), DESCRIBE_TIMEOUT_S)

    # Proposals

    def _fetch_proposals(self) -> None:
        """The present list, at once."""
        self._keep(self._coordination.ListProposals(ListProposalsRequest(), timeout=CALL_TIMEOUT_S))

    def _keep(self, reply: ListProposalsReply) -> None:
        self._proposals.learn(reply.removals, self._identity.root_pem)
        for proposal in reply.proposals:
            self._proposals.keep(proposal, self._identity.root_pem)
        self._news.set()

    def _watch_proposals(self) -> None:
        revision, pause = 0, SHORTEST_PAUSE_S
        while not self._stop.is_set():
            started = time.monotonic()
            try:
                request = ListProposalsRequest(revision=revision, wait_s=PROPOSALS_WAIT_S)
                reply = self._coordination.ListProposals(request, timeout=PROPOSALS_WAIT_S + CALL_TIMEOUT_S)
                self._keep(reply)
            except (grpc.RpcError, WardroundError, OSError) as error:
                if isinstance(error, grpc.RpcError):
                    _log.debug("proposals: %s", error)
                else:
                    self._trouble.say(f"proposals: {error}")
                revision = 0
                self._stop.wait(pause)
                pause = min(2 * pause, LARGEST_PAUSE_S)
                continue
            pause = SHORTEST_PAUSE_S
            if reply.revision == revision and time.monotonic() - started < UPKEEP_S:
                self._stop.wait(UPKEEP_S)  # the gateway did not hold the call
            revision = reply.revision

    def _watch_files(self) -> None:
        while not self._stop.is_set():
            try:
                self._proposals.appraise()
            except (WardroundError, OSError) as error:
                self._trouble.say(f"proposals: {error}")
            self._news.wait(UPKEEP_S)
            self._news.clear()

    # Upkeep

    def _upkeep(self) -> None:
        stamp: object = None
        heartbeat_at = time.monotonic() + HEARTBEAT_S / 2
        while not self._stop.wait(UPKEEP_S):
            try:
                self._worker.tend()
                self._look_after_trail()
                disk = DISK_FULL if admission.is_full(self._home) else health.IN_ORDER
                self._status.update(worker=self._worker.pid, network=self._worker.network, disk=disk)
                if not self._status.is_connected:
                    continue
                self._renew_if_due()
                if time.monotonic() >= heartbeat_at:
                    heartbeat_at = time.monotonic() + HEARTBEAT_S / 2
                    self._fleet.heartbeat(self._rounds.at_work)
                # What the policy refuses is told as it is written now.
                files = approvals.answers_stamp(self._home), changed(self._home, POLICY_NAME)
                if (now := (files, self._status.node_session)) != stamp:
                    self._send_answers()
                    stamp = now
                if self._exchange.is_due:
                    self._exchange.exchange(self._coordination, self._identity.root_pem)
            except grpc.RpcError as error:
                _log.debug("upkeep: %s", error)
            except (WardroundError, OSError) as error:
                self._trouble.say(f"upkeep: {error}")
            self._trouble.settle()

    def _look_after_trail(self) -> None:
        """What the audit log must know of without a message."""
        while self._crashes < self._worker.crashes:
            self._trail.crashed("worker")
            self._crashes += 1
        conflict, problem = self._exchange.conflict, self._exchange.problem
        self._status.update(audit=f"{health.CONFLICT}: {conflict}" if conflict else problem or "in order")

    def _renew_if_due(self) -> None:
        due = self._identity.renewal_is_due
        if self._renewed is not None or time.monotonic() < self._renew_at:
            return
        if not due and not self._identity.knows_successor:
            return
        self._renew_at = time.monotonic() + (RENEWAL_PAUSE_S if due else ROTATION_PAUSE_S)
        try:
            # With the first certificate of the next root, the one before is let go of.
            self._renewed = renew(self._home, self._identity, to_successor=not due)
        except EnrolmentError as error:
            if not due:
                _log.info("the rotation to the next root is not over: %s", error)
                return
            _log.error("the certificate is not renewed yet (%d days left): %s", self._identity.days_left, error)
            return
        self._status.renewed(self._renewed)
        _log.info("the certificate is renewed, for %d days", self._renewed.days_left)

    def _send_answers(self) -> None:
        """Tell the coordinator the answers to open runs, and what the policy refuses; telling it again does no harm."""
        for proposal in approvals.load_all(self._home):
            if (request := self._proposals.to_tell(proposal)) is None:
                continue
            self._trail.answered(proposal)
            try:
                self._coordination.AnswerProposal(request, timeout=CALL_TIMEOUT_S)
            except grpc.RpcError as error:
                if error.code() not in _RUN_IS_OVER:
                    raise
            self._proposals.told(proposal, request)
