"""The lines that `watch` shows: who is waited for, and who was left out."""

from typing import Any

import pytest

from common.config import sha256_of
from common.config.rundocument import from_toml
from common.tasks.segmentation import Segmentation
from server.federation.events import open_journal
from server.registry.registry import Registry
from server.views.progress import Progress, progress_of
from server.views.sentences import first_asked, joined_of, waiting_in
from server.views.watch import event_line, live_line, state_line
from tests.server.coordinators import RUN, RUN_TOML, enrol, new_home

HASH = sha256_of(RUN)


def test_the_waiting_line_names_the_silent_sites_and_what_to_type(tmp_path):
    home = new_home(tmp_path / "wardround-server")
    registry = Registry(home.registry)
    for name in ("a", "b"):
        enrol(home, registry, name)
    registry.propose(from_toml(RUN_TOML), ())
    registry.answer(HASH, "a", approved=True)
    line = state_line(registry, registry.proposal(HASH))
    assert "1 of 2 approvals; waiting for b" in line
    assert f"wardround-client approve {HASH[:8]}" in line


def test_a_round_line_names_who_was_left_out():
    event = {
        "event": "round", "round": 3, "sites": ["a"], "refused": {"b": "not-finite"}, "missing": ["c"],
        "seconds": 1.25, "bytes-down": 3_000_000, "bytes-up": 1_000_000,
    }  # fmt: skip
    assert event_line(event, Segmentation()) == "round 3: 1 site, 1.2 s, 4 MB; b refused (not-finite), c did not answer"


def test_what_a_small_model_weighs_is_not_told_as_nothing():
    event = {
        "event": "round", "round": 1, "sites": ["a"], "refused": {}, "missing": [],
        "seconds": 1.0, "bytes-down": 11_064, "bytes-up": 640,
    }  # fmt: skip
    assert event_line(event, Segmentation()) == "round 1: 1 site, 1.0 s, 11.7 kB"


def waits(sites: dict[str, str], since: dict[str, float]) -> dict[str, object]:
    return {"event": "waiting", "time": 1e9 + 60, "round": 2, "sites": sites, "since": since, "until": 1e9 + 3600}


def test_who_is_gone_and_waited_for_is_told_with_since_when_and_until_when():
    assert event_line(waits({"c": "away", "d": "left"}, {"c": 1e9}), Segmentation()) == (
        "round 2 waits for c (is away since 2001-09-09 01:46 UTC), d (left), until 2001-09-09 02:46 UTC at the latest"
    )
    assert event_line(waits({}, {}), Segmentation()) == "round 2 waits for nobody who is gone"


@pytest.mark.parametrize(
    ("what", "said"),
    [("quorum", "the start of round 2"), ("updates", "round 2"), ("scores", "scoring after round 2")],
)
def test_each_wait_is_told_as_what_it_is_wherever_it_is_told(what: str, said: str) -> None:
    """For the quorum until one time and for updates until another: not two ends of one wait."""
    event = waits({"c": "away"}, {}) | {"for": what}
    assert event_line(event, Segmentation()).startswith(f"{said} waits for c (is away), until ")
    assert event_line(waits({}, {}) | {"for": what}, Segmentation()) == f"{said} waits for nobody who is gone"
    for done in (1, 2):
        assert Progress(done, 3, "dice", None, None, None, None, event).waits == event_line(event, Segmentation())


def test_wait_ends_with_the_exchange_and_not_with_an_answer():
    begun = waits({"c": "away"}, {})
    train = {"event": "train", "round": 2, "site": "a"}
    assert waiting_in([begun, train]) == begun
    assert waiting_in([begun, waits({}, {})]) is None
    assert waiting_in([begun, {"event": "round", "round": 2}]) is None
    assert waiting_in([begun, {"event": "evaluate", "round": 2, "site": "a"}]) == begun
    assert waiting_in([begun, {"event": "evaluate", "round": 2, "site": "overall"}]) is None
    assert waiting_in([]) is None


def test_run_that_waits_tells_for_whom_and_no_time_left(tmp_path, monkeypatch):
    home = new_home(tmp_path / "wardround-server")
    registry = Registry(home.registry)
    registry.propose(from_toml(RUN_TOML), ())
    registry.started(HASH, 7)
    proposal = registry.proposal(HASH)
    journal = open_journal(home.run_folder(proposal.document), last_round=0)
    ended = {"sites": ["a"], "refused": {}, "missing": [], "seconds": 1.0, "bytes-down": 1, "bytes-up": 1}
    journal.record("run-started", {"run-hash": HASH})
    journal.record("round", ended | {"round": 1})
    folder = home.run_folder(proposal.document)
    ended_at = journal.events[-1]["time"]
    monkeypatch.setattr("server.views.progress.time.time", lambda: ended_at)  # the last round begins
    going = progress_of(folder, proposal, {"a"})
    assert going.seconds_left is not None
    assert (going.waiting_for, going.waits) == ([], None)
    for here in ({"b"}, None):  # before it is written down who is waited for; the coordinator was killed
        assert progress_of(folder, proposal, here).seconds_left is None
    journal.record("waiting", {"round": 2, "sites": {"b": "away"}, "since": {}, "until": 1e9})
    waiting = progress_of(folder, proposal, {"a"})
    assert waiting.seconds_left is None
    assert waiting.waiting_for == ["b"]
    assert "round 2 waits for b (is away)" in str(waiting)
    assert "left" not in str(waiting)
    assert progress_of(folder, proposal, None).waits is None
    journal.record("round", ended | {"round": 2})
    journal.record("waiting", {"round": 2, "sites": {"a": "away"}, "since": {}, "until": 1e9})
    assert "scoring after round 2 waits for a (is away)" in str(progress_of(folder, proposal, {"b"}))


def test_a_score_of_an_earlier_round_says_of_which(tmp_path):
    home = new_home(tmp_path / "wardround-server")
    registry = Registry(home.registry)
    registry.propose(from_toml(RUN_TOML), ())
    proposal = registry.proposal(HASH)
    journal = open_journal(home.run_folder(proposal.document), last_round=0)
    ended = {"sites": ["a"], "refused": {}, "missing": [], "seconds": 1.0, "bytes-down": 1, "bytes-up": 1}
    scored: dict[str, Any] = {"phase": "validation", "site": "overall", "mean-of-patients": None, "refused": {}}
    scored["dice"] = 0.5
    journal.record("round", ended | {"round": 1})
    journal.record("evaluate", scored | {"round": 1, "missing": ["b"], "seconds": 1.0, "bytes-down": 0})
    assert "dice 0.500," in f"{progress_of(home.run_folder(proposal.document), proposal, {'a'})},"
    assert event_line(journal.events[-1], Segmentation()).endswith("dice 0.500 (mean of sites); b did not answer")
    assert live_line("running", journal.events) == "running. validation scores after round 1: b did not answer"
    journal.record("round", ended | {"round": 2})
    assert "dice 0.500 after round 1" in str(progress_of(home.run_folder(proposal.document), proposal, {"a"}))


def test_a_site_that_was_gone_or_joined_late_has_missed_nothing():
    def a_round(number, sites, **more):
        return {"event": "round", "round": number, "sites": sites, "refused": {}, "missing": [], **more}

    gone = a_round(3, ["a"], seconds=1.0, **{"not-there": {"b": "away", "c": "here"}, "bytes-down": 1, "bytes-up": 1})
    assert event_line(gone, Segmentation()).endswith("; not asked: b is away, c came later")
    rounds = [a_round(1, ["a"], **{"refused": {"c": "not-approved"}}), a_round(2, ["a", "c"]), gone]
    assert first_asked(rounds) == {"a": 1, "c": 2}
    assert joined_of(rounds) == ["c joined in round 2, and was not asked before"]
    assert joined_of([]) == []
