"""A run keeps the model of its best round, stops when its scores grow no better, and decides the same when resumed."""

import dataclasses
import html
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from client.site import Site, open_site
from common.config import RunConfig
from common.config.rundocument import RunDocument, issue
from common.crypto.stream import Sealer
from common.errors import ConfigError
from common.learning.checkpoint import load_model, pack, save_model, sha256, unpack
from common.tasks.segmentation import Segmentation
from common.wire.messages import EvaluateReply, EvaluateRequest, Request, TrainRequest
from server.federation import rounds
from server.federation.events import OVERALL, Summary, read_events
from server.federation.rounds import federate
from server.federation.selection import best_round, has_seen_enough, in_words
from server.home.checkpoints import best_folder_of
from server.views.report import write_report
from server.views.watch import event_line
from simulations.backends.in_process import InProcessGrid
from simulations.scenarios.homes import make_site
from tests.server import fakes
from tests.server.fakes import FakeGrid, FakeSite, Said
from tests.simulations.tiny import tiny_run_of_format, tiny_site

# Validation scores of rounds 1 to 7: best in round 3, then no better.
SCORES = (0.2, 0.5, 0.8, 0.7, 0.8, 0.6, 0.9)


def a_run(number: int = 7, **federation: Any) -> RunConfig:
    federation = {"round-timeout-s": 60.0, **federation}
    return fakes.a_run(number, federation=federation, format_=2)


def scores(of_round: tuple[float, ...] = SCORES, *, silent: tuple[int, ...] = ()) -> FakeSite:
    """A site that adds its own noise, and whose validation scores are these; the test's is the score of the model."""
    trained = fakes.trains(
        lambda request: pack(
            {
                name: tensor + torch.randn(tensor.shape, generator=torch.Generator().manual_seed(request.round))
                for name, tensor in unpack(request.parts["weights"]).items()
            }
        )
    )

    def site(request: Request) -> Said:
        if isinstance(request, EvaluateRequest):
            told = {} if request.round in silent else {"dice": of_round[request.round - 1]}
            return EvaluateReply(request.run_hash, request.round, request.phase, 10, told)
        return trained(request)

    return site


def a_grid(**sites: FakeSite) -> FakeGrid:
    return FakeGrid({"a": scores(), "b": scores(), **sites})


def go(grid: FakeGrid, run: RunConfig, out: Path, sealer: Sealer | None = None) -> Summary:
    return federate(grid, issue(run), out, wake=lambda _: None, sealer=sealer)


def weights_after(grid: FakeGrid, round_: int) -> str:
    """SHA-256 of the model of a round, as it was sent for its validation."""
    (digest,) = {
        sha256(one.parts["weights"])
        for _, one in grid.requests
        if isinstance(one, EvaluateRequest) and (one.round, one.phase) == (round_, "validation")
    }
    return digest


def model_tested(grid: FakeGrid) -> tuple[int, str]:
    """Round and SHA-256 of the one model that was tested."""
    (found,) = {
        (one.round, sha256(one.parts["weights"]))
        for _, one in grid.requests
        if isinstance(one, EvaluateRequest) and one.phase == "test"
    }
    return found


def trained(grid: FakeGrid) -> int:
    return max(one.round for _, one in grid.requests if isinstance(one, TrainRequest))


@pytest.mark.parametrize(
    ("settings", "last", "kept"),
    [
        ({}, 7, 7),
        ({"keep": "best"}, 7, 7),
        ({"patience": 2}, 5, 5),
        ({"patience": 2, "keep": "best"}, 5, 3),
        ({"patience": 3, "keep": "best"}, 6, 3),
        ({"patience": 4, "keep": "best"}, 7, 7),
        ({"patience": 1, "keep": "best", "evaluate-every": 2}, 6, 4),
        ({"rounds": 6, "keep": "best"}, 6, 3),
    ],
)
def test_a_run_stops_and_keeps_as_its_scores_say(
    tmp_path: Path, settings: dict[str, Any], last: int, kept: int
) -> None:
    grid = a_grid()
    summary = go(grid, a_run(**settings), tmp_path)
    assert (trained(grid), summary.rounds, summary.status) == (last, last, "completed")
    assert summary.model_round == kept
    assert model_tested(grid) == (kept, weights_after(grid, kept))
    _, _, manifest = load_model(tmp_path)
    assert (manifest.round, manifest.sha256) == (kept, weights_after(grid, kept))
    assert summary.model_sha256 == manifest.sha256
    assert summary.scores["validation"]["round"] == manifest.scores["validation"]["round"]
    assert summary.scores["validation"]["round"] <= kept
    assert summary.scores["test"]["round"] == kept
    assert (summary.stopped_early is None) == (last == settings.get("rounds", 7))


def test_scores_that_sites_keep_decide_nothing(tmp_path: Path) -> None:
    silent = scores(silent=tuple(range(1, 8)))
    grid = a_grid(a=silent, b=silent)
    summary = go(grid, a_run(patience=1, keep="best"), tmp_path)
    assert (summary.rounds, summary.model_round, summary.stopped_early) == (7, 7, None)
    said = in_words(json.loads((tmp_path / "summary.json").read_text()))
    assert said == [
        "no site let a validation score go, by which keep = 'best' chooses: the model is that of round 7, the last",
        "no site let a validation score of round 7 go, and patience counts by them: without any a run goes to its end",
    ]
    page = html.unescape(write_report(tmp_path).read_text())
    assert all(sentence in page for sentence in said)


def test_a_round_without_scores_is_neither_best_nor_worse(tmp_path: Path) -> None:
    grid = a_grid(a=scores(silent=(4,)), b=scores(silent=(4,)))
    summary = go(grid, a_run(patience=2), tmp_path)
    assert summary.rounds == 6  # 5 and 6 were no better than 3


@pytest.mark.parametrize("away", [1, 3, 5, 7])
def test_a_round_without_its_hardest_site_is_not_the_best_for_that(tmp_path: Path, away: int) -> None:
    """By hand: both sites are best after round 4, and the hard one has never half of the easy one's scores."""
    easy, hard = (0.60, 0.65, 0.70, 0.80, 0.75, 0.70, 0.65), (0.10, 0.15, 0.20, 0.30, 0.25, 0.20, 0.15)
    grid = a_grid(a=scores(easy), b=scores(hard, silent=(away,)))
    assert go(grid, a_run(keep="best"), tmp_path / "kept").model_round == 4
    stopped = go(grid, a_run(keep="best", patience=2), tmp_path / "stopped")
    assert (stopped.rounds, stopped.model_round) == (6, 4)


def test_rounds_that_no_site_scored_both_are_compared_by_their_means(tmp_path: Path) -> None:
    grid = a_grid(a=scores(silent=(2, 4)), b=scores(silent=(1, 3, 5)))
    assert go(grid, a_run(5, keep="best"), tmp_path).model_round == 3


def test_summary_report_and_watch_say_it(tmp_path: Path) -> None:
    go(a_grid(), a_run(patience=2, keep="best"), tmp_path)
    summary = json.loads((tmp_path / "summary.json").read_text())
    stopped = "stopped early after round 5 of 7: no better dice in 2 evaluations since round 3 (0.800)"
    assert in_words(summary) == [stopped, "the model is that of round 3, the best by its validation scores"]
    page = write_report(tmp_path).read_text()
    assert all(sentence in page for sentence in in_words(summary))
    lines = [event_line(event, Segmentation()) for event in read_events(tmp_path / "metrics.jsonl")]
    assert "round 5: stopped early, no better dice in 2 evaluations since round 3" in lines
    assert in_words(json.loads(json.dumps({"settings": summary["settings"]}))) == []


class _Killed(BaseException):
    pass


def _killed_at(monkeypatch: pytest.MonkeyPatch, name: str, at: int) -> None:
    """The process ends as it begins its at-th call of this function of the coordinator's rounds."""
    real, calls = getattr(rounds, name), []

    def function(*arguments: Any, **options: Any) -> Any:
        calls.append(name)
        if len(calls) == at:
            raise _Killed
        return real(*arguments, **options)

    monkeypatch.setattr(rounds, name, function)


@pytest.mark.parametrize(
    ("name", "at"),
    [
        *(("_train", number) for number in (1, 4)),
        *(("_evaluate", number) for number in (3, 4, 6)),
        *(("keep", number) for number in (3, 4)),
        *(("keep_best", number) for number in (3, 4)),
        *(("prune", number) for number in (3, 4)),
        ("kept_model", 1),
        ("_finish", 1),
        ("write_summary", 1),
    ],
)
def test_a_run_that_was_killed_anywhere_decides_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, at: int
) -> None:
    run = a_run(patience=2, keep="best")
    whole = go(a_grid(), run, tmp_path / "whole")
    sealer = Sealer(bytes(32), "run")
    with monkeypatch.context() as patched:
        _killed_at(patched, name, at)
        with pytest.raises(_Killed):
            go(a_grid(), run, tmp_path / "killed", sealer)
    resumed = go(a_grid(), run, tmp_path / "killed", sealer)
    assert (resumed.model_sha256, resumed.model_round) == (whole.model_sha256, 3)
    assert (resumed.rounds, resumed.stopped_early, resumed.scores) == (whole.rounds, whole.stopped_early, whole.scores)
    assert {path.name for path in (tmp_path / "killed" / "best").iterdir()} == {"round-00003"}


def test_a_best_model_that_is_gone_or_another_rounds_ends_the_run_with_a_reason(tmp_path: Path) -> None:
    run = a_run(6, keep="best")
    go(a_grid(), run, tmp_path)
    folder = best_folder_of(tmp_path, 3)
    folder.rename(folder.with_name("kept"))
    with pytest.raises(ConfigError, match=r"there is no .*best/round-00003\."):
        go(a_grid(), run, tmp_path)


def test_a_model_of_another_round_in_the_best_ones_place_is_not_taken_for_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = a_run(6, keep="best")
    with monkeypatch.context() as patched:
        _killed_at(patched, "kept_model", 1)
        with pytest.raises(_Killed):
            go(a_grid(), run, tmp_path)
    _, state, manifest = load_model(best_folder_of(tmp_path, 3))
    save_model(best_folder_of(tmp_path, 3), pack(state), dataclasses.replace(manifest, round=2))
    with pytest.raises(ConfigError, match="holds another model than its place says"):
        go(a_grid(), run, tmp_path)


def test_an_average_is_what_is_scored_and_kept(tmp_path: Path) -> None:
    grid = a_grid()
    summary = go(grid, a_run(6, keep="best", averaging=0.5), tmp_path)
    assert model_tested(grid) == (3, weights_after(grid, 3))
    assert summary.model_sha256 == weights_after(grid, 3)


@given(st.lists(st.sampled_from([None, 0.1, 0.2, 0.3]), max_size=12), st.integers(1, 4))
def test_stopping_is_what_a_reader_of_the_scores_would_say(told: list[float | None], patience: int) -> None:
    """Against the plain rule, counted by hand from the first score on."""
    events = [
        {"event": "evaluate", "phase": "validation", "site": OVERALL, "round": number, **({"dice": one} if one else {})}
        for number, one in enumerate(told, start=1)
    ]
    best, since, stop = None, 0, False
    for one in told:
        if one is None:
            continue
        best, since = (one, 0) if best is None or one > best else (best, since + 1)
        stop = since >= patience
    run = a_run(patience=patience)
    assert (has_seen_enough(run, events) is not None) == stop
    first = best_round(events, Segmentation())
    assert (told[first - 1] if first else None) == best
    assert first is None or best not in told[: first - 1]


@pytest.mark.parametrize("choice", [{"patience": 2}, {"keep": "best"}])
def test_what_there_are_no_scores_for_is_refused(choice: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="validation-fraction must be above 0"):
        fakes.a_run(7, format_=2, federation=choice, data={"validation-fraction": 0.0})
    private = {"target-epsilon": 8.0}
    with pytest.raises(ConfigError, match=r"set federation\.evaluate-every.*more noise"):
        fakes.a_run(7, format_=2, federation=choice, privacy=private)
    with pytest.raises(ConfigError, match=r"only after the last one"):
        fakes.a_run(7, format_=2, federation={**choice, "evaluate-every": 7})
    assert fakes.a_run(7, format_=2, federation={**choice, "evaluate-every": 2}, privacy=private)


# Real sites


BOUND = "require-privacy = false\nmin-patients = 1\nmin-held-out = 1\nmax-clipping = 1000.0\nlifetime-epsilon = 100.0\n"


def hospitals(folder: Path, policy: str = BOUND) -> list[Site]:
    found = []
    for name in ("north", "south"):
        home = make_site(folder, tiny_site(folder / f"{name}-data", name, patients=10)).home
        (home / "policy.toml").write_text(policy)
        found.append(open_site(home))
    return found


def simulated(sites: list[Site], document: RunDocument, out: Path) -> Summary:
    return federate(InProcessGrid(sites, document), document, out)


@pytest.mark.parametrize("privacy", [{}, {"privacy": {"target-epsilon": 8.0, "sampling-rate": 0.5}}])
def test_hospitals_that_bind_scores_to_rounds_answer_the_test_of_the_best(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, privacy: dict[str, dict[str, object]]
) -> None:
    """Killed before its test and resumed: the same model, tested once; the best is what each hospital scored then."""
    federation = {"rounds": 5, "keep": "best", "patience": 2, "evaluate-every": 1}
    document = issue(tiny_run_of_format(2, federation=federation, training={"learning-rate": 0.3}, **privacy))
    sites, out = hospitals(tmp_path / "sites"), tmp_path / "out"
    with monkeypatch.context() as patched:
        _killed_at(patched, "kept_model", 1)
        with pytest.raises(_Killed):
            simulated(sites, document, out)
    summary = simulated(sites, document, out)
    events = read_events(out / "metrics.jsonl")
    means = {
        event["round"]: event["dice"]
        for event in events
        if (event["event"], event.get("phase"), event.get("site")) == ("evaluate", "validation", OVERALL)
    }
    assert summary.model_round == max(means, key=lambda number: (means[number], -number))
    assert set(summary.scores["test"]["sites"]) == {"north", "south"}
    assert summary.scores["test"]["round"] == summary.model_round
    ledger = [entry for site in sites for entry in site.ledger.entries() if "/held-out" in entry.cohort]
    if privacy:
        assert len(ledger) == 2 * (len(means) + 1)  # each evaluation is charged, and none twice
        assert summary.guarantee is not None
        assert all(one["epsilon"] <= 8.0 for one in summary.guarantee["sites"].values())
    else:
        assert not ledger
