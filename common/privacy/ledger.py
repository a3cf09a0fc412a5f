"""What a hospital's patients have spent of their privacy: one sealed file, kept across runs and restarts.

A row is one charge: the noisy steps of one attempt at one round of one run, on one cohort (a set of patients). It is
written and synced before the steps run, so that a process killed at any moment has spent at most what is recorded. A
charge repeated with the same cohort, run, round and attempt costs nothing; a new attempt draws new noise, so it costs
again. Whoever trains takes the attempt with `begin` just before the first step, and nobody takes it twice: one charge
pays for one training whose result leaves. Whoever knows that nothing of an attempt left or ever can, because its
process is dead and its result was not kept, may `carry` its charge to a new attempt. Rows keep what was done (noise,
sampling rate, steps), not an epsilon: epsilon follows from all rows together, and rows that agree in noise and rate
are added up first, so that a run is one row to the accountant.

A run's first charge reserves the rest of the run, so that of two runs that fit one at a time only one starts. Each
further charge takes its share of the reservation; `release` gives back what is left. Nothing else does: a crash keeps
it, and then the hospital has more budget than the ledger says, never less. And a run spends no more than its own limit,
whatever is asked of it: rounds done twice take from those that are left.

All these are rows of a journal (common/privacy/journal.py), which only grows and which only the site can read; what is
reserved follows from them.
"""

import json
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import astuple, replace
from pathlib import Path

from common.crypto.record_box import RecordBox
from common.errors import ErrorCode, PrivacyError
from common.privacy.accountant import History, epsilon, epsilon_rdp, merged
from common.privacy.charges import Book, Charge, Charged, Reservation, key_of, now
from common.privacy.journal import Journal
from common.text import counted


class Ledger:
    """The ledger in a file, made on first use. Any number of processes may use it at once.

    Every method raises a PrivacyError where the file cannot be read or written, or is not as this site left it.
    """

    def __init__(self, path: Path, key: bytes) -> None:
        """Remember where the ledger is; nothing is opened yet.

        Args:
            path: of the file; its folder is there.
            key: the site key.
        """
        self._safe = RecordBox(key, "ledger")
        self._journal = Journal(path, self._safe)

    def charge(
        self,
        cohort: str,
        run_hash: str,
        round_: int,
        attempt: str,
        *,
        noise_multiplier: float,
        sampling_rate: float,
        steps: int,
        delta: float,
        lifetime_epsilon: float | None,
        run_epsilon: float | None = None,
        rounds: int = 1,
        carried: str | None = None,
        begin: bool = False,
        check: Callable[[Iterable[Charge]], None] = lambda _: None,
    ) -> Charged:
        """Record the steps of a round before they run. On return the record is on disk; the file is read once.

        Args:
            cohort: the patients' cohort.
            run_hash: SHA-256 of the run, hex.
            round_: from 1.
            attempt: names this execution of the round; a repeated charge is recognised by it.
            noise_multiplier: standard deviation of the noise over the clipping norm.
            sampling_rate: probability that a patient takes part in a step.
            steps: of this round.
            delta: of the run. The lifetime budget is measured at the smallest that the cohort was charged with, so
                that a run that fits beside others now still fits at its end.
            lifetime_epsilon: the cohort's budget over all runs; None for no limit.
            run_epsilon: the most that this run may spend of the cohort, at its delta; None for no limit of its own.
            rounds: like this one, itself included, that the run still wants. A run with no charge yet is refused
                unless they all fit, so that it does not fail half-way. Those after this one are reserved, as far as
                they fit.
            carried: how the names of the attempts begin whose charge pays for this one too; see `carry`, also for who
                may do so. None: no other attempt's.
            begin: take the attempt at once; see `begin`.
            check: is shown what is charged before anything else is done, and raises where that cannot be.

        Returns:
            What the run has been charged, without this round and with it.

        Raises:
            PrivacyError: the budget would be passed (nothing is recorded), or the attempt was charged with other
                values.
        """
        charge = Charge(cohort, run_hash, round_, attempt, noise_multiplier, sampling_rate, steps, delta, now())
        merged([(noise_multiplier, sampling_rate, steps)])
        with self._book() as book:
            check(book.charges.values())
            if not (carried is not None and book.carry_last(key_of(charge), carried)):
                self._charge(book, charge, lifetime_epsilon, run_epsilon, rounds)
            if begin:
                book.begin(key_of(charge))
            return book.charged(charge)

    def _charge(
        self, book: Book, charge: Charge, lifetime_epsilon: float | None, run_epsilon: float | None, rounds: int
    ) -> None:
        """Add a charge that is not there yet, if the budgets allow it."""
        cohort, run_hash = charge.cohort, charge.run_hash
        if (recorded := book.charges.get(key_of(charge))) is not None:
            _check_same(recorded, charge)
            return
        if run_epsilon is not None:
            _check_run(book.history(cohort, run_hash), charge, run_epsilon)
        others = book.reserved(cohort, but=run_hash)
        fitting = rounds
        if lifetime_epsilon is not None:
            taken = merged((*book.history(cohort), *others))
            fitting = _rounds_that_fit(taken, charge, book.delta(cohort, charge.delta), lifetime_epsilon, rounds)
            wanted = 1 if book.history(cohort, run_hash) else rounds
            if fitting < wanted:
                raise PrivacyError(
                    _refusal(lifetime_epsilon, wanted, fitting, reserved=bool(others)), ErrorCode.BUDGET_SPENT
                )
        book.add("charge", key_of(charge), charge.steps * (fitting - 1), *astuple(charge))

    def fitting(self, charge: Charge, lifetime_epsilon: float, rounds: int, *, beside: bool = True) -> int:
        """How many rounds like a charge `charge` would find room for, of at most so many; nothing is charged.

        Args:
            charge: of one of them.
            lifetime_epsilon: the cohort's budget over all runs.
            rounds: how many are asked for.
            beside: with what other runs have reserved.
        """
        with self._book() as book:
            others = book.reserved(charge.cohort, but=charge.run_hash) if beside else ()
            taken = merged((*book.history(charge.cohort), *others))
            delta = book.delta(charge.cohort, charge.delta)
        return _rounds_that_fit(taken, charge, delta, lifetime_epsilon, rounds)

    def begin(self, cohort: str, run_hash: str, round_: int, attempt: str) -> None:
        """Take a charged attempt for training, just before its first noisy step. On return the taking is on disk.

        Of all who ask for the same attempt, one is let through, once; whoever is killed after this needs a new attempt.

        Raises:
            PrivacyError: BAD_REQUEST, the attempt was not charged, or was taken before.
        """
        with self._book() as book:
            book.begin((cohort, run_hash, round_, attempt))

    def carry(self, cohort: str, run_hash: str, round_: int, attempt: str, *, of: str = "") -> bool:
        """Let a round's charge pay for a new attempt; nobody can take it under the one before any more.

        Only for whoever knows that nothing of the attempts before has left or can leave: each charge is for one noisy
        result that others see, and results that nobody ever sees cost nothing.

        Args:
            cohort: the patients' cohort.
            run_hash: SHA-256 of the run, hex.
            round_: from 1.
            attempt: that may now be taken with `begin`.
            of: how the names of the attempts begin whose charge may be carried.

        Returns:
            Whether the round had such a charge. Without one nothing is done.
        """
        with self._book() as book:
            return book.carry_last((cohort, run_hash, round_, attempt), of)

    def release(self, run_hash: str) -> None:
        """Give back what a run has reserved and will not use: it has ended, or is not to go on here.

        What it was charged stays. A run that goes on after all reserves again what still fits.
        """
        with self._book() as book:
            if any(one.run_hash == run_hash for one in book.reservations.values()):
                book.add("release", (run_hash, len(book.rows.contents)), run_hash, now())

    def history(self, cohort: str, run_hash: str | None = None) -> History:
        """All steps charged to a cohort, or those of one run."""
        with self._book() as book:
            return book.history(cohort, run_hash)

    def reserved(self, cohort: str, but: str) -> History:
        """The steps that all runs but one may still want from a cohort."""
        with self._book() as book:
            return book.reserved(cohort, but)

    def delta(self, cohort: str, of_run: float) -> float:
        """At which a cohort's budget is measured when a run of this delta is charged: the smallest of all."""
        with self._book() as book:
            return book.delta(cohort, of_run)

    def spent(self, cohort: str, delta: float, run_hash: str | None = None) -> float:
        """Epsilon spent by a cohort at this delta, over all runs or in one."""
        return epsilon(self.history(cohort, run_hash), delta)

    def entries(self) -> tuple[Charge, ...]:
        """All charges, oldest first."""
        with self._book() as book:
            return tuple(book.charges.values())

    def reservations(self) -> tuple[Reservation, ...]:
        """What the runs that have started may still want."""
        with self._book() as book:
            return tuple(book.reservations.values())

    @contextmanager
    def _book(self) -> Iterator[Book]:
        """What the rows say, while the file is locked."""
        with self._journal.transaction() as rows:
            book = Book(rows, self._safe)
            for content in rows.contents:
                book.enter(*json.loads(content))
            yield book


def _check_same(recorded: Charge, charge: Charge) -> None:
    """A repeated charge must be the same charge: otherwise less could be recorded than is done."""
    if replace(recorded, charged_at=charge.charged_at) != charge:
        raise PrivacyError(
            f"round {charge.round} was charged before with other noise, rate, steps or delta under the same attempt. "
            "Start the round again under a new attempt.",
            ErrorCode.BAD_REQUEST,
        )


def _check_run(history: History, charge: Charge, run_epsilon: float) -> None:
    """The run stays within what it was approved for."""
    after = (*history, (charge.noise_multiplier, charge.sampling_rate, charge.steps))
    # The looser bound is a thousand times cheaper, and early in a run it is enough.
    if not any(bound(after, charge.delta) <= run_epsilon for bound in (epsilon_rdp, epsilon)):
        raise PrivacyError(
            f"round {charge.round} would take the run beyond its own epsilon of {run_epsilon:g}: it has been charged "
            f"{sum(steps for _, _, steps in history)} steps already. Rounds were asked for more often than was "
            "approved; a coordinator that needs more must propose another run.",
            ErrorCode.BUDGET_SPENT,
        )


def _rounds_that_fit(history: History, charge: Charge, delta: float, lifetime_epsilon: float, wanted: int) -> int:
    """How many rounds like this one the cohort can still afford, at most `wanted`."""

    def fit(rounds: int) -> bool:
        after = (*history, (charge.noise_multiplier, charge.sampling_rate, rounds * charge.steps))
        # The looser bound is a thousand times cheaper, and far from the limit it is enough.
        return any(bound(after, delta) <= lifetime_epsilon for bound in (epsilon_rdp, epsilon))

    if fit(wanted):
        return wanted
    low, high = 0, wanted  # low fits or is 0, high does not
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fit(middle) else (low, middle)
    return low


def _refusal(lifetime_epsilon: float, wanted: int, fitting: int, *, reserved: bool) -> str:
    beside = " beside what other runs have reserved" if reserved else ""
    return (
        f"the privacy budget does not last: {counted(wanted, 'round')} like this would pass the cohort's lifetime "
        f"epsilon of {lifetime_epsilon:g}, {fitting} would fit{beside}. Plan fewer rounds or a smaller "
        "[privacy] target-epsilon, or let the hospital raise lifetime-epsilon in policy.toml."
    )
