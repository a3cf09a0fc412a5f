"""Legal updates that look wrong are told by name, and none that honest sites make."""

import html
import math
from pathlib import Path

import pytest
import torch
from torch import Tensor

from common.learning.checkpoint import pack, unpack
from common.tasks.segmentation import Segmentation
from common.wire.messages import TrainRequest
from server.views.report import write_report
from server.views.watch import event_line
from tests.server.fakes import FakeGrid, FakeSite, a_run, trains
from tests.server.federation.test_rounds import moves, of_kind, run_it

HONEST = {name: moves(seed) for seed, name in enumerate("abc")}


def shared(strength: float, seed: int = 50) -> FakeSite:
    """A site whose move has a direction in common with others of the same strength, and noise of its own."""

    def change(request: TrainRequest) -> bytes:
        own, common = torch.Generator().manual_seed(seed), torch.Generator().manual_seed(99)

        def moved(one: Tensor) -> Tensor:
            return one + strength * torch.randn(one.shape, generator=common) + torch.randn(one.shape, generator=own)

        return pack({name: moved(one) for name, one in unpack(request.parts["weights"]).items()})

    return trains(change)


def odd(tmp_path: Path, sites: dict[str, FakeSite], **tables: dict[str, object]) -> list[dict[str, list[str]]]:
    run_it(FakeGrid(sites), a_run(2, **tables), tmp_path)  # type: ignore[arg-type]
    return [event["suspicious"] for event in of_kind(tmp_path, "round")]  # type: ignore[misc]


def test_honest_sites_are_not_told(tmp_path: Path) -> None:
    assert odd(tmp_path / "apart", HONEST) == [{}, {}]
    assert odd(tmp_path / "alike", {name: shared(0.5, seed) for seed, name in enumerate("abcd")}) == [{}, {}]
    assert odd(tmp_path / "two", {"a": shared(1, 1), "b": shared(-1, 2)}) == [{}, {}]  # which of them is wrong?


def test_the_model_that_was_sent_comes_back(tmp_path: Path) -> None:
    lazy = trains(lambda request: request.parts["weights"])
    assert odd(tmp_path, {**HONEST, "x": lazy, "y": lazy}) == [{"x": ["unchanged"], "y": ["unchanged"]}] * 2


def test_copies_are_told_of_both_who_has_copied_is_not_known(tmp_path: Path) -> None:
    found = odd(tmp_path, {**HONEST, "x": moves(1)})
    assert found == [{"b": ["the same as x"], "x": ["the same as b"]}] * 2


@pytest.mark.parametrize(("strength", "told"), [(-1.0, True), (-3.0, True), (0.0, False), (0.3, False)])
def test_who_moves_against_all_others_is_told(tmp_path: Path, strength: float, told: bool) -> None:
    """Cosines by hand: own move s c + n, the others' mean 2 c + n / 2: s 2 / sqrt((s^2 + 1) (4 + 1 / 4)) about."""
    sites = {name: shared(2.0, seed) for seed, name in enumerate("abcd")}
    found = odd(tmp_path, {**sites, "x": shared(strength, 9)})
    assert [list(one) for one in found] == ([["x"], ["x"]] if told else [[], []])


@pytest.mark.parametrize("strength", [-2.0, -4.5])
def test_who_moves_far_makes_none_of_the_honest_look_opposite(tmp_path: Path, strength: float) -> None:
    """Moves c + n and s c + n: for an honest site, the plain sum of the others' is (1 + s) c, against it."""
    sites = {name: shared(8.0, seed) for seed, name in enumerate("ab")}
    assert [list(one) for one in odd(tmp_path, {**sites, "x": shared(8 * strength, 9)})] == [["x"], ["x"]]


def test_sites_that_have_settled_are_not_told(tmp_path: Path) -> None:
    """Unlike sites at the fixed point of the mean: moves that add up to nothing, each minus the rest."""

    def turned(degrees: float) -> FakeSite:
        def change(request: TrainRequest) -> bytes:
            one, other = torch.Generator().manual_seed(98), torch.Generator().manual_seed(99)
            x, y = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))

            def moved(start: Tensor) -> Tensor:
                first, second = torch.randn(start.shape, generator=one), torch.randn(start.shape, generator=other)
                return start + x * first + y * second

            return pack({name: moved(start) for name, start in unpack(request.parts["weights"]).items()})

        return trains(change)

    assert odd(tmp_path, {name: turned(120 * place) for place, name in enumerate("abc")}) == [{}, {}]


def test_it_enters_and_is_told_everywhere(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    x = trains(lambda asked: asked.parts["weights"])
    summary = run_it(FakeGrid({**HONEST, "x": x}), a_run(1), tmp_path)
    assert summary.sites_by_round[0]["sites"] == ["a", "b", "c", "x"]
    assert "round 1: the update of x may enter, and is odd: unchanged" in caplog.text
    (event,) = of_kind(tmp_path, "round")
    for text in (event_line(event, Segmentation()), html.unescape(write_report(tmp_path).read_text())):
        assert "x's update is odd (unchanged)" in text
    del event["suspicious"]  # as a journal of an earlier version has it
    assert "odd" not in event_line(event, Segmentation())
