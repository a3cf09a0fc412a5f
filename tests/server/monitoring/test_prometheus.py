"""What the coordinator tells Prometheus, against what was written in its registry and journals, by hand."""

import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from common.errors import EnrolmentError
from common.web.measures import Family
from server.federation.events import Journal
from server.home.folder import Home
from server.monitoring.prometheus import LATEST_ENDED, families
from server.registry import operators
from server.registry.audit_trail import open_log
from server.registry.registry import Registry
from tests.server.dashboard import recorded
from tests.server.dashboard.recorded import ROUNDS, begin, document, play_round, propose

RUN = document("lesions")
LABEL = f"lesions-{RUN.hash[:8]}"


@pytest.fixture
def stage(tmp_path: Path) -> tuple[Home, Registry]:
    return recorded.coordinator(tmp_path / "home")


def told(home: Home, registry: Registry) -> Mapping[str, Family]:
    found = list(families(home, registry))
    assert len({one.name for one in found}) == len(found)
    return {one.name: one for one in found}


def value(family: Family, **labels: str) -> float:
    (found,) = [number for given, number in family.samples if given == labels]
    return found


def labels(family: Family, name: str) -> Sequence[str]:
    return [given[name] for given, _ in family.samples]


def test_numbers_of_a_run_are_those_of_its_journal(stage: tuple[Home, Registry]) -> None:
    home, registry = stage
    before = time.time()
    journal = begin(home, registry, RUN)
    play_round(journal, RUN, 1)
    play_round(journal, RUN, 2, missing="st-john")
    found = told(home, registry)
    train = [event for event in journal.events if event["event"] == "train"]
    assert value(found["wardround_run_train_loss"], run=LABEL, site="st-anna") == train[-1]["train-loss"] == 1.1 / 2
    assert value(found["wardround_run_train_loss"], run=LABEL, site="st-john") == 1.1 / 1.4
    assert value(found["wardround_run_epsilon"], run=LABEL, site="st-anna") == train[-1]["epsilon"]
    assert value(found["wardround_run_target_epsilon"], run=LABEL) == 8.0
    score = found["wardround_run_score"]
    about = {"run": LABEL, "phase": "validation", "score": "dice"}
    assert value(score, site="st-anna", **about) == 0.56  # 0.81 - 0.5 / 2
    assert value(score, site="st-john", **about) == 0.56  # not in round 2: as after round 1, 0.81 - 0.5 / (1 + 1)
    assert value(found["wardround_run_missing_total"], run=LABEL, site="st-john") == 1
    assert value(found["wardround_run_round"], run=LABEL) == 2
    assert value(found["wardround_run_rounds"], run=LABEL) == ROUNDS
    assert value(found["wardround_run_last_round_sites"], run=LABEL) == 1
    assert value(found["wardround_run_last_round_seconds"], run=LABEL) == 43.2
    assert value(found["wardround_run_bytes_up_total"], run=LABEL) == 4_800_000
    assert before <= value(found["wardround_run_last_round_timestamp_seconds"], run=LABEL) <= time.time()
    assert before <= value(found["wardround_site_last_update_timestamp_seconds"], site="st-john") <= time.time()
    assert found["wardround_run_awaited"].samples == []  # st-mary has not answered, and it goes on without it
    assert value(found["wardround_run_state"], run=LABEL, state="running") == 1
    assert sum(number for _, number in found["wardround_run_state"].samples) == 1


def test_sites_are_told_with_their_certificates_and_who_is_here_only_while_a_coordinator_runs(
    stage: tuple[Home, Registry], monkeypatch: pytest.MonkeyPatch
) -> None:
    home, registry = stage
    found = told(home, registry)
    assert labels(found["wardround_site_connected"], "site") == ["st-anna", "st-john", "st-mary"]
    assert {number for _, number in found["wardround_site_connected"].samples} == {0.0}
    monkeypatch.setattr("server.coordinator.supervisor.is_running", lambda _home: True)
    assert [number for _, number in told(home, registry)["wardround_site_connected"].samples] == [1.0, 1.0, 0.0]
    registry.revoke("st-mary")
    found = told(home, registry)
    assert value(found["wardround_sites"], state="active") == 2
    assert value(found["wardround_sites"], state="revoked") == 1
    ends = value(found["wardround_site_certificate_expiry_timestamp_seconds"], site="st-anna")
    assert 30 < (ends - time.time()) / 86400 < 3650
    assert "st-mary" not in labels(found["wardround_site_connected"], "site")


def test_who_is_awaited_goes_with_the_answers(stage: tuple[Home, Registry]) -> None:
    home, registry = stage
    propose(home, registry, RUN)
    registry.answer(RUN.hash, "st-john", approved=False, code="policy-refused")
    registry.answer(RUN.hash, "st-anna", approved=True)
    found = told(home, registry)
    assert labels(found["wardround_run_awaited"], "site") == ["st-mary"]
    counts = {
        answer: value(found["wardround_run_answers"], run=LABEL, answer=answer) for answer in ("approved", "denied")
    }
    assert counts == {"approved": 1, "denied": 0}
    assert value(found["wardround_run_answers"], run=LABEL, answer="refused") == 1
    assert value(found["wardround_runs"], state="proposed") == 1
    registry.answer(RUN.hash, "st-mary", approved=True)
    found = told(home, registry)
    assert found["wardround_run_awaited"].samples == []
    assert (value(found["wardround_runs"], state="proposed"), value(found["wardround_runs"], state="starting")) == (
        0,
        1,
    )


def refuse(journal: Journal, round_: int, refused: Mapping[str, str], here: Sequence[str] = ()) -> None:
    about = {"round": round_, "sites": ["st-mary"], "refused": refused, "refused-by-coordinator": list(here)}
    journal.record("round", about | {"missing": [], "seconds": 1.0, "bytes-down": 1, "bytes-up": 1})


def test_refusals_are_counted_by_code_and_a_code_that_nobody_knows_makes_no_label(stage: tuple[Home, Registry]) -> None:
    home, registry = stage
    journal = begin(home, registry, RUN)
    refuse(journal, 1, {"st-anna": "budget-spent", "st-john": "not-finite"}, here=["st-john"])
    refuse(journal, 2, {"st-anna": "budget-spent", "st-john": "a code 7f3a of its own"})
    counts = {
        (one["code"], one["by"]): number for one, number in told(home, registry)["wardround_run_refusals_total"].samples
    }
    assert counts == {("budget-spent", "site"): 2, ("not-finite", "coordinator"): 1, ("other", "site"): 1}


def test_a_site_that_names_its_numbers_as_the_journal_does_silences_nobody(stage: tuple[Home, Registry]) -> None:
    """As a journal of before has them; now they are refused where they come in."""
    home, registry = stage
    plain = document("vessels", private=False)
    journal = begin(home, registry, plain)
    journal.record("train", {"round": 1, "site": "st-anna", "patients": 40, "refused": 1.0, "missing": 2.0})
    refuse(journal, 1, {"st-john": "budget-spent"})
    samples = told(home, registry)["wardround_run_refusals_total"].samples
    assert samples == [({"run": f"vessels-{plain.hash[:8]}", "code": "budget-spent", "by": "site"}, 1)]


def test_what_a_run_that_guarantees_nothing_would_have_cost_is_not_told(stage: tuple[Home, Registry]) -> None:
    home, registry = stage
    plain = document("vessels", private=False)
    journal = begin(home, registry, plain)
    journal.record("train", {"round": 1, "site": "st-anna", "patients": 40, "train-loss": 1.0, "epsilon": 0.5})
    found = told(home, registry)
    assert found["wardround_run_epsilon"].samples == []
    assert found["wardround_run_target_epsilon"].samples == []
    assert found["wardround_run_train_loss"].samples != []


def test_ended_runs_do_not_pile_up(stage: tuple[Home, Registry]) -> None:
    home, registry = stage
    for number in range(LATEST_ENDED + 3):
        run = document(f"run-{number}", private=False)
        propose(home, registry, run)
        if number not in (1, 6):
            registry.close(run.hash, "stopped")
    found = told(home, registry)
    names = [run.rpartition("-")[0] for run in labels(found["wardround_run_rounds"], "run")]
    # Open ones stay however old they are, and take no place of one that has ended.
    assert names == ["run-7", "run-6", "run-5", "run-4", "run-3", "run-2", "run-1"]
    assert value(found["wardround_runs"], state="stopped") == LATEST_ENDED + 1


def test_conflicts_of_the_audit_log_are_counted(stage: tuple[Home, Registry]) -> None:
    home, registry = stage
    assert value(told(home, registry)["wardround_audit_conflicts"]) == 0
    log = open_log(home)
    note, key = log.checkpoint(), log.public_key.hex()
    log.append("conflict", {"first": note, "first-key": key, "second": note, "second-key": key})
    assert value(told(home, registry)["wardround_audit_conflicts"]) == 1


def test_who_was_removed_is_told_nothing_more(stage: tuple[Home, Registry]) -> None:
    home, registry = stage
    operators.add(home, registry, "omar", "auditor")
    signer = operators.acting(home, registry, "watch", "omar")
    operators.still_may(registry, "omar", signer.certificate, "watch")
    registry.remove_operator("omar")
    with pytest.raises(EnrolmentError, match="operator omar may not look at this any more"):
        operators.still_may(registry, "omar", signer.certificate, "watch")
