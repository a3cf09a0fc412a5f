"""How a site's agent is: what it wrote last, and what is looked at now; and what to do about its last error."""

import datetime
from pathlib import Path
from typing import Any

from client.agent.admission import is_full
from client.agent.health import CONFLICT, CONNECTED, IN_ORDER
from client.agent.status import (
    DISK_FULL,
    FAILED,
    OTHER_VERSION,
    OVER,
    REFUSED,
    STOPPED,
    is_running,
    last_sign_of_life,
    read_status,
)
from client.home.identity import load_identity
from client.proposals.ended import how_in_words
from client.rules import approvals
from common.errors import ConfigError, EnrolmentError, ErrorCode

NOT_RUNNING = "not running"
# Of a last error: nothing that has to be mended.
_NO_PROBLEM = (OVER, ErrorCode.OUTSIDE_HOURS, ErrorCode.RATE_LIMITED)
_OF_THE_PROCESS = ("pid", "node-id", "worker", "network", "clock")

# What is said here is short; docs/operations.md, "When something is wrong", has more.
REMEDIES = {
    ErrorCode.NOT_APPROVED: "look at the run and answer it",
    ErrorCode.POLICY_REFUSED: "policy.toml does not allow it: `wardround-client policy check RUN` says which rule",
    ErrorCode.TOO_FEW_PATIENTS: "min-patients or min-held-out in policy.toml: `wardround-client policy check RUN`",
    ErrorCode.OUTSIDE_HOURS: "it is done within the hours of policy.toml",
    ErrorCode.RATE_LIMITED: "max-rounds-per-day of policy.toml is reached; it goes on tomorrow",
    ErrorCode.SUSPICIOUS_MODEL: "weights that would copy images were sent: speak to the coordinator",
    ErrorCode.BUDGET_SPENT: "the budget does not carry the run: `wardround-client policy check RUN` says what fits",
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
        values = _after_the_end(home, values)
    # Looked at here: a full disk takes no status.json either.
    values["disk"] = DISK_FULL if home.is_dir() and is_full(home) else IN_ORDER
    try:
        values["certificate-days-left"] = load_identity(home).days_left
    except EnrolmentError as error:
        values |= {"state": "no certificate", "certificate-days-left": None, "problem": str(error)}
    told = values.pop("versions", "")
    if values["state"] == OTHER_VERSION:
        values["problem"] = f"{told}."
    if values["state"] == REFUSED:
        values["problem"] = "the coordinator does not take this site's certificate; `wardround-client doctor` says why"
    return values


def told_of_error(values: dict[str, Any]) -> dict[str, Any]:
    """The values, with what to do about the last error; as the site's problem, where nothing went well since.

    What the policy puts off is no problem: it is as the hospital wants it, and goes on by itself.
    """
    error = values.get("last-error")
    if not isinstance(error, dict) or "code" not in error:
        return values
    said = remedy(str(error["code"]))
    told = values | {"last-error": error | {"what-to-do": said}}
    done = values.get("last-round") or {}
    if "problem" not in values and error.get("at", 0) > done.get("at", 0) and error["code"] not in _NO_PROBLEM:
        told["problem"] = f"the last request was refused ({error['code']}): {said}"
    return told


def last_ended(home: Path) -> dict[str, str]:
    """The approved run that ended last, and how; nothing where none has."""
    found = approvals.last_ended(home)
    return {} if found is None else {"last-ended": f"{found.run.name} {found.run_hash[:8]}, {how_in_words(found)}"}


def _moment(seconds: float) -> str:
    return f"{datetime.datetime.fromtimestamp(seconds, datetime.UTC):%Y-%m-%d %H:%M} UTC"


def _after_the_end(home: Path, values: dict[str, Any]) -> dict[str, Any]:
    """What holds still of what an agent has written; of its process, connection and clock nothing does."""
    start = "Start it with `wardround-client start`."
    if not values:
        return {"state": NOT_RUNNING, "problem": f"no agent has run here yet. {start}"}
    how = {STOPPED: "it was stopped then", FAILED: "it failed then: see logs/agent.log"}.get(
        values["state"], "it was killed, or its machine ended, and that was its last sign of life: see logs/agent.log"
    )
    left = {name: value for name, value in values.items() if name not in _OF_THE_PROCESS}
    since = last_sign_of_life(home)
    return left | {"state": NOT_RUNNING, "since": since, "problem": f"no agent runs; {how}. {start}"}


def is_well(values: dict[str, Any]) -> bool:
    """Whether the site can work, and nothing is told as its problem; see `told_of_error`."""
    conflict = str(values.get("audit", "")).startswith(CONFLICT)
    able = values["state"] == CONNECTED and values["disk"] == IN_ORDER and not conflict
    return bool(able and "problem" not in values)


def as_of(home: Path) -> str | None:
    """That what is shown of runs may have changed at the coordinator, and since when; None: it is as of now."""
    try:
        values = read_status(home)
    except ConfigError as error:
        return f"As of when this is, nobody can tell: {error}"
    if not is_running(home):
        known = f"As of {_moment(last_sign_of_life(home))}: the" if values else "The"
        return f"{known} agent is not running, and learns no news of runs. Start it with `wardround-client start`."
    if (state := values.get("state", CONNECTED)) == CONNECTED:
        return None
    since = values.get("since", last_sign_of_life(home))
    return f"As of {_moment(since)}: the agent is not connected ({state}), and learns no news of runs."


def why_no_runs(home: Path) -> str:
    """Why no run has been proposed, as far as that is known here."""
    try:
        load_identity(home)
    except EnrolmentError as error:
        return str(error)
    then = "" if is_running(home) else " They come while the agent runs: `wardround-client start`"
    return f"No run has been proposed to this hospital yet.{then}"


def remedy(code: str) -> str:
    """What to do about an error."""
    if code == OVER:
        return "nothing: what it cost is charged, and a resumed run asks again"
    known = next((said for error, said in REMEDIES.items() if error == code), None)
    return known or "see logs/agent.log and logs/worker.log"


__all__ = ["REMEDIES", "as_of", "is_well", "last_ended", "remedy", "status_of", "told_of_error", "why_no_runs"]
