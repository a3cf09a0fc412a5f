"""Proposals and answers survive in files, and only for the run document they were given for."""

import os
from pathlib import Path
from typing import Any

import pytest

from client.home.offer import Offer
from client.rules import approvals
from client.rules.approvals import Appraisal
from common.config import RunConfig, sha256_of, validate
from common.config.rundocument import from_text
from common.errors import ConfigError
from tests.documents import carried


def a_run(name: str = "lesions", rounds: int = 3) -> RunConfig:
    return validate(
        RunConfig,
        {
            "name": name,
            "data": {"modality": "CT", "classes": ["lesion"]},
            "training": {"patch-size": [32, 32]},
            "federation": {"rounds": rounds},
        },
    )


def test_new_proposal_waits_for_an_answer(tmp_path: Path) -> None:
    stored = approvals.record(tmp_path, carried(a_run()), is_open=True)
    assert stored.answer is None
    assert approvals.load_all(tmp_path) == [stored]
    assert stored.run == a_run()


def test_answer_and_appraisal_are_kept_when_the_proposal_comes_again(tmp_path: Path) -> None:
    run_hash = approvals.record(tmp_path, carried(a_run()), is_open=True).run_hash
    appraisal = Appraisal(Offer(12, 10, "cohort", 12, {"no-label": 1}, {"weights": {"w": (9, 11)}}, training=9), None)
    approvals.note_appraisal(tmp_path, run_hash, appraisal)
    approvals.answer(tmp_path, run_hash, approved=True, by="person")
    again = approvals.record(tmp_path, carried(a_run()), is_open=False)
    assert again.answer is not None
    assert again.answer.approved
    assert again.appraisal == appraisal
    assert not again.open


@pytest.mark.parametrize("approved", [True, False])
def test_answer_is_on_the_disk_before_it_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, approved: bool
) -> None:
    """A consent that is told, and that a power failure then takes, would be one that nobody can show."""
    run_hash = approvals.record(tmp_path, carried(a_run()), is_open=True).run_hash
    flushed: dict[int, int] = {}
    monkeypatch.setattr(os, "fsync", lambda one: flushed.update({os.fstat(one).st_ino: os.fstat(one).st_size}))
    approvals.answer(tmp_path, run_hash, approved=approved, by="person")
    folder = tmp_path / "proposals" / run_hash
    written = (folder / "answer.json").stat()
    assert flushed[written.st_ino] == written.st_size
    assert folder.stat().st_ino in flushed


def test_another_run_needs_another_answer(tmp_path: Path) -> None:
    first = approvals.record(tmp_path, carried(a_run(rounds=3)), is_open=True)
    approvals.answer(tmp_path, first.run_hash, approved=True, by="person")
    second = approvals.record(tmp_path, carried(a_run(rounds=4)), is_open=True)
    assert second.run_hash != first.run_hash
    assert second.answer is None


def test_changed_run_document_is_refused_and_left_out_of_the_list(tmp_path: Path) -> None:
    stored = approvals.record(tmp_path, carried(a_run()), is_open=True)
    path = tmp_path / "proposals" / stored.run_hash / "run.json"
    path.write_text(path.read_text().replace('"rounds":3', '"rounds":4'))
    with pytest.raises(ConfigError, match="changed"):
        approvals.load(tmp_path, stored.run_hash)
    assert approvals.load_all(tmp_path) == []


@pytest.mark.parametrize("name", ["bundle.fab", "run.json", "state.json"])
def test_half_written_proposal_is_as_if_it_had_not_come(tmp_path: Path, name: str) -> None:
    stored = approvals.record(tmp_path, carried(a_run()), is_open=True)
    (tmp_path / "proposals" / stored.run_hash / name).unlink()
    assert approvals.load_all(tmp_path) == []
    assert approvals.record(tmp_path, carried(a_run()), is_open=True) == stored


def test_damaged_answer_is_no_approval(tmp_path: Path) -> None:
    stored = approvals.record(tmp_path, carried(a_run()), is_open=True)
    (tmp_path / "proposals" / stored.run_hash / "answer.json").write_text('{"approved": tr')
    with pytest.raises(ConfigError, match="damaged"):
        approvals.load(tmp_path, stored.run_hash)


def test_run_is_found_by_name_and_by_the_start_of_its_hash(tmp_path: Path) -> None:
    stored = approvals.record(tmp_path, carried(a_run()), is_open=True)
    approvals.record(tmp_path, carried(a_run("other")), is_open=True)
    assert approvals.find(tmp_path, "lesions") == stored
    assert approvals.find(tmp_path, sha256_of(a_run())[:12]) == stored
    with pytest.raises(ConfigError, match="no proposed run"):
        approvals.find(tmp_path, sha256_of(a_run())[:3])
    with pytest.raises(ConfigError, match="Did you mean 'lesions'"):
        approvals.find(tmp_path, "leisons")


def test_two_open_runs_of_one_name_must_be_told_apart(tmp_path: Path) -> None:
    for rounds in (3, 4):
        approvals.record(tmp_path, carried(a_run(rounds=rounds)), is_open=True)
    with pytest.raises(ConfigError, match="could be any of"):
        approvals.find(tmp_path, "lesions")


@pytest.mark.parametrize("wanted", ["..", "/etc", "", "a" * 64, "../" * 21 + "a"])
def test_nothing_outside_the_folder_is_read(tmp_path: Path, wanted: str) -> None:
    with pytest.raises(ConfigError, match="was proposed here"):
        approvals.load(tmp_path, wanted)


def test_stamp_changes_with_every_answer(tmp_path: Path) -> None:
    run_hash = approvals.record(tmp_path, carried(a_run()), is_open=True).run_hash
    before = approvals.answers_stamp(tmp_path)
    approvals.answer(tmp_path, run_hash, approved=True, by="person")
    approved = approvals.answers_stamp(tmp_path)
    path = tmp_path / "proposals" / run_hash / "answer.json"
    os.utime(path, ns=(1, 1))
    assert len({before, approved, approvals.answers_stamp(tmp_path)}) == 3


def test_a_proposal_is_parsed_once_however_often_it_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run_hash = approvals.record(tmp_path, carried(a_run()), is_open=True).run_hash
    from_text.cache_clear()
    parsed: list[int] = []
    validate = RunConfig.model_validate

    def counted(*some: Any, **more: Any) -> RunConfig:
        parsed.append(1)
        return validate(*some, **more)

    monkeypatch.setattr(RunConfig, "model_validate", counted)
    for _ in range(20):
        assert [one.run.name for one in approvals.load_all(tmp_path)] == [approvals.load(tmp_path, run_hash).run.name]
    assert len(parsed) == 1
