"""What may stand in an audit log: a closed list of kinds, and a form for every field.

An entry is one canonical JSON object: keys sorted, no spaces, ASCII, whole numbers and strings. It can say that a
round was trained, not on whom: there is no field for free text, a path, a patient or an exact count. What does not
fit its form is not written. Both sides use the same list; a hospital's log names no site but its own.

`minute`, `patients`, `epsilon` and `delta` are coarse on purpose: see `bucketed` and `decimal_text`.
"""

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from decimal import ROUND_CEILING, Context
from typing import Any, TypeAlias

from common.errors import AuditError, ErrorCode
from common.identity.operators import RIGHTS

COORDINATOR = "coordinator"
# Of counts of patients that are told to others, here and in messages.
COUNT_STEP, SMALLEST_COUNT = 5, 10
MOST_BYTES = 8192  # of an entry

# Required fields of each kind; "?" marks those that may be absent.
KINDS = {
    "created": "origin key",
    "started": "program version",
    "stopped": "program",
    "crashed": "program",
    "enrolled": "site certificate key coordinator-key",
    "renewed": "site certificate",
    "revoked": "site ?certificate",
    "operator-added": "operator certificate key role",
    "operator-removed": "certificate",
    "act": "operator action subject certificate signed-at nonce signature",
    "act-refused": "action ?operator ?certificate",
    "root-rotated": "certificate",
    "proposed": "run",
    "closed": "run",
    "approved": "run ?by ?site ?policy",
    "denied": "run ?by ?site ?policy",
    "policy-changed": "policy",
    "data-added": "?patients",
    "data-pulled": "?patients",
    "results-sent": "",
    "data-removed": "",
    "data-forgotten": "",
    "begun": "run round",
    "spend": "run round epsilon delta",
    "arrived": "run round site update ?received",
    "round": "receipt signature ?countersignature",
    "statistics": "run round patients",
    "countersigned": "receipt-hash countersignature",
    "evaluated": "run round phase model ?site ?epsilon ?delta",
    "refusal": "code ?run ?round ?site",
    "call-refused": "status ?site",
    "entered": "run round site update",
    "aggregated": "run round model updates",
    "export": "what hash",
    "backed-up": "",
    "restored": "",
    "purged": "run files",
    "checkpoint-received": "key note",
    "conflict": "first-key first second-key second",
}
RECEIPT = "run round site received update size policy minute ?patients ?epsilon ?delta"

Value: TypeAlias = Any  # int, str, or a mapping of them

_NAME = r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?"
_BASE64_32, _BASE64_64, _BASE64_68 = r"[A-Za-z0-9+/]{43}=", r"[A-Za-z0-9+/]{86}==", r"[A-Za-z0-9+/]{91}="
_NUMBER = r"(?:0|[1-9][0-9]{0,15})"
_ORIGIN = rf"(?:{COORDINATOR}|site/{_NAME})"
NOTE = re.compile(
    rf"(?P<text>(?P<origin>{_ORIGIN})\n(?P<size>{_NUMBER})\n(?P<root>{_BASE64_32})\ntime (?P<time>{_NUMBER})\n"
    rf"(?:seen (?P<seen_size>{_NUMBER}) (?P<seen_root>{_BASE64_32})\n)?)"
    rf"\n\u2014 (?P=origin) (?P<signature>{_BASE64_68})\n"
)


@dataclass(frozen=True)
class Entry:
    """One line of a log."""

    seq: int  # its place in the log, from 0
    time: int  # seconds since the epoch, UTC, by the writer's clock
    kind: str
    fields: Mapping[str, Value]

    def to_bytes(self) -> bytes:
        """The canonical bytes: what the tree hashes."""
        return canonical({**self.fields, "kind": self.kind, "seq": self.seq, "time": self.time})

    @classmethod
    def from_bytes(cls, data: bytes) -> "Entry":
        """Read an entry back; anything but the canonical bytes of an allowed entry is refused.

        Raises:
            AuditError: it is not.
        """
        values = parse_canonical(data)
        head = (values.pop("seq", None), values.pop("time", None), values.pop("kind", None))
        if not (_is_number(head[0]) and _is_number(head[1]) and isinstance(head[2], str)):
            raise AuditError("an entry has no kind, number or time of the expected form")
        check(head[2], values)
        return cls(*head, values)


def check(kind: str, fields: Mapping[str, Value]) -> None:
    """Refuse what is not on the list.

    Raises:
        AuditError: an unknown kind, a field too many or missing, or a value of another form. No value is repeated.
    """
    if kind not in KINDS:
        raise AuditError(f"the audit log has no entries of kind {kind[:32]!r}. Kinds: {', '.join(KINDS)}.")
    wrong = _wrong(fields, KINDS[kind])
    if wrong:
        raise AuditError(
            f"an entry of kind {kind} cannot be written: {wrong} is missing, not one of its fields, or of another "
            "form. The forms are listed in docs/audit.md; free text is not among them."
        )


def check_site(origin: str, fields: Mapping[str, Value]) -> None:
    """In a hospital's log, refuse any other site's name.

    Raises:
        AuditError: there is one.
    """
    named = {fields.get("site"), fields.get("receipt", {}).get("site")} - {None}
    if origin != COORDINATOR and named - {origin.removeprefix("site/")}:
        raise AuditError("an entry of a hospital's log names another site; only the hospital itself may stand there")


def check_receipt(fields: Mapping[str, Value]) -> None:
    """The same for the fields of a receipt.

    Raises:
        AuditError: it is not a receipt.
    """
    wrong = _wrong(fields, RECEIPT)
    if wrong:
        raise AuditError(f"this is not a receipt: {wrong} is missing, not one of its fields, or of another form")


def canonical(values: Mapping[str, Value]) -> bytes:
    """The one JSON text of an object."""
    return json.dumps(values, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()


def parse_canonical(data: bytes) -> dict[str, Value]:
    """Inverse of `canonical`.

    Raises:
        AuditError: not an object, or not in its canonical form.
    """
    try:
        values = json.loads(data) if len(data) <= MOST_BYTES else None
        if isinstance(values, dict) and canonical(values) == data:
            return values
    except (ValueError, RecursionError):
        pass
    raise AuditError("not the canonical JSON of an object")


def bucketed(patients: int) -> int:
    """A count as it may be told: to the nearest multiple of 5, at least 10; nobody can be told from it."""
    return max(SMALLEST_COUNT, COUNT_STEP * ((patients + COUNT_STEP // 2) // COUNT_STEP))


def decimal_text(value: float) -> str:
    """A cost in plain decimal notation, rounded up to six significant digits: never less than it was."""
    rounded = Context(prec=6, rounding=ROUND_CEILING).create_decimal(repr(float(value)))
    return format(rounded.normalize(), "f")


def _wrong(fields: Mapping[str, Value], specification: str) -> str:
    """The first field that does not fit, by name if it is a known one; empty if all do."""
    required = {name for name in specification.split() if not name.startswith("?")}
    allowed = {name.removeprefix("?") for name in specification.split()}
    for name in sorted(required - fields.keys()):
        return name
    for name, value in sorted(fields.items()):
        if name not in allowed:
            return name if name in _FORMS else "an unknown field"
        if not _FORMS[name](value):
            return name
    return ""


def _is_number(value: Value) -> bool:
    return type(value) is int and 0 <= value < 2**53  # exact in every language's JSON


def _is_bucket(value: Value) -> bool:
    return type(value) is int and bucketed(value) == value


def _matches(pattern: str | re.Pattern[str]) -> Callable[[Value], bool]:
    compiled = re.compile(pattern)
    return lambda value: isinstance(value, str) and compiled.fullmatch(value) is not None


def _is_one_of(*words: str) -> Callable[[Value], bool]:
    return lambda value: isinstance(value, str) and value in words


def _is_receipt(value: Value) -> bool:
    return isinstance(value, dict) and not _wrong(value, RECEIPT)


_is_hash = _matches(r"[0-9a-f]{64}")
_is_signature = _matches(_BASE64_64)
_is_note = _matches(NOTE)
_is_cost = _matches(r"(?:0|[1-9][0-9]{0,8})(?:\.[0-9]{0,19}[1-9])?")
_FORMS: Mapping[str, Callable[[Value], bool]] = {
    # identities
    "origin": _matches(_ORIGIN),
    "site": _matches(_NAME),
    "key": _is_hash,  # the 32 bytes of an Ed25519 public key
    "coordinator-key": _is_hash,
    "certificate": _is_hash,  # SHA-256 of the DER
    "program": _is_one_of("agent", "worker", "gateway", "enrolment", "superlink", "launcher", "serverapp", "dashboard"),
    "version": _matches(r"[0-9]{1,4}(?:\.[0-9]{1,4}){1,3}"),
    # what was done
    "run": _is_hash,  # SHA-256 of the run's document
    "round": _is_number,
    "phase": _is_one_of("validation", "test"),
    "policy": _is_hash,
    "by": _is_one_of("person", "policy"),
    "role": _is_one_of("admin", "operator", "auditor"),
    "operator": _matches(_NAME),
    "action": _is_one_of(*RIGHTS),
    "subject": _is_hash,  # see common/identity/operators.py
    "signed-at": _is_number,  # seconds since the epoch, UTC, by the signer's clock
    "nonce": _matches(r"[0-9a-f]{32}"),
    "code": _is_one_of(*ErrorCode),
    "status": _is_one_of("unauthenticated", "permission-denied", "invalid-argument", "resource-exhausted", "deadline"),
    "what": _is_one_of("images", "model", "prediction", "report", "audit"),
    "hash": _is_hash,
    "model": _is_hash,  # SHA-256 of the safetensors bytes
    "updates": _is_number,
    "files": _is_number,
    "received": _is_hash,
    "update": _is_hash,
    "size": _is_number,  # bytes
    "minute": lambda value: _is_number(value) and value % 60 == 0,
    "patients": _is_bucket,
    "epsilon": _is_cost,
    "delta": _is_cost,
    # what was signed
    "receipt": _is_receipt,
    "receipt-hash": _is_hash,
    "signature": _is_signature,
    "countersignature": _is_signature,
    "note": _is_note,
    "first-key": _is_hash,
    "first": _is_note,
    "second-key": _is_hash,
    "second": _is_note,
}
