"""What a hospital's patients have spent of their privacy: one SQLite file, kept across runs and restarts.

A row is one charge: the noisy steps of one attempt at one round of one run, on one cohort (a set of patients). It is
written and synced before the steps run, so that a process killed at any moment has spent at most what is recorded. A
charge repeated with the same cohort, run, round and attempt costs nothing; a new attempt draws new noise, so it costs
again. Rows keep what was done (noise, sampling rate, steps), not an epsilon: epsilon follows from all rows together,
and rows that agree in noise and rate are added up first, so that a run is one row to the accountant.

A run's first charge reserves the rest of the run, so that of two runs that fit one at a time only one starts. Each
further charge takes its share of the reservation; `release` gives back what is left. Nothing else does: a crash keeps
it, and then the hospital has more budget than the ledger says, never less.
"""

import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import astuple, dataclass
from datetime import UTC, datetime
from pathlib import Path

from common.errors import ErrorCode, PrivacyError
from common.privacy.accountant import History, epsilon, epsilon_rdp, merged

# 2 added the reservations.
_VERSION = 2
# A charge holds the lock while it is decided, which takes the accountant seconds at worst.
_LOCK_TIMEOUT_S = 60.0

_CHARGES = """
CREATE TABLE IF NOT EXISTS charges (
    id INTEGER PRIMARY KEY,
    cohort TEXT NOT NULL,
    run_hash TEXT NOT NULL,
    round INTEGER NOT NULL,
    attempt TEXT NOT NULL,
    noise_multiplier REAL NOT NULL,
    sampling_rate REAL NOT NULL,
    steps INTEGER NOT NULL,
    delta REAL NOT NULL,
    charged_at TEXT NOT NULL,
    UNIQUE (cohort, run_hash, round, attempt)
) STRICT
"""
_RESERVATIONS = """
CREATE TABLE IF NOT EXISTS reservations (
    cohort TEXT NOT NULL,
    run_hash TEXT NOT NULL,
    noise_multiplier REAL NOT NULL,
    sampling_rate REAL NOT NULL,
    steps INTEGER NOT NULL,
    PRIMARY KEY (cohort, run_hash)
) STRICT
"""


@dataclass(frozen=True)
class Charge:
    """One row of the ledger."""

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


class Ledger:
    """The ledger in a file, made on first use. Any number of processes may use it at once."""

    def __init__(self, path: Path) -> None:
        """Remember where the ledger is; nothing is opened yet."""
        self._path = path

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
        rounds: int = 1,
    ) -> None:
        """Record the steps of a round before they run. On return the record is on disk.

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
            rounds: like this one, itself included, that the run still wants. A run with no charge yet is refused
                unless they all fit, so that it does not fail half-way. Those after this one are reserved, as far as
                they fit.
        Raises:
            PrivacyError: the budget would be passed (nothing is recorded), the attempt was charged with other values,
                or the ledger cannot be read or written.
        """
        charge = Charge(
            cohort, run_hash, round_, attempt, noise_multiplier, sampling_rate, steps, delta,
            datetime.now(UTC).isoformat(timespec="seconds"),
        )  # fmt: skip
        merged([(noise_multiplier, sampling_rate, steps)])
        with self._transaction() as database:
            recorded = _find(database, charge)
            if recorded is not None:
                _check_same(recorded, charge)
                return
            others = _reserved(database, cohort, run_hash)
            fitting = rounds
            if lifetime_epsilon is not None:
                taken = merged((*_history(database, cohort), *others))
                fitting = _rounds_that_fit(taken, charge, _delta(database, charge), lifetime_epsilon, rounds)
                wanted = 1 if _history(database, cohort, run_hash) else rounds
                if fitting < wanted:
                    raise PrivacyError(
                        _refusal(lifetime_epsilon, wanted, fitting, reserved=bool(others)), ErrorCode.BUDGET_SPENT
                    )
            _reserve(database, charge, steps * (fitting - 1))
            columns = "cohort, run_hash, round, attempt, noise_multiplier, sampling_rate, steps, delta, charged_at"
            database.execute(f"INSERT INTO charges ({columns}) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)", astuple(charge))  # noqa: S608 -- the columns are constants

    def release(self, run_hash: str) -> None:
        """Give back what a run has reserved and will not use: it has ended, or is not to go on here.

        What it was charged stays. A run that goes on after all reserves again what still fits.
        """
        with self._transaction() as database:
            database.execute("DELETE FROM reservations WHERE run_hash = ?", (run_hash,))

    def history(self, cohort: str, run_hash: str | None = None) -> History:
        """All steps charged to a cohort, or those of one run."""
        with self._transaction() as database:
            return _history(database, cohort, run_hash)

    def spent(self, cohort: str, delta: float, run_hash: str | None = None) -> float:
        """Epsilon spent by a cohort at this delta, over all runs or in one."""
        return epsilon(self.history(cohort, run_hash), delta)

    def entries(self) -> tuple[Charge, ...]:
        """All charges, oldest first."""
        with self._transaction() as database:
            return tuple(Charge(*row[1:]) for row in database.execute("SELECT * FROM charges ORDER BY id"))

    def reservations(self) -> tuple[Reservation, ...]:
        """What the runs that have started may still want."""
        with self._transaction() as database:
            return tuple(Reservation(*row) for row in database.execute("SELECT * FROM reservations ORDER BY rowid"))

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        """One connection, one transaction; rolled back if the body raises."""
        try:
            with closing(sqlite3.connect(self._path, timeout=_LOCK_TIMEOUT_S, isolation_level=None)) as database:
                # EXTRA also syncs the folder after the rollback journal is deleted; with FULL a power cut could
                # bring the journal back, and with it undo a charge.
                database.execute("PRAGMA synchronous = EXTRA")
                database.execute("BEGIN IMMEDIATE")
                try:
                    _prepare(database)
                    yield database
                    database.execute("COMMIT")
                finally:
                    if database.in_transaction:
                        database.execute("ROLLBACK")
        except sqlite3.Error as error:
            raise _unusable(self._path.name, error) from error


def _prepare(database: sqlite3.Connection) -> None:
    (version,) = database.execute("PRAGMA user_version").fetchone()
    if version < _VERSION:
        database.execute(_CHARGES)
        database.execute(_RESERVATIONS)
        database.execute(f"PRAGMA user_version = {_VERSION}")
    elif version > _VERSION:
        raise PrivacyError(
            f"the privacy ledger has format {version}, this program knows {_VERSION}. Use the version of Wardround "
            "that wrote it, or a newer one.",
            ErrorCode.INTERNAL,
        )


def _find(database: sqlite3.Connection, charge: Charge) -> Charge | None:
    key = (charge.cohort, charge.run_hash, charge.round, charge.attempt)
    where = "cohort = ? AND run_hash = ? AND round = ? AND attempt = ?"
    row = database.execute(f"SELECT * FROM charges WHERE {where}", key).fetchone()  # noqa: S608 -- a constant
    return None if row is None else Charge(*row[1:])


def _check_same(recorded: Charge, charge: Charge) -> None:
    """A repeated charge must be the same charge: otherwise less could be recorded than is done."""
    if astuple(recorded)[:-1] != astuple(charge)[:-1]:
        raise PrivacyError(
            f"round {charge.round} was charged before with other noise, rate, steps or delta under the same attempt. "
            "Start the round again under a new attempt.",
            ErrorCode.BAD_REQUEST,
        )


def _history(database: sqlite3.Connection, cohort: str, run_hash: str | None = None) -> History:
    rows = database.execute(
        "SELECT noise_multiplier, sampling_rate, steps FROM charges "
        "WHERE cohort = ?1 AND (?2 IS NULL OR run_hash = ?2)",
        (cohort, run_hash),
    )
    return merged(rows)


def _reserved(database: sqlite3.Connection, cohort: str, but: str) -> History:
    """What all runs but one have reserved."""
    rows = database.execute(
        "SELECT noise_multiplier, sampling_rate, steps FROM reservations WHERE cohort = ? AND run_hash != ?",
        (cohort, but),
    )
    return merged(rows)


def _reserve(database: sqlite3.Connection, charge: Charge, steps: int) -> None:
    """What the charge's run has reserved from now on."""
    reservation = Reservation(charge.cohort, charge.run_hash, charge.noise_multiplier, charge.sampling_rate, steps)
    if steps:
        database.execute("REPLACE INTO reservations VALUES (?, ?, ?, ?, ?)", astuple(reservation))
    else:
        database.execute("DELETE FROM reservations WHERE cohort = ? AND run_hash = ?", astuple(reservation)[:2])


def _delta(database: sqlite3.Connection, charge: Charge) -> float:
    """At which a cohort's budget is measured."""
    (least,) = database.execute("SELECT min(delta) FROM charges WHERE cohort = ?", (charge.cohort,)).fetchone()
    return charge.delta if least is None else min(charge.delta, least)


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
        f"the privacy budget does not last: {wanted} round(s) like this would pass the cohort's lifetime epsilon of "
        f"{lifetime_epsilon:g}, {fitting} would fit{beside}. Plan fewer rounds or a smaller [privacy] target-epsilon, "
        "or let the hospital raise lifetime-epsilon in policy.toml."
    )


def _unusable(name: str, error: sqlite3.Error) -> PrivacyError:
    full = getattr(error, "sqlite_errorcode", None) == sqlite3.SQLITE_FULL
    return PrivacyError(
        f"the privacy ledger {name} cannot be used ({error}); without it nothing is trained with privacy. Free disk "
        "space, give this user the right to write the file and its folder, or restore the file from a backup. Do not "
        "delete it: what was spent would be forgotten.",
        ErrorCode.DISK_FULL if full else ErrorCode.INTERNAL,
    )
