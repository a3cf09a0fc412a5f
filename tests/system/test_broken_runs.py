"""Runs in which something breaks, with real processes: what the round waits for, what is said, and what goes on."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from client.record import open_log
from tests.system.play import Play, playing

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
