"""The lines that `watch` shows: who is waited for, and who was left out."""

from common.config import sha256_of
from common.config.rundocument import from_toml
from common.tasks.segmentation import Segmentation
from server.registry.registry import Registry
from server.views.watch import event_line, state_line
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
