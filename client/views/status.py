"""How a site's agent is: what it wrote last, and what is looked at now; and what to do about its last error."""

from pathlib import Path
from typing import Any

from client.agent.admission import is_full
from client.agent.status import DISK_FULL, IN_ORDER, OVER, REFUSED, is_running, read_status
from client.home.identity import load_identity
from common.errors import EnrolmentError, ErrorCode

CONFLICT = "CONFLICT"  # begins what the agent says of audit logs that do not fit

# What is said here is short; docs/operations.md, "When something is wrong", has more.
REMEDIES = {
    ErrorCode.NOT_APPROVED: "look at the run and answer it",
    ErrorCode.POLICY_REFUSED: "policy.toml does not allow it: `wardround-client policy check RUN` says which rule",
    ErrorCode.TOO_FEW_PATIENTS: "min-patients or min-held-out in policy.toml: `wardround-client policy check RUN`",
    ErrorCode.OUTSIDE_HOURS: "it is done within the hours of policy.toml",
    ErrorCode.RATE_LIMITED: "max-rounds-per-day of policy.toml is reached; it goes on tomorrow",
    ErrorCode.SUSPICIOUS_MODEL: "weights that would copy images were sent: speak to the coordinator",
    ErrorCode.BUDGET_SPENT: "the privacy budget is spent: look at the ledger",
    ErrorCode.LEDGER_OUTDATED: "the ledger is older than the audit log: `wardround-client ledger --restore`",
    ErrorCode.ROUND_REPEATED: "the coordinator lost its checkpoint: the run must be proposed anew",
    ErrorCode.RECEIPT_MISSING: "the coordinator did not sign a receipt: see logs/agent.log, speak to the coordinator",
    ErrorCode.AUDIT_CONFLICT: "the audit logs do not fit: `wardround-client audit verify`",
    ErrorCode.NO_DATA: "no study fits the run: `wardround-client data check --run RUN`",
    ErrorCode.NOT_FINITE: "the training diverged: the run needs a lower learning rate",
    ErrorCode.DISK_FULL: "free space on the disk of this site's folder; the agent then goes on by itself",
    ErrorCode.WORKER_FAILED: "the worker died twice: see logs/worker.log",
    ErrorCode.OUT_OF_MEMORY: "too little memory: see logs/worker.log, close other programs",
}


def status_of(home: Path) -> dict[str, Any]:
    """What is said of a site, as values; `state` is "connected" only where an agent runs and is answered."""
    values = read_status(home)
    if not is_running(home):
        values["state"] = "not running"
    # Looked at here: a full disk takes no status.json either.
    values["disk"] = DISK_FULL if home.is_dir() and is_full(home) else IN_ORDER
    try:
        values["certificate-days-left"] = load_identity(home).days_left
    except EnrolmentError as error:
        values |= {"state": "no certificate", "certificate-days-left": None, "problem": str(error)}
    if values["state"] == REFUSED:
        values["problem"] = "the coordinator does not take this site's certificate; `wardround-client doctor` says why"
    return values


def is_well(values: dict[str, Any]) -> bool:
    """Whether the site can work."""
    conflict = str(values.get("audit", "")).startswith(CONFLICT)
    return bool(values["state"] == "connected" and values["disk"] == IN_ORDER and not conflict)


def remedy(code: str) -> str:
    """What to do about an error."""
    if code == OVER:
        return "nothing: what it cost is charged, and a resumed run asks again"
    known = next((said for error, said in REMEDIES.items() if error == code), None)
    return known or "see logs/agent.log and logs/worker.log"


__all__ = ["REMEDIES", "is_well", "remedy", "status_of"]
