"""What is shown of a run that goes on, was stopped or failed: as far as it came, by every command."""

import json

import pytest
import torch

from common.config import RunConfig, parse, sha256_of
from common.config.rundocument import from_toml, issue
from common.errors import FederationError
from common.learning.checkpoint import load_model, pack, unpack
from common.learning.network import build_model
from server.federation.rounds import federate
from server.home.folder import ENVIRONMENT, Home
from server.registry.registry import Registry
from server.views.progress import _seconds_left, duration
from tests.server.commands.calls import fails, invoke, succeeds
from tests.server.coordinators import RUN_TOML, new_home, signed
from tests.server.fakes import FakeGrid, trains

# Of a weight, in the first round; a run's training leads so far.
STEP = 2.0**-10


@pytest.fixture(autouse=True)
def _elsewhere(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv(ENVIRONMENT, raising=False)


@pytest.fixture
def home(tmp_path):
    return new_home(tmp_path / "wardround-server")


@pytest.fixture
def registry(home):
    return Registry(home.registry)


def half_done(home: Home, registry: Registry, state: str, *, averaging: float = 0.0, rounds: int = 3) -> RunConfig:
    """A run of which two rounds are done, by the strategy itself, with sites that are functions."""
    toml = RUN_TOML.replace("rounds = 2", f"rounds = {rounds}\naveraging = {averaging}\nround-timeout-s = 0.1")
    toml += "[model]\nchannels = [4, 8]\n"
    run = parse(RunConfig, toml)
    registry.propose(from_toml(toml), ())
    registry.started(sha256_of(run), 1)
    better = trains(
        lambda request: pack({k: v + request.round * STEP for k, v in unpack(request.parts["weights"]).items()})
    )

    def b(request):
        return better(request) if request.round < rounds else None

    with pytest.raises(FederationError):
        federate(
            FakeGrid({"a": better, "b": b}),
            issue(run),
            home.run_folder(issue(run)),
            sealer=home.sealer_of(sha256_of(run)),
        )
    if state != "failed":  # there was no verdict
        (home.run_folder(issue(run)) / "summary.json").unlink()
    if state != "running":
        registry.close(sha256_of(run), state, f"{state} for a reason", signed(home, registry, "stop", sha256_of(run)))
    return run


@pytest.mark.parametrize("state", ["running", "stopped", "failed"])
def test_run_that_is_not_completed_is_watched_reported_and_exported_as_far_as_it_came(
    home, registry, tmp_path, monkeypatch, state
):
    run = half_done(home, registry, state)
    row = next(iter(json.loads(succeeds("runs", "--json"))))
    assert (row["state"], row["round"], row["score"]) == (state, 2, 0.5)
    assert row["seconds-left"] is None  # no coordinator runs here, which is said of a run that would go on
    assert "2 of 3" in succeeds("runs")
    assert ("the coordinator is not running" in invoke("runs").stderr) == (state == "running")
    scores = json.loads(succeeds("report", "lesions", "--json"))
    assert {one["site"]: one["dice"] for one in scores} == {"a": 0.5, "b": 0.5, "overall": 0.5}
    page = (home.run_folder(issue(run)) / "report.html").read_text()
    assert state in page
    assert "2 rounds" in page
    assert "--round 2" in fails("export", "lesions", "--out", "model")
    assert "give --round 2" in fails("export", "lesions", "--out", "model", "--round", "1")
    succeeds("export", "lesions", "--out", "model", "--round", "2")
    _, state_, manifest = load_model(tmp_path / "model")
    assert (manifest.round, manifest.run_hash) == (2, sha256_of(run))
    start = build_model(run).state_dict()
    for name, first in start.items():
        torch.testing.assert_close(state_[name], first + 3 * STEP)
    if state == "running":
        monkeypatch.setattr(
            "server.views.watch.time.sleep", lambda _: registry.close(sha256_of(run), "failed", "in the end")
        )
    said = invoke("watch", "lesions")
    assert said.exit_code == 1
    assert "round 2: 2 sites" in said.stderr
    assert ("the coordinator is not running" in said.stderr) == (state == "running")
    assert ("in the end" if state == "running" else f"{state} for a reason") in said.stderr


def test_checkpoint_of_a_run_with_averaging_is_exported_as_its_average(home, registry, tmp_path):
    run = half_done(home, registry, "failed", averaging=0.9)
    succeeds("export", "lesions", "--out", "model", "--round", "2")
    _, average, _ = load_model(tmp_path / "model")
    start = build_model(run).state_dict()
    for name, first in start.items():  # the plain mean of the first two rounds' models
        torch.testing.assert_close(average[name], first + (1 + 3) / 2 * STEP)


def test_time_left_follows_from_the_rounds_before_and_not_from_pauses():
    def event(kind, at, **more):
        return {"event": kind, "time": at, **more}

    events = [event("run-started", 0.0), event("round", 10.0, round=1), event("round", 30.0, round=2)]
    assert _seconds_left(events, 4, 30.0) == 4 * 15.0
    resumed = [event("run-started", 0.0), event("round", 10.0, round=1), event("run-started", 9000.0)]
    assert _seconds_left([*resumed, event("round", 9020.0, round=2)], 4, 9020.0) == 4 * 15.0
    assert _seconds_left([event("run-started", 0.0)], 4, 1.0) is None
    assert _seconds_left(events, 4, 37.0) == 4 * 15.0 - 7.0  # of the present round some is done
    assert _seconds_left(events, 4, 30.0 + 20.0) == 3 * 15.0
    assert _seconds_left(events, 4, 30.0 + 51.0) is None  # far beyond the longest: nobody knows
    assert _seconds_left(events, 1, 30.0 + 20.0) is None  # the last, which takes longer than the others did
    # One of the last five waited for a site for an hour.
    ends = [0.0, 10.0, 20.0, 3620.0, 3630.0, 3640.0]
    waited = [event("run-started", ends[0]), *(event("round", end, round=n) for n, end in enumerate(ends[1:], 1))]
    assert _seconds_left(waited, 4, ends[-1]) == 4 * 10.0
    assert [duration(one) for one in (0.4, 89, 100, 5000, 9000)] == ["0 s", "89 s", "2 min", "83 min", "2.5 h"]
