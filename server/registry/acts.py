"""Which operators' acts count, for the coordinator's processes: the registry is a wish, the audit log is the memory.

The registry keeps a signed act beside what it caused. It counts if its certificate is signed by the root and was valid
when the act was entered in the audit log, if the operator had not been removed by then, and if it was entered after
whatever undid it: a site's revocation, a run's end. So a program that can write the registry, and holds no operator's
key, admits no site and resumes no run; nor does an old row that is put back.

What ends something is carried out whoever asks, and only told in the process's log: a site without a valid signature
under its revocation stays out, a run without one under its stop is stopped. To refuse would be the less safe way, and
no gain: whoever can write the registry can write that a run has failed, too.
"""

import base64
import datetime
import json
import logging
import sqlite3
import threading
from pathlib import Path

from common.audit import acts
from common.audit.acts import SignedActs
from common.audit.entries import Entry
from common.errors import AuditError, EnrolmentError
from common.identity import certificates, operators
from common.identity.operators import Act
from server.home.folder import open_home

_NAME = "audit.sqlite"  # as in server/registry/audit_trail.py, which builds upon the registry and so upon this
_QUERY = (
    "SELECT seq, entry FROM entries WHERE seq > ? AND json_extract(entry, '$.kind') IN "  # noqa: S608 - only marks
    f"({', '.join('?' * len(acts.KINDS))}) ORDER BY seq"
)
# So long it is waited for another program that holds a file.
PATIENCE_S = 10.0

_log = logging.getLogger(__name__)


class Acts:
    """See the module. For all threads of a process."""

    def __init__(self, folder: Path) -> None:
        """Take the folder of a coordinator's home; nothing is read yet."""
        self._folder = folder
        self._lock = threading.Lock()
        self._database: sqlite3.Connection | None = None
        self._version, self._last = -1, -1
        self._signed = SignedActs()
        self._checked: set[tuple[Act, int]] = set()  # with the number of the entry
        self._told: set[str] = set()

    def signed(self) -> SignedActs:
        """What the audit log tells by now. Costs a look at the file's change counter while nothing is new."""
        with self._lock:
            self._read()
            return self._signed

    def version(self) -> int:
        """Another number than before as soon as an act was signed."""
        with self._lock:
            self._read()
            return self._last

    def counts(self, act: Act | None, action: str, subject: str, after: int = -1) -> bool:
        """Whether an act allows this.

        Args:
            act: as the registry has it; None: there is none.
            action: a key of `operators.RIGHTS`.
            subject: what it has to be about.
            after: number of an entry that undid all that was before.
        """
        if act is None or (act.action, act.subject) != (action, subject):
            return False
        signed = self.signed()
        entry = signed.acts.get(act.nonce)
        if entry is None or entry.seq <= after:
            return False
        if (act, entry.seq) not in self._checked:
            if not self._is_signed(act, entry):
                return False
            self._checked.add((act, entry.seq))
        return signed.removed.get(entry.fields["certificate"], entry.seq) >= entry.seq

    def is_signed(self, act: Act | None, action: str, subject: str) -> bool:
        """Whether an operator signed this, now or earlier, entered or not: enough for what is carried out anyway."""
        if act is None or (act.action, act.subject) != (action, subject):
            return False
        try:
            operators.check_act(act, self._roots_pem, datetime.datetime.fromtimestamp(act.signed_at, datetime.UTC))
        except EnrolmentError:
            return False
        return True

    def tell(self, what: str) -> None:
        """Log, once, that the registry says something for which no operator signed."""
        with self._lock:
            known = what in self._told
            self._told.add(what)
        if not known:
            _log.error("%s: the registry says so, but no operator's signature does", what)

    @property
    def _roots_pem(self) -> bytes:
        return open_home(self._folder).trusted_roots_pem

    def _is_signed(self, act: Act, entry: Entry) -> bool:
        """Whether the act is the one that was entered, by an operator of our root, within the certificate's time."""
        try:
            operators.check_act(act, self._roots_pem, datetime.datetime.fromtimestamp(entry.time, datetime.UTC))
        except EnrolmentError as error:
            self.tell(f"{act.action} ({error})")
            return False
        return entry.fields == entered_fields(act)

    def _read(self) -> None:
        try:
            self._read_on()
        except sqlite3.Error as error:
            raise AuditError(
                f"the log {_NAME} cannot be read: {error}. If another program holds it, end that one, and try again."
            ) from error

    def _read_on(self) -> None:
        if self._database is None:
            if not (self._folder / _NAME).exists():
                return
            # Opened for writing, because a reader of a log whose writer was killed must roll its last words back.
            self._database = sqlite3.connect(
                f"{(self._folder / _NAME).as_uri()}?mode=rw",
                uri=True,
                timeout=PATIENCE_S,
                isolation_level=None,
                check_same_thread=False,
            )
        version = self._database.execute("PRAGMA data_version").fetchone()[0]
        if version == self._version:
            return
        for seq, text in self._database.execute(_QUERY, (self._last, *acts.KINDS)).fetchall():
            for _ in self._signed.take(Entry.from_bytes(text.encode())):
                pass  # complaints are for `audit verify`
            self._last = seq
        self._version = version


def entered_fields(act: Act) -> dict[str, str | int]:
    """An act as it stands in the audit log."""
    certificate = certificates.load_certificate(act.certificate_pem)
    return {
        "operator": certificates.common_name(certificate),
        "action": act.action,
        "subject": act.subject,
        "certificate": certificates.fingerprint(certificate),
        "signed-at": act.signed_at,
        "nonce": act.nonce,
        "signature": base64.b64encode(act.signature).decode(),
    }


def act_to_text(act: Act | None) -> str | None:
    """An act as it stands in the registry."""
    if act is None:
        return None
    pem, signature = act.certificate_pem.decode(), act.signature.hex()
    return json.dumps([act.action, act.subject, pem, act.signed_at, act.nonce, signature])


def act_from_text(text: str | None) -> Act | None:
    """Inverse of `act_to_text`; None also for what is no act: it counts as little."""
    try:
        action, subject, pem, at, nonce, signature = json.loads(text or "[]")
        return Act(str(action), str(subject), str(pem).encode(), int(at), str(nonce), bytes.fromhex(signature))
    except (ValueError, TypeError):
        return None
