"""The in-process grid shares nothing that a wire would not carry, and changes nothing about the result."""

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest
import torch
from flwr.app import Message, MessageType

from client.home.folder import RESIDUALS_NAME, STRATEGIES_NAME
from client.site import Site
from client.train.training import train_round
from common.config import sha256_of
from common.config.rundocument import issue
from common.errors import FederationError
from common.learning.checkpoint import load_model, pack
from common.learning.network import build_model
from common.strategies.fedavg import FedAvg
from common.wire.messages import EvaluateRequest, TrainReply, TrainRequest
from common.wire.records import reply_from_record, request_from_record, request_to_record
from server.federation.events import Event
from server.federation.rounds import federate
from simulations.backends.in_process import InProcessGrid
from simulations.scenarios.homes import make_site
from tests.simulations.tiny import tiny_run, tiny_run_of_format, tiny_site

pytestmark = pytest.mark.slow
RUN = tiny_run()
# 3, 17 and 11 patients train; counts leave in steps of five and never below ten.
COUNTED = {"north": 10, "south": 15, "east": 10}


@pytest.fixture
def sites(tmp_path: Path) -> list[Site]:
    counts = {"north": 5, "south": 29, "east": 17}
    return [make_site(tmp_path, tiny_site(tmp_path / "images" / name, name, count)) for name, count in counts.items()]


def test_federation_equals_the_bare_loop_without_flower(sites: list[Site], tmp_path: Path) -> None:
    federate(InProcessGrid(sites, issue(RUN)), issue(RUN), tmp_path / "out")
    _, got, _ = load_model(tmp_path / "out")
    state = build_model(RUN).state_dict()
    for round_ in (1, 2):
        updates, counts = [], []
        for site in sites:
            model = build_model(RUN)
            model.load_state_dict(state)
            train_round(model, site.cohort(RUN), issue(RUN), round_=round_, site=site.config.name, device="cpu")
            updates.append({name: tensor.numpy().astype(np.float64) for name, tensor in model.state_dict().items()})
            counts.append(COUNTED[site.config.name])
        mean = {name: sum(c * u[name] for c, u in zip(counts, updates, strict=True)) / sum(counts) for name in state}
        state = {name: torch.from_numpy(np.asarray(value, dtype=np.float32)) for name, value in mean.items()}
    for name, tensor in state.items():
        torch.testing.assert_close(got[name], tensor, rtol=1e-5, atol=1e-6)


def test_same_simulation_twice_gives_the_same_model(sites: list[Site], tmp_path: Path) -> None:
    first = federate(InProcessGrid(sites, issue(RUN)), issue(RUN), tmp_path / "1")
    second = federate(InProcessGrid(sites, issue(RUN)), issue(RUN), tmp_path / "2")
    assert first.model_sha256 == second.model_sha256


@pytest.mark.parametrize(("kind", "cut"), [("scaffold", 3), ("feddyn", 3), ("scaffold", 4)])
def test_a_cut_run_whose_sites_remember_makes_the_same_model(
    sites: list[Site], tmp_path: Path, kind: str, cut: int
) -> None:
    """Cut while the second of three sites trains in that round of four: the first trains it again, from the same."""
    training, federation = {"optimizer": "sgd"}, {"rounds": 4}
    run = tiny_run_of_format(2, strategy={"kind": kind}, training=training, federation=federation)
    whole = federate(InProcessGrid(sites, issue(run)), issue(run), tmp_path / "whole")
    plain = tiny_run_of_format(2, training=training, federation=federation)
    other = federate(InProcessGrid(sites, issue(plain)), issue(plain), tmp_path / "plain")
    again = [make_site(tmp_path / "again", site.config) for site in sites]

    def stop(event: Event) -> None:
        if event["event"] == "train" and event["round"] == cut:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        federate(InProcessGrid(again, issue(run)), issue(run), tmp_path / "cut", observe=stop)
    kept = list((again[0].home / STRATEGIES_NAME).rglob("*.sealed"))
    assert kept
    resumed = federate(InProcessGrid(again, issue(run)), issue(run), tmp_path / "cut")
    assert resumed.model_sha256 == whole.model_sha256 != other.model_sha256
    assert not any(path.exists() for path in kept)


@pytest.mark.parametrize(("precision", "cut"), [("bfloat16", 3), ("int8", 3), ("int8", 4)])
def test_a_cut_run_whose_updates_are_rounded_makes_the_same_model(
    sites: list[Site], tmp_path: Path, precision: str, cut: int
) -> None:
    """As above: what rounding took from the round before is found again by a site that trains a round again."""
    federation = {"rounds": 4, "update-precision": precision}
    run = tiny_run_of_format(2, federation=federation)
    whole = federate(InProcessGrid(sites, issue(run)), issue(run), tmp_path / "whole")
    again = [make_site(tmp_path / "again", site.config) for site in sites]

    def stop(event: Event) -> None:
        if event["event"] == "train" and event["round"] == cut:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        federate(InProcessGrid(again, issue(run)), issue(run), tmp_path / "cut", observe=stop)
    kept = list((again[0].home / RESIDUALS_NAME).rglob("*.sealed"))
    assert kept
    resumed = federate(InProcessGrid(again, issue(run)), issue(run), tmp_path / "cut")
    assert resumed.model_sha256 == whole.model_sha256
    assert not any(path.exists() for path in kept)


def test_a_run_that_stops_early_leaves_nothing_at_its_sites(sites: list[Site], tmp_path: Path) -> None:
    """A rate of which nothing is learned: no round is better than the first."""
    run = tiny_run_of_format(
        2,
        strategy={"kind": "feddyn"},
        training={"optimizer": "sgd", "learning-rate": 1e-12},
        federation={"rounds": 9, "patience": 1},
    )
    summary = federate(InProcessGrid(sites, issue(run)), issue(run), tmp_path / "out")
    assert summary.rounds < 9
    assert not [path for site in sites for path in (site.home / STRATEGIES_NAME).rglob("*.sealed")]


@pytest.mark.parametrize("averaging", [0.0, 0.5])
def test_strategy_may_name_the_part_that_holds_the_model_otherwise(
    sites: list[Site], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, averaging: float
) -> None:
    """Down, up, scored, kept and gone on from: to the bit as under the usual name."""
    run = tiny_run(federation={"averaging": averaging})
    usual = federate(InProcessGrid(sites, issue(run)), issue(run), tmp_path / "usual")
    monkeypatch.setattr(FedAvg, "MODEL", "model")
    sent: list[set[str]] = []
    push = InProcessGrid.push_messages

    def watched(self: InProcessGrid, messages: Iterable[Message]) -> Iterable[str]:
        several = list(messages)
        sent.extend(set(request_from_record(one.content).parts) for one in several)
        return push(self, several)

    monkeypatch.setattr(InProcessGrid, "push_messages", watched)

    def stop(event: Event) -> None:
        if event["event"] == "evaluate" and event["round"] == 1:
            raise KeyboardInterrupt

    again = [make_site(tmp_path / "again", site.config) for site in sites]
    with pytest.raises(KeyboardInterrupt):
        federate(InProcessGrid(again, issue(run)), issue(run), tmp_path / "broken", observe=stop)
    assert [one.name for one in (tmp_path / "broken" / "checkpoint").iterdir()] == ["round-00001"]
    renamed = federate(InProcessGrid(again, issue(run)), issue(run), tmp_path / "broken")
    assert sent
    assert all(parts == {"model"} for parts in sent)
    assert renamed.model_sha256 == usual.model_sha256
    assert renamed.rounds == usual.rounds == 2


def test_order_of_the_sites_does_not_matter(sites: list[Site], tmp_path: Path) -> None:
    first = federate(InProcessGrid(sites, issue(RUN)), issue(RUN), tmp_path / "1")
    second = federate(InProcessGrid(sites[::-1], issue(RUN)), issue(RUN), tmp_path / "2")
    assert first.model_sha256 == second.model_sha256


def test_site_gets_a_copy_of_the_message(sites: list[Site]) -> None:
    grid = InProcessGrid(sites, issue(RUN))
    weights = federation_weights()
    message = grid.create_message(
        request_to_record(TrainRequest(sha256_of(RUN), 1, {"weights": weights})), MessageType.TRAIN, 1, "1"
    )
    ids = list(grid.push_messages([message]))
    message.content.clear()
    (reply,) = grid.pull_messages(ids)
    assert isinstance(reply_from_record(reply.content), TrainReply)
    assert reply.metadata.reply_to_message_id == ids[0]
    assert reply.metadata.src_node_id == 1


def test_one_look_lets_one_site_work(sites: list[Site]) -> None:
    grid = InProcessGrid(sites, issue(RUN))
    record = request_to_record(EvaluateRequest(sha256_of(RUN), 1, "test", {"weights": federation_weights()}))
    ids = list(grid.push_messages([grid.create_message(record, MessageType.EVALUATE, n, "1") for n in (1, 2, 3)]))
    assert [len(list(grid.pull_messages(ids))) for _ in range(4)] == [1, 1, 1, 0]


def test_send_and_receive_returns_all_answers(sites: list[Site]) -> None:
    grid = InProcessGrid(sites, issue(RUN))
    record = request_to_record(EvaluateRequest(sha256_of(RUN), 1, "test", {"weights": federation_weights()}))
    messages = [grid.create_message(record, MessageType.EVALUATE, node, "1") for node in grid.get_node_ids()]
    assert len(list(grid.send_and_receive(messages))) == 3


def test_attempts_are_never_named_twice(sites: list[Site]) -> None:
    """A ledger charges an attempt once: a repeated name would make privacy free."""
    grids = [InProcessGrid(sites, issue(RUN)), InProcessGrid(sites, issue(RUN))]
    record = request_to_record(TrainRequest(sha256_of(RUN), 1, {"weights": b""}))
    ids = [
        message_id
        for grid in grids
        for message_id in grid.push_messages([grid.create_message(record, MessageType.TRAIN, 1, "1")] * 3)
    ]
    assert len(set(ids)) == 6


def test_nodes_carry_the_sites_names(sites: list[Site]) -> None:
    assert [info.name for info in InProcessGrid(sites, issue(RUN)).get_nodes()] == ["north", "south", "east"]


def test_grid_without_a_flower_run_says_so(sites: list[Site]) -> None:
    with pytest.raises(FederationError, match="no Flower run"):
        _ = InProcessGrid(sites, issue(RUN)).run


def federation_weights() -> bytes:
    return pack(build_model(RUN).state_dict())
