"""How unlike hospitals are: by events as they stand in a journal, against numbers made by hand."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from common.config.rundocument import issue
from common.learning.checkpoint import pack, unpack
from common.wire.messages import TrainRequest
from server.federation.events import read_events
from server.federation.rounds import federate
from server.views.heterogeneity import Finding, as_columns, heterogeneity_of
from server.views.report import write_report
from tests.server.fakes import FakeGrid, a_run, trains

RUN = a_run().model_dump(mode="json", by_alias=True)
PRIVATE = a_run(privacy={"target-epsilon": 8.0}).model_dump(mode="json", by_alias=True)
# Round -> site -> (own-way, with-others, validation score).
ROUNDS: Mapping[int, Mapping[str, tuple[float, float, float]]] = {
    1: {"north": (0.9, 0.9, 0.1), "south": (0.9, 0.9, 0.9), "west": (0.9, 0.9, 0.1)},
    2: {"north": (0.9, 0.9, 0.1), "south": (0.9, 0.9, 0.9), "west": (0.9, 0.9, 0.1)},
    3: {"north": (0.9, 0.9, 0.1), "south": (0.9, 0.9, 0.9), "west": (0.9, 0.9, 0.1)},
    4: {"north": (0.3, 0.2, 0.7), "south": (0.0, 0.1, 0.4), "west": (0.0, -0.2, 0.6)},
    5: {"north": (0.3, 0.2, 0.7), "south": (0.0, 0.1, 0.4), "west": (0.0, -0.2, 0.6)},
    6: {"north": (0.3, 0.2, 0.7), "south": (0.3, 0.1, 0.3), "west": (0.0, -0.2, 0.6)},
}


def told(patients: Mapping[str, int], settings: Mapping[str, Any] = RUN) -> dict[str, Finding]:
    events: list[dict[str, Any]] = []
    for number, sites in ROUNDS.items():
        events += [{"event": "train", "round": number, "site": site, "patients": patients[site]} for site in sites]
        moves = {site: {"length": 1.0, "own-way": own, "with-others": one} for site, (own, one, _) in sites.items()}
        events.append({"event": "round", "round": number, "moves": moves})
        about = {"event": "evaluate", "phase": "validation", "round": number}
        events += [{**about, "site": site, "dice": dice} for site, (_, _, dice) in sites.items()]
        events.append({**about, "site": "overall", "dice": 0.0})
    found = heterogeneity_of({"settings": settings}, events)
    return dict(zip(("size", "drift", "against", "scores"), found, strict=False))


def test_each_measure_is_of_the_second_half_and_names_its_site() -> None:
    found = told({"north": 300, "south": 50, "west": 50})
    assert found["size"].found == pytest.approx(300 * 3 / 400)
    assert found["drift"].found == pytest.approx((0.3 * 3 + 0.3) / 9)
    assert found["against"].found == pytest.approx(-0.2)
    assert found["scores"].found == pytest.approx(0.7 - (0.4 + 0.4 + 0.3) / 3)
    assert all(one.beyond for one in found.values())
    assert "north, about 300 of 400" in str(found["size"].row)
    assert "most of north, 0.30" in str(found["drift"].row)
    assert "west moves against the others" in found["against"].advice
    assert "south has the harder patients" in found["scores"].advice
    assert "scaffold" in found["drift"].advice
    assert "each a mean over the evaluations after rounds 4 to 6" in str(found["scores"].row)


@pytest.mark.parametrize("fewest", [45, 0])
def test_of_few_patients_or_an_untold_number_drift_and_scores_are_shown_and_not_judged(fewest: int) -> None:
    found = told(dict.fromkeys(ROUNDS[1], fewest)).values()
    for what, advice in (("own direction", "scaffold"), ("dice", "ditto")):
        (one,) = (one for one in found if what in one.what)
        assert one.beyond
        assert "Not judged" in one.advice
        assert advice not in str(one.row)


def test_what_lies_within_the_limits_is_said_to() -> None:
    assert told(dict.fromkeys(ROUNDS[1], 50))["size"].row[-1] == "within the limit"


def test_noised_scores_of_a_private_run_are_not_compared() -> None:
    assert "scores" not in told(dict.fromkeys(ROUNDS[1], 50), PRIVATE)


def told_statistics(shares: Sequence[float], means: Sequence[float]) -> list[dict[str, Any]]:
    """Events of two rounds in which sites tell; in the second others than in the first, which count no more."""
    sites = dict(zip(("north", "south", "west"), zip(shares, means, strict=True), strict=True))
    return [
        {
            **{"event": "train", "round": number, "site": site, "patients": 200, "counted-patients": 200.0},
            **{"class-share-lesion": share if number == 1 else 0.5},
            **{"intensity-mean-1": mean if number == 1 else 0.5, "intensity-mean-spread-1": 0.05},
        }
        for number in (1, 2)
        for site, (share, mean) in sites.items()
    ]


def test_statistics_of_unlike_sites_are_beyond_their_limits_and_name_the_sites() -> None:
    events = told_statistics((0.3, 0.5, 0.5), (0.4, 0.5, 0.4))
    found = {one.key: one for one in heterogeneity_of({"settings": RUN}, events)}
    assert found["labels"].found == pytest.approx(0.2)
    assert all(found[key].beyond for key in ("labels", "intensities"))
    assert "lesion: west 0.5, north 0.3; by chance under 0.001" in str(found["labels"].row)
    assert "south 0.5" in str(found["intensities"].row)
    columns = as_columns(list(found.values()), events)
    assert columns["class-share-lesion"] == {"north": 0.3, "south": 0.5, "west": 0.5}
    assert columns["unlike-labels"] == {"overall": found["labels"].found}
    assert columns["unlike-labels-beyond"] == {"overall": True}


@pytest.mark.parametrize(
    ("shares", "means"),
    [
        ((0.5, 0.5, 0.5), (0.4, 0.4, 0.4)),
        ((0.5, 0.52, 0.5), (0.4, 0.41, 0.4)),
        ((0.44, 0.53, 0.5), (0.4, 0.42, 0.4)),  # not by chance, perhaps, but little
        ((0.44, 0.55, 0.5), (0.4, 0.4, 0.4)),  # over the limit, and likely by chance
    ],
)
def test_statistics_of_alike_sites_are_within_the_limits(shares: Sequence[float], means: Sequence[float]) -> None:
    found = {one.key: one for one in heterogeneity_of({"settings": RUN}, told_statistics(shares, means))}
    assert not any(found[key].beyond for key in ("labels", "intensities"))


def told_by(patients: Mapping[str, float], share: float | None) -> dict[str, Finding]:
    events: list[dict[str, Any]] = [
        {"event": "train", "round": 1, "site": site, "patients": of, "counted-patients": of, "intensity-mean-1": 0.5}
        | {"intensity-mean-spread-1": 0.05}
        | ({} if share is None else {"class-share-lesion": share})
        for site, of in patients.items()
    ]
    return {one.key: one for one in heterogeneity_of({"settings": RUN}, events)}


@pytest.mark.parametrize(
    ("patients", "said"),
    [
        ({"north": 20.0, "south": 20.0}, "says nothing: with so few patients at north (about 20 patients)"),
        (
            {"north": 300.0, "south": 50.0},
            "no proof: at south (about 50 patients) a difference below 0.25 is mostly not",
        ),
    ],
)
def test_labels_within_the_limit_say_what_would_not_have_been_found(patients: Mapping[str, float], said: str) -> None:
    found = told_by(patients, 0.5)
    assert not found["labels"].beyond
    assert said in str(found["labels"].row[-1])
    assert "which is no proof" in str(found["intensities"].row[-1])


def test_labels_that_hardly_a_site_tells_of_are_said_to_be_unknown() -> None:
    found = told_by({"north": 15.0, "south": 15.0, "west": 15.0}, None)
    assert found["labels"].found is None
    assert not found["labels"].beyond
    assert found["labels"].row[1:] == [
        "not told: of 3 sites that tell anything, 0 tell a share",
        "0.1",
        "Nothing is known of a label shift: a site tells from about 20 training patients on, and what its policy names "
        "(class-share).",
    ]
    columns = as_columns(list(found.values()), [])
    assert columns["unlike-labels"] == {"overall": None}
    assert columns["unlike-labels-beyond"] == {"overall": False}


def test_a_run_whose_sites_tell_nothing_has_none_of_these_measures() -> None:
    assert not {"labels", "intensities"} & told(dict.fromkeys(ROUNDS[1], 50)).keys()


def test_a_run_notes_moves_and_its_report_shows_them(tmp_path: Path) -> None:
    """Both sites move along the first weights, south four times as far and in every second round the other way."""

    def moves(factor: float, turns: bool) -> Any:
        def change(request: TrainRequest) -> bytes:
            state = unpack(request.parts["weights"])
            name = min(state)  # the same in each round
            sign = -1 if turns and request.round % 2 else 1
            state[name] = state[name] + 0.01 * factor * sign
            return pack(state)

        return trains(change)

    run = a_run(rounds=8)
    federate(
        FakeGrid({"north": moves(1, turns=False), "south": moves(4, turns=True)}),
        issue(run), tmp_path, wake=lambda _: None,
    )  # fmt: skip
    rounds = [one["moves"] for one in read_events(tmp_path / "metrics.jsonl") if one["event"] == "round"]
    assert [round(one["south"]["length"] / one["north"]["length"], 3) for one in rounds] == [4.0] * 8
    # Beyond the mean of 1 and -4 north has 2.5, of 1 and 4 then -1.5: the other way each time.
    assert [one["north"].get("own-way") for one in rounds] == [None, *[pytest.approx(-1, abs=1e-6)] * 7]
    assert [one["north"]["with-others"] for one in rounds] == pytest.approx([-1, 1] * 4, abs=1e-5)
    text = write_report(tmp_path).read_text(encoding="utf-8")
    assert "How unlike the hospitals are" in text
    assert "within the limit" in text
