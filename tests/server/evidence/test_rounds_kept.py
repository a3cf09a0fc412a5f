"""What is said to be in a model went into it: no later round, none that was done in vain. No void epsilon."""

import json
from pathlib import Path
from typing import Any

import pytest

from common.audit.verify import verify
from common.identity.operators import public_bytes
from common.learning.checkpoint import pack, sha256
from common.learning.network import build_model, weights_of
from server.archive.record import has_all_receipts, kept
from server.evidence.folder import files_of
from server.registry import operators
from server.registry.audit_trail import AUDIT_NAME
from server.views.facts import facts_of
from tests.server.evidence.federation import PRIVATE, Federation, founded, trained
from tests.server.fakes import a_run


def told(made: Federation) -> dict[str, dict[str, Any]]:
    """The documents, by name: a part's title -> its rows, and a row's first cell -> the others."""
    files = files_of(facts_of(made.home, made.registry.proposal(made.document.hash)))
    found: dict[str, dict[str, Any]] = {}
    for name, data in files.items():
        if name.endswith(".json") and "parts" in (document := json.loads(data)):
            found[document["document"]] = {part["title"]: part["rows"] for part in document["parts"]} | {
                str(row[0]): row[1:] for part in document["parts"] for row in part["rows"]
            }
    return found


def entered(found: dict[str, dict[str, Any]]) -> list[list[Any]]:
    return [[cell["value"] for cell in row] for row in found["participation"]["Updates in the model"]]


def provenance(made: Federation) -> list[dict[str, Any]]:
    folder = kept(made.home, made.registry.proposal(made.document.hash))
    rounds: list[dict[str, Any]] = json.loads(folder.read("provenance.json"))["rounds"]
    return rounds


def test_updates_of_rounds_after_the_one_that_is_kept_are_not_said_to_be_in_the_model(tmp_path: Path) -> None:
    run = a_run(rounds=4, quorum=2, format_=2, federation={"keep": "best"})
    made = trained(*founded(tmp_path), run, best=2)
    assert json.loads((made.results / "summary.json").read_text())["model-round"] == 2
    found = told(made)
    assert found["card"]["updates in it"][0]["value"] == 4
    assert entered(found) == [["north", 2, 1, 2], ["south", 2, 1, 2]]
    assert found["change"]["rounds done"][0]["value"] == 4
    assert found["processing"]["updates that entered a model"][0]["value"] == 8
    assert [one["round"] for one in provenance(made)] == [1, 2]


def test_a_round_that_was_done_twice_counts_as_it_was_done_last(tmp_path: Path) -> None:
    """South's update of round 2 is in the log, in a model that nobody has: the coordinator stopped too early."""
    made = trained(*founded(tmp_path), a_run(rounds=3, quorum=1), cut=2)
    found = told(made)
    journal = [json.loads(line) for line in (made.results / "metrics.jsonl").read_text().splitlines()]
    sites = {event["round"]: event["sites"] for event in journal if event["event"] == "round"}
    assert sites == {1: ["north", "south"], 2: ["north"], 3: ["north"]}
    assert {one["round"]: sorted(one["updates"]) for one in provenance(made)} == sites
    assert provenance(made)[1]["model"] == next(
        event["model-sha256"] for event in journal if event["event"] == "round" and event["round"] == 2
    )
    assert found["card"]["updates in it"][0]["value"] == 4
    assert found["change"]["rounds done"][0]["value"] == 3
    assert entered(found) == [["north", 3, 1, 3], ["south", 1, 1, 1]]
    assert has_all_receipts(made.home, made.registry.proposal(made.document.hash))


def test_log_of_a_run_that_went_on_without_a_hospital_verifies_and_says_what_became_of_its_update(
    tmp_path: Path,
) -> None:
    """South's update of round 2 had come when the coordinator stopped; when it went on south was not there."""
    made = trained(*founded(tmp_path), a_run(rounds=3, quorum=1), cut=2, leaves=True)
    keys = {"coordinator": (public_bytes(made.home.log_key),)}
    verdict = verify([made.home.path / AUDIT_NAME, made.folder / "south.sqlite"], keys)
    assert [one.text for one in verdict.findings if one.severity == "error" and "update" in one.text] == []
    found = told(made)["participation"]
    told_of = {
        part: [[cell["value"] if isinstance(cell, dict) else cell for cell in row] for row in found[part]]
        for part in ("Updates in no model", "Who was left out of a round", "Stopped and gone on with")
    }
    assert [row[:2] for row in told_of["Updates in no model"]] == [[2, "south"]]
    assert [2, "south", "deadline"] in [row[:3] for row in told_of["Who was left out of a round"]]
    assert [row[:3] for row in told_of["Stopped and gone on with"]] == [["went on from the model it had kept", "", 1]]


def test_who_lets_a_run_go_on_has_not_signed_its_proposal(tmp_path: Path) -> None:
    home, registry, members = founded(tmp_path)
    made = trained(home, registry, members, a_run(rounds=1, quorum=2), quorum_fails=True)
    signer = operators.acting(home, registry, "resume", operators.FIRST)
    operators.carry_out(home, signer, (made.document.hash,), lambda _act: None)
    found = told(made)
    assert found["impact"]["operators' signatures under the proposal"][0]["value"] == 1
    who = [row for row in found["processing"]["Who, Article 30(1)(a)"] if str(row[0]).startswith("proposed by")]
    assert len(who) == 1
    change = [str(row[0]) for row in found["change"]["Description of modifications"]]
    assert [row for row in change if row.endswith(" by")] == ["asked for by", "resumed by"]
    assert [row[0]["value"] for row in found["participation"]["Stopped and gone on with"]] == ["resume"]


@pytest.mark.parametrize("public", [None, "images of a public set"])
def test_no_epsilon_is_stated_of_a_run_that_guarantees_nothing(public: str | None, tmp_path: Path) -> None:
    initial = pack(weights_of(build_model(a_run())))
    about = {"sha256": sha256(initial)} | ({} if public is None else {"public": public})
    made = trained(*founded(tmp_path), a_run(rounds=1, quorum=2, **PRIVATE, initial=about), initial=initial)
    found = told(made)
    assert ("differential privacy" in found["card"]["privacy of training patients"][0]) is (public is not None)
    words = json.dumps(list(found.values()))
    for value in ("8.0", "0.75"):  # what the run aims at, and what the hospitals charge for scores
        assert (f'"value": {value},' in words) is (public is not None)
