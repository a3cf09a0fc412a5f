"""Sites and proposed runs: the coordinator's memory, in one SQLite file.

A site goes invited -> pending (it sent a certificate request) -> active (an administrator approved) -> revoked.
A run goes proposed (waiting for the hospitals) -> running -> completed, failed or stopped; `resume` opens a failed or
stopped one again. Every operation is one transaction, so several processes and threads may share the file. What is
asked again and again is answered from memory until somebody writes, in whichever process: see `version`.
`revision` grows with each change of a proposal.

Beside what an operator caused stands the signed act. What admits or resumes is told as the file says it only if its act
counts (server/acts.py); else a site is `unproven`, which is good for nothing, and a run stopped.
"""

import datetime
import hmac
import json
import re
import sqlite3
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any, TypeVar

from common import pki
from common.config import NAME_PATTERN, RunConfig, sha256_of
from common.errors import ConfigError, EnrolmentError, FederationError
from common.flower import read_bundle
from common.operators import Act, Endorsement, subject_of
from server.acts import Acts

OPEN_STATES = ("proposed", "running")
# A site whose invitation or approval no operator signed, whatever the file says.
UNPROVEN = "unproven"

ValueType = TypeVar("ValueType")

# A renewed site may still use its earlier certificate for so long: calls under way end in their own time.
_OVERLAP = datetime.timedelta(hours=1)

_SCHEMA = """
CREATE TABLE IF NOT EXISTS sites (
    name TEXT PRIMARY KEY,
    state TEXT NOT NULL,
    token_sha256 TEXT,
    token_expires TEXT,
    csr BLOB,
    receipt_key BLOB,
    request_sha256 TEXT,
    certificate BLOB,
    fingerprint TEXT UNIQUE,
    expires TEXT,
    earlier_fingerprint TEXT,
    earlier_expires TEXT,
    renewal BLOB,
    knows_successor INTEGER NOT NULL DEFAULT 0,
    collected INTEGER NOT NULL DEFAULT 0,
    node_key BLOB,
    connected INTEGER NOT NULL DEFAULT 0,
    invitation_act TEXT,
    approval_act TEXT,
    revocation_act TEXT
);
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
CREATE TABLE IF NOT EXISTS operators (
    name TEXT PRIMARY KEY,
    role TEXT NOT NULL,
    certificate BLOB NOT NULL,
    active INTEGER NOT NULL DEFAULT 1
);
CREATE TABLE IF NOT EXISTS answers (
    run_hash TEXT NOT NULL,
    site TEXT NOT NULL,
    approved INTEGER NOT NULL,
    PRIMARY KEY (run_hash, site)
);
"""


@dataclass(frozen=True)
class Site:
    """One hospital as the coordinator knows it."""

    name: str
    state: str
    csr: bytes | None  # PEM
    receipt_key: bytes | None  # Ed25519 public key, 32 bytes: signs the site's receipts and audit log
    request_sha256: str | None  # what the phrase is made of
    certificate: bytes | None  # PEM
    fingerprint: str | None
    expires: str | None  # ISO 8601, of the certificate
    renewal: bytes | None  # PEM of a request that waits for the root key
    knows_successor: bool  # it has been given the next root
    node_key: bytes | None  # PEM, sealed: signs as this site's Flower node towards the SuperLink
    connected: bool


@dataclass(frozen=True)
class Member:
    """An operator as the registry knows them."""

    name: str
    role: str
    certificate: bytes  # PEM
    active: bool


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
    starts: int
    opened: datetime.datetime
    approved: frozenset[str]
    denied: frozenset[str]

    @property
    def open(self) -> bool:
        """Whether sites may still take part."""
        return self.state in OPEN_STATES

    @property
    def run(self) -> RunConfig:
        """The run document."""
        return read_bundle(self.bundle)


class Registry:
    """The registry file."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._acts = Acts(path.parent)
        self._threads = threading.local()
        path.touch(mode=0o600)  # SQLite gives its journal the same mode
        with self._reading() as database:
            database.executescript(_SCHEMA)
        # Nothing is ever written through it, so that it sees each write.
        self._observer = sqlite3.connect(path, timeout=10.0, isolation_level=None, check_same_thread=False)
        self._observing = threading.Lock()
        self._memory: dict[str, tuple[tuple[int, int], Any]] = {}

    def version(self) -> tuple[int, int]:
        """Another one than before as soon as anybody has written here, or entered an act; takes 20 us."""
        with self._observing:
            # Exact, where a file's time has a grain: https://sqlite.org/pragma.html#pragma_data_version
            return int(self._observer.execute("PRAGMA data_version").fetchone()[0]), self._acts.version()

    def sites(self) -> list[Site]:
        """All sites by name."""
        return list(self._remembered("sites", _read_sites))

    def site(self, name: str) -> Site:
        """One site.

        Raises:
            EnrolmentError: unknown.
        """
        with self._reading() as database:
            return _get_site(database, self._acts, name)

    def active_site(self, fingerprint: str) -> Site | None:
        """The site whose current certificate this is, if it may work now."""
        site, until = self._remembered("passes", _read_passes).get(fingerprint, (None, ""))
        return site if until > pki.now().isoformat() else None

    def is_expecting(self) -> bool:
        """Whether somebody may still come to the enrolment port: invited, waiting, or approved and not yet told."""
        return self._remembered("expected until", _read_expected_until) > pki.now().isoformat()

    def invite(self, name: str, token: str, expires: datetime.datetime, act: Act | None = None) -> None:
        """Open the door for one site, once; only the token's hash is kept.

        Args:
            name: the site's.
            token: secret, for the site alone.
            expires: until then the door is open.
            act: by which an operator did so, see `about_invitation`. Without one the door stays shut.

        Raises:
            EnrolmentError: the site is active already.
        """
        with self._writing() as database:
            row = database.execute("SELECT state FROM sites WHERE name = ?", (name,)).fetchone()
            if row is not None and row["state"] == "active":
                raise EnrolmentError(
                    f"site {name} is active. To replace its certificate run `wardround-server revoke {name}` first."
                )
            database.execute(
                "INSERT OR REPLACE INTO sites (name, state, token_sha256, token_expires, invitation_act) "
                "VALUES (?, 'invited', ?, ?, ?)",
                (name, _hash(token), expires.isoformat(), _act_to_text(act)),
            )

    def redeem(self, name: str, token: str, csr_pem: bytes, receipt_key: bytes) -> None:
        """Use an invitation. The same request may come again, if its answer was lost; another may not.

        Raises:
            EnrolmentError: no such invitation, used or expired, or the request is not the site's.
        """
        request_sha256 = pki.request_digest(pki.check_csr(csr_pem, name), pki.check_receipt_key(receipt_key))
        with self._writing() as database:
            row = database.execute("SELECT * FROM sites WHERE name = ?", (name,)).fetchone()
            if row is None or not _opens(row, token) or _site(row, self._acts).state == UNPROVEN:
                raise EnrolmentError(
                    "the invitation is unknown, used or expired. Ask the coordinator for a new one "
                    "(`wardround-server invite`)."
                )
            if row["state"] == "invited":
                database.execute(
                    "UPDATE sites SET state = 'pending', csr = ?, receipt_key = ?, request_sha256 = ? WHERE name = ?",
                    (csr_pem, receipt_key, request_sha256, name),
                )
            elif row["request_sha256"] != request_sha256:
                raise EnrolmentError(
                    "the invitation was used already, by another request. If that was not you, tell the coordinator: "
                    "someone else has the file. Otherwise ask for a new invitation."
                )

    def activate(self, name: str, certificate_pem: bytes, node_key: bytes, act: Act | None = None) -> None:
        """Let a pending site in; its invitation is spent.

        Args:
            name: the site's.
            certificate_pem: what it shows from now on.
            node_key: its Flower node's, sealed.
            act: by which an operator approved, and which is in the audit log. Without one the site stays out.

        Raises:
            EnrolmentError: the site is not pending.
        """
        certificate = pki.load_certificate(certificate_pem)
        with self._writing() as database:
            site = _get_site(database, self._acts, name)
            if site.state != "pending":
                raise EnrolmentError(
                    f"site {name} is {site.state}, only a pending one can be approved. See `wardround-server requests`."
                )
            database.execute(
                "UPDATE sites SET state = 'active', certificate = ?, fingerprint = ?, expires = ?, node_key = ?, "
                "token_sha256 = NULL, approval_act = ? WHERE name = ?",
                (
                    certificate_pem,
                    pki.fingerprint(certificate),
                    certificate.not_valid_after_utc.isoformat(),
                    node_key,
                    _act_to_text(act),
                    name,
                ),
            )

    def collected(self, name: str) -> None:
        """Note that a site has its certificate."""
        with self._writing() as database:
            database.execute("UPDATE sites SET collected = 1 WHERE name = ? AND state = 'active'", (name,))

    def ask_renewal(self, name: str, csr_pem: bytes | None) -> None:
        """Keep a renewal request until somebody with the root key signs it; None: it is done with."""
        with self._writing() as database:
            database.execute("UPDATE sites SET renewal = ? WHERE name = ? AND state = 'active'", (csr_pem, name))

    def renew(self, name: str, certificate_pem: bytes, *, knows_successor: bool) -> None:
        """Give an active site its next certificate. The one before opens the door for a while yet.

        Raises:
            EnrolmentError: the site is not active.
        """
        certificate = pki.load_certificate(certificate_pem)
        with self._writing() as database:
            site = _get_site(database, self._acts, name)
            if site.state != "active":
                raise EnrolmentError(f"site {name} is {site.state}; only an active one can be renewed.")
            until = min(site.expires or "", (pki.now() + _OVERLAP).isoformat())
            database.execute(
                "UPDATE sites SET certificate = ?, fingerprint = ?, expires = ?, earlier_fingerprint = ?, "
                "earlier_expires = ?, renewal = NULL, knows_successor = ? WHERE name = ?",
                (
                    certificate_pem,
                    pki.fingerprint(certificate),
                    certificate.not_valid_after_utc.isoformat(),
                    site.fingerprint,
                    until,
                    knows_successor,
                    name,
                ),
            )

    def forget_successor(self) -> None:
        """The next root has become the root: nobody knows of another."""
        with self._writing() as database:
            database.execute("UPDATE sites SET knows_successor = 0")

    def operators(self) -> list[Member]:
        """All operators by name."""
        with self._reading() as database:
            rows = database.execute("SELECT * FROM operators ORDER BY name").fetchall()
        return [Member(row["name"], row["role"], row["certificate"], bool(row["active"])) for row in rows]

    def put_operator(self, name: str, role: str, certificate_pem: bytes) -> None:
        """Add an operator, or give one a new certificate or role."""
        with self._writing() as database:
            database.execute("INSERT OR REPLACE INTO operators VALUES (?, ?, ?, 1)", (name, role, certificate_pem))

    def remove_operator(self, name: str) -> None:
        """An operator may do nothing any more.

        Raises:
            EnrolmentError: unknown.
        """
        with self._writing() as database:
            if not database.execute("UPDATE operators SET active = 0 WHERE name = ?", (name,)).rowcount:
                raise EnrolmentError(f"no operator is called {name!r}. See `wardround-server operators`.")

    def revoke(self, name: str, act: Act | None = None) -> None:
        """Shut a site out, now, signed or not. Its invitation or request is void as well.

        Raises:
            EnrolmentError: unknown.
        """
        with self._writing() as database:
            _get_site(database, self._acts, name)
            database.execute(
                "UPDATE sites SET state = 'revoked', token_sha256 = NULL, renewal = NULL, earlier_fingerprint = NULL, "
                "connected = 0, revocation_act = ? WHERE name = ?",
                (_act_to_text(act), name),
            )

    def set_connected(self, name: str | None, connected: bool) -> None:
        """Note whether a site's agent is there; None means every site."""
        with self._writing() as database:
            database.execute(
                "UPDATE sites SET connected = ? WHERE connected != ? AND (name = ? OR ? IS NULL)",
                (connected, connected, name, name),
            )

    def revision(self) -> int:
        """Grows with every change of a proposal."""
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
                raise ConfigError(f"no run is called {run!r}. See `wardround-server runs` for names and hashes.")
            if len(rows) > 1 and rows[0]["name"] != run:
                raise ConfigError(f"several runs begin with {run!r}. Give more digits of the hash.")
            return _proposal(database, rows[0], self._acts)

    def propose(self, run: RunConfig, bundle: bytes, endorsements: Sequence[Endorsement]) -> Proposal:
        """Publish a run to the sites.

        Raises:
            ConfigError: the same document was proposed before.
        """
        run_hash = sha256_of(run)
        with self._writing() as database:
            row = database.execute("SELECT state FROM proposals WHERE run_hash = ?", (run_hash,)).fetchone()
            if row is not None:
                raise ConfigError(
                    f"this very run is {row['state']} already ({run_hash[:8]}). To do it again change its name or "
                    f"seed; to go on with a failed or stopped one use `wardround-server resume {run_hash[:8]}`."
                )
            database.execute(
                "INSERT INTO proposals (run_hash, name, bundle, endorsements, state, opened, revision) "
                "VALUES (?, ?, ?, ?, 'proposed', ?, ?)",
                (
                    run_hash,
                    run.name,
                    bundle,
                    _endorsements_to_text(endorsements),
                    pki.now().isoformat(),
                    _next_revision(database),
                ),
            )
        return self.proposal(run_hash)

    def answer(self, run_hash: str, site: str, *, approved: bool) -> bool:
        """Note a hospital's decision; whether it is a new one.

        Raises:
            FederationError: the run is not open.
        """
        with self._writing() as database:
            row = database.execute("SELECT state FROM proposals WHERE run_hash = ?", (run_hash,)).fetchone()
            if row is None or row["state"] not in OPEN_STATES:
                raise FederationError(f"the run {run_hash[:8]} is not open")
            query = "SELECT 1 FROM answers WHERE run_hash = ? AND site = ? AND approved = ?"
            known = database.execute(query, (run_hash, site, approved)).fetchone()
            database.execute("INSERT OR REPLACE INTO answers VALUES (?, ?, ?)", (run_hash, site, approved))
        return known is None

    def reopen(self, run_hash: str, act: Act | None = None) -> None:
        """Propose a failed or stopped run again; the hospitals' answers still count.

        Args:
            run_hash: the run's.
            act: by which an operator did so, and which is in the audit log. Without one the run stays stopped.

        Raises:
            ConfigError: the run is open or completed.
        """
        with self._writing() as database:
            row = database.execute("SELECT * FROM proposals WHERE run_hash = ?", (run_hash,)).fetchone()
            may = row is not None and _proposal(database, row, self._acts).state in ("failed", "stopped")
            if may:
                database.execute(
                    "UPDATE proposals SET state = 'proposed', reason = '', starts = 0, opened = ?, "
                    "revision = ?, act = ? WHERE run_hash = ?",
                    (pki.now().isoformat(), _next_revision(database), _act_to_text(act), run_hash),
                )
        if not may:
            raise ConfigError(f"the run {run_hash[:8]} is not failed or stopped, there is nothing to resume.")

    def started(self, run_hash: str, run_id: int) -> None:
        """Note that a ServerApp was started; nothing changes if the run was closed meanwhile."""
        with self._writing() as database:
            database.execute(
                "UPDATE proposals SET state = 'running', run_id = ?, starts = starts + 1, "
                "revision = ? WHERE run_hash = ? AND state IN ('proposed', 'running')",
                (str(run_id), _next_revision(database), run_hash),
            )

    def ended(self, run_hash: str) -> None:
        """Note that the run's ServerApp is gone."""
        with self._writing() as database:
            database.execute("UPDATE proposals SET run_id = NULL WHERE run_hash = ?", (run_hash,))

    def close(self, run_hash: str, state: str, reason: str = "", act: Act | None = None) -> bool:
        """End an open run as completed, failed or stopped, signed or not; False if it had ended before."""
        with self._writing() as database:
            return bool(
                database.execute(
                    "UPDATE proposals SET state = ?, reason = ?, revision = ?, act = ? "
                    "WHERE run_hash = ? AND state IN ('proposed', 'running')",
                    (state, reason, _next_revision(database), _act_to_text(act), run_hash),
                ).rowcount
            )

    def _remembered(self, name: str, read: Callable[[sqlite3.Connection, Acts], ValueType]) -> ValueType:
        """What `read` finds now; from memory if nobody has written since it was read, nor entered an act."""
        # The version comes first: whatever is written later than that makes the next caller read again.
        version = self.version()
        known = self._memory.get(name)
        if known is not None and known[0] == version:
            value: ValueType = known[1]
            return value
        with self._reading() as database:
            value = read(database, self._acts)
        self._memory[name] = (version, value)
        return value

    @contextmanager
    def _reading(self) -> Iterator[sqlite3.Connection]:
        # One connection per thread: opening one costs ten times what a look at a row does.
        database: sqlite3.Connection | None = getattr(self._threads, "database", None)
        if database is None:
            # Autocommit: our transactions begin where we say so.
            database = sqlite3.connect(self._path, timeout=10.0, isolation_level=None)
            database.row_factory = sqlite3.Row
            self._threads.database = database
        yield database

    @contextmanager
    def _writing(self) -> Iterator[sqlite3.Connection]:
        with self._reading() as database:
            # Takes the write lock first, so that what is read inside still holds when it is written.
            database.execute("BEGIN IMMEDIATE")
            with database:
                yield database


def about_invitation(name: str, token: str, expires: datetime.datetime) -> tuple[str, str, str]:
    """What an operator who invites signs for; see `subject_of`."""
    return name, _hash(token), expires.isoformat()


def check_name(name: str) -> str:
    """A site's name: lower-case letters, digits and dashes.

    Raises:
        ConfigError: anything else.
    """
    if not re.fullmatch(NAME_PATTERN, name):
        raise ConfigError(f"{name!r} is no site name. Use lower-case letters, digits and dashes, such as st-mary.")
    return name


def _read_sites(database: sqlite3.Connection, acts: Acts) -> tuple[Site, ...]:
    return tuple(_site(row, acts) for row in database.execute("SELECT * FROM sites ORDER BY name").fetchall())


def _read_passes(database: sqlite3.Connection, acts: Acts) -> dict[str, tuple[Site, str]]:
    """By certificate: the active site it opens the door for, and until when."""
    passes = {}
    for row in database.execute("SELECT * FROM sites WHERE state = 'active'").fetchall():
        site = _site(row, acts)
        if site.state != "active":
            continue
        # The file alone gives no site a certificate; the log has to know it, too.
        known = acts.story().certificates.get(site.name, ())
        if row["earlier_fingerprint"] in known:
            passes[row["earlier_fingerprint"]] = (site, row["earlier_expires"])
        passes[row["fingerprint"]] = (site, row["expires"])
    return passes


def _read_expected_until(database: sqlite3.Connection, acts: Acts) -> str:
    """Until when somebody may come to the enrolment port; whoever waits for approval may for ever."""
    rows = database.execute(
        "SELECT *, CASE WHEN state = 'pending' THEN '9999' WHEN state = 'invited' THEN token_expires "
        "WHEN state = 'active' AND NOT collected THEN expires END AS until FROM sites WHERE until IS NOT NULL"
    ).fetchall()
    return max((row["until"] for row in rows if _site(row, acts).state != UNPROVEN), default="")


def _read_unfinished(database: sqlite3.Connection, acts: Acts) -> tuple[Proposal, ...]:
    rows = database.execute("SELECT * FROM proposals WHERE state IN ('proposed', 'running') OR run_id IS NOT NULL")
    found = [_proposal(database, row, acts) for row in rows.fetchall()]
    return tuple(one for one in found if one.open or one.run_id is not None)


def _read_revision(database: sqlite3.Connection, _acts: Acts) -> int:
    return int(database.execute("SELECT COALESCE(MAX(revision), 0) FROM proposals").fetchone()[0])


def _next_revision(database: sqlite3.Connection) -> int:
    return int(database.execute("SELECT COALESCE(MAX(revision), 0) + 1 FROM proposals").fetchone()[0])


def _get_site(database: sqlite3.Connection, acts: Acts, name: str) -> Site:
    row = database.execute("SELECT * FROM sites WHERE name = ?", (name,)).fetchone()
    if row is None:
        raise EnrolmentError(f"no site is called {name!r}. See `wardround-server sites`.")
    return _site(row, acts)


def _site(row: sqlite3.Row, acts: Acts) -> Site:
    state = row["state"]
    if not _is_signed(row, acts):
        acts.tell(f"site {row['name']} is {state}")
        state = state if state == "revoked" else UNPROVEN
    return Site(
        name=row["name"],
        state=state,
        csr=row["csr"],
        receipt_key=row["receipt_key"],
        request_sha256=row["request_sha256"],
        certificate=row["certificate"],
        fingerprint=row["fingerprint"],
        expires=row["expires"],
        renewal=row["renewal"],
        knows_successor=bool(row["knows_successor"]),
        node_key=row["node_key"],
        connected=bool(row["connected"]),
    )


def _is_signed(row: sqlite3.Row, acts: Acts) -> bool:
    """Whether an operator's act stands behind a site's state."""
    name, story = row["name"], acts.story()
    if row["state"] == "revoked":
        return acts.is_signed(_act_from_text(row["revocation_act"]), "revoke", subject_of(name))
    if row["state"] in ("invited", "pending"):
        subject = subject_of(name, row["token_sha256"] or "", row["token_expires"] or "")
        # Spent once the site was let in; but while that is being done, the log has it and this file not yet.
        undone = story.settled if row["state"] == "invited" else story.revoked
        return acts.counts(_act_from_text(row["invitation_act"]), "invite", subject, undone.get(name, -1))
    # The log has what was approved; the certificate may be a later one, if the log has that, too.
    entry = story.enrolled.get(name)
    if entry is None or row["state"] != "active" or row["fingerprint"] not in story.certificates[name]:
        return False
    subject = subject_of(name, entry.fields["certificate"], (row["receipt_key"] or b"").hex())
    return acts.counts(_act_from_text(row["approval_act"]), "approve", subject, story.revoked.get(name, -1))


def _proposal(database: sqlite3.Connection, row: sqlite3.Row, acts: Acts) -> Proposal:
    run_hash, state, reason = row["run_hash"], row["state"], row["reason"]
    act, closed = _act_from_text(row["act"]), acts.story().closed.get(run_hash)
    if state in OPEN_STATES and closed is not None and not acts.counts(act, "resume", subject_of(run_hash), closed):
        acts.tell(f"run {run_hash[:8]} is {state} again")
        state, reason = "stopped", "opened again without an operator's signature; `resume` gives it one"
    elif state == "stopped" and not acts.is_signed(act, "stop", subject_of(run_hash)):
        acts.tell(f"run {run_hash[:8]} is stopped")
    query = "SELECT site, approved FROM answers WHERE run_hash = ?"
    answers = database.execute(query, (run_hash,)).fetchall()
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
    )


def _endorsements_to_text(endorsements: Sequence[Endorsement]) -> str:
    return json.dumps([[one.certificate_pem.decode(), one.signature.hex(), one.signed_at] for one in endorsements])


def _endorsements_from_text(text: str) -> tuple[Endorsement, ...]:
    return tuple(Endorsement(pem.encode(), bytes.fromhex(signature), at) for pem, signature, at in json.loads(text))


def _act_to_text(act: Act | None) -> str | None:
    if act is None:
        return None
    pem, signature = act.certificate_pem.decode(), act.signature.hex()
    return json.dumps([act.action, act.subject, pem, act.signed_at, act.nonce, signature])


def _act_from_text(text: str | None) -> Act | None:
    """None also for what is no act: it counts as little."""
    try:
        action, subject, pem, at, nonce, signature = json.loads(text or "[]")
        return Act(str(action), str(subject), str(pem).encode(), int(at), str(nonce), bytes.fromhex(signature))
    except (ValueError, TypeError):
        return None


def _opens(row: sqlite3.Row, token: str) -> bool:
    if row["token_sha256"] is None or row["token_expires"] < pki.now().isoformat():
        return False
    return hmac.compare_digest(row["token_sha256"], _hash(token))


def _hash(token: str) -> str:
    return sha256(token.encode()).hexdigest()
