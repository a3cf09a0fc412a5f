"""What the agent does with proposals: believe only what is signed and is what it says, find out what it would mean.

A proposal is data in a file, nothing more (client/rules/approvals.py). The person who decides, or the policy, decides
on what stands there.
"""

import logging
import threading
import time
from collections.abc import Callable, Iterable
from hashlib import sha256
from pathlib import Path

from client.home.declared import declare
from client.home.folder import DECLARED_NAME, FORGOTTEN_NAME, POLICY_NAME, SITE_NAME
from client.home.offer import Offer
from client.proposals import signers
from client.proposals.budget import beyond
from client.rules import approvals, policy, purged
from client.rules.approvals import Appraisal, Proposal
from client.rules.policy import Purpose
from client.site import changed, current_site
from client.trail.audit_trail import AuditTrail
from client.worker.protocol import PipeError
from common.config.rundocument import RunDocument, from_bundle
from common.errors import ConfigError, EnrolmentError, WardroundError
from common.identity.operators import Act, Endorsement, Signer, check_act, check_endorsements, public_bytes, subject_of
from common.text import shown
from common.wire.endings import ending_of
from common.wire.messages import Refusal
from common.wire.wardround_pb2 import AnswerProposalRequest, Removal
from common.wire.wardround_pb2 import Proposal as ProposalProto

_WATCHED = (SITE_NAME, POLICY_NAME, FORGOTTEN_NAME, DECLARED_NAME, f"tls/{signers.NAME}")

_log = logging.getLogger(__name__)


class Proposals:
    """The runs proposed to a site. Its state: what has been appraised, and under which of the hospital's files."""

    def __init__(self, home: Path, trail: AuditTrail, offer: Callable[[RunDocument], Offer]) -> None:
        """Know where to look.

        Args:
            home: the site's.
            trail: told when a run is closed.
            offer: asks the worker what the site has for a run.
        """
        self._home, self._trail, self._offer = home, trail, offer
        self._appraised: dict[str, object] = {}  # run hash -> state of the hospital's files, and who signed it
        self._looked: object = None  # state of all that there is, when nothing was left to appraise
        # Run hash -> until when (monotonic) it is not appraised again, because the worker was lost over it.
        self._paused: dict[str, float] = {}
        self._doubted: set[str] = set()  # ended runs that the coordinator calls open, and no operator
        self._lock = threading.Lock()  # of two threads that keep the same proposal

    def keep(self, proposal: ProposalProto, roots_pem: bytes) -> None:
        """Store what was proposed if it is what it says; data in a file, nothing more."""
        with self._lock:
            self._keep(proposal, roots_pem)

    def _keep(self, proposal: ProposalProto, roots_pem: bytes) -> None:
        if purged.is_purged(self._home, proposal.run_hash):
            return
        known = next((one for one in approvals.load_all(self._home) if one.run_hash == proposal.run_hash), None)
        ending = ending_of(proposal)
        if known is not None and known.bundle_sha256 == proposal.bundle_sha256:
            self._note_signers(proposal, roots_pem)
            if known.open != proposal.open:
                if proposal.open and not self._is_resumed(proposal, roots_pem):
                    return
                resumption = proposal.resumption.nonce if proposal.open else ""
                approvals.set_open(
                    self._home, known.run_hash, is_open=proposal.open, resumption=resumption, ending=ending
                )
                if not proposal.open:
                    self._trail.closed(known.run_hash)
                    current_site(self._home).ledger.release(known.run_hash)
            elif ending is not None and known.ending != ending:  # by a coordinator that has learned to tell it
                approvals.set_open(self._home, known.run_hash, is_open=False, ending=ending)
            return
        try:
            # What nobody signed is not even read.
            found = self._signers(proposal, roots_pem)
            policy.check_signed(found, current_site(self._home).policy, proposal.run_hash)
            run = from_bundle(proposal.bundle)
            if run.hash != proposal.run_hash:
                raise ConfigError("the bundle is not the run it claims to be")
            policy.decide(run.config, current_site(self._home).policy, Purpose.PROPOSAL, signers=found).enforce()
        except WardroundError as error:
            _log.error("a proposal was ignored: %s", error)
            return
        approvals.record(self._home, run, is_open=proposal.open, keys=found, ending=ending)
        _log.info("run %r is proposed (%s)", run.name, proposal.run_hash[:12])

    def _is_resumed(self, proposal: ProposalProto, roots_pem: bytes) -> bool:
        """Whether an operator signed that a run which ended here goes on: the coordinator's word is not enough."""
        one, subject = proposal.resumption, subject_of(proposal.run_hash)
        act = Act("resume", subject, one.certificate_pem, one.signed_at, one.nonce, one.signature)
        why = "it was signed for an earlier resumption"
        try:
            if public_bytes(check_act(act, roots_pem).key).hex() in signers.removed(self._home):
                raise EnrolmentError("the operator who resumed it was removed")
            if one.nonce not in approvals.resumptions(self._home, proposal.run_hash):
                return True
        except EnrolmentError as error:
            why = str(error)
        if proposal.run_hash not in self._doubted:
            self._doubted.add(proposal.run_hash)
            _log.error("run %s has ended, and is not open again: %s", proposal.run_hash[:12], why)
        return False

    def appraise(self) -> None:
        """Look at all open proposals that nobody has answered; costs little where nothing has changed."""
        state = changed(self._home, *_WATCHED), approvals.answers_stamp(self._home)
        if state != self._looked:
            done = [self._appraise(stored) for stored in approvals.load_all(self._home)]
            self._looked = state if all(done) else None

    def to_tell(self, proposal: Proposal) -> AnswerProposalRequest | None:
        """What the coordinator is told of a run: an answer, or a code where the policy, as it is now, refuses it.

        None: there is nothing; or policy.toml is wrong, as it may be for a moment while somebody writes it, or the
        run has numbers that nobody has thought of.
        """
        given = proposal.answer
        if not proposal.open:
            return None
        if given is not None and given.approved:
            return AnswerProposalRequest(run_hash=proposal.run_hash, approved=True)
        code = None
        try:
            rules, counting = current_site(self._home).policy, signers.of(self._home, proposal.run_hash)
            code = policy.decide(proposal.run, rules, Purpose.REFUSAL, signers=counting).code
        except Exception:  # noqa: BLE001 - appraising it says so
            if given is None:
                return None
        if code is not None:  # noted before it is told, and forgotten after it was taken back
            approvals.note_told(self._home, proposal.run_hash, refused=True)
        if given is not None or code is not None:
            return AnswerProposalRequest(run_hash=proposal.run_hash, code=code or "")
        if not approvals.was_told(self._home, proposal.run_hash):
            return None
        return AnswerProposalRequest(run_hash=proposal.run_hash, withdrawn=True)

    def told(self, proposal: Proposal, request: AnswerProposalRequest) -> None:
        """The coordinator has it."""
        if not request.code:
            approvals.note_told(self._home, proposal.run_hash, refused=False)
        said = "yes" if request.approved else f"that the policy refuses it ({request.code})" if request.code else "no"
        said = "that the policy does not refuse it any more" if request.withdrawn else said
        _log.info("run %r: answered %s", proposal.run.name, said)

    def learn(self, removals: Iterable[Removal], roots_pem: bytes) -> None:
        """Believe no operator any more whom an admin has removed; before `keep`, which asks for it."""
        with self._lock:
            new = signers.learn(self._home, removals, roots_pem)
        for signer, certificate in new:
            _log.warning(
                "operator %s was removed at the coordinator: no signature of theirs counts", shown(signer.name)
            )
            self._trail.operator_removed(certificate)

    def _signers(self, proposal: ProposalProto, roots_pem: bytes) -> tuple[Signer, ...]:
        """Who wants the run: those of the operators who were not removed."""
        endorsements = [Endorsement(one.certificate_pem, one.signature, one.signed_at) for one in proposal.endorsements]
        bundle_sha256 = sha256(proposal.bundle).hexdigest()
        found = check_endorsements(endorsements, roots_pem, proposal.run_hash, bundle_sha256)
        gone = signers.removed(self._home)
        return tuple(one for one in found if one.key not in gone)

    def _note_signers(self, proposal: ProposalProto, roots_pem: bytes) -> None:
        """Those of a run that is known here: less whom was removed, and more who signed it later."""
        counting = signers.of(self._home, proposal.run_hash)
        counting += tuple(one for one in self._signers(proposal, roots_pem) if one not in counting)
        if counting != approvals.signers_of(self._home, proposal.run_hash):
            approvals.note_signers(self._home, proposal.run_hash, counting)

    def _appraise(self, proposal: Proposal) -> bool:  # noqa: PLR0912 - one story, in order
        """Find out what the run would use here, for whoever decides; decide where the policy says so.

        Done again when the hospital changes its data, its policy or its declared number of patients. One that
        the worker was lost over, or that took too long, is tried again, for what was prepared is kept, but not before
        the worker was free for as long: nobody has approved it, and approved runs wait for the same worker.

        Returns:
            Whether nothing is left to find out, while the files are as they are.
        """
        stamp = changed(self._home, *_WATCHED), approvals.signers_of(self._home, proposal.run_hash)
        if not proposal.open or proposal.answer is not None or self._appraised.get(proposal.run_hash) == stamp:
            return True
        began = time.monotonic()
        if began < self._paused.get(proposal.run_hash, 0.0):
            return False
        offer, refusal, against, code, decides = None, None, None, None, False
        try:
            site = current_site(self._home)
            rules = site.policy
            decides = rules.auto_approve and rules.participate  # a pause answers nothing
            counting = signers.of(self._home, proposal.run_hash)
            decision = policy.decide(proposal.run, rules, Purpose.REFUSAL, signers=counting)
            # What the coordinator is told. What our patients are too few for is for a person to answer: a coordinator
            # could ask about them with one proposal after the other.
            code = decision.code
            if decision.allowed:
                offer = self._offer(proposal.document)
                decision = policy.decide(proposal.run, rules, Purpose.APPROVAL, signers=counting, offer=offer)
            against = decision.why
            if decides and offer is not None and against is None:
                against = beyond(site, proposal.document, offer)
            if decides and offer is not None and against is None:
                number = declare(site.config, proposal.run, offer.declared_size, self._home)
                if number != offer.declared_size:
                    return False  # an approval has set another one just now: it is appraised again
        except PipeError as error:
            _log.warning("run %r is not appraised yet: %s", proposal.run.name, error)
            now = time.monotonic()
            self._paused[proposal.run_hash] = now + (now - began)
            return False
        except WardroundError as error:
            refusal = str(error)
        except Exception:  # noqa: BLE001 - numbers that nobody has thought of must not end the agent, nor be approved
            refusal = "it cannot be appraised, for a reason that stands in logs/agent.log"
            _log.exception("run %r cannot be appraised", proposal.run.name)
        self._appraised[proposal.run_hash] = stamp
        if (against := refusal or against) is not None:
            _log.warning("run %r: %s", proposal.run.name, against)
        if code is None:  # else nothing was counted
            approvals.note_appraisal(self._home, proposal.run_hash, Appraisal(offer, refusal))
        if code is not None:
            self._trail.replied(Refusal(proposal.run_hash, 0, code))
        if decides:
            approvals.answer(self._home, proposal.run_hash, approved=against is None, by="policy")
        return True
