"""What a hospital tells Prometheus: as its ledger, log and data check have it, and nobody's name."""

import json
from collections.abc import Mapping
from pathlib import Path

import pytest

from client.rules import approvals
from client.site import open_site
from client.trail.audit_trail import open_log
from client.views.metrics import families
from common.system.files import write_private
from common.web.measures import Family
from tests.client.views import recorded
from tests.client.views.recorded import COHORT


def told(home: Path) -> Mapping[str, Family]:
    found = list(families(home))
    assert len({one.name for one in found}) == len(found)
    return {one.name: one for one in found}


def value(family: Family, **labels: str) -> float:
    (found,) = [number for given, number in family.samples if given == labels]
    return found


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return recorded.hospital(tmp_path)


def test_budget_and_what_is_spent_of_it_are_the_ledgers(home: Path) -> None:
    assert value(told(home)["wardround_ledger_epsilon"], patients="trained-on") == 0
    for name in ("lesions", "vessels"):
        run = recorded.a_run(name)
        approvals.answer(home, recorded.propose(home, run).run_hash, approved=True, by="person")
        recorded.train(home, run, 2)
    site = open_site(home)
    least = min(entry.delta for entry in site.ledger.entries())
    spent = site.ledger.spent(COHORT, least)  # of both runs together
    found = told(home)
    assert value(found["wardround_ledger_epsilon"], patients="trained-on") == spent > 0
    assert value(found["wardround_ledger_epsilon"], patients="held-out") == 0
    assert value(found["wardround_ledger_budget_epsilon"], patients="trained-on") == site.policy.lifetime_epsilon
    assert value(found["wardround_ledger_budget_epsilon"], patients="held-out") == site.policy.lifetime_scores_epsilon
    assert value(found["wardround_open_runs"], answer="approved") == 2


def test_open_runs_are_told_by_who_said_no(home: Path) -> None:
    for name, approved, by in (("a", True, "policy"), ("b", False, "person"), ("c", False, "policy")):
        run = recorded.propose(home, recorded.a_run(name)).run_hash
        approvals.answer(home, run, approved=approved, by="policy" if by == "policy" else "person")
    recorded.propose(home, recorded.a_run("d"))
    samples = told(home)["wardround_open_runs"].samples
    assert [(labels["answer"], number) for labels, number in samples] == [
        ("approved", 1), ("denied", 1), ("refused", 1), ("waiting", 1),
    ]  # fmt: skip


def test_agent_and_its_last_error_are_told_by_closed_lists(home: Path) -> None:
    found = told(home)
    assert value(found["wardround_agent_state"], state="not running") == 1
    assert value(found["wardround_worker_running"]) == 0
    assert found["wardround_last_error_timestamp_seconds"].samples == []
    error = {"run": "ab" * 32, "round": 3, "kind": "train", "seconds": 1.0, "at": 1_700_000_000.0, "code": "no-data"}
    status = {"state": "connected", "worker": 7, "last-error": error}
    write_private(home / "status.json", json.dumps(status).encode())
    found = told(home)
    assert value(found["wardround_worker_running"]) == 0  # no agent holds the lock: what it wrote is of another time
    assert value(found["wardround_last_error_timestamp_seconds"], code="no-data") == 1_700_000_000.0
    error["code"] = "Doe^Jane"
    write_private(home / "status.json", json.dumps(status | {"last-error": error}).encode())
    assert value(told(home)["wardround_last_error_timestamp_seconds"], code="other") == 1_700_000_000.0


def test_data_are_told_in_counts_and_no_patient_path_or_cohort_is_named(home: Path, tmp_path: Path) -> None:
    assert told(home)["wardround_data"].samples == []
    recorded.checked(home)
    run = recorded.a_run("lesions")
    approvals.answer(home, recorded.propose(home, run).run_hash, approved=True, by="person")
    recorded.train(home, run, 1)
    found = told(home)
    assert value(found["wardround_data"], what="usable") == 46
    assert value(found["wardround_data_set_aside"], code="burned-in") == 1
    text = repr(list(found.values()))
    for secret in ("Doe", "Jane", str(tmp_path), COHORT[:8], "lesion"):
        assert secret not in text
    log = open_log(home)
    note, key = log.checkpoint(), log.public_key.hex()
    log.append("conflict", {"first": note, "first-key": key, "second": note, "second-key": key})
    assert value(told(home)["wardround_audit_conflicts"]) == 1
