"""What each hospital gains: numbers that a person reads, against those that the sites said."""

from pathlib import Path

import pytest

from common.config import RunConfig
from common.config.rundocument import issue
from common.wire.messages import EvaluateReply, EvaluateRequest, Request
from server.federation.events import read_events, read_summary
from server.federation.rounds import federate
from server.views.cross_site import CrossSite, as_columns, cross_site_of
from server.views.report import write_report
from server.views.watch import event_line
from tests.server.fakes import FakeGrid, FakeSite, Said, a_run, trains

# Round -> what the global model scores at the site, and the own one. Of south the policy keeps the own one's.
SAID: dict[str, dict[int, tuple[float, float | None]]] = {
    "north": {1: (0.5, 0.625), 2: (0.75, 0.5)},
    "south": {1: (0.25, None), 2: (0.5, None)},
    "west": {1: (0.375, 0.25), 2: (0.25, 0.75)},
}


def says(site: str) -> FakeSite:
    trained = trains(lambda request: request.parts["weights"])

    def answer(request: Request) -> Said:
        if not isinstance(request, EvaluateRequest):
            return trained(request)
        shared, local = SAID[site][request.round]
        scores = {"dice": shared} | ({} if local is None else {"local-dice": local})
        return EvaluateReply(request.run_hash, request.round, request.phase, 10, scores)

    return answer


def run_of(**federation: object) -> RunConfig:
    return a_run(format_=2, federation={"rounds": 2, "quorum": 3, **federation})


def compared(folder: Path, run: RunConfig) -> dict[str, CrossSite]:
    federate(FakeGrid({site: says(site) for site in SAID}), issue(run), folder, wake=lambda _: None)
    summary = read_summary(folder)
    assert summary is not None
    return {one.phase: one for one in cross_site_of(summary, read_events(folder / "metrics.jsonl"))}


def test_the_model_before_now_and_ones_own_stand_beside_each_other(tmp_path: Path) -> None:
    found = compared(tmp_path, run_of(**{"cross-site": True}))
    validation = found["validation"]
    assert (validation.previous, validation.round) == (1, 2)
    assert validation.columns == ("site", "global, round 1", "global, round 2", "own, trained alone", "gain")
    assert validation.rows == [
        ["north", 0.5, 0.75, 0.5, "+0.250"],
        ["south", 0.25, 0.5, None, None],
        ["west", 0.375, 0.25, 0.75, "-0.500"],
        ["mean of sites", 0.375, 0.5, 0.625, "-0.125"],  # the gain: of north and west, who told both
        ["worst site: west", 0.375, 0.25, 0.75, "-0.500"],
    ]
    assert validation.notes[0] == (
        "Gain from the run: north (+0.250). Do not: west (-0.500). Told no score of both: south."
    )
    assert found["test"].columns == ("site", "global, round 2", "own, trained alone", "gain")
    assert as_columns(list(found.values())) == {
        "validation-previous": {"north": 0.5, "south": 0.25, "west": 0.375},
        **{phase: {"north": 0.75, "south": 0.5, "west": 0.25} for phase in found},
        **{f"{phase}-local": {"north": 0.5, "south": None, "west": 0.75} for phase in found},
        **{f"{phase}-gain": {"north": 0.25, "south": None, "west": -0.5} for phase in found},
    }


def test_what_holds_of_nobody_is_not_said() -> None:
    run = a_run(format_=2, federation={"rounds": 2, "cross-site": True})
    scores = {"round": 2, "sites": {"north": {"dice": 0.5, "local-dice": 0.25}}, "mean-of-sites": {"dice": 0.5}}
    summary = {"settings": run.model_dump(mode="json", by_alias=True), "scores": {"test": scores}, "rounds": 2}
    (found,) = cross_site_of(summary, [])
    assert found.notes[0] == "Gain from the run: north (+0.250)."


def test_report_and_watch_show_it_and_only_where_the_run_asks(tmp_path: Path) -> None:
    run = run_of(**{"cross-site": True})
    compared(tmp_path / "with", run)
    text = write_report(tmp_path / "with").read_text(encoding="utf-8")
    assert text.count("What each hospital gains") == 2
    assert "<td>-0.500</td>" in text
    events = read_events(tmp_path / "with" / "metrics.jsonl")
    lines = [line for one in events if (line := event_line(one, run.task))]
    assert "round 2: validation dice 0.500 (mean of sites); 0.625 of the models trained alone" in lines
    assert not compared(tmp_path / "without", run_of())
    assert "hospital gains" not in write_report(tmp_path / "without").read_text(encoding="utf-8")


def test_of_the_round_that_is_kept_it_is_said_that_the_own_models_are_later(tmp_path: Path) -> None:
    """The mean of the sites is best after round 1, so that the test is of that model."""
    before = {site: dict(rounds) for site, rounds in SAID.items()}
    try:
        for rounds in SAID.values():
            rounds[1] = (0.9, 0.5)
        found = compared(tmp_path, run_of(keep="best", **{"cross-site": True}))
    finally:
        SAID.update(before)
    assert found["test"].round == 1
    assert found["validation"].previous is None
    assert any("model is that of round 1" in one for one in found["test"].notes)


@pytest.mark.parametrize("told", [True, False])
def test_a_private_run_says_where_the_numbers_are(told: bool) -> None:
    run = a_run(format_=2, federation={"rounds": 2, "cross-site": told}, privacy={"target-epsilon": 8.0})
    scores = {"round": 2, "sites": {"north": {"dice": 0.5, "score-noise": 0.25}}, "mean-of-sites": {"dice": 0.5}}
    summary = {"settings": run.model_dump(mode="json", by_alias=True), "scores": {"validation": scores}, "rounds": 2}
    found = cross_site_of(summary, [])
    assert len(found) == told
    for one in found:
        assert one.rows[0] == ["north", "0.500 ± 0.250", None, None]
        assert "`wardround-client show` has both" in one.notes[0]
