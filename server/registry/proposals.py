"""Proposed runs and what the hospitals answered.

A run goes proposed (waiting for the hospitals) -> running -> completed, failed or stopped; `resume` opens a failed or
stopped one again. `revision` grows with each change. One that is open again, without an act that counts
(server/registry/acts.py), is told as stopped.
"""

import datetime
import json
import sqlite3
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from common.config import RunConfig
from common.config.rundocument import RunDocument, from_bundle
from common.errors import ConfigError, FederationError
from common.identity import certificates
from common.identity.operators import Act, Endorsement, subject_of
from common.text import meant
from common.wire.endings import Ending
from server.registry.acts import Acts, act_from_text, act_to_text
from server.registry.store import Store

OPEN_STATES = ("proposed", "running")

SCHEMA = """
CREATE TABLE IF NOT EXISTS proposals (
    run_hash TEXT PRIMARY KEY,
    name TEXT NOT NULL,
    bundle BLOB NOT NULL,
    endorsements TEXT NOT NULL,
    state TEXT NOT NULL,
    reason TEXT NOT NULL DEFAULT '',
    run_id TEXT,
    starts INTEGER NOT NULL DEFAULT 0,
    opened TEXT NOT NULL,
    revision INTEGER NOT NULL,
    act TEXT
);
CREATE TABLE IF NOT EXISTS removals (
    certificate BLOB PRIMARY KEY,
    act TEXT NOT NULL
);
CREATE TABLE IF NOT EXISTS answers (
    run_hash TEXT NOT NULL,
    site TEXT NOT NULL,
    approved INTEGER NOT NULL,
    PRIMARY KEY (run_hash, site)
);
CREATE TABLE IF NOT EXISTS endings (
    run_hash TEXT PRIMARY KEY,
    code TEXT NOT NULL,
    rounds INTEGER
);
CREATE TABLE IF NOT EXISTS policy_refusals (
    run_hash TEXT NOT NULL,
    site TEXT NOT NULL,
    code TEXT NOT NULL,
    PRIMARY KEY (run_hash, site)
);
"""


@dataclass(frozen=True)
class Proposal:
    """One run as the coordinator knows it."""

    run_hash: str
    name: str
    bundle: bytes
    endorsements: tuple[Endorsement, ...]
    state: str
    reason: str
    run_id: int | None  # Flower's, while running
    starts: int  # of its ServerApp, without success
    opened: datetime.datetime
    approved: frozenset[str]
    denied: frozenset[str]
    refused: Mapping[str, str]  # site -> code: its policy does not allow the run as it is written
    resumption: Act | None  # by which it is open again after it had ended
    ending: Ending | None  # None: it is open

    @property
    def open(self) -> bool:
        """Whether sites may still take part."""
        return self.state in OPEN_STATES

    @property
    def refusals(self) -> list[str]:
        """Who does not take part, in words: by its policy, or because somebody there said no."""
        policies = [f"refused by the policy of {site} ({code})" for site, code in sorted(self.refused.items())]
        people = sorted(self.denied - self.refused.keys())
        return [*policies, *([f"denied by {', '.join(people)}"] if people else [])]

    @property
    def document(self) -> RunDocument:
        """The run as it was issued; a process reads a bundle once."""
        return from_bundle(self.bundle)

    @property
    def run(self) -> RunConfig:
        """Its settings."""
        return self.document.config


class Proposals(Store):
    """The tables of proposals and answers."""

    def revision(self) -> int:
        """Grows with every change of a proposal, and with every operator who is removed."""
        return self._remembered("revision", _read_revision)

    def proposals(self) -> list[Proposal]:
        """All runs, the latest first."""
        with self._reading() as database:
            rows = database.execute("SELECT * FROM proposals ORDER BY opened DESC").fetchall()
            return [_proposal(database, row, self._acts) for row in rows]

    def unfinished(self) -> list[Proposal]:
        """Runs that are open, or closed while their ServerApp may still be there."""
        return list(self._remembered("unfinished", _read_unfinished))

    def proposal(self, run: str) -> Proposal:
        """A run by its hash, the beginning of its hash, or its name (the latest of that name).

        Raises:
            ConfigError: none or several match.
        """
        with self._reading() as database:
            rows = database.execute(
                "SELECT * FROM proposals WHERE substr(run_hash, 1, ?) = ? OR name = ? ORDER BY opened DESC",
                (len(run), run, run),
            ).fetchall()
            if not rows or not run:
                names = [row["name"] for row in database.execute("SELECT name FROM proposals").fetchall()]
                raise ConfigError(
                    f"no run is called {run!r}.{meant(run, names)} See `wardround-server runs` for names and hashes."
                )
            if len(rows) > 1 and rows[0]["name"] != run:
                raise ConfigError(f"several runs begin with {run!r}. Give more digits of the hash.")
            return _proposal(database, rows[0], self._acts)

    def must_be_new(self, run_hash: str) -> None:
        """Refuse a run that was proposed before.

        Raises:
            ConfigError: it was.
        """
        with self._reading() as database:
            _refuse_known(database, run_hash)

    def propose(self, run: RunDocument, endorsements: Sequence[Endorsement]) -> Proposal:
        """Publish a run to the sites.

        Raises:
            ConfigError: the same document was proposed before.
        """
        with self._writing() as database:
            _refuse_known(database, run.hash)
            database.execute(
                "INSERT INTO proposals (run_hash, name, bundle, endorsements, state, opened, revision) "
                "VALUES (?, ?, ?, ?, 'proposed', ?, ?)",
                (
                    run.hash,
                    run.name,
                    run.bundle,
                    _endorsements_to_text(endorsements),
                    certificates.now().isoformat(),
                    _next_revision(database),
                ),
            )
        return self.proposal(run.hash)

    def answer(self, run_hash: str, site: str, *, approved: bool, code: str = "") -> bool:
        """Note a hospital's decision; whether it is a new one.

        Args:
            run_hash: the run's.
            site: the hospital.
            approved: whether it takes part.
            code: why its policy refuses the run; with it, nobody there needs to have answered.

        Raises:
            FederationError: the run is not open.
        """
        with self._writing() as database:
            _enforce_open(database, run_hash)
            place = (run_hash, site)
            before = database.execute("SELECT approved FROM answers WHERE run_hash = ? AND site = ?", place).fetchone()
            why = database.execute("SELECT code FROM policy_refusals WHERE run_hash = ? AND site = ?", place).fetchone()
            database.execute("INSERT OR REPLACE INTO answers VALUES (?, ?, ?)", (*place, approved))
            database.execute("DELETE FROM policy_refusals WHERE run_hash = ? AND site = ?", place)
            if code:
                database.execute("INSERT INTO policy_refusals VALUES (?, ?, ?)", (*place, code))
        return before is None or (bool(before[0]), "" if why is None else str(why[0])) != (approved, code)

    def withdraw_refusal(self, run_hash: str, site: str) -> bool:
        """Forget that a hospital's policy refused a run, for which nobody there has answered; False if none did.

        Raises:
            FederationError: the run is not open.
        """
        with self._writing() as database:
            _enforce_open(database, run_hash)
            place = (run_hash, site)
            done = database.execute("DELETE FROM policy_refusals WHERE run_hash = ? AND site = ?", place).rowcount
            if done:
                database.execute("DELETE FROM answers WHERE run_hash = ? AND site = ?", place)
        return bool(done)

    def removals(self) -> tuple[tuple[bytes, Act], ...]:
        """Operators who were removed: the certificate, and the act by which."""
        return self._remembered("removals", _read_removals)

    def reopen(self, run_hash: str, act: Act | None = None, endorsement: Endorsement | None = None) -> None:
        """Propose a failed or stopped run again; approvals still count, and who said no is asked anew.

        Args:
            run_hash: the run's.
            act: by which an operator did so, and which is in the audit log. Without one the run stays stopped.
            endorsement: that operator's, for the hospitals; who proposed the run may have been removed.

        Raises:
            ConfigError: the run is open or completed.
        """
        with self._writing() as database:
            row = database.execute("SELECT * FROM proposals WHERE run_hash = ?", (run_hash,)).fetchone()
            may = row is not None and _proposal(database, row, self._acts).state in ("failed", "stopped")
            if may:
                known = _endorsements_from_text(row["endorsements"])
                new = () if endorsement is None else (endorsement,)
                others = [one for one in known if all(one.certificate_pem != two.certificate_pem for two in new)]
                database.execute(
                    "UPDATE proposals SET state = 'proposed', reason = '', starts = 0, opened = ?, "
                    "endorsements = ?, revision = ?, act = ? WHERE run_hash = ?",
                    (
                        certificates.now().isoformat(),
                        _endorsements_to_text([*others, *new]),
                        _next_revision(database),
                        act_to_text(act),
                        run_hash,
                    ),
                )
                database.execute("DELETE FROM answers WHERE run_hash = ? AND NOT approved", (run_hash,))
                database.execute("DELETE FROM policy_refusals WHERE run_hash = ?", (run_hash,))
        if not may:
            raise ConfigError(f"the run {run_hash[:8]} is not failed or stopped, there is nothing to resume.")

    def started(self, run_hash: str, run_id: int, starts: int = 1) -> bool:
        """Note that a ServerApp was started; False, and nothing changes, if the run was closed meanwhile.

        Args:
            run_hash: the run's.
            run_id: Flower's.
            starts: how many there have been without success, this one included.
        """
        with self._writing() as database:
            return bool(
                database.execute(
                    "UPDATE proposals SET state = 'running', run_id = ?, starts = ?, "
                    "revision = ? WHERE run_hash = ? AND state IN ('proposed', 'running')",
                    (str(run_id), starts, _next_revision(database), run_hash),
                ).rowcount
            )

    def ended(self, run_hash: str) -> None:
        """Note that the run's ServerApp is gone."""
        with self._writing() as database:
            database.execute("UPDATE proposals SET run_id = NULL WHERE run_hash = ?", (run_hash,))

    def close(
        self,
        run_hash: str,
        state: str,
        reason: str = "",
        act: Act | None = None,
        *,
        code: str = "",
        rounds: int | None = None,
    ) -> bool:
        """End an open run; False if it had ended before.

        Args:
            run_hash: the run's.
            state: completed, failed or stopped.
            reason: why, in words; stays here.
            act: by which an operator stopped it.
            code: why it failed, an ErrorCode; with the state and the next, the hospitals are told.
            rounds: that were done.
        """
        with self._writing() as database:
            done = database.execute(
                "UPDATE proposals SET state = ?, reason = ?, revision = ?, act = ? "
                "WHERE run_hash = ? AND state IN ('proposed', 'running')",
                (state, reason, _next_revision(database), act_to_text(act), run_hash),
            ).rowcount
            if done:
                database.execute("INSERT OR REPLACE INTO endings VALUES (?, ?, ?)", (run_hash, code, rounds))
        return bool(done)


def _refuse_known(database: sqlite3.Connection, run_hash: str) -> None:
    row = database.execute("SELECT state FROM proposals WHERE run_hash = ?", (run_hash,)).fetchone()
    if row is not None:
        raise ConfigError(
            f"this very run is {row['state']} already ({run_hash[:8]}). To do it again change its name or seed; to go "
            f"on with a failed or stopped one use `wardround-server resume {run_hash[:8]}`."
        )


def _enforce_open(database: sqlite3.Connection, run_hash: str) -> None:
    """Raises: FederationError, the run is not open."""
    row = database.execute("SELECT state FROM proposals WHERE run_hash = ?", (run_hash,)).fetchone()
    if row is None or row["state"] not in OPEN_STATES:
        raise FederationError(f"the run {run_hash[:8]} is not open")


def _read_unfinished(database: sqlite3.Connection, acts: Acts) -> tuple[Proposal, ...]:
    rows = database.execute("SELECT * FROM proposals WHERE state IN ('proposed', 'running') OR run_id IS NOT NULL")
    found = [_proposal(database, row, acts) for row in rows.fetchall()]
    return tuple(one for one in found if one.open or one.run_id is not None)


def _read_revision(database: sqlite3.Connection, _acts: Acts) -> int:
    # Neither becomes less: whoever was removed is news, too.
    query = "SELECT (SELECT COALESCE(MAX(revision), 0) FROM proposals) + (SELECT COUNT(*) FROM removals)"
    return int(database.execute(query).fetchone()[0])


def _read_removals(database: sqlite3.Connection, _acts: Acts) -> tuple[tuple[bytes, Act], ...]:
    rows = database.execute("SELECT certificate, act FROM removals ORDER BY rowid").fetchall()
    found = [(bytes(row["certificate"]), act_from_text(row["act"])) for row in rows]
    return tuple((pem, act) for pem, act in found if act is not None)


def _next_revision(database: sqlite3.Connection) -> int:
    return int(database.execute("SELECT COALESCE(MAX(revision), 0) + 1 FROM proposals").fetchone()[0])


def _proposal(database: sqlite3.Connection, row: sqlite3.Row, acts: Acts) -> Proposal:
    run_hash, state, reason = row["run_hash"], row["state"], row["reason"]
    act, closed = act_from_text(row["act"]), acts.signed().closed.get(run_hash)
    if state in OPEN_STATES and closed is not None and not acts.counts(act, "resume", subject_of(run_hash), closed):
        acts.tell(f"run {run_hash[:8]} is {state} again")
        state, reason = "stopped", "opened again without an operator's signature; `resume` gives it one"
    elif state == "stopped" and not acts.is_signed(act, "stop", subject_of(run_hash)):
        acts.tell(f"run {run_hash[:8]} is stopped")
    query = "SELECT site, approved FROM answers WHERE run_hash = ?"
    answers = database.execute(query, (run_hash,)).fetchall()
    refusals = database.execute("SELECT site, code FROM policy_refusals WHERE run_hash = ?", (run_hash,)).fetchall()
    ending = database.execute("SELECT code, rounds FROM endings WHERE run_hash = ?", (run_hash,)).fetchone()
    code, rounds = (ending["code"] if state == "failed" else "", ending["rounds"]) if ending else ("", None)
    return Proposal(
        run_hash=run_hash,
        name=row["name"],
        bundle=row["bundle"],
        endorsements=_endorsements_from_text(row["endorsements"]),
        state=state,
        reason=reason,
        run_id=None if row["run_id"] is None else int(row["run_id"]),
        starts=row["starts"],
        opened=datetime.datetime.fromisoformat(row["opened"]),
        approved=frozenset(answer["site"] for answer in answers if answer["approved"]),
        denied=frozenset(answer["site"] for answer in answers if not answer["approved"]),
        refused={row["site"]: row["code"] for row in refusals},
        resumption=act if act is not None and act.action == "resume" else None,
        ending=Ending.checked(state, code, rounds),
    )


def _endorsements_to_text(endorsements: Sequence[Endorsement]) -> str:
    return json.dumps([[one.certificate_pem.decode(), one.signature.hex(), one.signed_at] for one in endorsements])


def _endorsements_from_text(text: str) -> tuple[Endorsement, ...]:
    return tuple(Endorsement(pem.encode(), bytes.fromhex(signature), at) for pem, signature, at in json.loads(text))


__all__ = ["OPEN_STATES", "SCHEMA", "Proposal", "Proposals"]
