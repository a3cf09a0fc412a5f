"""Every way makes the same model of the same updates, and the commands print the ratios."""

import json

import pytest
import torch
from flwr.app import ArrayRecord
from typer.testing import CliRunner

from simulations.bench import aggregation, wire
from simulations.bench.aggregation import FLOWER, FLOWER_READ, OURS, WAYS, WITH_CHECKS, Figure
from simulations.bench.models import SMALL, model_of, run_of
from simulations.commands.main import app
from tests.json_forms import conforms


def test_every_way_makes_the_same_model() -> None:
    ways, size = aggregation._ways(3, SMALL)
    assert list(ways) == list(WAYS)
    made = {name: work() for name, work in ways.items()}
    assert sum(one.numel() * 4 for one in made[OURS].values()) == size
    for name in (FLOWER, FLOWER_READ):
        record = made[name]
        assert isinstance(record, ArrayRecord)
        theirs = record.to_torch_state_dict()
        assert theirs.keys() == made[OURS].keys()
        for key, one in theirs.items():
            torch.testing.assert_close(one, made[OURS][key], rtol=1e-6, atol=1e-7)
            assert torch.equal(made[WITH_CHECKS][key], made[OURS][key])


def test_ways_take_turns() -> None:
    turns: list[int] = []
    figures = aggregation.measure(updates=3, repeats=2, channels=SMALL, progress=lambda done, _: turns.append(done))
    assert turns == [1, 2]
    assert [one.way for one in figures] == list(WAYS)
    for one in figures:
        assert (one.updates, len(one.cpu_s), len(one.wall_s)) == (3, 2, 2)
        assert min(one.wall_s) > 0
        assert one.memory >= 0


def test_rates_and_ratios_are_medians_over_the_turns() -> None:
    one = Figure("a", 2, 500_000_000, cpu_s=(1.0, 2.0, 4.0), wall_s=(2.0, 2.0, 2.0), memory=0)
    other = Figure("b", 2, 500_000_000, cpu_s=(2.0, 2.0, 12.0), wall_s=(1.0, 1.0, 1.0), memory=0)
    assert one.rates(one.cpu_s) == (0.5, 0.25, 1.0)
    assert one.times(other) == (2.0, 0.5)


def test_command_prints_rates_and_ratios() -> None:
    done = CliRunner().invoke(app, ["bench", "aggregation", "--small", "--updates", "3", "--repeats", "1", "--json"])
    assert done.exit_code == 0, done.output
    conforms("wardround-sim bench aggregation", json.loads(done.stdout))
    first, *_ = rows = json.loads(done.stdout)
    assert [row["way"] for row in rows] == list(WAYS)
    assert (first["updates"], first["times-as-fast"], first["on-the-wall"]) == (3, 1, 1)


def test_both_ways_carry_the_same_tensors() -> None:
    model = model_of(run_of(SMALL))
    steps = wire._steps("0" * 64, model)
    for kind in ("request", "update"):
        for way in (wire.OURS, wire.FLOWER):
            found = steps[kind, "read", way]()()
            assert found.keys() == model.keys()
            assert all(torch.equal(found[name], one) for name, one in model.items())
            assert steps[kind, "check", way]()() is None
    first, again = (steps["request", step, wire.OURS]()()[2] for step in ("write", "again"))
    assert len(first.keys() & again.keys()) == len(first) - 1  # all but what says whom it is for


def test_wire_command_prints_times_and_ratios() -> None:
    done = CliRunner().invoke(app, ["bench", "wire", "--small", "--repeats", "1", "--json"])
    assert done.exit_code == 0, done.output
    conforms("wardround-sim bench wire", json.loads(done.stdout))
    rows = json.loads(done.stdout)
    assert [row["step"] for row in rows[:2]] == [wire.MEMORY, wire.HASH]
    assert len(rows) == 2 + 2 * (4 + 3)
    assert {row["times-flower"] for row in rows if row["way"] == wire.FLOWER} == {1}


def test_of_wire_a_time_is_that_of_30_mb() -> None:
    one = wire.Figure("request", "write", wire.OURS, 60_000_000, (0.2, 0.4, 0.6))
    assert one.ms_per_30_mb == pytest.approx((200, 100, 300))
