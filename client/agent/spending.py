"""What a private round costs a hospital, written down before it is spent: in the ledger, then in the audit log.

A round of a run is charged once. It has one receipt, and so one update that leaves (client/trail/audit_trail.py): an
attempt that died before its update was kept has shown nothing to anybody, and its charge pays for the next one. So
neither a worker that dies nor a coordinator that asks again and again spends more of a patient's privacy than the run
was approved for.

The audit log remembers what the ledger must hold. A ledger that lacks a charge of the audit log's was put back from an
old copy, or is gone, and nothing is trained with it: what was spent would be spent again.
"""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TypeAlias

from client.home.offer import Offer
from client.rules import purged
from client.site import Site
from client.trail.audit_trail import AuditTrail, has_joined, open_log
from common.audit.log import AuditLog
from common.config import RunConfig
from common.config.rundocument import RunDocument
from common.errors import ConfigError, ErrorCode, PrivacyError
from common.privacy.accountant import Row, noise_multiplier_for
from common.privacy.charges import Charge
from common.privacy.guarantee import charge_round, plan
from common.privacy.ledger import Ledger
from common.privacy.scores import held_out_cohort, is_held_out

# Of the attempts of an agent. Others, of a site without one, have no receipts: each of their charges stands for itself.
ATTEMPT = "agent."

_ALL = 2**31  # as many as there are
_ROUNDED_UP = 1.00001  # the gate rounds to six digits

_Place: TypeAlias = tuple[str, int, str]  # run hash, round, and of scores the phase


@dataclass(frozen=True)
class _Spent:
    """What the audit log says of a charge."""

    epsilon: float  # of a round; of scores that of all the run's answers up to this one
    delta: float
    answers: int  # so many; 1 for a round
    times: int  # it was charged so often


def charge(site: Site, trail: AuditTrail, run: RunDocument, offer: Offer, *, round_: int, attempt: str) -> None:
    """Charge a round, or let the charge of its earlier attempts pay for this one.

    Args:
        site: the hospital.
        trail: by which it is known that no update of this round has left.
        run: the approved run; nothing is done for one without a [privacy] table.
        offer: whose budget it is.
        round_: from 1.
        attempt: begins with ATTEMPT.

    Raises:
        PrivacyError: the budget does not allow it, or the ledger is not the newest.
        AuditError: the log cannot be written.
    """
    if run.config.privacy is None:
        return
    run_hash, noted = run.hash, _noted(trail.log)
    charged = charge_round(
        site.ledger,
        run,
        cohort=offer.cohort_id,
        cohort_size=offer.declared_size,
        round_=round_,
        attempt=attempt,
        lifetime_epsilon=site.policy.lifetime_epsilon,
        carried=ATTEMPT,
        check=lambda charges: _check(noted, charges),
    )
    if trail.charged(run_hash, round_) is None:
        trail.spent(run_hash, round_, (charged.cost, charged.delta))


def check_home(site: Site) -> None:
    """`check_ledger`, for a command; a folder that has not joined a federation has no log to compare with."""
    if has_joined(site.home):
        check_ledger(site.ledger, open_log(site.home))


def restore(site: Site) -> int:
    """Enter again what the audit log says was spent and the ledger lacks.

    Args:
        site: one that has joined a federation; whose charges are all its own cohort's.

    Returns:
        How many charges were entered; never too few, and none twice.

    Raises:
        PrivacyError: the document of a run that was trained is gone, so its noise is not known.
    """
    from client.data.deidentify.pseudonym import cohort_id  # noqa: PLC0415 - the agent imports nothing of the images' readers

    ledger, cohort = site.ledger, cohort_id(site.key)
    last = _noted(open_log(site.home))
    missing = _missing(last, ledger.entries())
    for (run_hash, round_, phase), count in missing.items():
        spent = last[run_hash, round_, phase]
        if phase:
            # The epsilon noted is that of all the run's answers up to this one, and they have the same noise.
            noise = noise_multiplier_for(spent.epsilon * _ROUNDED_UP, spent.delta, 1.0, spent.answers)
            place = (held_out_cohort(cohort), run_hash, round_, phase)
            _enter(ledger, place, (noise, 1.0, 1), spent.delta)
            ledger.begin(*place)  # it has been answered
            continue
        planned = plan(_document(site, run_hash), round(1 / (10 * spent.delta)))  # the size that the delta was made of
        row = (planned.noise_multiplier, planned.sampling_rate, planned.steps_per_round)
        for number in range(count):
            _enter(ledger, (cohort, run_hash, round_, f"restored.{number}"), row, planned.delta)
    return missing.total()


def check_ledger(ledger: Ledger, log: AuditLog) -> None:
    """Refuse a ledger that holds less than the audit log says was spent.

    Raises:
        PrivacyError: LEDGER_OUTDATED, it lacks charges; or it cannot be read.
    """
    _check(_noted(log), ledger.entries())


def _check(noted: Mapping[_Place, _Spent], charges: Iterable[Charge]) -> None:
    if missing := _missing(noted, charges):
        raise PrivacyError(
            f"the privacy ledger lacks {missing.total()} of the {len(noted)} charges in the audit log: it was restored "
            "from an old copy, or is gone. Nothing is trained with privacy, because what was spent would be "
            "spent again. Put the newest copy of state/ledger.sqlite back, or enter what is missing with "
            "`wardround-client ledger --restore`. See docs/audit.md, 'When the ledger was restored or is missing'.",
            ErrorCode.LEDGER_OUTDATED,
        )


def _noted(log: AuditLog) -> dict[_Place, _Spent]:
    """What the audit log says of each charge."""
    with log.transaction() as transaction:
        entries = transaction.latest("spend", "evaluated", count=_ALL)
    noted: dict[_Place, _Spent] = {}
    for entry in reversed(entries):
        if "epsilon" not in entry.fields:
            continue  # scores that were not noised, and so not paid for
        run, phase = str(entry.fields["run"]), str(entry.fields.get("phase", ""))
        place = (run, int(entry.fields["round"]), phase)
        before = noted.get(place)
        if phase and before:
            continue  # an answer is one charge, however often it left
        answers = 1 + sum(one[0] == run and one[2] != "" for one in noted)
        times = 1 + (before.times if before else 0)
        noted[place] = _Spent(float(entry.fields["epsilon"]), float(entry.fields["delta"]), answers, times)
    return noted


def _missing(noted: Mapping[_Place, _Spent], charges: Iterable[Charge]) -> Counter[_Place]:
    """The charges that the audit log has and the ledger has not, how often."""
    held = Counter((one.run_hash, one.round, one.attempt if is_held_out(one.cohort) else "") for one in charges)
    return Counter({place: one.times for place, one in noted.items()}) - held


def _enter(ledger: Ledger, place: tuple[str, str, int, str], row: Row, delta: float) -> None:
    """What was spent is entered, whatever the budget says."""
    noise_multiplier, sampling_rate, steps = row
    ledger.charge(
        *place,
        noise_multiplier=noise_multiplier,
        sampling_rate=sampling_rate,
        steps=steps,
        delta=delta,
        lifetime_epsilon=None,
    )


def _document(site: Site, run_hash: str) -> RunConfig:
    try:
        return purged.document_of(site.home, run_hash).config
    except ConfigError as error:
        raise PrivacyError(
            f"the document of run {run_hash[:12]}, which was charged, is not among the proposals here: what it spent "
            "is not known. Start the agent while the coordinator still lists that run, which brings the document back; "
            "or restore proposals/ from a backup.",
            ErrorCode.LEDGER_OUTDATED,
        ) from error
