"""The process with the door: it holds the keys and the channel, and decides what is done and what leaves.

For each message: approved and open? the approved bundle? allowed by the policy? Only then is its content fetched. The
run's model? budget left, and charged? Only then the worker sees it, and its answer passes the exit gate. Whatever goes
wrong becomes a Refusal with a code; the reason stays in home/logs/agent.log. No torch and no image is imported here (a
test holds this): what talks to the network never holds patient data. One message at a time.

    thread    message      pull, decide, ask the worker, reply
    thread    proposals    fetch new proposals, appraise them, approve where the policy does
    thread    upkeep       heartbeats, answers given on the command line, the worker's life, status.json
"""

import errno
import logging
import secrets
import threading
import time
from collections.abc import Callable
from pathlib import Path

import grpc
from flwr.app import Message, MessageType
from flwr.proto.message_pb2 import Message as MessageProto
from flwr.proto.message_pb2 import ObjectTree

from client import admission, approvals, evaluations, gate, policy, spending
from client.admission import Admission
from client.approvals import Proposal
from client.enrol import Identity, renew
from client.fleet import HEARTBEAT_S, LARGEST_PAUSE_S, SHORTEST_PAUSE_S, Fleet, LostMessageError
from client.keeper import Worker
from client.outbox import Parcel
from client.pipe import Describe, Offer, PipeError, Work
from client.proposals import Proposals
from client.record import Record
from client.site import FORGOTTEN_NAME, SITE_NAME, changed, current_site, open_site
from client.status import DISK_FULL, IN_ORDER, Status
from client.witness import Witness
from common.config import PolicyConfig, RunConfig, sha256_of
from common.errors import (
    AuditError,
    EnrolmentError,
    ErrorCode,
    FederationError,
    PolicyError,
    UpdateError,
    WardroundError,
)
from common.flower import question_of, reply_to
from common.records import (
    EvaluateReply,
    Refusal,
    Reply,
    Request,
    TrainReply,
    TrainRequest,
    reply_to_record,
    request_from_record,
)
from common.wire.pushback import retry_after
from common.wire.wardround_pb2 import AnswerProposalRequest, ListProposalsRequest
from common.wire.wardround_pb2_grpc import CoordinationStub

PROPOSALS_WAIT_S = 20.0
CALL_TIMEOUT_S = 30.0
# Reading a large cohort for the first time.
DESCRIBE_TIMEOUT_S = 3600.0
UPKEEP_S = 1.0
# Between two tries of what the disk had no room for.
FULL_PAUSE_S = 5.0
# After a renewal that did not succeed.
RENEWAL_PAUSE_S = 600.0
# Between two looks whether a rotation to the next root, which is pinned already, is over.
ROTATION_PAUSE_S = 3600.0

# The gateway's words for "drop this message" (server/gateway.py).
_RUN_IS_OVER = (grpc.StatusCode.FAILED_PRECONDITION, grpc.StatusCode.INVALID_ARGUMENT)

_log = logging.getLogger(__name__)


class Agent:
    """One site's agent, from `run` until its stop event is set."""

    def __init__(self, home: Path, identity: Identity, worker: Worker) -> None:
        self._home, self._identity = home, identity
        self._stop = threading.Event()
        self._failed = False
        self._renewed: Identity | None = None  # takes over between two messages
        self._renew_at = 0.0
        self._connect(identity)
        self._worker = worker
        self._offers: dict[tuple[object, ...], Offer] = {}  # by run hash and state of site.toml and the forgotten
        self._admission = Admission(home, self._fetch_proposals)
        self._status = Status(home, identity)
        self._record = Record(home, identity, open_site(home).key)
        self._witness = Witness(home, self._record.log, identity.log_key)
        self._proposals = Proposals(home, self._record, self._offer)
        self._crashes = 0  # of the worker, as far as they are recorded

    def run(self) -> None:
        """Work until `stop` is called.

        Raises:
            FederationError: something unexpected happened.
        """
        _log.info("site %s, coordinator %s", self._identity.site, self._identity.gateway)
        self._begin()
        steps = {"message": self._serve, "proposals": self._watch_proposals, "upkeep": self._upkeep}
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
                self._record.begin(self._identity)
            except AuditError as error:
                self._wait_for_room(error)
            else:
                return

    def _wait_for_room(self, error: AuditError | OSError) -> None:
        """What could not be written is not done, and the agent lives on; any other trouble with files ends it."""
        if not _is_full(error):
            raise error
        _log.error("%s: waiting until there is room on the disk", error)
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
                self._record.end()
            except AuditError as error:
                _log.error("the end is not recorded: %s", error)
        self._status.update(state="stopped")
        _log.info("stopped")

    # Messages

    def _serve(self) -> None:
        pause = SHORTEST_PAUSE_S
        while not self._stop.is_set():
            try:
                node_id = self._fleet.activate()
                self._status.connected(node_id, self._fleet.ahead_s)
                pause = SHORTEST_PAUSE_S
                while not self._stop.is_set() and self._renewed is None:
                    if (delivery := self._fleet.pull()) is not None:
                        self._handle(*delivery)
                self._take_over()
            except grpc.RpcError as error:
                if self._stop.is_set():
                    return
                self._status.away(error)
                self._take_over()
                self._stop.wait(pause)
                pause = min(2 * pause, LARGEST_PAUSE_S)
            except (AuditError, OSError) as error:
                self._wait_for_room(error)

    def _take_over(self) -> None:
        """Go on with the renewed certificate, over a new connection."""
        if self._renewed is None:
            return
        channel, fleet = self._channel, self._fleet
        self._connect(self._renewed)
        self._record.membership(self._renewed)
        self._renewed = None
        fleet.close()
        channel.close()

    def _handle(self, head: MessageProto, tree: ObjectTree) -> None:
        """Answer one message, or drop it if its run is over."""
        started = time.monotonic()
        question = question_of(head)
        try:
            reply, parcel = self._reply(head, tree)
            if self._stop.is_set():
                return
            sent = self._fleet.push(reply_to(question, reply_to_record(reply)))
            if parcel is not None:
                self._witness.delivered(parcel)
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
            self._status.lost(question.metadata.message_type)
            self._fleet.confirm(head)
            self._stop.wait(SHORTEST_PAUSE_S)
        else:
            seconds = time.monotonic() - started
            outcome = f"refused ({reply.code})" if isinstance(reply, Refusal) else "done"
            kind = question.metadata.message_type
            where = f"run {reply.run_hash[:12]} round {reply.round}" if reply.round else "a message of no known round"
            _log.info("%s: %s %s in %.1f s, %d bytes sent", where, kind, outcome, seconds, sent)
            self._status.worked(reply, kind, seconds)

    def _reply(self, head: MessageProto, tree: ObjectTree) -> tuple[Reply, Parcel | None]:
        """Decide, work, pass the gate, and write it down; the story of a round at a hospital."""
        run_hash, round_ = "", 0
        try:
            run_hash = self._admission.run_hash(self._fleet, head.metadata.run_id)
            rules = current_site(self._home).policy
            policy_hash = self._record.policy(rules)
            policy.check_participation(rules)
            self._witness.check_conflict()
            proposal = self._admission.proposal(run_hash)
            self._record.answered(proposal)
            policy.check(proposal.run, rules)
            message = self._fleet.fetch(head, tree, admission.most_bytes(self._known_offer(proposal)))
            request = request_from_record(message.content)
            round_ = request.round
            _check_belongs(request, message, proposal)
            if isinstance(request, TrainRequest):
                if (parcel := self._record.kept(request)) is None:
                    return self._train(request, proposal.run, rules, policy_hash)
                return gate.shorten(parcel.reply, proposal.run, rules.metrics), parcel
            policy.check_now(rules, rounds_today=0)
            self._check(request, proposal.run, rules)
            admission.check_room(self._home, len(request.weights))
            self._record.check_scored(request, rules)
            spending.check_ledger(current_site(self._home).ledger, self._record.log)
            timeout_s = proposal.run.federation.round_timeout_s
            reply = self._ask(request, proposal.run, rules, secrets.token_hex(8), timeout_s)
            self._record.replied(reply, request.weights)
            return reply, None
        except LostMessageError:
            raise  # there is nothing to answer
        except WardroundError as error:
            _log.error("run %s round %d: %s", run_hash[:12], round_, error)
            code = error.code
        except grpc.RpcError:
            raise  # the coordinator is away or the run is over: there is nobody to answer
        except Exception as error:  # noqa: BLE001 - logged; the coordinator learns a code and the agent goes on
            _log.exception("run %s round %d: unexpected failure", run_hash[:12], round_)
            code = ErrorCode.DISK_FULL if _is_full(error) else ErrorCode.INTERNAL
        refusal = Refusal(run_hash, round_, gate.before_charge(code))
        self._record.replied(refusal)
        return refusal, None

    def _train(
        self, request: TrainRequest, run: RunConfig, rules: PolicyConfig, policy_hash: str
    ) -> tuple[Reply, Parcel | None]:
        """One round. Up to the charge a refusal may say why; after it, only what the gate lets through."""
        policy.check_now(rules, rounds_today=self._record.attempts_today(rules.max_rounds_per_day))
        self._witness.check_receipts(self._coordination)
        offer = self._check(request, run, rules)
        evaluations.begin_training(current_site(self._home), run, request)
        admission.check_room(self._home, len(request.weights))
        attempt = self._charge(request, run, offer)
        try:
            reply = self._attempt(request, run, rules, offer, attempt)
            if isinstance(reply, TrainReply):
                parcel = self._record.leaves(request, reply, policy_hash)
                return parcel.reply, parcel
        except WardroundError as error:
            _log.error("run %s round %d: %s", request.run_hash[:12], request.round, error)
            reply = Refusal(request.run_hash, request.round, gate.after_charge(error.code, run))
        except Exception as error:  # noqa: BLE001 - logged; see above
            _log.exception("run %s round %d: unexpected failure", request.run_hash[:12], request.round)
            code = ErrorCode.DISK_FULL if _is_full(error) else ErrorCode.INTERNAL
            reply = Refusal(request.run_hash, request.round, gate.after_charge(code, run))
        self._record.replied(reply)
        return reply, None

    def _attempt(self, request: TrainRequest, run: RunConfig, rules: PolicyConfig, offer: Offer, attempt: str) -> Reply:
        """Let the worker train; once more, if it dies: it is started again, and nothing of the first time has left."""
        started = time.monotonic()
        try:
            return self._ask(request, run, rules, attempt, run.federation.round_timeout_s)
        except PipeError as error:
            left_s = run.federation.round_timeout_s - (time.monotonic() - started)
            if error.code != ErrorCode.WORKER_FAILED or left_s <= 0 or self._stop.is_set():
                raise
            _log.warning("run %s round %d: %s; it is asked once more", request.run_hash[:12], request.round, error)
        return self._ask(request, run, rules, self._charge(request, run, offer), left_s)

    def _check(self, request: Request, run: RunConfig, rules: PolicyConfig) -> Offer:
        """Whether the policy allows it, and the request is the run's; what the site has for it."""
        offer = self._offer(run)
        policy.check(run, rules, offer)
        gate.check_request(request, run, offer.tensors, offer.training, rules.max_weight)
        return offer

    def _charge(self, request: TrainRequest, run: RunConfig, offer: Offer) -> str:
        """Note an attempt, and what it costs, before anything is spent; its name in the ledger."""
        attempt = f"{spending.ATTEMPT}{secrets.token_hex(16)}"
        self._record.begins(request)
        spending.charge(current_site(self._home), self._record, run, offer, round_=request.round, attempt=attempt)
        return attempt

    def _ask(self, request: Request, run: RunConfig, rules: PolicyConfig, attempt: str, timeout_s: float) -> Reply:
        """Let the worker do it; what passes the gate."""
        answer = self._worker.ask(Work(run, request, attempt), timeout_s)
        if not isinstance(answer, TrainReply | EvaluateReply | Refusal):
            raise PipeError("the worker gave no reply")
        return gate.release(answer, request, run, rules.metrics, rules.scores)

    def _known_offer(self, proposal: Proposal) -> Offer:
        """What this site counted for a run, without asking the worker again where it is written down."""
        appraisal = proposal.appraisal
        return self._offer(proposal.run) if appraisal is None or appraisal.offer is None else appraisal.offer

    def _offer(self, run: RunConfig) -> Offer:
        """What this site has for the run, as the worker counted it."""
        key = (sha256_of(run), *changed(self._home, SITE_NAME, FORGOTTEN_NAME))
        if key not in self._offers:
            answer = self._worker.ask(Describe(run), DESCRIBE_TIMEOUT_S)
            if isinstance(answer, Refusal):
                raise PolicyError("this site's data cannot be used for the run; see logs/worker.log", answer.code)
            if not isinstance(answer, Offer):
                raise PipeError("the worker did not say what it has")
            self._offers[key] = answer
        return self._offers[key]

    # Proposals

    def _fetch_proposals(self) -> None:
        """The present list, at once."""
        for proposal in self._coordination.ListProposals(ListProposalsRequest(), timeout=CALL_TIMEOUT_S).proposals:
            self._proposals.keep(proposal, self._identity.root_pem)

    def _watch_proposals(self) -> None:
        revision, pause = 0, SHORTEST_PAUSE_S
        while not self._stop.is_set():
            started = time.monotonic()
            try:
                request = ListProposalsRequest(revision=revision, wait_s=PROPOSALS_WAIT_S)
                reply = self._coordination.ListProposals(request, timeout=PROPOSALS_WAIT_S + CALL_TIMEOUT_S)
                for proposal in reply.proposals:
                    self._proposals.keep(proposal, self._identity.root_pem)
                self._proposals.appraise()
            except (grpc.RpcError, WardroundError, OSError) as error:
                _log.log(logging.DEBUG if isinstance(error, grpc.RpcError) else logging.ERROR, "proposals: %s", error)
                revision = 0
                self._stop.wait(pause)
                pause = min(2 * pause, LARGEST_PAUSE_S)
                continue
            pause = SHORTEST_PAUSE_S
            if reply.revision == revision and time.monotonic() - started < UPKEEP_S:
                self._stop.wait(UPKEEP_S)  # the gateway did not hold the call
            revision = reply.revision

    # Upkeep

    def _upkeep(self) -> None:
        stamp: object = None
        heartbeat_at = time.monotonic() + HEARTBEAT_S / 2
        while not self._stop.wait(UPKEEP_S):
            try:
                self._worker.tend()
                self._look_after_record()
                disk = DISK_FULL if admission.is_full(self._home) else IN_ORDER
                self._status.update(worker=self._worker.pid, network=self._worker.network, disk=disk)
                if not self._status.is_connected:
                    continue
                self._renew_if_due()
                if time.monotonic() >= heartbeat_at:
                    heartbeat_at = time.monotonic() + HEARTBEAT_S / 2
                    self._fleet.heartbeat()
                if (now := (approvals.answers_stamp(self._home), self._status.node_session)) != stamp:
                    self._send_answers()
                    stamp = now
                if self._witness.is_due:
                    self._witness.exchange(self._coordination, self._identity.root_pem)
            except grpc.RpcError as error:
                _log.debug("upkeep: %s", error)
            except (WardroundError, OSError) as error:
                _log.error("upkeep: %s", error)

    def _look_after_record(self) -> None:
        """What the audit log must know of without a message."""
        while self._crashes < self._worker.crashes:
            self._record.crashed("worker")
            self._crashes += 1
        conflict, problem = self._witness.conflict, self._witness.problem
        self._status.update(audit=f"CONFLICT: {conflict}" if conflict else problem or "in order")

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
            code = (proposal.appraisal and proposal.appraisal.code) or ""
            if not proposal.open or (proposal.answer is None and not code):
                continue
            self._record.answered(proposal)
            yes = proposal.answer is not None and proposal.answer.approved
            request = AnswerProposalRequest(run_hash=proposal.run_hash, approved=yes, code="" if yes else code)
            try:
                self._coordination.AnswerProposal(request, timeout=CALL_TIMEOUT_S)
            except grpc.RpcError as error:
                if error.code() not in _RUN_IS_OVER:
                    raise
            said = "yes" if yes else "no" if proposal.answer else f"that the policy refuses it ({code})"
            _log.info("run %r: answered %s", proposal.run.name, said)


def _is_full(error: Exception) -> bool:
    """Whether something could not be written for want of room on the disk."""
    if isinstance(error, OSError):
        return error.errno in (errno.ENOSPC, errno.EDQUOT)
    return isinstance(error, WardroundError) and error.code == ErrorCode.DISK_FULL


def _check_belongs(request: Request, message: Message, proposal: Proposal) -> None:
    """A message is of the run that Flower says it is of, and asks for what its type says."""
    expected = MessageType.TRAIN if isinstance(request, TrainRequest) else MessageType.EVALUATE
    if message.metadata.message_type != expected:
        raise UpdateError(f"the message is of type {message.metadata.message_type!r}", ErrorCode.BAD_REQUEST)
    if request.run_hash != proposal.run_hash:
        raise PolicyError("the message names another run than the one that Flower runs", ErrorCode.WRONG_RUN)
    if not 1 <= request.round <= proposal.run.federation.rounds:
        raise PolicyError(f"round {request.round} is not one of this run's", ErrorCode.WRONG_RUN)
