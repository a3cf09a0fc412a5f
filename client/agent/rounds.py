"""One message of a coordinator, from its head to the answer: the story of a round at a hospital.

Decide, fetch, decide, charge, ask the worker, pass the gate, write it down, decide, answer: what the hospital writes
into policy.toml meanwhile counts from the next of these on (client/rules/policy.py says what each decision asks). A
refusal is a code; up to the charge it may say why, and after it only what the gate lets through. The reason stays in
home/logs/agent.log.
"""

import logging
import secrets
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
from flwr.app import Message, MessageType
from flwr.proto.message_pb2 import Message as MessageProto
from flwr.proto.message_pb2 import ObjectTree

from client.agent import admission, spending
from client.agent.admission import Admission
from client.agent.fleet import Fleet, LostMessageError
from client.agent.pulse import HANGS_S
from client.agent.worker_process import Worker
from client.home.declared import declare
from client.home.offer import Offer
from client.proposals import signers
from client.rules import evaluations, exit_gate, policy
from client.rules.approvals import Proposal
from client.rules.policy import Purpose
from client.site import current_site
from client.trail.audit_trail import AuditTrail
from client.trail.log_exchange import LogExchange
from client.trail.outbox import Parcel
from client.worker.protocol import PipeError, Work
from common.config import PolicyConfig, sha256_of
from common.config.rundocument import RunDocument
from common.console.logs import told
from common.errors import ErrorCode, PolicyError, UpdateError
from common.wire.at_work import AtWork
from common.wire.messages import EvaluateReply, EvaluateRequest, Refusal, Reply, Request, TrainReply, TrainRequest
from common.wire.records import request_from_record

_log = logging.getLogger(__name__)


class Rounds:
    """Answers messages, one at a time."""

    def __init__(
        self,
        home: Path,
        admission_: Admission,
        trail: AuditTrail,
        exchange: LogExchange,
        worker: Worker,
        *,
        offer: Callable[[RunDocument], Offer],
        stop: threading.Event,
    ) -> None:
        """Take what an agent has.

        Args:
            home: the site's.
            admission_: says whose messages are taken.
            trail: the audit log and the outbox.
            exchange: what is under way between the two logs.
            worker: does the work.
            offer: what the site has for a run, as the worker counted it.
            stop: set when nothing more is to be begun.
        """
        self._home, self._admission, self._trail, self._exchange = home, admission_, trail, exchange
        self._worker, self._offer, self._stop = worker, offer, stop
        self._asked: AtWork | None = None  # what the worker is doing

    @property
    def at_work(self) -> AtWork | None:
        """What the worker is at, and whether it moves; None while it is asked nothing. For any thread."""
        return self._asked and replace(self._asked, hangs=self._worker.still_s > HANGS_S)

    def reply(
        self, fleet: Fleet, coordination: Any, head: MessageProto, tree: ObjectTree
    ) -> tuple[Reply, Parcel | None]:
        """Answer a message.

        Args:
            fleet: fetches its content.
            coordination: stub of the coordinator's Coordination service.
            head: of the message.
            tree: of its objects.

        Returns:
            The answer; and the update with its receipt, if it is one.

        Raises:
            LostMessageError: its content is gone.
            grpc.RpcError: the coordinator is away, or the run is over: there is nobody to answer.
        """
        run_hash, round_ = "", 0
        try:
            run_hash = self._admission.run_hash(fleet, head.metadata.run_id)
            self._exchange.check_conflict()
            proposal = self._admission.proposal(run_hash)
            self._trail.answered(proposal)
            self._decide(proposal, Purpose.EXCHANGE)
            message = fleet.fetch(head, tree, admission.most_bytes(self._known_offer(proposal)))
            request = request_from_record(message.content)
            round_ = request.round
            _check_belongs(request, message, proposal)
            if isinstance(request, TrainRequest):
                if (parcel := self._trail.kept(request)) is None:
                    return self._train(request, proposal, coordination)
                return self._leaves(parcel, proposal), parcel
            reply = self._evaluate(request, proposal)
            self._trail.replied(reply, request.sha256)
            return reply, None
        except (LostMessageError, grpc.RpcError):
            raise  # there is nothing to answer, or nobody: the coordinator is away or the run is over
        except Exception as error:  # noqa: BLE001 - logged; the coordinator learns a code and the agent goes on
            code = told(_log, error, f"run {run_hash[:12]} round {round_}")
        refusal = Refusal(run_hash, round_, exit_gate.before_charge(code))
        self._trail.replied(refusal)
        return refusal, None

    def _train(self, request: TrainRequest, proposal: Proposal, coordination: Any) -> tuple[Reply, Parcel | None]:
        """One round. Up to the charge a refusal may say why; after it, only what the gate lets through."""
        run = proposal.document
        self._exchange.check_receipts(coordination)
        offer = self._offer(run)
        rules = self._decide(proposal, Purpose.TRAINING, offer=offer, attempts=0)
        self._check(request, run, offer, rules)
        evaluations.begin_training(current_site(self._home), run.config, request)
        attempt = self._charge(request, run, offer)

        def again() -> str:
            self._decide(proposal, Purpose.TRAINING, offer=offer, attempts=1)
            return self._charge(request, run, offer)

        try:
            reply = self._attempt(request, run, again, attempt)
            if isinstance(reply, TrainReply):
                # Kept before it is decided whether it leaves: made and paid for, it may be asked for later.
                parcel = self._trail.leaves(request, reply, sha256_of(rules))
                return self._leaves(parcel, proposal), parcel
        except Exception as error:  # noqa: BLE001 - logged; see above
            code = told(_log, error, f"run {request.run_hash[:12]} round {request.round}")
            reply = Refusal(request.run_hash, request.round, exit_gate.after_charge(code, run.config))
        self._trail.replied(reply)
        return reply, None

    def _evaluate(self, request: EvaluateRequest, proposal: Proposal) -> Reply:
        """The scores of a model, if all that is asked before allows it."""
        run = proposal.document
        offer = self._offer(run)
        rules = self._decide(proposal, Purpose.EVALUATION, offer=offer)
        self._check(request, run, offer, rules)
        self._trail.check_scored(request, rules)
        spending.check_ledger(current_site(self._home).ledger, self._trail.log)

        def again() -> str:
            self._decide(proposal, Purpose.EVALUATION, offer=offer)
            return _name()

        reply = self._attempt(request, run, again, _name())
        self._decide(proposal, Purpose.EXCHANGE)
        return reply

    def _decide(
        self, proposal: Proposal, purpose: Purpose, *, offer: Offer | None = None, attempts: int | None = None
    ) -> PolicyConfig:
        """Ask the policy as it is written now; the one that allows it.

        Args:
            proposal: the run.
            purpose: what is to be done.
            offer: what the site has for it.
            attempts: at a round, of this message so far: they are no further rounds of the day.

        Raises:
            PolicyError: it refuses, or cannot be read.
        """
        rules = current_site(self._home).policy
        self._trail.policy(rules)
        # Counted for the limit of these rules, which may be another one than a moment ago.
        today = None if attempts is None else self._trail.attempts_today(rules.max_rounds_per_day + attempts) - attempts
        signed = signers.of(self._home, proposal.run_hash)
        policy.decide(proposal.run, rules, purpose, signers=signed, offer=offer, rounds_today=today).enforce()
        return rules

    def _leaves(self, parcel: Parcel, proposal: Proposal) -> TrainReply:
        """An update as it may leave now, however long ago it was made."""
        rules = self._decide(proposal, Purpose.EXCHANGE)
        return exit_gate.shorten(parcel.reply, proposal.run, rules.metrics)

    def _attempt(self, request: Request, run: RunDocument, again: Callable[[], str], attempt: str) -> Reply:
        """Let the worker do it; once more, if it dies: it is started again, and nothing of the first time has left.

        Args:
            request: to train or to evaluate.
            run: it belongs to.
            again: whether a second attempt may be made, and its name.
            attempt: name of the first.
        """
        started = time.monotonic()
        try:
            return self._ask(request, run, attempt, run.config.federation.round_timeout_s)
        except PipeError as error:
            left_s = run.config.federation.round_timeout_s - (time.monotonic() - started)
            if error.code != ErrorCode.WORKER_FAILED or left_s <= 0 or self._stop.is_set():
                raise
            _log.warning("run %s round %d: %s; it is asked once more", request.run_hash[:12], request.round, error)
        return self._ask(request, run, again(), left_s)

    def _check(self, request: Request, run: RunDocument, offer: Offer, rules: PolicyConfig) -> None:
        """Whether the request is the run's, and there is room for it."""
        exit_gate.check_request(request, run.config, offer.parts, offer.training, rules.max_weight)
        # The run is approved. The number is set already, unless nobody had counted when it was.
        declare(current_site(self._home).config, run.config, offer.declared_size, self._home)
        admission.check_room(self._home, request.size)

    def _charge(self, request: TrainRequest, run: RunDocument, offer: Offer) -> str:
        """Note an attempt, and what it costs, before anything is spent; its name in the ledger."""
        attempt = f"{spending.ATTEMPT}{secrets.token_hex(16)}"
        self._trail.begins(request)
        spending.charge(current_site(self._home), self._trail, run, offer, round_=request.round, attempt=attempt)
        return attempt

    def _ask(self, request: Request, run: RunDocument, attempt: str, timeout_s: float) -> Reply:
        """Let the worker do it; what passes the gate."""
        self._asked = AtWork(request.run_hash, request.round)
        try:
            answer = self._worker.ask(Work(run, request, attempt), timeout_s)
        finally:
            self._asked = None
        if not isinstance(answer, TrainReply | EvaluateReply | Refusal):
            raise PipeError("the worker gave no reply")
        rules = current_site(self._home).policy  # it may have changed while the worker worked
        return exit_gate.release(answer, request, run.config, rules.metrics, rules.scores)

    def _known_offer(self, proposal: Proposal) -> Offer:
        """What this site counted for a run, without asking the worker again where it is written down."""
        appraisal = proposal.appraisal
        return self._offer(proposal.document) if appraisal is None or appraisal.offer is None else appraisal.offer


def _name() -> str:
    """Of an attempt that is not charged under its name."""
    return secrets.token_hex(8)


def _check_belongs(request: Request, message: Message, proposal: Proposal) -> None:
    """A message is of the run that Flower says it is of, and asks for what its type says."""
    expected = MessageType.TRAIN if isinstance(request, TrainRequest) else MessageType.EVALUATE
    if message.metadata.message_type != expected:
        raise UpdateError(f"the message is of type {message.metadata.message_type!r}", ErrorCode.BAD_REQUEST)
    if request.run_hash != proposal.run_hash:
        raise PolicyError("the message names another run than the one that Flower runs", ErrorCode.WRONG_RUN)
    if not 1 <= request.round <= proposal.run.federation.rounds:
        raise PolicyError(f"round {request.round} is not one of this run's", ErrorCode.WRONG_RUN)
