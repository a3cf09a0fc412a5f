"""The report is one file, shows what the records say, and cannot be made to run anything."""

import datetime
import hashlib
import itertools
import json
import math
import re
from pathlib import Path
from xml.etree import ElementTree

import pytest

from common.config.rundocument import issue
from common.errors import ConfigError, FederationError
from common.learning.checkpoint import pack
from common.learning.network import build_model
from common.pages.chart import line_chart, ticks_of
from common.tasks.segmentation import Segmentation
from common.wire.messages import EvaluateReply, Request, TrainReply, TrainRequest
from server.federation.events import read_events
from server.federation.rounds import federate
from server.views.report import write_report
from server.views.watch import event_line
from tests.server.fakes import FakeGrid, FakeSite, Said, a_run, price, trains

SVG = "{http://www.w3.org/2000/svg}"
PRIVATE = a_run(rounds=1, privacy={"target-epsilon": 8.0})


def finished(folder: Path) -> str:
    sites = {
        "north": trains(lambda request: request.parts["weights"], dice=0.75),
        "<b>south</b>": trains(lambda r: r.parts["weights"]),
    }
    federate(FakeGrid(sites), issue(a_run()), folder, wake=lambda _: None)
    (folder / "overlays").mkdir()
    (folder / "overlays" / "north 1.png").write_bytes(b"\x89PNG fake")
    return write_report(folder).read_text(encoding="utf-8")


def test_report_stands_alone(tmp_path: Path) -> None:
    text = finished(tmp_path)
    assert not re.search(r'(src|href)="(?!data:)|<script|@import|url\(|https?://', text)
    assert 'src="data:image/png;base64,' in text


def test_report_shows_scores_sites_and_model(tmp_path: Path) -> None:
    text = finished(tmp_path)
    assert "0.750" in text
    assert "0.625" in text  # mean of the sites
    worst = text[text.index("worst site:") :]
    assert worst.startswith("worst site: &lt;b&gt;south")
    assert text.index("mean of sites") < text.index("worst site:")
    assert "<td>0.500</td>" in worst[:200]
    assert "no differential privacy guarantee" in text
    assert text.count("<svg") == 2  # dice and loss; no epsilon without privacy


@pytest.mark.parametrize("least", [1e-12, 1e-14, 1e-300, 5e-324, -1e-14])
def test_number_next_to_nothing_that_a_site_states_costs_no_page(tmp_path: Path, least: float) -> None:
    def says(request: Request) -> Said:
        if not isinstance(request, TrainRequest):
            return EvaluateReply(request.run_hash, request.round, request.phase, 10, {"dice": least})
        stated = {"train-loss": least, "epsilon": least}
        return TrainReply(request.run_hash, request.round, {"weights": request.parts["weights"]}, 10, stated)

    federate(FakeGrid({"one": says, "other": says}), issue(a_run()), tmp_path, wake=lambda _: None)
    text = write_report(tmp_path).read_text(encoding="utf-8")
    assert text.count("<svg") == 2  # dice and loss; no epsilon without privacy, whatever a site states


@pytest.mark.parametrize(
    ("low", "high"), [(0.0, 1e-14), (-3e-20, 0.0), (0.0, 3.4e38), (-3.4e38, 3.4e38), (0.0, 1e-310)]
)
def test_ticks_are_few_ascend_and_hold_what_is_between_them(low: float, high: float) -> None:
    ticks = ticks_of(low, high)
    assert 2 <= len(ticks) <= 8
    assert all(before < after for before, after in itertools.pairwise(ticks))
    assert ticks[0] <= low
    assert high <= ticks[-1]


def test_names_are_escaped(tmp_path: Path) -> None:
    text = finished(tmp_path)
    assert "<b>south" not in text
    assert "&lt;b&gt;south" in text


def test_failed_run_says_so_and_why(tmp_path: Path) -> None:
    run = a_run(quorum=2, federation={"round-timeout-s": 0.02})
    with pytest.raises(FederationError):
        federate(FakeGrid({"a": lambda _: None, "b": lambda _: None}), issue(run), tmp_path, wake=lambda _: None)
    text = write_report(tmp_path).read_text(encoding="utf-8")
    assert "failed" in text
    assert "a did not answer, b did not answer" in text


def test_private_run_states_unit_and_spend(tmp_path: Path) -> None:
    def site(request: Request) -> Said:
        reply = trains(lambda request: request.parts["weights"], patients=0)(request)
        assert isinstance(reply, TrainReply | EvaluateReply)
        reply.metrics.update(price(PRIVATE, reply.round))
        return reply

    run = a_run(rounds=1, quorum=1, privacy={"target-epsilon": 8.0})
    federate(FakeGrid({"a": site}), issue(run), tmp_path, wake=lambda _: None)
    text = write_report(tmp_path).read_text(encoding="utf-8")
    assert "<strong>patient</strong>" in text
    assert f"{price(PRIVATE, 1)['epsilon']:.3f}" in text
    for fact in ("Sampling: Poisson", "Clipping: fixed norm 1", "Noise: Gaussian", "Accountant: PRV"):
        assert fact in text


def noised(deviation: float, dice: float) -> FakeSite:
    """A site of a private run whose scores have noise."""

    def site(request: Request) -> Said:
        reply = trains(lambda request: request.parts["weights"], patients=0)(request)
        assert isinstance(reply, TrainReply | EvaluateReply)
        if isinstance(reply, TrainReply):
            reply.metrics.update(price(PRIVATE, reply.round))
        else:
            reply.metrics.update({"dice": dice, "dice-lesion": dice, "score-noise": deviation, "scores-epsilon": 0.98})
            reply.metrics.update({"class-score-noise": deviation, "scores-delta": 0.005})
        return reply

    return site


def test_noised_scores_are_shown_with_their_noise_and_what_it_covers(tmp_path: Path) -> None:
    run = a_run(rounds=1, quorum=2, privacy={"target-epsilon": 8.0})
    sites = {"a": noised(0.03, 0.8), "b": noised(0.04, 0.6)}
    summary = federate(FakeGrid(sites), issue(run), tmp_path, wake=lambda _: None)
    mean = summary.scores["test"]["mean-of-sites"]
    assert mean["dice"] == pytest.approx(0.7)
    # Of two independent noises: the root of their squares' sum, over two.
    assert mean["score-noise"] == pytest.approx(math.sqrt(0.03**2 + 0.04**2) / 2)
    assert "scores-epsilon" not in mean
    assert summary.scores["test"]["sites"]["a"]["score-noise"] == 0.03
    assert summary.guarantee is not None
    for stated in summary.guarantee["sites"].values():
        assert stated["held-out"] == "noised scores: epsilon 0.98 at delta 0.005 for a held-out patient in this run"
    text = write_report(tmp_path).read_text(encoding="utf-8")
    for shown in ("0.800 ± 0.030", "0.600 ± 0.040", "0.700 ± 0.025", "have added noise to these scores"):
        assert shown in text
    assert "lies farther from one half or nearer to it by as large a share, beyond its ±" in text
    lines = [event_line(event, Segmentation()) for event in read_events(tmp_path / "metrics.jsonl")]
    assert "round 1: test dice 0.700 ± 0.025 (mean of sites)" in lines


def test_exact_scores_of_a_private_run_are_shown_as_not_covered(tmp_path: Path) -> None:
    def site(request: Request) -> Said:
        reply = trains(lambda request: request.parts["weights"], patients=0)(request)
        if isinstance(reply, TrainReply):
            reply.metrics.update(price(PRIVATE, reply.round))
        return reply

    run = a_run(rounds=1, quorum=1, privacy={"target-epsilon": 8.0})
    federate(FakeGrid({"a": site}), issue(run), tmp_path, wake=lambda _: None)
    text = write_report(tmp_path).read_text(encoding="utf-8")
    assert "Held-out patients: exact scores: no guarantee covers a held-out patient." in text
    assert "have added noise" not in text
    assert "farther from one half" not in text


def test_run_from_weights_that_nobody_calls_public_prints_no_epsilon_and_says_why(tmp_path: Path) -> None:
    weights = pack(build_model(a_run()).state_dict())
    digest = hashlib.sha256(weights).hexdigest()

    def site(request: Request) -> Said:
        reply = trains(lambda request: request.parts["weights"], patients=0)(request)
        assert isinstance(reply, TrainReply | EvaluateReply)
        reply.metrics.update(price(PRIVATE, reply.round))
        return reply

    stated, spent = {}, f"{price(PRIVATE, 1)['epsilon']:.3f}"
    for name, public in (("void", None), ("stated", "trained on generated images, see the paper")):
        initial = {"sha256": digest} | ({"public": public} if public else {})
        run = a_run(rounds=1, quorum=1, privacy={"target-epsilon": 8.0}, initial=initial)
        folder = tmp_path / name
        folder.mkdir()
        (folder / "initial.safetensors").write_bytes(weights)
        summary = federate(FakeGrid({"a": site}), issue(run), folder, wake=lambda _: None)
        stated[name] = (summary.guarantee, write_report(folder).read_text(encoding="utf-8"))
    guarantee, text = stated["void"]
    assert guarantee is not None
    assert guarantee["sites"] == {}
    assert "gives no differential privacy guarantee" in text
    assert "nobody declares to be public" in text
    assert spent not in text
    assert "Epsilon spent" not in text
    guarantee, text = stated["stated"]
    assert guarantee is not None
    assert guarantee["sites"]["a"]["epsilon"] == price(PRIVATE, 1)["epsilon"]
    assert "by the coordinator&#39;s word, the initial weights: trained on generated images, see the paper" in text
    assert "Epsilon spent" in text


def test_folder_without_a_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no summary\.json"):
        write_report(tmp_path)


@pytest.mark.parametrize(
    "points",
    [[(1, 0.5)], [(1, 0.0), (2, 0.0)], [(1, -3.0), (9, 12.0)], [(1, 1e-9), (2, 2e-9)], [(0, 5.0), (1, 5.0)]],
    ids=["one point", "all zero", "both signs", "tiny", "flat"],
)
def test_chart_keeps_every_point_within_its_frame(points: list[tuple[float, float]]) -> None:
    svg = ElementTree.fromstring(  # noqa: S314 - our own SVG, not foreign XML
        str(line_chart("t", {"a": points})).replace("<svg", '<svg xmlns="http://www.w3.org/2000/svg"')
    )
    circles = svg.findall(f"{SVG}circle")
    assert len(circles) == len(points)
    for circle in circles:
        assert 52 <= float(circle.get("cx", "nan")) <= 430
        assert 29.9 <= float(circle.get("cy", "nan")) <= 226.1


def test_chart_of_nothing_is_nothing() -> None:
    assert line_chart("t", {}) == ""
    assert line_chart("t", {"a": []}) == ""


def lines_of(chart: str) -> dict[str, str]:
    """The colour of each line of a chart, by the name beside it."""
    root = ElementTree.fromstring(chart)  # noqa: S314 - our own
    places = [one.get("fill", "") for one in root.iter("rect")]
    names = [one.text or "" for one in root.iter("text") if one.get("x") == "462" and one.get("class") == "tick"]
    return dict(zip(names, places, strict=True))


def test_a_site_has_one_colour_in_all_charts_also_where_another_is_missing(tmp_path: Path) -> None:
    """The first site trains and is not scored, so that in the two charts the others have different places."""

    def unscored(request: Request) -> Said:
        return trains(lambda one: one.parts["weights"])(request) if isinstance(request, TrainRequest) else None

    sites = {
        "a": unscored,
        "b": trains(lambda one: one.parts["weights"]),
        "c": trains(lambda one: one.parts["weights"]),
    }
    run = a_run(quorum=2, federation={"round-timeout-s": 0.05})
    federate(FakeGrid(sites), issue(run), tmp_path, wake=lambda _: None)
    text = write_report(tmp_path).read_text(encoding="utf-8")
    charts = [lines_of(chart) for chart in re.findall(r"<svg.*?</svg>", text, re.DOTALL)]
    dice, loss = charts
    assert set(dice) == {"b", "c", "overall"}
    assert set(loss) == {"a", "b", "c"}
    assert {name: loss[name] for name in ("b", "c")} == {name: dice[name] for name in ("b", "c")}
    assert len(set(loss.values())) == 3


@pytest.mark.parametrize(
    ("scores", "told"),
    [
        ({"dice": 0.0, "sensitivity": 0.0, "specificity": 1.0}, "finds nothing of what is labelled at b"),
        ({"dice": 0.4, "dice-liver": 0.8, "dice-lesion": 0.0, "sensitivity": 0.7}, "finds nothing of lesion at b"),
        ({"dice": 0.4, "sensitivity": 0.3}, None),
        ({"dice": 0.0, "sensitivity": 0.0, "score-noise": 0.2}, None),  # noised: zero says nothing
    ],
)
def test_a_model_that_finds_nothing_is_said_to(tmp_path: Path, scores: dict[str, float], told: str | None) -> None:
    federate(
        FakeGrid({name: trains(lambda one: one.parts["weights"]) for name in "ab"}),
        issue(a_run()),
        tmp_path,
        wake=lambda _: None,
    )
    summary = json.loads((tmp_path / "summary.json").read_text())
    mean = {name: value / 2 for name, value in scores.items()}
    summary["scores"] = {
        "test": {
            "round": 2,
            "sites": {"a": {"dice": 0.5}, "b": scores},
            "mean-of-sites": mean,
            "mean-of-patients": None,
        }
    }
    (tmp_path / "summary.json").write_text(json.dumps(summary))
    text = write_report(tmp_path).read_text(encoding="utf-8")
    assert ("finds nothing" in text) == (told is not None)
    assert told is None or told in text


def test_report_has_the_date_and_every_setting(tmp_path: Path) -> None:
    text = finished(tmp_path)
    assert f"{datetime.datetime.now(datetime.UTC):%Y-%m-%d}" in text
    assert " UTC to " in text
    rows = dict(re.findall(r"<tr><td>([a-z.-]+)</td><td>(.*?)</td></tr>", text))
    for key, value in (
        ("training.learning-rate", "0.001"),
        ("federation.quorum", "2"),
        ("data.modality", "&#34;photo&#34;"),
    ):
        assert rows[key] == value


def test_mean_of_patients_says_that_the_counts_are_rounded(tmp_path: Path) -> None:
    assert "mean of patients, by counts in steps of 5 from 10 on" in finished(tmp_path)
