"""What a private round costs a hospital, written down before it is spent: in the ledger, then in the audit log.

A round of a run is charged once. It has one receipt, and so one update that leaves (client/record.py): an attempt that
died before its update was kept has shown nothing to anybody, and its charge pays for the next one. So neither a worker
that dies nor a coordinator that asks again and again spends more of a patient's privacy than the run was approved for.

The audit log remembers what the ledger must hold. A ledger that lacks a charge of the audit log's was put back from an
old copy, or is gone, and nothing is trained with it: what was spent would be spent again.
"""

from collections import Counter

from client.pipe import Offer
from client.record import Record
from client.site import Site
from common.audit.entries import Entry
from common.audit.log import AuditLog
from common.config import RunConfig, sha256_of
from common.errors import ErrorCode, PrivacyError
from common.privacy.accountant import epsilon
from common.privacy.guarantee import charge_round
from common.privacy.ledger import Ledger
from common.privacy.scores import is_held_out

# Of the attempts of an agent. Others, of a site without one, have no receipts: each of their charges stands for itself.
ATTEMPT = "agent."

_ALL = 2**31  # as many as there are


def charge(site: Site, record: Record, run: RunConfig, offer: Offer, *, round_: int, attempt: str) -> None:
    """Charge a round, or let the charge of its earlier attempts pay for this one.

    Args:
        site: the hospital.
        record: by which it is known that no update of this round has left.
        run: the approved run; nothing is done for one without a [privacy] table.
        offer: whose budget it is.
        round_: from 1.
        attempt: begins with ATTEMPT.

    Raises:
        PrivacyError: the budget does not allow it, or the ledger is not the newest.
        AuditError: the log cannot be written.
    """
    if run.privacy is None:
        return
    run_hash, ledger = sha256_of(run), site.ledger
    check_ledger(ledger, record.log)
    if not ledger.carry(offer.cohort_id, run_hash, round_, attempt, of=ATTEMPT):
        charge_round(
            ledger,
            run,
            cohort=offer.cohort_id,
            cohort_size=offer.declared_size,
            round_=round_,
            attempt=attempt,
            lifetime_epsilon=site.policy.lifetime_epsilon,
        )
    if record.charged(run_hash, round_) is None:
        record.spent(run_hash, round_, _cost(ledger, offer.cohort_id, run_hash, round_))


def check_ledger(ledger: Ledger, log: AuditLog) -> None:
    """Refuse a ledger that holds less than the audit log says was spent.

    Raises:
        PrivacyError: LEDGER_OUTDATED, it lacks charges; or it cannot be read.
    """
    with log.transaction() as transaction:
        entries = transaction.latest("spend", "evaluated", count=_ALL)
    # Of scores those that were noised, and so paid for; each answer once, however often it left.
    scores = {_scored(entry) for entry in entries if entry.kind == "evaluated" and "epsilon" in entry.fields}
    spent = Counter((*_where(entry), "") for entry in entries if entry.kind == "spend") + Counter(scores)
    if not spent:
        return
    missing = spent - Counter(
        (one.run_hash, one.round, one.attempt if is_held_out(one.cohort) else "") for one in ledger.entries()
    )
    if missing:
        raise PrivacyError(
            f"the privacy ledger lacks {missing.total()} of the {spent.total()} charges in the audit log: it was "
            "restored from an old copy, or is gone. Nothing is trained with privacy, because what was spent would be "
            "spent again. Put the newest copy of state/ledger.sqlite back, or see docs/audit.md, 'When the ledger was "
            "restored or is missing'.",
            ErrorCode.LEDGER_OUTDATED,
        )


def _where(entry: Entry) -> tuple[str, int]:
    return str(entry.fields["run"]), int(entry.fields["round"])


def _scored(entry: Entry) -> tuple[str, int, str]:
    return (*_where(entry), str(entry.fields["phase"]))


def _cost(ledger: Ledger, cohort: str, run_hash: str, round_: int) -> tuple[float, float]:
    """By how much a round raises its run's epsilon, and at which delta."""
    charges = [one for one in ledger.entries() if (one.cohort, one.run_hash) == (cohort, run_hash)]
    delta = next(one.delta for one in reversed(charges) if one.round == round_)

    def spent(but: int | None) -> float:
        rows = [(one.noise_multiplier, one.sampling_rate, one.steps) for one in charges if one.round != but]
        return epsilon(rows, delta)

    return spent(None) - spent(round_), delta
