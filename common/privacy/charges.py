"""What the rows of a ledger say: which attempts are charged, carried and taken, what is reserved, what all comes to.

A row is a kind and its values. Rows are only added; whatever else is asked follows from all of them, in their order.
See common/privacy/ledger.py for what they promise.
"""

import json
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any, TypeAlias

from common.crypto.record_box import RecordBox
from common.errors import ErrorCode, PrivacyError
from common.privacy.accountant import History, epsilon, merged
from common.privacy.journal import Rows

# Rows are filled up to a multiple of this, so that their lengths do not tell what they are.
_ROW_BYTES = 512

Key: TypeAlias = tuple[str, str, int, str]  # cohort, run hash, round, attempt


@dataclass(frozen=True)
class Charge:
    """The steps of one attempt at one round."""

    cohort: str
    run_hash: str
    round: int
    attempt: str
    noise_multiplier: float
    sampling_rate: float
    steps: int
    delta: float
    charged_at: str  # UTC, ISO 8601


@dataclass(frozen=True)
class Reservation:
    """Steps that a run may still want, kept free of other runs."""

    cohort: str
    run_hash: str
    noise_multiplier: float
    sampling_rate: float
    steps: int


@dataclass(frozen=True)
class Charged:
    """All steps of a run at a cohort, without a round that is charged and with it; and at which delta they count."""

    before: History
    after: History
    delta: float

    @property
    def epsilon(self) -> float:
        """What the run has spent."""
        return epsilon(self.after, self.delta)

    @property
    def cost(self) -> float:
        """By how much the round raises that."""
        return self.epsilon - epsilon(self.before, self.delta)


@dataclass
class Book:
    """What the rows of a ledger add up to."""

    rows: Rows
    safe: RecordBox
    charges: dict[Key, Charge] = field(default_factory=dict)  # oldest first
    begun: set[Key] = field(default_factory=set)
    reservations: dict[tuple[str, str], Reservation] = field(default_factory=dict)  # by cohort and run hash

    def add(self, kind: str, key: tuple[str | int, ...], *values: str | float) -> None:
        """Write a row; there is only one of a kind and key."""
        text = json.dumps([kind, *values]).encode()
        self.rows.append(self.safe.name(kind, *key), text.ljust(-(-len(text) // _ROW_BYTES) * _ROW_BYTES))
        self.enter(kind, *values)

    def begin(self, key: Key) -> None:
        """Take a charged attempt; see `Ledger.begin`."""
        if key not in self.charges:
            raise PrivacyError(
                f"round {key[2]} has no charge under this attempt, so it must not be trained. Charge it first.",
                ErrorCode.BAD_REQUEST,
            )
        if key in self.begun:
            raise PrivacyError(
                f"the charge of round {key[2]} was used up under this attempt: it pays for one training only. "
                "Start the round again under a new attempt.",
                ErrorCode.BAD_REQUEST,
            )
        self.add("begin", key, *key, now())

    def carry_last(self, new: Key, of: str) -> bool:
        """Let the last charge of the round pay for this attempt, if it has one of theirs; see `Ledger.carry`."""
        charged = [key for key in self.charges if key[:3] == new[:3] and key[3].startswith(of)]
        if charged and (last := charged[-1]) != new:
            self.add("carry", (*last, new[3]), *last, new[3], now())
        return bool(charged)

    def charged(self, charge: Charge) -> Charged:
        """What the charge's run has been charged, without its round and with it."""
        rows = [one for one in self.charges.values() if (one.cohort, one.run_hash) == (charge.cohort, charge.run_hash)]
        delta = next(one.delta for one in reversed(rows) if one.round == charge.round)
        return Charged(_steps(one for one in rows if one.round != charge.round), _steps(rows), delta)

    def enter(self, kind: str, *values: Any) -> None:
        """Take in a row that stands in the file, as `add` wrote it."""
        if kind == "charge":
            reserved, charge = values[0], Charge(*values[1:])
            self.charges[key_of(charge)] = charge
            self._reserve(charge, reserved)
        elif kind == "begin":
            cohort, run_hash, round_, attempt, _ = values
            self.begun.add((cohort, run_hash, round_, attempt))
        elif kind == "carry":
            cohort, run_hash, round_, before, attempt, _ = values
            self.carry((cohort, run_hash, round_, before), (cohort, run_hash, round_, attempt))
        else:
            for place in [place for place in self.reservations if place[1] == values[0]]:
                del self.reservations[place]

    def carry(self, before: Key, after: Key) -> None:
        """The charge of one attempt is another's from now on."""
        self.charges = {
            after if key == before else key: replace(one, attempt=after[-1]) if key == before else one
            for key, one in self.charges.items()
        }

    def history(self, cohort: str, run_hash: str | None = None) -> History:
        """Steps charged to a cohort, or those of one run."""
        return _steps(one for one in self.charges.values() if one.cohort == cohort and run_hash in (None, one.run_hash))

    def reserved(self, cohort: str, but: str) -> History:
        """What all runs but one have reserved."""
        return _steps(one for one in self.reservations.values() if one.cohort == cohort and one.run_hash != but)

    def delta(self, cohort: str, of_run: float) -> float:
        """At which a cohort's budget is measured."""
        return min((of_run, *(one.delta for one in self.charges.values() if one.cohort == cohort)))

    def _reserve(self, charge: Charge, steps: int) -> None:
        """What the charge's run has reserved from now on."""
        place = (charge.cohort, charge.run_hash)
        self.reservations.pop(place, None)
        if steps:
            self.reservations[place] = Reservation(*place, charge.noise_multiplier, charge.sampling_rate, steps)


def key_of(charge: Charge) -> Key:
    """What names its row."""
    return (charge.cohort, charge.run_hash, charge.round, charge.attempt)


def now() -> str:
    """UTC, ISO 8601, as the rows have it."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def _steps(some: Iterable[Charge | Reservation]) -> History:
    return merged((one.noise_multiplier, one.sampling_rate, one.steps) for one in some)


__all__ = ["Book", "Charge", "Charged", "Key", "Reservation", "key_of", "now"]
