"""A site at fault sends what its fault says, and nothing else of a federation changes."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import pytest
import torch

from client.site import Site, open_site
from common.config import RunConfig, validate
from common.config.rundocument import issue
from common.learning.checkpoint import load_model
from server.federation.events import JOURNAL_NAME, Summary, read_events
from server.federation.rounds import federate
from simulations.backends import opened
from simulations.faults import FAULTS, Fault
from simulations.faults.fault import State
from simulations.faults.faulty_grid import FaultyGrid
from simulations.faults.little_is_enough import LittleIsEnough
from simulations.faults.scaled import Scaled
from simulations.scenarios.homes import make_site
from tests.simulations.tiny import tiny_run_of_format, tiny_site

NAMES = ("east", "north", "south", "west")


class Honest(Fault):
    """No fault at all."""

    kind: Literal["honest"] = "honest"

    def sent_instead(self, start: State, trained: Mapping[str, State]) -> Mapping[str, State]:
        del start
        return trained


@pytest.fixture(scope="module")
def sites(tmp_path_factory: pytest.TempPathFactory) -> list[Site]:
    folder = tmp_path_factory.mktemp("faults")
    return [make_site(folder / "sites", tiny_site(folder / name, name)) for name in NAMES]


def federated(sites: list[Site], fault: Fault | None, out: Path, run: RunConfig | None = None) -> Summary:
    run = run or tiny_run_of_format(2, federation={"rounds": 2, "quorum": 2})
    with opened(sites, issue(run)) as grid:
        faulty = grid if fault is None else FaultyGrid(grid, fault, run)
        return federate(faulty, issue(run), out)


def rounds(out: Path) -> list[dict[str, object]]:
    return [event for event in read_events(out / JOURNAL_NAME) if event["event"] == "round"]


def a_fault(kind: type[Fault], **settings: object) -> Fault:
    return validate(kind, {"name": "x", **settings})


def test_a_scaled_move_starts_from_the_model_that_was_sent() -> None:
    start = {"a": torch.tensor([1.0, -2.0])}
    sent = a_fault(Scaled, sites=["one"], factor=-4).sent_instead(start, {"one": {"a": torch.tensor([1.5, -2.25])}})
    assert sent["one"]["a"].tolist() == [-1.0, -1.0]  # 1 - 4 x 0.5; -2 - 4 x -0.25


def test_colluding_sites_send_their_mean_less_their_spread() -> None:
    trained = {site: {"a": torch.tensor([value])} for site, value in {"one": 1.0, "two": 3.0, "three": 8.0}.items()}
    fault = a_fault(LittleIsEnough, sites=list(trained), deviations=2)
    sent = fault.sent_instead({"a": torch.tensor([0.0])}, trained)
    # Mean 4; deviations -3, -1, 4, so their mean square is 26 / 3.
    expected = 4 - 2 * (26 / 3) ** 0.5
    assert {site: state["a"].item() for site, state in sent.items()} == pytest.approx(dict.fromkeys(trained, expected))


def test_a_federation_whose_sites_send_what_they_trained_makes_the_same_model(
    sites: list[Site], tmp_path: Path
) -> None:
    honest = federated(sites, None, tmp_path / "honest")
    held = federated(sites, a_fault(Honest, sites=["north", "west"]), tmp_path / "held")
    assert held.model_sha256 == honest.model_sha256
    assert [event["sites"] for event in rounds(tmp_path / "held")] == [list(NAMES)] * 2


@pytest.mark.parametrize("precision", ["bfloat16", "int8"])
def test_where_updates_are_rounded_a_fault_is_of_what_they_stand_for_and_rounded_too(
    sites: list[Site], tmp_path: Path, precision: str
) -> None:
    run = tiny_run_of_format(2, federation={"rounds": 1, "quorum": 2, "update-precision": precision})
    for factor, odd in ((1.0, {}), (0.0, {"south": ["unchanged"]})):
        federated(sites, a_fault(Scaled, sites=["south"], factor=factor), tmp_path / str(factor), run)
        (event,) = rounds(tmp_path / str(factor))
        assert event["sites"] == sorted(NAMES)
        assert event["suspicious"] == odd
    honest = federated(sites, None, tmp_path / "honest", run)
    same = load_model(tmp_path / "1.0")[1]
    assert all(torch.allclose(one, same[name], atol=1e-6) for name, one in load_model(tmp_path / "honest")[1].items())
    assert honest.status == "completed"


def test_only_the_sites_at_fault_send_something_else(sites: list[Site], tmp_path: Path) -> None:
    honest = federated(sites, None, tmp_path / "honest")
    lazy = federated(sites, a_fault(Scaled, sites=["south"], factor=0), tmp_path / "lazy")
    assert lazy.model_sha256 != honest.model_sha256
    assert [event["suspicious"] for event in rounds(tmp_path / "lazy")] == [{"south": ["unchanged"]}] * 2


def test_colluding_sites_wait_for_each_other_and_send_the_same(sites: list[Site], tmp_path: Path) -> None:
    federated(sites, a_fault(LittleIsEnough, sites=["east", "west"]), tmp_path / "out")
    told = {"east": ["the same as west"], "west": ["the same as east"]}
    for event in rounds(tmp_path / "out"):
        odd = event["suspicious"]
        assert isinstance(odd, dict)
        assert {site: odd[site][:1] for site in told} == told


def test_a_site_at_fault_that_refuses_holds_nobody_up(sites: list[Site], tmp_path: Path) -> None:
    forbidding = sites[3].home / "policy.toml"
    allowed = forbidding.read_text()
    forbidding.write_text(allowed.replace("max-rounds = 1000000", "max-rounds = 1"))
    try:
        some = [*sites[:3], open_site(sites[3].home)]
        federated(some, a_fault(LittleIsEnough, sites=["east", "west"]), tmp_path / "out")
    finally:
        forbidding.write_text(allowed)
    for event in rounds(tmp_path / "out"):
        assert event["sites"] == ["east", "north", "south"]
        assert list(json.loads(json.dumps(event["refused"]))) == ["west"]


@pytest.mark.parametrize("kind", FAULTS)
def test_a_fault_says_its_kind(kind: type[Fault]) -> None:
    assert kind.model_fields["kind"].default
