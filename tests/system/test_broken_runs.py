"""Runs in which something breaks, with real processes: what the round waits for, what is said, and what goes on."""

import json
import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from client.trail.audit_trail import open_log
from tests.patience import eventually
from tests.system.play import Play, Run, playing

pytestmark = pytest.mark.system


@pytest.fixture(scope="module")
def play(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Play]:
    with playing(tmp_path_factory.mktemp("play")) as running:
        yield running


def receipts(play: Play, site: str, run_hash: str) -> list[int]:
    """The rounds of a run for which a site has signed, in order."""
    found = [entry.fields["receipt"] for entry in open_log(play.folder / site).entries() if entry.kind == "round"]
    return [receipt["round"] for receipt in found if receipt["run"] == run_hash]


def test_run_that_failed_for_one_site_is_resumed_to_the_same_model(play: Play, tmp_path: Path) -> None:
    play.policy("south", "max-rounds-per-day = 1\n")
    run = play.propose("failing")
    row = run.ended()
    assert row["state"] == "failed"
    assert "south refused (rate-limited)" in row["reason"]
    play.policy("south")
    play.server("resume", "failing")
    assert run.ended()["state"] == "completed", run.row()["reason"]
    assert run.model() == run.unbroken(tmp_path)
    for site in ("north", "south"):
        assert receipts(play, site, run.hash) == [1, 2]
    assert [event["sites"] for event in run.events("round")] == [["north", "south"]] * 2


def held_in_round(play: Play, run: Run, site: str, other: str) -> None:
    """Hold one site at its work on a round, and wait until the other has answered."""
    play.child(site, "client.worker.main").suspend()
    eventually(lambda: [one for one in run.events("train") if one["site"] == other], f"the update of {other}")


def connected(play: Play, site: str) -> bool:
    rows = json.loads(play.asked("sites", "--json"))
    return bool(next(row["connected"] for row in rows if row["site"] == site))


def test_round_waits_for_a_site_that_leaves_and_for_one_that_is_killed(play: Play, tmp_path: Path) -> None:
    run = play.propose("leaving", steps=20)
    held_in_round(play, run, "south", "north")
    play.stop("south")
    eventually(lambda: not connected(play, "south"), "south has left")
    play.start("south")
    eventually(lambda: run.events("round"), "the first round")
    play.kill("north")
    play.start("north")
    assert run.ended()["state"] == "completed", run.row()["reason"]
    assert run.model() == run.unbroken(tmp_path)
    assert [event["sites"] for event in run.events("round")] == [["north", "south"]] * 2


def test_gateway_that_is_killed_again_and_again_and_cannot_write_costs_no_round(play: Play, tmp_path: Path) -> None:
    run = play.propose("killed", rounds=3)
    seen = kills = 0
    with closing(sqlite3.connect(play.coordinator / "flower" / "mailbox.sqlite", isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        eventually(lambda: run.events("run-started"), "the start")
        while not run.events("run-finished") and not run.events(
            "run-failed"
        ):  # read here: a command is slower than a run
            found = len(run.events("train")) + len(run.events("evaluate"))
            if found > seen and kills < 5:  # the more often it dies, the longer its supervisor waits
                play.child("coordinator", "server.coordinator.serve").kill()
                seen, kills = found, kills + 1
                other.execute("ROLLBACK" if other.in_transaction else "BEGIN IMMEDIATE")
            time.sleep(0.2)
    row = run.ended()
    assert row["state"] == "completed", row["reason"]
    assert kills >= 4
    assert run.model() == run.unbroken(tmp_path)
    assert [event["sites"] for event in run.events("round")] == [["north", "south"]] * 3


def test_failed_round_names_a_revoked_site_and_what_became_of_the_others(play: Play) -> None:
    run = play.propose("revoking")
    held_in_round(play, run, "south", "north")
    play.server("revoke", "south")
    row = run.ended()
    assert row["state"] == "failed"
    assert "1 update could enter round 1, the quorum is 2: south was revoked." in row["reason"]
    assert "worker-failed" not in row["reason"]
