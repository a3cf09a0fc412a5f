"""Models of a site's own: where they settle, what they are without a pull, and that nothing of them leaves."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from client.home.kept import personal_models
from client.site import Site
from client.train import answer as answering
from client.train import training
from client.train.apart import train_apart
from client.train.memory import recall
from client.train.strategies import Kept, Local, local_of
from common.config import RunConfig, validate
from common.config.rundocument import RunDocument, issue
from common.errors import ConfigError
from common.learning.checkpoint import load_model, pack, unpack
from common.learning.network import build_model, norms_of, weights_of
from common.learning.network import load_model as load_weights
from common.models import NETWORKS
from common.privacy import engine
from common.strategies import PERSONAL
from common.wire.messages import EvaluateReply, EvaluateRequest, TrainReply, TrainRequest
from server.federation.events import Event, read_events
from server.federation.rounds import federate
from server.federation.strategies import aggregation_of
from simulations.backends.in_process import InProcessGrid
from simulations.scenarios.homes import make_site
from tests.client.train.test_adaptive_clipping import a_cohort
from tests.client.train.test_strategies import PRIVATE, Quadratic, a_run
from tests.simulations.tiny import tiny_run_of_format, tiny_site

KINDS = ("ditto", "mr-mtl", "fedbn")
UNLIKE = [(1.0, 0.0), (4.0, 10.0)]  # a and b of two sites


def settled(kind: str, pull: float, rounds: int = 60) -> tuple[float, list[float]]:
    """Where the shared weight and those of the sites come to lie on a/2 (w - b)^2, each round solved to its end."""
    run, server = a_run(kind), aggregation_of(a_run(kind))
    settings = type(run.strategy).model_validate({"pull": pull}, by_name=True)
    server.start({"weights": {"w": torch.tensor([5.0], dtype=torch.float64)}})
    kept: dict[int, Kept] = {}
    for number in range(1, rounds + 1):
        for place, (a, b) in enumerate(UNLIKE):
            model = Quadratic(a, b, server.held["weights"]["w"].item())
            local = local_of(settings, model, {})
            local.remember(run, number, kept.get(place))
            solved(local, 1 / (a + pull) if kind == "mr-mtl" else 1 / a)
            if (apart := local.apart()) is not None:
                solved(apart, 1 / (a + pull))
            server.add({"weights": local.weights()}, 1.0)
            kept[place] = Kept(number, local.kept())
        server.finish(number)
    own = [kept[place].states[PERSONAL]["w"].item() for place in range(len(UNLIKE))]
    return server.held["weights"]["w"].item(), own


def solved(half: Local[Any], rate: float) -> None:
    """A step over the curvature ends at the optimum of a quadratic."""
    half.model.zero_grad()
    half.model().backward()
    half.steer()
    torch.optim.SGD(half.model.parameters(), rate).step()


@pytest.mark.parametrize("pull", [0.0, 0.5, 4.0])
def test_the_personal_optimum_of_ditto_lies_between_the_sites_and_the_shared_one(pull: float) -> None:
    """Each round of FedAvg ends at the mean of b = 0 and 10; lambda pulls from b to it."""
    shared, own = settled("ditto", pull)
    assert shared == pytest.approx(5.0)
    assert own == pytest.approx([(a * b + pull * 5.0) / (a + pull) for a, b in UNLIKE])


@pytest.mark.parametrize("pull", [0.5, 2.0, 4.0])
def test_mr_mtl_settles_where_its_formula_says(pull: float) -> None:
    """w_k = (a b + lambda m) / (a + lambda), and m is the mean of these: for lambda 2, m = 60/9, w = 40/9 and 80/9."""
    shares = [a / (a + pull) for a, _ in UNLIKE]
    mean = sum(share * b for share, (_, b) in zip(shares, UNLIKE, strict=True)) / sum(shares)
    shared, own = settled("mr-mtl", pull)
    assert shared == pytest.approx(mean)
    assert own == pytest.approx([(a * b + pull * mean) / (a + pull) for a, b in UNLIKE])
    if pull == 2.0:
        assert [shared, *own] == pytest.approx([60 / 9, 40 / 9, 80 / 9])


def test_with_a_large_pull_each_model_of_its_own_is_the_shared_one() -> None:
    for kind, pull, rounds in (("ditto", 1000.0, 3), ("mr-mtl", 100.0, 400)):
        shared, own = settled(kind, pull, rounds)
        assert own == pytest.approx([shared] * 2, abs=0.1)


def test_mr_mtl_without_a_pull_leaves_each_site_where_it_wants_to_be() -> None:
    shared, own = settled("mr-mtl", 0.0)
    assert own == pytest.approx([0.0, 10.0], abs=1e-6)
    assert shared == pytest.approx(5.0)


def test_a_pull_beyond_its_goal_is_refused() -> None:
    values = a_run("ditto").model_dump(by_alias=True)
    validate(RunConfig, values | {"strategy": {"kind": "ditto", "lambda": 20.0}})  # times a rate of 0.05
    with pytest.raises(ConfigError, match=r"'ditto' pulls each step by lambda x learning-rate = 1.05 .* lower"):
        validate(RunConfig, values | {"strategy": {"kind": "ditto", "lambda": 21.0}})


@pytest.mark.parametrize("network", NETWORKS, ids=lambda one: one.__name__)
def test_fedbn_is_refused_where_a_network_has_no_normalisations(network: type[Any]) -> None:
    """What the settings say is what the network that is built has."""
    settings = network()
    assert bool(norms_of(settings.build(1, 2))) == settings.has_norms


def test_fedbn_is_refused_where_scores_of_the_shared_model_would_choose() -> None:
    with pytest.raises(ConfigError, match="normalisations are nobody's"):
        tiny_run_of_format(2, strategy={"kind": "fedbn"}, federation={"patience": 1})
    values = tiny("fedbn").config.model_dump(by_alias=True)
    with pytest.raises(ConfigError, match="the network has none"):
        validate(RunConfig, values | {"model": {"architecture": "plain-unet", "levels": 2}})


@pytest.fixture
def sites(tmp_path: Path) -> list[Site]:
    counts = {"north": 6, "south": 9}
    return [make_site(tmp_path, tiny_site(tmp_path / "images" / name, name, count)) for name, count in counts.items()]


def tiny(kind: str, rounds: int = 3, keys: Mapping[str, float] = {}) -> RunDocument:
    return issue(tiny_run_of_format(2, strategy={"kind": kind, **keys}, federation={"rounds": rounds}))


def own_of(site: Site, document: RunDocument) -> Mapping[str, Tensor]:
    kept = recall(site, document, document.config.federation.rounds + 1)
    assert kept is not None
    return kept.states[PERSONAL]


def same(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], tensor) for name, tensor in other.items())


def alone(site: Site, document: RunDocument) -> Mapping[str, Tensor]:
    """The bare loop, round after round."""
    model = build_model(document.config)
    for number in range(1, document.config.federation.rounds + 1):
        training.train_round(
            model, site.cohort(document.config), document, round_=number, site=site.config.name, device="cpu"
        )
    return weights_of(model)


@pytest.mark.parametrize("kind", ["ditto", "mr-mtl"])
def test_without_a_pull_a_model_of_its_own_is_that_of_the_site_trained_alone_bit_for_bit(
    sites: list[Site], tmp_path: Path, kind: str
) -> None:
    document = tiny(kind, keys={"lambda": 0.0})
    federate(InProcessGrid(sites, document), document, tmp_path / "out")
    assert all(same(own_of(site, document), alone(site, document)) for site in sites)


def test_the_model_that_ditto_shares_is_that_of_fedavg_bit_for_bit(sites: list[Site], tmp_path: Path) -> None:
    plain, ditto = tiny("fedavg"), tiny("ditto", keys={"lambda": 0.5})
    expected = federate(InProcessGrid(sites, plain), plain, tmp_path / "plain")
    found = federate(InProcessGrid(sites, ditto), ditto, tmp_path / "ditto")
    assert found.model_sha256 == expected.model_sha256
    _, shared, _ = load_model(tmp_path / "ditto")
    assert not any(same(own_of(site, ditto), shared) for site in sites)


def test_fedbn_of_one_site_is_that_site_trained_alone_and_its_norms_never_left(
    sites: list[Site], tmp_path: Path
) -> None:
    run = tiny_run_of_format(2, strategy={"kind": "fedbn"}, federation={"rounds": 3, "quorum": 1})
    document, first = issue(run), weights_of(build_model(run))
    federate(InProcessGrid(sites[:1], document), document, tmp_path / "out")
    _, shared, _ = load_model(tmp_path / "out")
    norms, own = norms_of(build_model(run)), own_of(sites[0], document)
    assert own.keys() == norms
    assert same({**shared, **own}, alone(sites[0], document))
    assert all(torch.equal(shared[name], first[name]) for name in norms)
    assert not any(torch.equal(own[name], first[name]) for name in norms)


@pytest.mark.parametrize("kind", KINDS)
def test_the_score_of_a_model_of_its_own_stands_beside_that_of_the_shared_one(
    sites: list[Site], tmp_path: Path, kind: str
) -> None:
    document = tiny(kind, 2)
    federate(InProcessGrid(sites, document), document, tmp_path / "out")
    scored = [one for one in read_events(tmp_path / "out" / "metrics.jsonl") if one["event"] == "evaluate"]
    assert all({"dice", "personal-dice"} <= one.keys() for one in scored)
    (site,) = (one for one in sites if one.config.name == "south")
    _, shared, _ = load_model(tmp_path / "out")
    model = build_model(document.config)
    model.load_state_dict({**shared, **own_of(site, document)})
    _, by_hand = training.evaluate(model, site.cohort(document.config), document.config, "test", "cpu")
    (found,) = (one for one in scored if one["site"] == "south" and one["phase"] == "test")
    assert found["personal-dice"] == pytest.approx(by_hand["dice"], rel=1e-5)


@pytest.mark.parametrize("trained", [2, 3])
def test_the_score_with_the_test_is_that_of_the_last_model_of_its_own_whichever_round_is_kept(
    sites: list[Site], trained: int
) -> None:
    """Of three rounds the model of the first is kept, after all of them or after a run that stopped early."""
    run = tiny_run_of_format(2, strategy={"kind": "ditto"}, federation={"rounds": 3, "keep": "best", "patience": 1})
    document, site = issue(run), sites[0]
    weights = {"weights": pack(weights_of(build_model(run)))}
    for number in range(1, trained + 1):
        answering.answer(TrainRequest(document.hash, number, weights), document, site, f"{number}")
        answering.answer(EvaluateRequest(document.hash, number, "validation", weights), document, site, "")
    own = {**weights_of(build_model(run)), **own_of(site, document)}
    reply = answering.answer(EvaluateRequest(document.hash, 1, "test", weights), document, site, "")
    assert isinstance(reply, EvaluateReply)
    _, by_hand = training.evaluate(load_weights(run, own), site.cohort(run), run, "test", "cpu")
    assert reply.metrics["personal-dice"] == pytest.approx(by_hand["dice"], rel=1e-5)


@pytest.mark.parametrize(("kind", "cut"), [("ditto", 3), ("mr-mtl", 3), ("fedbn", 2)])
def test_a_cut_run_makes_the_same_models_and_those_of_the_sites_stay(
    sites: list[Site], tmp_path: Path, kind: str, cut: int
) -> None:
    """Cut while the second site trains in that round of three: the first trains it again, from the same."""
    document = tiny(kind)
    whole = federate(InProcessGrid(sites, document), document, tmp_path / "whole")
    again = [make_site(tmp_path / "again", site.config) for site in sites]

    def stop(event: Event) -> None:
        if event["event"] == "train" and event["round"] == cut:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        federate(InProcessGrid(again, document), document, tmp_path / "cut", observe=stop)
    resumed = federate(InProcessGrid(again, document), document, tmp_path / "cut")
    assert resumed.model_sha256 == whole.model_sha256
    for one, other in zip(sites, again, strict=True):
        assert same(own_of(one, document), own_of(other, document))
        (held,) = personal_models(other.home)
        assert (held.run_hash, held.round) == (document.hash, 3)


def private_update(kind: str, monkeypatch: pytest.MonkeyPatch) -> tuple[Mapping[str, Tensor], Mapping[str, Any]]:
    """What leaves of a private round without noise in which everybody is sampled, and what is kept."""
    run = a_run(kind, privacy=PRIVATE)
    monkeypatch.setattr(engine, "noised", lambda sums, **_: list(sums))
    monkeypatch.setattr(training, "sample_patients", lambda count, _rate: list(range(count)))
    torch.manual_seed(0)
    model, document = build_model(run), RunDocument("", run, "ab" * 32)  # patients' crops follow from it
    local = local_of(run.strategy, model, {})
    local.remember(run, 1, None)
    given: dict[str, Any] = {"round_": 1, "site": "north", "device": torch.device("cpu")}
    training.train_round(model, a_cohort(), document, site_key=b"k" * 32, local=local, **given)
    update = {name: one.clone() for name, one in local.weights().items()}
    train_apart(local, a_cohort(), document, **given)
    assert same(local.weights(), update)
    return update, local.kept()


def test_a_private_update_is_the_same_whether_a_site_trains_a_model_of_its_own_or_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    plain, nothing = private_update("fedavg", monkeypatch)
    update, kept = private_update("ditto", monkeypatch)
    assert not nothing
    assert same(update, plain)
    assert not same(kept[PERSONAL], update)


def test_what_goes_wrong_with_a_model_of_its_own_is_told_to_nobody(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    run = a_run("ditto", privacy=PRIVATE)
    torch.manual_seed(0)
    model = build_model(run)
    local = local_of(run.strategy, model, {})
    local.remember(run, 1, None)
    before = {name: one.clone() for name, one in local.kept()[PERSONAL].items()}

    def fails(half: torch.nn.Module, *_: Any, **__: Any) -> None:
        with torch.no_grad():
            next(half.parameters()).fill_(float("nan"))
        raise ValueError("of one patient")

    monkeypatch.setattr("client.train.apart.train_round", fails)
    train_apart(local, a_cohort(), issue(run), round_=1, site="north", device=torch.device("cpu"))
    assert same(local.kept()[PERSONAL], before)
    assert "stays as it was" in caplog.text


@pytest.mark.parametrize("kind", ["mr-mtl", "fedbn"])
def test_what_private_steps_leave_at_a_site_was_made_by_noisy_gradients(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where all noisy gradients are zero, and everybody is sampled, nothing that is kept has moved."""
    run = a_run(kind, privacy=PRIVATE)
    monkeypatch.setattr(engine, "noised", lambda sums, **_: [torch.zeros_like(one) for one in sums])
    monkeypatch.setattr(training, "sample_patients", lambda count, _rate: list(range(count)))
    torch.manual_seed(0)
    model = build_model(run)
    local = local_of(run.strategy, model, {})
    local.remember(run, 1, None)
    first = {name: one.clone() for name, one in local.kept()[PERSONAL].items()}
    given: dict[str, Any] = {"round_": 1, "site": "north", "device": torch.device("cpu")}
    training.train_round(model, a_cohort(), issue(run), site_key=b"k" * 32, local=local, **given)
    train_apart(local, a_cohort(), issue(run), **given)
    assert same(local.kept()[PERSONAL], first)


def test_an_update_of_fedbn_carries_the_norms_that_were_sent(sites: list[Site]) -> None:
    document = tiny("fedbn")
    run = document.config
    sent = pack(weights_of(build_model(run)))
    reply = answering.answer(TrainRequest(document.hash, 1, {"weights": sent}), document, sites[0], "one")
    assert isinstance(reply, TrainReply)
    before, after = unpack(sent), unpack(reply.parts["weights"])
    norms = norms_of(build_model(run))
    assert {name for name, one in after.items() if torch.equal(one, before[name])} == norms


def test_a_site_whose_model_is_removed_begins_anew_from_what_is_sent(sites: list[Site], tmp_path: Path) -> None:
    run: RunConfig = tiny("mr-mtl").config
    model = build_model(run)
    local = local_of(run.strategy, model, {})
    local.remember(run, 3, None)
    assert same(local.weights(), weights_of(build_model(run)))
