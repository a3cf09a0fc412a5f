"""What a hospital writes into its audit log: home/audit.sqlite, of the same key that signs its receipts.

An entry is on disk before what it tells of goes on: the charge before the work, the signed receipt before the update
leaves. When the log cannot be written, the caller's AuditError ends in a refusal, and nothing leaves. The agent and
the command line write to the same log; each entry is a transaction.
"""

import json
import logging
import re
import time
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from client.home.identity import Identity, not_joined
from client.rules import approvals
from client.rules.approvals import Proposal
from client.trail.outbox import FOLDER, Outbox, Parcel
from common.audit import receipts
from common.audit.entries import SMALLEST_COUNT, Value, bucketed, decimal_text
from common.audit.log import AuditLog
from common.config import PolicyConfig, sha256_of
from common.config.statistics import COUNTED
from common.console.logs import Trouble
from common.errors import AuditError, EnrolmentError, ErrorCode, PolicyError, UpdateError
from common.identity import certificates
from common.identity.operators import public_bytes
from common.privacy.scores import SCORES_DELTA, SCORES_EPSILON
from common.rescue import restored
from common.wire.messages import EvaluateReply, EvaluateRequest, Refusal, Reply, TrainReply, TrainRequest

AUDIT_NAME = "audit.sqlite"

_DAY_S = 24 * 3600
_HASH = re.compile(r"[0-9a-f]{64}")
# Answers of earlier starts that are remembered; an older one is written again.
_MOST_ANSWERS = 10_000

_log = logging.getLogger(__name__)


def open_log(home: Path) -> AuditLog:
    """The site's log, begun on first use.

    Raises:
        EnrolmentError: the site has not joined: it has no key yet.
        AuditError: the log is another site's, or cannot be used.
    """
    tls = home / "tls"
    try:
        coordinator = json.loads((tls / "coordinator.json").read_bytes())
        key = Ed25519PrivateKey.from_private_bytes((tls / "receipt.key").read_bytes())
        origin, log_key = f"site/{coordinator['site']}", bytes.fromhex(coordinator["log-key"])
    except FileNotFoundError as error:
        raise not_joined(home, error) from error
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise EnrolmentError(f"the files in {tls} cannot be read. Restore them from a backup or join again.") from error
    return AuditLog(home / AUDIT_NAME, origin, key, coordinator_key=log_key)


def note(home: Path, kind: str, fields: Mapping[str, Value] | None = None) -> None:
    """Write one entry, for a command. A folder that has not joined a federation has no log, and needs none."""
    if has_joined(home):
        open_log(home).append(kind, fields)


def has_joined(home: Path) -> bool:
    """Whether the folder is of a site that has joined a federation, and so has an audit log."""
    return (home / "tls" / "coordinator.json").exists()


def count_fields(patients: int) -> dict[str, Value]:
    """The field `patients` of an entry; left out below the smallest number that may be told."""
    return {"patients": bucketed(patients)} if patients >= SMALLEST_COUNT else {}


class AuditTrail:
    """The agent's pen. For all of its threads."""

    def __init__(self, home: Path, identity: Identity, site_key: bytes) -> None:
        self.log = open_log(home)
        self._home = home
        self._site, self._key = identity.site, identity.receipt_key
        self._outbox = Outbox(home / FOLDER, site_key)
        self._trouble = Trouble(_log)
        self._policy = ""
        self._answers: dict[str, tuple[bool, str]] = {}  # run hash -> approved, by

    def begin(self, identity: Identity) -> None:
        """The agent starts."""
        self.log.begin("agent", version("wardround"))
        restored.enter(self._home, lambda: self.log.append("restored"))
        with self.log.transaction() as log:
            policies = log.latest("policy-changed")
            answers = log.latest("approved", "denied", count=_MOST_ANSWERS)
        self._policy = policies[0].fields["policy"] if policies else ""
        for entry in reversed(answers):
            self._answers[entry.fields["run"]] = (entry.kind == "approved", entry.fields["by"])
        self.membership(identity)

    def membership(self, identity: Identity) -> None:
        """Note the certificate in use, if it is a new one."""
        certificate = certificates.fingerprint(identity.certificate)
        with self.log.transaction() as log:
            last = log.latest("enrolled", "renewed")
            if last and last[0].fields["certificate"] == certificate:
                return
            about = {"site": self._site, "certificate": certificate}
            if last:
                log.append("renewed", about)
            else:
                keys = {"key": public_bytes(self._key).hex(), "coordinator-key": identity.log_key.hex()}
                log.append("enrolled", about | keys)

    def end(self) -> None:
        """The agent stops."""
        self.log.append("stopped", {"program": "agent"})

    def operator_removed(self, certificate: str) -> None:
        """An admin at the coordinator has removed an operator; by the certificate's fingerprint."""
        self.log.append("operator-removed", {"certificate": certificate})

    def crashed(self, program: str) -> None:
        """A process of this side ended without being told to."""
        self.log.append("crashed", {"program": program})

    def policy(self, policy: PolicyConfig) -> str:
        """Note the policy in force, if it is a new one; its hash."""
        digest = sha256_of(policy)
        if digest != self._policy:
            self.log.append("policy-changed", {"policy": digest})
            self._policy = digest
        return digest

    def answered(self, proposal: Proposal) -> None:
        """Note the hospital's answer to a run, if it is a new one."""
        answer = proposal.answer
        if answer is None:
            return
        given = (answer.approved, answer.by)
        if self._answers.get(proposal.run_hash) != given:
            fields = {"run": proposal.run_hash, "by": answer.by} | ({"policy": self._policy} if self._policy else {})
            self.log.append("approved" if answer.approved else "denied", fields)
            self._answers[proposal.run_hash] = given

    def spent(self, run_hash: str, round_: int, spent: tuple[float, float]) -> None:
        """Note what a round costs, before it is worked on."""
        epsilon, delta = (decimal_text(value) for value in spent)
        self.log.append("spend", {"run": run_hash, "round": round_, "epsilon": epsilon, "delta": delta})

    def charged(self, run_hash: str, round_: int) -> tuple[str, str] | None:
        """Epsilon and delta that were noted for a round; None: nothing was."""
        with self.log.transaction() as log:
            entries = log.about("spend", run_hash, round_)
        return (entries[-1].fields["epsilon"], entries[-1].fields["delta"]) if entries else None

    def begins(self, request: TrainRequest) -> None:
        """Note an attempt at a round, before it costs anything."""
        self.log.append("begun", {"run": request.run_hash, "round": request.round})

    def attempts_today(self, most: int) -> int:
        """Attempts at rounds of the last 24 hours, also those that came to nothing, counted up to `most`."""
        with self.log.transaction() as log:
            entries = log.latest("begun", count=most)
        since = time.time() - _DAY_S
        return sum(entry.time > since for entry in entries)

    def kept(self, request: TrainRequest) -> Parcel | None:
        """What was made of the same round before, to be sent again; None: it is a new one.

        Raises:
            PolicyError: the round was done, with another model or so long ago that the update is gone.
        """
        with self.log.transaction() as log:
            if not log.about("round", request.run_hash, request.round):
                return None
        parcel = self._outbox.find(request.run_hash)
        asked = (request.round, request.sha256)
        if parcel is not None and (parcel.receipt.round, parcel.receipt.received) == asked:
            return parcel
        raise PolicyError(
            f"round {request.round} was done here before, with another model or long ago. A round has one receipt: a "
            "coordinator that has lost its checkpoint must propose the run anew, under another name or seed.",
            ErrorCode.ROUND_REPEATED,
        )

    def leaves(self, request: TrainRequest, reply: TrainReply, policy_hash: str) -> Parcel:
        """Sign the receipt of an update, and write both down before it leaves."""
        receipt = receipts.receipt_for(
            run=request.run_hash,
            round_=request.round,
            site=self._site,
            received=request.sha256,
            update=reply.sha256,
            size=reply.size,
            policy=policy_hash,
            time=time.time(),
            patients=reply.patients,
            spent=self.charged(request.run_hash, request.round),
        )
        parcel = Parcel(reply, receipt, receipts.sign(receipt, self._key))
        self._outbox.keep(parcel)
        self.log.append("round", receipts.entry_fields(receipt, parcel.signature))
        if COUNTED in reply.metrics:
            about = {"run": request.run_hash, "round": request.round, "patients": int(reply.metrics[COUNTED])}
            self.log.append("statistics", about)
        return parcel

    def check_scored(self, request: EvaluateRequest, policy: PolicyConfig) -> None:
        """Refuse to score a second model in a round, by what this log says: the worker's own record may be gone.

        Raises:
            UpdateError: another model was scored after the round.
        """
        if policy.evaluations == "free":
            return
        with self.log.transaction() as log:
            scored = log.about("evaluated", request.run_hash, request.round)
        if any(entry.fields["model"] != request.sha256 for entry in scored):
            raise UpdateError(
                f"another model was scored after round {request.round}; a round has one model.",
                ErrorCode.ROUND_REPEATED,
            )

    def replied(self, reply: Reply, model: str = "") -> None:
        """Note scores or a refusal before they leave; `model` is the SHA-256 of what was scored."""
        match reply:
            case EvaluateReply():
                about = {"run": reply.run_hash, "round": reply.round, "phase": reply.phase, "model": model}
                cost = {"epsilon": SCORES_EPSILON, "delta": SCORES_DELTA}
                spent = {key: decimal_text(reply.metrics[name]) for key, name in cost.items() if name in reply.metrics}
                self.log.append("evaluated", about | spent)
            case Refusal():
                known = {"run": reply.run_hash, "round": reply.round} if _HASH.fullmatch(reply.run_hash) else {}
                try:
                    self.log.append("refusal", {"code": str(reply.code), **known})
                except AuditError as error:
                    self._trouble.say(f"a refusal is not recorded: {error}")

    def closed(self, run_hash: str) -> None:
        """A run is closed. A failed or stopped one may be resumed with the round that its last update belongs to, so
        that stays for a while; once the last model was asked about, the run is done and so is the update."""
        parcel = self._outbox.find(run_hash)
        if parcel is not None and self._is_done(parcel):
            self._outbox.drop(run_hash)
        self._outbox.drop_old([one.run_hash for one in approvals.load_all(self._home) if one.open])

    def _is_done(self, parcel: Parcel) -> bool:
        with self.log.transaction() as log:
            scored = log.about("evaluated", parcel.receipt.run, parcel.receipt.round)
        return any(entry.fields["phase"] == "test" for entry in scored)
