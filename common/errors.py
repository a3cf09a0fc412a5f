"""Every exception Wardround raises on purpose, in one tree.

    WardroundError
    ├── ConfigError        run.toml, site.toml, policy.toml or a command's arguments are wrong
    ├── DataError          a study, an image or a label cannot be used (carries an ErrorCode)
    ├── PrivacyError       the guarantee would not hold, or its budget is spent
    ├── PolicyError        the hospital's own rules refuse the request
    ├── UpdateError        a reply must not enter the average (carries an ErrorCode)
    ├── FederationError    too few sites, a deadline passed, the coordinator is out of reach
    ├── EnrolmentError     invitation, certificate or identity refused
    └── AuditError         the audit log cannot be written, or what is shown does not fit what was signed

A message says what happened, what was expected and what to do. The text stays where it was raised; only the
`ErrorCode` may leave a hospital, because a code cannot carry a patient's name.
"""

import errno
from enum import StrEnum


class ErrorCode(StrEnum):
    """The closed list of codes that may leave a hospital."""

    NOT_APPROVED = "not-approved"
    POLICY_REFUSED = "policy-refused"
    OUTSIDE_HOURS = "outside-hours"
    RATE_LIMITED = "rate-limited"
    BUDGET_SPENT = "budget-spent"
    LEDGER_OUTDATED = "ledger-outdated"
    ROUND_REPEATED = "round-repeated"
    RECEIPT_MISSING = "receipt-missing"
    AUDIT_CONFLICT = "audit-conflict"
    NO_DATA = "no-data"
    TOO_FEW_PATIENTS = "too-few-patients"
    UNREADABLE = "unreadable"
    NOT_OPENED = "not-opened"
    NO_LABEL = "no-label"
    LABEL_EMPTY = "label-empty"
    LABEL_UNKNOWN = "label-unknown"
    LABEL_DOUBTFUL = "label-doubtful"
    GEOMETRY_MISMATCH = "geometry-mismatch"
    MISSING_SLICES = "missing-slices"
    BURNED_IN = "burned-in"
    DUPLICATE = "duplicate"
    LABEL_CONFLICT = "label-conflict"
    UID_REPEATED = "uid-repeated"
    IMPLAUSIBLE = "implausible"
    UNSUPPORTED = "unsupported"
    BAD_REQUEST = "bad-request"
    NOT_FINITE = "not-finite"
    SUSPICIOUS_MODEL = "suspicious-model"
    WRONG_TENSORS = "wrong-tensors"
    BAD_COUNT = "bad-count"
    UPDATE_TOO_LARGE = "update-too-large"
    WRONG_RUN = "wrong-run"
    TOO_FEW_SITES = "too-few-sites"
    TOO_FEW_UPDATES = "too-few-updates"
    DEADLINE = "deadline"
    OUT_OF_MEMORY = "out-of-memory"
    DISK_FULL = "disk-full"
    WORKER_FAILED = "worker-failed"
    INTERNAL = "internal"


class WardroundError(Exception):
    """Base of all errors raised on purpose; `code` is what a coordinator may be told."""

    code = ErrorCode.INTERNAL

    def __init__(self, message: str, code: ErrorCode | None = None) -> None:
        super().__init__(message)
        if code is not None:
            self.code = code


class ConfigError(WardroundError):
    """A configuration file or argument is wrong; the message names the key and the nearest valid one."""

    code = ErrorCode.BAD_REQUEST


class DataError(WardroundError):
    """A study cannot be used for training or prediction."""

    code = ErrorCode.UNREADABLE


class PrivacyError(WardroundError):
    """The differential privacy guarantee would not hold, or its budget is spent."""

    code = ErrorCode.BUDGET_SPENT


class PolicyError(WardroundError):
    """The hospital's policy refuses the request."""

    code = ErrorCode.POLICY_REFUSED


class UpdateError(WardroundError):
    """A site's reply must not enter the average."""

    code = ErrorCode.WRONG_TENSORS


class FederationError(WardroundError):
    """The federation cannot go on: quorum, deadline or connection."""

    code = ErrorCode.DEADLINE


class EnrolmentError(WardroundError):
    """An invitation, a certificate or an identity was refused."""

    code = ErrorCode.NOT_APPROVED


class AuditError(WardroundError):
    """The audit log cannot be written, or what is shown does not fit what was signed."""


def code_of(error: BaseException) -> ErrorCode:
    """The code of whatever was raised: all that may be told of it."""
    match error:
        case WardroundError():
            return error.code
        case OSError(errno=errno.ENOSPC | errno.EDQUOT):
            return ErrorCode.DISK_FULL
        case MemoryError():
            return ErrorCode.OUT_OF_MEMORY
    # torch's, by its name: most processes that ask here have never loaded torch.
    return ErrorCode.OUT_OF_MEMORY if type(error).__name__ == "OutOfMemoryError" else ErrorCode.INTERNAL
