"""What a reply says that its round has cost, held against what the approved run costs at a site of its size.

A site states steps, epsilon and delta with each private update (client/train/answer.py). They stand in the guarantee
that is printed with the model, and the delta says how large the noise of the site's update may be
(`server.federation.bounds`). All three follow from the run, the declared number of patients N and the rounds that the
site has made, so they must fit together:

- delta is the run's own, or 1 / (10 N) of a whole N;
- steps are the run's local steps;
- epsilon is at least that of the rounds of this delta which the coordinator got from the site, this one included, and
  at most the run's target. It may lie above what those rounds cost: a round that was trained and did not arrive is
  spent too. Rounds of another delta, from before a site declared another number, do not enter the lower bound.
"""

import math
from collections.abc import Mapping, Sequence

from common.config import PrivacyConfig, RunConfig
from common.errors import ErrorCode, PrivacyError, UpdateError
from common.privacy.accountant import epsilon
from common.privacy.guarantee import Plan, plan
from common.text import counted
from server.federation.events import Event

# More patients than the largest hospital sees with one disease.
MAX_PATIENTS = 1_000_000
# The exit gate of a site rounds to six digits.
_RELATIVE = 1e-5
# Twice what the accountant resolves: two versions of its libraries may differ.
_ACCOUNTANT = 0.02


def check_price(metrics: Mapping[str, float], run: RunConfig, earlier: Sequence[float] = ()) -> None:
    """Refuse a private update whose steps, epsilon and delta do not fit the run and each other.

    Args:
        metrics: of the reply.
        run: the run both sides agreed on, with a [privacy] table.
        earlier: the deltas that the site stated with its updates of earlier rounds.

    Raises:
        UpdateError: BAD_REQUEST, one is missing or does not fit.
    """
    assert run.privacy is not None  # noqa: S101 - for the type checker
    delta, spent = metrics.get("delta", 0.0), metrics.get("epsilon", -1.0)
    # Nothing can be computed with the smallest numbers that there are, and no hospital's cohort makes them.
    smallest = min(run.privacy.delta or 1.0, 1 / (10 * MAX_PATIENTS)) / 2
    if not (spent >= 0 and smallest <= delta < 1):
        raise _refusal("does not state the epsilon and delta it has spent")
    if metrics.get("steps") != run.training.local_steps:
        raise _refusal(f"states {metrics.get('steps', 0):g} steps; a round of this run has {run.training.local_steps}")
    cost = _plan(run, declared_patients(run.privacy, delta))
    if not math.isclose(delta, cost.delta, rel_tol=_RELATIVE):
        raise _refusal(
            f"states a delta of {delta:g}, and no number of patients makes it; {cost.delta:g} is the nearest"
        )
    rounds = 1 + sum(math.isclose(delta, one, rel_tol=_RELATIVE) for one in earlier)
    least = epsilon([(cost.noise_multiplier, cost.sampling_rate, rounds * cost.steps_per_round)], cost.delta)
    most = run.privacy.target_epsilon
    if not least * (1 - _RELATIVE) - _ACCOUNTANT <= spent <= most * (1 + _RELATIVE) + _ACCOUNTANT:
        raise _refusal(
            f"states an epsilon of {spent:g}; after {counted(rounds, 'round')} of a delta of {cost.delta:g} it is "
            f"{least:.3g} at least, and {most:g} at most"
        )


def check_steps(metrics: Mapping[str, float], run: RunConfig) -> int:
    """The steps that a site made in a round.

    Raises:
        UpdateError: BAD_REQUEST, sites stop by time and this one states none, or no number that the run allows.
    """
    most = run.training.local_steps
    if run.training.local_seconds is None:
        return most
    stated = metrics.get("steps", 0.0)
    if stated != int(stated) or not 1 <= stated <= most * (1 + _RELATIVE):
        raise UpdateError(
            f"the reply states {stated:g} steps; a round of this run, which sites end by time, has from 1 to {most}. "
            "Update the site.",
            ErrorCode.BAD_REQUEST,
        )
    return min(int(stated), most)


def declared_patients(privacy: PrivacyConfig, delta: float | None) -> int:
    """The site's declared cohort: delta is 1 / (10 N) unless the run fixes it; then it may be any, so the smallest."""
    if privacy.delta is not None or delta is None:
        return 1
    return max(1, round(1 / (10 * delta)))


def deltas_of(events: Sequence[Event]) -> dict[str, list[float]]:
    """What each site stated with the private updates that came from it so far."""
    found: dict[str, list[float]] = {}
    for event in events:
        if event["event"] == "train" and "delta" in event:
            found.setdefault(event["site"], []).append(event["delta"])
    return found


def _plan(run: RunConfig, patients: int) -> Plan:
    try:
        return plan(run, patients)
    except PrivacyError as error:
        raise _refusal(f"states a delta with which no site can train in this run: {error}") from error


def _refusal(what: str) -> UpdateError:
    return UpdateError(f"the reply {what}. The site's ledger and the run do not fit; update it.", ErrorCode.BAD_REQUEST)


__all__ = ["MAX_PATIENTS", "check_price", "check_steps", "declared_patients", "deltas_of"]
