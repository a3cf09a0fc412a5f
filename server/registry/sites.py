"""Sites: who may come in, by invitation, request and approval, and who is shut out.

A site goes invited -> pending (it sent a certificate request) -> active (an administrator approved) -> revoked.
Beside what an operator caused stands the signed act. What admits is told as the file says it only if its act counts
(server/registry/acts.py); else the site is `unproven`, which is good for nothing.
"""

import datetime
import hmac
import re
import sqlite3
from dataclasses import dataclass
from enum import IntEnum
from hashlib import sha256

from common.errors import ConfigError, EnrolmentError
from common.identity import certificates
from common.identity.operators import Act, subject_of
from common.identity.receipt_keys import check_receipt_key, request_digest
from common.text import NAME_PATTERN
from server.registry.acts import Acts, act_from_text, act_to_text
from server.registry.store import Store

# A site whose invitation or approval no operator signed, whatever the file says.
UNPROVEN = "unproven"


class Presence(IntEnum):
    """Whether a site's agent is there, as the column `connected` has it."""

    AWAY = 0  # it does not call
    HERE = 1
    LEFT = 2  # it said goodbye


SCHEMA = """
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
    presence: Presence

    @property
    def connected(self) -> bool:
        """Whether its agent is here."""
        return self.presence is Presence.HERE


class Sites(Store):
    """The table of sites."""

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
        """The site whose certificate this is, if it may work now; the first use of a renewed one ends the one before.

        Until then that stays good for its own time: a site that has not got the answer to its renewal is not shut out.
        """
        site, until, is_first = self._remembered("passes", _read_passes).get(fingerprint, (None, "", False))
        if site is None or until <= certificates.now().isoformat():
            return None
        if is_first:
            self._end_earlier(site.name, fingerprint)
        return site

    def is_expecting(self) -> bool:
        """Whether somebody may still come to the enrolment port: invited, waiting, or approved and not yet told."""
        return self._remembered("expected until", _read_expected_until) > certificates.now().isoformat()

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
                (name, _hash(token), expires.isoformat(), act_to_text(act)),
            )

    def redeem(self, name: str, token: str, csr_pem: bytes, receipt_key: bytes, proof: bytes) -> None:
        """Use an invitation. The same request may come again, if its answer was lost; another may not.

        Args:
            name: the site's.
            token: of the invitation.
            csr_pem: the request for a certificate.
            receipt_key: signs the site's receipts and audit log, 32 bytes.
            proof: that the site has that key, see `pki.prove_receipt_key`.

        Raises:
            EnrolmentError: no such invitation, used or expired, or request or receipt key are not the site's.
        """
        csr = certificates.check_csr(csr_pem, name)
        request_sha256 = request_digest(csr, check_receipt_key(receipt_key, proof, csr, name))
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
        certificate = certificates.load_certificate(certificate_pem)
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
                    certificates.fingerprint(certificate),
                    certificate.not_valid_after_utc.isoformat(),
                    node_key,
                    act_to_text(act),
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
        """Give an active site its next certificate. The one in use opens the door until this one is used.

        Raises:
            EnrolmentError: the site is not active.
        """
        certificate = certificates.load_certificate(certificate_pem)
        with self._writing() as database:
            site = _get_site(database, self._acts, name)
            if site.state != "active":
                raise EnrolmentError(f"site {name} is {site.state}; only an active one can be renewed.")
            # One that was never used is replaced: the one before it is what the site has.
            database.execute(
                "UPDATE sites SET certificate = ?, fingerprint = ?, expires = ?, "
                "earlier_expires = CASE WHEN earlier_fingerprint IS NULL THEN ? ELSE earlier_expires END, "
                "earlier_fingerprint = COALESCE(earlier_fingerprint, ?), renewal = NULL, knows_successor = ? "
                "WHERE name = ?",
                (
                    certificate_pem,
                    certificates.fingerprint(certificate),
                    certificate.not_valid_after_utc.isoformat(),
                    site.expires,
                    site.fingerprint,
                    knows_successor,
                    name,
                ),
            )

    def _end_earlier(self, name: str, fingerprint: str) -> None:
        """A site uses its present certificate: the one before is none any more."""
        with self._writing() as database:
            database.execute(
                "UPDATE sites SET earlier_fingerprint = NULL, earlier_expires = NULL "
                "WHERE name = ? AND fingerprint = ?",
                (name, fingerprint),
            )

    def forget_successor(self) -> None:
        """The next root has become the root: nobody knows of another."""
        with self._writing() as database:
            database.execute("UPDATE sites SET knows_successor = 0")

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
                (act_to_text(act), name),
            )

    def set_presence(self, name: str, presence: Presence) -> None:
        """Note whether a site's agent is there."""
        with self._writing() as database:
            database.execute(
                "UPDATE sites SET connected = ? WHERE connected != ? AND name = ?", (presence, presence, name)
            )

    def nobody_is_here(self) -> None:
        """The gateway starts anew: no site is connected to it yet. Who has left has left."""
        with self._writing() as database:
            database.execute("UPDATE sites SET connected = ? WHERE connected = ?", (Presence.AWAY, Presence.HERE))


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


def _read_passes(database: sqlite3.Connection, acts: Acts) -> dict[str, tuple[Site, str, bool]]:
    """By certificate: the active site it opens the door for, until when, and whether its use ends an earlier one."""
    passes = {}
    for row in database.execute("SELECT * FROM sites WHERE state = 'active'").fetchall():
        site = _site(row, acts)
        if site.state != "active":
            continue
        # The file alone gives no site a certificate; the log has to know it, too.
        known = acts.signed().certificates.get(site.name, ())
        if row["earlier_fingerprint"] in known:
            passes[row["earlier_fingerprint"]] = (site, row["earlier_expires"], False)
        passes[row["fingerprint"]] = (site, row["expires"], row["earlier_fingerprint"] is not None)
    return passes


def _read_expected_until(database: sqlite3.Connection, acts: Acts) -> str:
    """Until when somebody may come to the enrolment port; whoever waits for approval may for ever."""
    rows = database.execute(
        "SELECT *, CASE WHEN state = 'pending' THEN '9999' WHEN state = 'invited' THEN token_expires "
        "WHEN state = 'active' AND NOT collected THEN expires END AS until FROM sites WHERE until IS NOT NULL"
    ).fetchall()
    return max((row["until"] for row in rows if _site(row, acts).state != UNPROVEN), default="")


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
        presence=Presence(row["connected"]),
    )


def _is_signed(row: sqlite3.Row, acts: Acts) -> bool:
    """Whether an operator's act stands behind a site's state."""
    name, signed = row["name"], acts.signed()
    if row["state"] == "revoked":
        return acts.is_signed(act_from_text(row["revocation_act"]), "revoke", subject_of(name))
    if row["state"] in ("invited", "pending"):
        subject = subject_of(name, row["token_sha256"] or "", row["token_expires"] or "")
        # Spent once the site was let in; but while that is being done, the log has it and this file not yet.
        undone = signed.settled if row["state"] == "invited" else signed.revoked
        return acts.counts(act_from_text(row["invitation_act"]), "invite", subject, undone.get(name, -1))
    # The log has what was approved; the certificate may be a later one, if the log has that, too.
    entry = signed.enrolled.get(name)
    if entry is None or row["state"] != "active" or row["fingerprint"] not in signed.certificates[name]:
        return False
    subject = subject_of(name, entry.fields["certificate"], (row["receipt_key"] or b"").hex())
    return acts.counts(act_from_text(row["approval_act"]), "approve", subject, signed.revoked.get(name, -1))


def _opens(row: sqlite3.Row, token: str) -> bool:
    if row["token_sha256"] is None or row["token_expires"] < certificates.now().isoformat():
        return False
    return hmac.compare_digest(row["token_sha256"], _hash(token))


def _hash(token: str) -> str:
    return sha256(token.encode()).hexdigest()


__all__ = ["SCHEMA", "UNPROVEN", "Presence", "Site", "Sites", "about_invitation", "check_name"]
