"""What a hospital tells Prometheus of itself: the agent, its worker, the ledger, the last data check. All are counts.

From what `status`, `ledger`, `runs` and the data check say. No patient, study, path or name of a label is told, and no
cohort: of several the one with the least left stands for all.
"""

import shutil
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

from client.agent.health import IN_ORDER
from client.agent.status import EXPIRED, REFUSED
from client.home.folder import LEDGER_NAME
from client.rules import approvals
from client.site import changed, current_site
from client.trail.audit_trail import has_joined, open_log
from client.views.checked import checked
from client.views.ledger import charged_as_of
from client.views.status import status_of
from common.errors import ErrorCode
from common.web.measures import Family, one, states

_DAY_S = 86400.0
_OTHER = "other"
STATES = ("connected", "connecting", "starting", "stopped", "not running", "no certificate", EXPIRED, REFUSED)
_CODES = {str(code) for code in ErrorCode}


def families(home: Path) -> Iterator[Family]:
    """All that is told, as it is now.

    Args:
        home: the site's.

    Raises:
        WardroundError: its files cannot be read.
    """
    values, site = status_of(home), current_site(home)
    now = time.time()
    about = {"version": version("wardround"), "site": site.config.name}
    yield Family("wardround_build_info", "Version of Wardround, and the site", [(about, 1.0)])
    yield one("wardround_collected_timestamp_seconds", "When these numbers were collected", now)
    state = values["state"] if values["state"] in STATES else _OTHER
    yield Family(
        "wardround_agent_state", "The state that the agent is in", list(states("state", [*STATES, _OTHER], state))
    )
    # An agent that does not run has no worker, whatever it wrote last.
    works = state != "not running" and values.get("worker") is not None
    yield one("wardround_worker_running", "Whether the process that trains is there", float(works))
    days = values.get("certificate-days-left")
    ends = None if days is None else now + days * _DAY_S
    yield one("wardround_certificate_expiry_timestamp_seconds", "When the site's certificate ends, to a day", ends)
    yield one("wardround_disk_free_bytes", "Free on the disk of the site's folder", shutil.disk_usage(home).free)
    yield one("wardround_disk_full", "Whether the disk is too full for a round", float(values["disk"] != IN_ORDER))
    yield from _of_work(values)
    yield from _of_audit(home)
    yield from _of_runs(home)
    spent = {"trained-on": 0.0, "held-out": 0.0}
    for row in charged_as_of(home, changed(home, LEDGER_NAME)):
        who = "held-out" if row.held_out else "trained-on"
        spent[who] = max(spent[who], row.epsilon if row.run_hash is None else 0.0)
    told = [({"patients": who}, epsilon) for who, epsilon in spent.items()]
    yield Family("wardround_ledger_epsilon", "Epsilon spent over the life of the cohort that has spent most", told)
    budgets = (site.policy.lifetime_epsilon, site.policy.lifetime_scores_epsilon)
    limits = [({"patients": who}, budget) for who, budget in zip(spent, budgets, strict=True)]
    yield Family("wardround_ledger_budget_epsilon", "Epsilon that the policy allows over a cohort's life", limits)
    yield one("wardround_data_sources", "Folders and archives that are offered", len(site.config.data))
    yield from _of_data(home)


def _of_work(values: Mapping[str, Any]) -> Iterator[Family]:
    done, failed = values.get("last-round") or {}, values.get("last-error") or {}
    yield one("wardround_last_work_timestamp_seconds", "When a message was last worked on", done.get("at"))
    yield one("wardround_last_work_seconds", "How long that took", done.get("seconds"))
    code = str(failed.get("code", ""))
    at = [({"code": code if code in _CODES else _OTHER}, float(failed["at"]))] if "at" in failed else []
    yield Family("wardround_last_error_timestamp_seconds", "When a message was last refused, and the code", at)


def _of_audit(home: Path) -> Iterator[Family]:
    size, conflicts = 0, 0
    if has_joined(home):
        with open_log(home).transaction() as log:
            size, conflicts = log.size, len(log.latest("conflict", count=1000))
    yield one("wardround_audit_entries", "Entries of the site's audit log", size)
    yield one("wardround_audit_conflicts", "Entries that say that two audit logs do not fit", conflicts)


def _of_runs(home: Path) -> Iterator[Family]:
    proposals = [proposal for proposal in approvals.load_all(home) if proposal.open]
    given = Counter("waiting" if one.answer is None else one.answer.in_words for one in proposals)
    counts = [({"answer": answer}, float(given[answer])) for answer in ("approved", "denied", "refused", "waiting")]
    yield Family("wardround_open_runs", "Open runs by what was answered here", counts)


def _of_data(home: Path) -> Iterator[Family]:
    found = checked(home)
    yield one(
        "wardround_data_check_timestamp_seconds",
        "When the data were last checked",
        None if found is None else found.at.timestamp(),
    )
    counts = [] if found is None else [({"what": what}, float(count)) for what, count in sorted(found.counts.items())]
    yield Family("wardround_data", "What the last data check counted", counts)
    aside = {} if found is None else found.set_aside
    by_code: dict[str, float] = {}
    for code, count in aside.items():
        known = code if code in _CODES else _OTHER
        by_code[known] = by_code.get(known, 0.0) + count
    told = [({"code": code}, count) for code, count in sorted(by_code.items())]
    yield Family("wardround_data_set_aside", "Studies that the last data check set aside, by code", told)


__all__ = ["STATES", "families"]
