"""The model that a site trains alone for comparison: what it is, when it is removed, and what of it may be told."""

import dataclasses
import shutil
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from torch import Tensor

from client.home.folder import GAINS_NAME, LOCAL_NAME
from client.home.gains import gains
from client.rules.exit_gate import release
from client.site import Site
from client.train import answer as answering
from client.train import training
from client.train.memory import recall_from, retain_in
from common.config.rundocument import RunDocument, issue
from common.learning.checkpoint import pack, sha256
from common.learning.network import build_model, weights_of
from common.privacy import engine
from common.wire.messages import EvaluateReply, EvaluateRequest, TrainReply, TrainRequest
from server.federation.events import OVERALL, Event, read_events
from server.federation.rounds import federate
from simulations.backends.in_process import InProcessGrid
from simulations.scenarios.homes import make_site
from simulations.scenarios.scenario import CompareConfig
from simulations.studies.compare import compare
from simulations.studies.comparison import ALONE
from tests.simulations.tiny import tiny_run_of_format, tiny_site

ROUNDS = 2
PRIVATE = {"target-epsilon": 8.0, "sampling-rate": 0.5, "crops-per-patient": 1}


@pytest.fixture(scope="module")
def hospitals(tmp_path_factory: pytest.TempPathFactory) -> list[Site]:
    """Read once; see `sites`."""
    folder, counts = tmp_path_factory.mktemp("hospitals"), {"north": 6, "south": 9}
    return [make_site(folder, tiny_site(folder / "images" / name, name, count)) for name, count in counts.items()]


@pytest.fixture
def sites(hospitals: list[Site]) -> list[Site]:
    """As if they had taken part in nothing yet."""
    for site in hospitals:
        shutil.rmtree(site.home / LOCAL_NAME, ignore_errors=True)
        shutil.rmtree(site.home / GAINS_NAME, ignore_errors=True)
    return hospitals


def asked(**tables: Mapping[str, object]) -> RunDocument:
    """A run that compares."""
    federation = {"rounds": ROUNDS, "cross-site": True, **tables.pop("federation", {})}
    return issue(tiny_run_of_format(2, federation=federation, **tables))


def bare_loop(site: Site, document: RunDocument, rounds: int = ROUNDS) -> Mapping[str, Tensor]:
    """Training at one site, round after round, with nobody else."""
    model = build_model(document.config)
    for number in range(1, rounds + 1):
        training.train_round(
            model, site.cohort(document.config), document, round_=number, site=site.config.name, device="cpu"
        )
    return weights_of(model)


def local_of(site: Site, document: RunDocument) -> Mapping[str, Tensor]:
    kept = recall_from(site.home / LOCAL_NAME / document.hash, site, ROUNDS + 1)
    assert kept is not None
    return kept.states["local"]


def same(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], tensor) for name, tensor in other.items())


def scored(folder: Path, phase: str) -> dict[str, Event]:
    events = read_events(folder / "metrics.jsonl")
    return {one["site"]: one for one in events if one["event"] == "evaluate" and one["phase"] == phase}


@pytest.mark.parametrize("strategy", [{"kind": "fedavg"}, {"kind": "scaffold"}, {"kind": "ditto"}])
def test_the_local_model_is_the_bare_loop_at_that_site_whatever_the_strategy(
    sites: list[Site], tmp_path: Path, strategy: Mapping[str, object]
) -> None:
    document = asked(strategy=strategy, training={"optimizer": "sgd", "learning-rate": 0.1})
    federate(InProcessGrid(sites, document), document, tmp_path / "out", test=False)
    assert all(same(local_of(site, document), bare_loop(site, document)) for site in sites)


def test_the_global_model_is_the_same_with_and_without_it(sites: list[Site], tmp_path: Path) -> None:
    with_it, without = asked(), issue(tiny_run_of_format(2, federation={"rounds": ROUNDS}))
    one = federate(InProcessGrid(sites, with_it), with_it, tmp_path / "with")
    other = federate(InProcessGrid(sites, without), without, tmp_path / "without")
    assert one.model_sha256 == other.model_sha256
    assert not any("local-dice" in event for event in scored(tmp_path / "without", "test").values())
    assert not any(gains(site.home, site.key, without.hash) for site in sites)


def test_its_score_is_that_of_the_column_alone_of_a_comparison(sites: list[Site], tmp_path: Path) -> None:
    document = asked()
    federate(InProcessGrid(sites, document), document, tmp_path / "out")
    results = compare(document.config, sites, tmp_path / "compare", seeds=[3], config=CompareConfig())
    tested = scored(tmp_path / "out", "test")
    for site in ("north", "south"):
        (alone,) = (one.scores[site]["dice"] for one in results if one.column == ALONE.format(site))
        assert tested[site]["local-dice"] == pytest.approx(alone, abs=1e-6)
    assert tested[OVERALL]["local-dice"] == pytest.approx(
        (tested["north"]["local-dice"] + tested["south"]["local-dice"]) / 2
    )


def test_the_model_is_removed_after_the_test_and_what_was_compared_stays(sites: list[Site], tmp_path: Path) -> None:
    document = asked()
    federate(InProcessGrid(sites, document), document, tmp_path / "out")
    for site in sites:
        assert not (site.home / LOCAL_NAME / document.hash).exists()
        kept = gains(site.home, site.key, document.hash)
        assert [(one.round, one.phase) for one in kept] == [
            *((number, "validation") for number in range(1, ROUNDS + 1)),
            (ROUNDS, "test"),
        ]
        event = scored(tmp_path / "out", "test")[site.config.name]
        assert (event["dice"], event["local-dice"]) == pytest.approx((kept[-1].shared, kept[-1].local), rel=1e-5)
        (sealed,) = (site.home / "state" / "gains").iterdir()
        assert b"dice" not in sealed.read_bytes()


def test_the_score_leaves_only_where_the_policy_names_it(sites: list[Site]) -> None:
    document, site = asked(), sites[0]
    weights = {"weights": pack(weights_of(build_model(document.config)))}
    answering.answer(TrainRequest(document.hash, 1, weights), document, site, "one")
    for allowed, told in ((("dice",), False), (("local-dice",), True)):
        ruled = dataclasses.replace(site, policy=site.policy.model_copy(update={"metrics": allowed}))
        asked_for = EvaluateRequest(document.hash, 1, "validation", weights)
        reply = answering.answer(asked_for, document, ruled, "two")
        assert isinstance(reply, EvaluateReply)
        assert ("local-dice" in reply.metrics) is told
        gated = release(reply, asked_for, document.config, allowed)
        assert isinstance(gated, EvaluateReply)
        assert gated.metrics.keys() & {"dice", "local-dice"} == set(allowed)


def test_a_test_that_is_asked_for_again_removes_what_a_crash_left(sites: list[Site]) -> None:
    document = asked(federation={"rounds": 1})
    site = dataclasses.replace(
        sites[0], policy=sites[0].policy.model_copy(update={"evaluations": "bound", "min_held_out": 1})
    )
    answering.answer(request(document, 1), document, site, "one")
    kept = recall_from(site.home / LOCAL_NAME / document.hash, site, 2)
    assert kept is not None
    test = EvaluateRequest(document.hash, 1, "test", request(document, 1).parts)
    first = answering.answer(test, document, site, "")
    retain_in(site.home / LOCAL_NAME / document.hash, site, kept)
    again = answering.answer(test, document, site, "")
    assert isinstance(first, EvaluateReply)
    assert isinstance(again, EvaluateReply)
    assert first.metrics == again.metrics
    assert "local-dice" in again.metrics
    assert not (site.home / LOCAL_NAME / document.hash).exists()


def test_a_cut_run_has_the_same_local_models(sites: list[Site], tmp_path: Path) -> None:
    document = asked()
    again = [make_site(tmp_path / "again", site.config) for site in sites]

    def stop(event: Event) -> None:
        if event["event"] == "train" and event["round"] == ROUNDS:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        federate(InProcessGrid(again, document), document, tmp_path / "cut", observe=stop)
    federate(InProcessGrid(again, document), document, tmp_path / "cut", test=False)
    assert all(
        same(local_of(one, document), bare_loop(other, document)) for one, other in zip(again, sites, strict=True)
    )


def request(document: RunDocument, number: int) -> TrainRequest:
    return TrainRequest(document.hash, number, {"weights": pack(weights_of(build_model(document.config)))})


def test_a_site_that_comes_late_to_a_run_that_names_its_weights_has_no_local_model(
    sites: list[Site], caplog: pytest.LogCaptureFixture
) -> None:
    site = dataclasses.replace(sites[0], policy=sites[0].policy.model_copy(update={"late_start": True}))
    weights = pack(weights_of(build_model(asked().config)))
    document = asked(initial={"sha256": sha256(weights)})
    assert isinstance(answering.answer(request(document, 2), document, site, "one"), TrainReply)
    assert "did not see round 1" in caplog.text
    scores = EvaluateRequest(document.hash, 2, "validation", {"weights": weights})
    reply = answering.answer(scores, document, site, "two")
    assert isinstance(reply, EvaluateReply)
    assert "dice" in reply.metrics
    assert "local-dice" not in reply.metrics
    (kept,) = gains(site.home, site.key, document.hash)
    assert kept.local is None
    assert kept.shared is not None


def test_what_goes_wrong_with_it_costs_no_update_and_no_score(
    sites: list[Site], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    document, site = asked(), sites[0]
    real, calls = training.train_round, []

    def second_fails(*arguments: object, **named: object) -> object:
        calls.append(1)
        if len(calls) == 2:
            raise ValueError("of one patient")
        return real(*arguments, **named)  # type: ignore[arg-type]  # as they came

    monkeypatch.setattr(training, "train_round", second_fails)
    assert isinstance(answering.answer(request(document, 1), document, site, "one"), TrainReply)
    assert len(calls) == 2
    assert "could not be trained" in caplog.text
    weights = {"weights": pack(weights_of(build_model(document.config)))}
    reply = answering.answer(EvaluateRequest(document.hash, 1, "validation", weights), document, site, "")
    assert isinstance(reply, EvaluateReply)
    assert "dice" in reply.metrics
    assert "local-dice" not in reply.metrics


def test_of_a_private_run_nothing_of_it_leaves_and_the_hospital_has_both_exact_scores(
    sites: list[Site], monkeypatch: pytest.MonkeyPatch
) -> None:
    document = asked(privacy=PRIVATE, federation={"rounds": 1, "quorum": 1})
    run, site = document.config, sites[1]
    monkeypatch.setattr(engine, "noised", lambda sums, **_: [torch.zeros_like(one) for one in sums])
    weights = {"weights": pack(weights_of(build_model(run)))}
    answering.answer(TrainRequest(document.hash, 1, weights), document, site, "one")
    local = recall_from(site.home / LOCAL_NAME / document.hash, site, 2)
    assert local is not None
    assert not same(local.states["local"], weights_of(build_model(run)))  # plain steps, which no noise touches
    reply = answering.answer(EvaluateRequest(document.hash, 1, "validation", weights), document, site, "two")
    assert isinstance(reply, EvaluateReply)
    assert not any(name.startswith("local") for name in reply.metrics)
    (kept,) = gains(site.home, site.key, document.hash)
    cohort = site.cohort(run)
    _, by_hand = training.evaluate(build_model(run), cohort, run, "validation", "cpu")
    assert kept.shared == pytest.approx(by_hand["dice"], rel=1e-5)
    alone = build_model(run)
    alone.load_state_dict(local.states["local"])
    assert kept.local == pytest.approx(training.evaluate(alone, cohort, run, "validation", "cpu")[1]["dice"], rel=1e-5)
