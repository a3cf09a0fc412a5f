"""[federation] sites-per-round: a round asks so many sites, drawn by the seed; the others are never told as absent."""

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from common.config import RunConfig
from common.config.rundocument import issue
from common.errors import ConfigError, ErrorCode, FederationError
from common.learning.checkpoint import pack, unpack
from common.wire.messages import EvaluateRequest, Request, TrainRequest
from server.federation.events import Event, Summary, read_events
from server.federation.members import Draw, GridMembers, Member, State
from server.federation.rounds import federate
from server.views.report import write_report
from server.views.sentences import not_asked_of
from tests.server.fakes import FakeGrid, FakeSite, Said, a_run, refuses, trains

NAMES = [f"site-{number:02}" for number in range(40)]
ROUNDS = 6


def run_of(seed: int = 0, *, rounds: int = ROUNDS, timeout_s: float = 10.0) -> RunConfig:
    federation = {"sites-per-round": 5, "evaluate-every": 3, "round-timeout-s": timeout_s}
    run = a_run(rounds=rounds, quorum=3, format_=2, federation=federation)
    return run.model_copy(update={"seed": seed})


def moves(number: int) -> FakeSite:
    def moved(request: TrainRequest) -> bytes:
        return pack(
            {name: tensor + 1e-3 * (1 + number / 100) for name, tensor in unpack(request.parts["weights"]).items()}
        )

    return trains(moved)


def sites() -> dict[str, FakeSite]:
    return {name: moves(number) for number, name in enumerate(NAMES)}


def go(grid: FakeGrid, run: RunConfig, out: Path, observe: Callable[[Event], None] | None = None) -> Summary:
    return federate(grid, issue(run), out, wake=lambda _: None, observe=observe)


def trained_by(grid: FakeGrid) -> dict[int, list[str]]:
    found: dict[int, list[str]] = {}
    for site, request in grid.requests:
        if isinstance(request, TrainRequest):
            found.setdefault(request.round, []).append(site)
    return {round_: sorted(names) for round_, names in found.items()}


def rounds_of(out: Path, kind: str = "round") -> list[dict[str, Any]]:
    return [event for event in read_events(out / "metrics.jsonl") if event["event"] == kind]


def test_each_round_asks_so_many_and_another_seed_asks_others(tmp_path: Path) -> None:
    grids = [FakeGrid(sites()) for _ in range(3)]
    for number, (grid, seed) in enumerate(zip(grids, (0, 0, 1), strict=True)):
        go(grid, run_of(seed), tmp_path / f"{number}")
    first, again, other = map(trained_by, grids)
    assert [len(names) for names in first.values()] == [5] * ROUNDS
    assert len({tuple(names) for names in first.values()}) == ROUNDS  # each round draws anew
    assert first == again != other


def test_every_site_is_drawn_about_as_often() -> None:
    run, counts = run_of(rounds=400), Counter[str]()
    members = [Member(name, State.HERE, number) for number, name in enumerate(NAMES)]
    for round_ in range(1, 401):
        counts.update(Draw(run, round_, (), lambda _: None).first(members))
    # 400 draws of 5 of 40: 50 each, with a deviation of sqrt(400 / 8 * 7 / 8) = 6.6.
    assert set(counts) == set(NAMES)
    assert all(abs(count - 50) < 5 * 6.6 for count in counts.values())


def test_who_else_is_there_moves_nobody() -> None:
    members = [Member(name, State.HERE, number) for number, name in enumerate(NAMES)]
    run = run_of()
    whole = Draw(run, 1, (), lambda _: None).first(members)
    gone = sorted(whole)[0]
    rest = Draw(run, 1, (), lambda _: None).first([one for one in members if one.site != gone])
    assert len(rest) == 5
    assert whole - {gone} < rest


def test_only_who_can_take_part_is_drawn() -> None:
    members = [
        Member("here", State.HERE, 1),
        Member("back-soon", State.AWAY, 2, seconds=5.0),
        Member("away", State.AWAY, 3, seconds=500.0),
        Member("left", State.LEFT, 4),
        Member("revoked", State.REVOKED, 5),
        Member("never-here", State.HERE, None),
        Member("said-no", State.HERE, 7, willing=False),
    ]
    draw = Draw(run_of(), 1, (), lambda _: None)
    assert draw.first(members) == {"here", "back-soon"}
    assert draw.not_asked == []


def test_all_are_asked_for_scores(tmp_path: Path) -> None:
    grid = FakeGrid(sites())
    summary = go(grid, run_of(), tmp_path)
    scored = Counter(
        (request.round, request.phase) for _, request in grid.requests if isinstance(request, EvaluateRequest)
    )
    assert scored == {(3, "validation"): 40, (6, "validation"): 40, (6, "test"): 40}
    assert len(summary.scores["test"]["sites"]) == 40


def test_who_was_not_drawn_is_told_as_not_asked_and_never_as_missing(tmp_path: Path) -> None:
    summary = go(FakeGrid(sites()), run_of(), tmp_path)
    for event, asked, told in zip(
        rounds_of(tmp_path), rounds_of(tmp_path, "asked"), summary.sites_by_round, strict=True
    ):
        assert asked["round"] == event["round"]
        assert event["sites"] == asked["sites"]
        assert sorted(event["sites"] + event["not-asked"]) == NAMES
        assert (event["missing"], event["refused"]) == ([], {})
        assert not_asked_of(event) == ["35 sites not asked"]
        assert (told["missing"], told["not-asked"]) == ([], 35)
    page = write_report(tmp_path).read_text()
    assert page.count("35 sites not asked") == ROUNDS
    assert "did not answer" not in page


def test_a_run_that_asks_all_has_no_such_words(tmp_path: Path) -> None:
    run = a_run(rounds=1, quorum=2)
    summary = go(FakeGrid({"a": moves(0), "b": moves(1)}), run, tmp_path)
    assert "not-asked" not in summary.sites_by_round[0]
    assert rounds_of(tmp_path, "asked") == []
    assert "not asked" not in write_report(tmp_path).read_text()


def stops_at(kind: str, round_: int) -> Callable[[Event], None]:
    def observe(event: Event) -> None:
        if (event["event"], event.get("round")) == (kind, round_):
            raise KeyboardInterrupt

    return observe


def test_resumed_run_asks_the_same_and_makes_the_same_model(tmp_path: Path) -> None:
    whole = go(FakeGrid(sites()), run_of(), tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        go(FakeGrid(sites()), run_of(), tmp_path / "cut", stops_at("train", 4))
    resumed = go(FakeGrid(sites()), run_of(), tmp_path / "cut")
    assert resumed.model_sha256 == whole.model_sha256
    assert resumed.sites_by_round == whole.sites_by_round


@pytest.mark.parametrize("round_", [1, 4])
def test_a_round_that_was_cut_short_asks_the_same_again_whoever_is_there_now(tmp_path: Path, round_: int) -> None:
    whole = FakeGrid(sites())
    with pytest.raises(KeyboardInterrupt):
        go(whole, run_of(), tmp_path, stops_at("train", round_))
    more = sites() | {f"new-{number}": moves(number) for number in range(200)}
    members = GridMembers(FakeGrid(more)).look().values()
    asked = trained_by(whole)[round_]
    assert Draw(run_of(), round_, (), lambda _: None).first(members) != set(asked)  # if it were drawn anew
    grid = FakeGrid(more)
    with pytest.raises(KeyboardInterrupt):
        go(grid, run_of(), tmp_path, stops_at("round", round_))
    assert trained_by(grid) == {round_: asked}


def test_another_run_in_the_folder_draws_for_itself(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        go(FakeGrid(sites()), run_of(), tmp_path / "used", stops_at("train", 1))
    grids = FakeGrid(sites()), FakeGrid(sites())
    for grid, folder in zip(grids, ("used", "new"), strict=True):
        go(grid, run_of(seed=1), tmp_path / folder)
    assert trained_by(grids[0]) == trained_by(grids[1])
    assert len(rounds_of(tmp_path / "used", "asked")) == ROUNDS


def test_where_those_drawn_cannot_make_the_quorum_the_next_are_asked(tmp_path: Path) -> None:
    grid = FakeGrid(sites())
    run = run_of(rounds=1)
    go(grid, run, tmp_path / "plain")
    drawn = trained_by(grid)[1]
    unwilling = sites() | {name: refuses(ErrorCode.POLICY_REFUSED) for name in drawn[:4]}
    grid = FakeGrid(unwilling)
    go(grid, run, tmp_path / "short")
    asked = trained_by(grid)[1]
    assert len(asked) == 7  # one of five is left, and the quorum is three
    (event,) = rounds_of(tmp_path / "short")
    assert event["sites"] == sorted(set(asked) - set(drawn[:4]))
    assert list(event["refused"]) == drawn[:4]
    told = [one["sites"] for one in rounds_of(tmp_path / "short", "asked")]
    assert sorted(name for names in told for name in names) == asked
    assert told[0] == drawn
    assert len(event["not-asked"]) == 33


def test_a_failure_counts_those_who_were_not_asked_and_does_not_name_them(tmp_path: Path) -> None:
    def silent(request: Request) -> Said:
        return None

    with pytest.raises(FederationError, match="35 others were not asked") as failed:
        go(FakeGrid(dict.fromkeys(NAMES, silent)), run_of(rounds=1, timeout_s=0.05), tmp_path)
    assert str(failed.value).count("did not answer") == 5
    assert json.loads((tmp_path / "summary.json").read_text())["status"] == "failed"


def test_a_failed_round_asks_others_besides_when_it_is_resumed(tmp_path: Path) -> None:
    def silent(request: Request) -> Said:
        return None

    first = FakeGrid(dict.fromkeys(NAMES, silent))
    with pytest.raises(FederationError, match="35 others were not asked"):
        go(first, run_of(rounds=1, timeout_s=0.05), tmp_path)
    drawn = trained_by(first)[1]
    # They stay silent, as a hospital whose worker hangs does: without others no resume would ever go on.
    again = FakeGrid(sites() | dict.fromkeys(drawn, silent))
    go(again, run_of(rounds=1, timeout_s=0.05), tmp_path)
    asked = trained_by(again)[1]
    assert len(asked) == 8  # the five, and the three that were lacking
    assert set(drawn) < set(asked)
    (event,) = rounds_of(tmp_path)
    assert (event["missing"], event["sites"]) == (drawn, sorted(set(asked) - set(drawn)))
    assert len(event["not-asked"]) == 32


@pytest.mark.parametrize(
    ("tables", "says"),
    [
        ({"federation": {"quorum": 6}}, "lower quorum"),
        ({"federation": {"cross-site": True}}, "Take one of them out"),
        ({"strategy": {"kind": "scaffold"}}, "use fedavg or fedprox"),
        ({"strategy": {"kind": "feddyn"}}, "use fedavg or fedprox"),
    ],
)
def test_what_cannot_go_with_it_is_refused_with_what_to_do(tables: dict[str, dict[str, object]], says: str) -> None:
    tables = {**tables, "federation": {"sites-per-round": 5, **tables.get("federation", {})}}
    with pytest.raises(ConfigError, match=says):
        a_run(rounds=3, quorum=3, format_=2, **tables)


def test_a_site_that_hears_late_of_named_weights_is_told_of() -> None:
    initial = {"sha256": "0" * 64, "public": "phantoms of the coordinator"}
    (told,) = a_run(format_=2, federation={"sites-per-round": 5}, initial=initial).idle
    assert "late-start" in told
    assert a_run(format_=2, initial=initial).idle == []


def test_the_key_is_of_format_2() -> None:
    with pytest.raises(ConfigError, match="format = 2"):
        a_run(federation={"sites-per-round": 5})
