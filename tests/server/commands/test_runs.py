"""A run is proposed, watched, stopped and resumed; what is wrong with a document is explained."""

import hashlib
import json
import subprocess

import pytest

from common.config.rundocument import issue
from server.federation.events import open_journal
from server.registry.audit_trail import open_log
from tests.server.commands.calls import HASH, add_result, fails, invoke, succeeds
from tests.server.coordinators import RUN, RUN_TOML, enrol


def test_run_needs_a_running_coordinator(home, document):
    assert "wardround-server start" in fails("run", str(document))


@pytest.mark.parametrize(
    ("text", "message"),
    [("name = ", "not valid TOML"), (RUN_TOML + "\nroundz = 3\n", "unknown key"), ("", "is not there")],
)
def test_a_wrong_document_is_explained(home, running, tmp_path, text, message):
    path = tmp_path / "wrong.toml"
    path.write_text(text)
    assert message in fails("run", str(path))


def test_a_missing_document_is_explained(home, running):
    assert "cannot be read" in fails("run", "missing.toml")


def test_run_proposes_and_says_what_the_sites_type(home, registry, running, document):
    result = invoke("run", str(document))
    assert result.exit_code == 0
    assert HASH in result.stdout
    assert f"wardround-client approve {HASH[:8]}" in result.stderr
    assert registry.proposal(HASH).state == "proposed"
    assert "change its name or seed" in fails("run", str(document))


def test_run_that_names_initial_weights_needs_exactly_these(home, registry, running, document, tmp_path):
    model = tmp_path / "model"
    model.mkdir()
    (model / "model.safetensors").write_bytes(b"weights")
    assert "names no initial weights" in fails("run", str(document), "--initial", str(model))
    digest = hashlib.sha256(b"weights").hexdigest()
    document.write_text(f'{RUN_TOML}\n[initial]\nsha256 = "{digest}"\n')
    assert "is not there" in fails("run", str(document))
    (model / "model.safetensors").write_bytes(b"other weights")
    assert "another SHA-256" in fails("run", str(document), "--initial", str(model))
    assert registry.proposals() == []
    (model / "model.safetensors").write_bytes(b"weights")
    succeeds("run", str(document), "--initial", str(model))
    (proposal,) = registry.proposals()
    assert (home.run_folder(proposal.document) / "initial.safetensors").read_bytes() == b"weights"


def test_watching_ends_with_the_table_when_the_run_is_completed(home, registry, running, document, monkeypatch):
    monkeypatch.setattr(
        "server.views.watch.time.sleep", lambda _: (add_result(home), registry.close(HASH, "completed"))
    )
    result = invoke("run", str(document), "--watch")
    assert result.exit_code == 0, result.output
    assert "0.750" in result.stdout
    assert str(home.run_folder(issue(RUN))) in result.stdout


def test_watching_a_failed_run_gives_its_reason_and_exit_code_1(home, registry, running, document, monkeypatch):
    monkeypatch.setattr("server.views.watch.time.sleep", lambda _: registry.close(HASH, "failed", "no quorum"))
    assert "failed: no quorum" in fails("run", str(document), "--watch")


def test_reason_of_a_failed_run_is_told_once_to_who_watches_it(home, registry, running, document):
    invoke("run", str(document))
    open_journal(home.run_folder(issue(RUN)), last_round=0).record("run-failed", {"reason": "no quorum"})
    registry.close(HASH, "failed", "no quorum")
    assert fails("watch", "lesions").count("no quorum") == 1


def test_hash_of_a_run_is_the_sha256sum_of_the_document_that_was_issued(home, registry, running, document):
    result = invoke("run", str(document))
    issued = home.run_folder(issue(RUN)) / "run.json"
    assert str(issued) in result.stderr.replace("\n", "")
    shown = subprocess.run(["sha256sum", issued], capture_output=True, text=True, check=True).stdout
    assert shown.split()[0] == registry.proposals()[0].run_hash == HASH
    assert HASH in result.stdout


def test_stopping_and_resuming_stand_in_the_audit_log_after_who_signed_them(home, registry, running, document):
    for words in (("run", str(document)), ("stop", "lesions"), ("resume", "lesions")):
        succeeds(*words)
    told = [
        (entry.kind, entry.fields.get("action") or entry.fields["run"])
        for entry in open_log(home).entries()
        if entry.kind in {"act", "proposed", "closed"}
    ]
    assert told == [
        *(("act", "run"), ("proposed", HASH)),
        *(("act", "stop"), ("closed", HASH)),
        *(("act", "resume"), ("proposed", HASH)),
    ]


@pytest.mark.parametrize("words", ["watch lesion", "report lesion", "stop leisons", "runs diff lesion lesions"])
def test_run_that_was_mistyped_is_answered_with_the_nearest(home, registry, running, document, words):
    succeeds("run", str(document))
    assert "Did you mean 'lesions'?" in fails(*words.split())
    assert "Did you mean" not in fails("watch", "quite-another")


def test_status_of_one_run_is_with_other_commands(home, registry):
    result = invoke("status", "lesions")
    assert result.exit_code == 2
    assert "this takes no run" in result.stderr
    assert "wardround-server watch lesions" in result.stderr


def test_runs_stop_and_resume(home, registry, running, document):
    succeeds("run", str(document))
    succeeds("stop", "lesions")
    assert [row["state"] for row in json.loads(succeeds("runs", "--json"))] == ["stopped"]
    assert "stopped already" in fails("stop", HASH[:8])
    succeeds("resume", HASH[:8])
    assert registry.proposal(HASH).state == "proposed"
    assert "nothing to resume" in fails("resume", "lesions")


def test_who_denied_a_run_and_whose_policy_refuses_it_are_told_apart(home, registry, running, document):
    succeeds("run", str(document))
    for name in ("a", "b"):
        enrol(home, registry, name)
    registry.answer(HASH, "a", approved=False)
    registry.answer(HASH, "b", approved=False, code="policy-refused")
    (row,) = json.loads(succeeds("runs", "--json"))
    assert (row["denied"], row["refused"]) == (["a"], {"b": "policy-refused"})
