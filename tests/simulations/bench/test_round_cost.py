"""A round's cost is told beside that of the bare loop in the same turn."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from simulations.bench import round_cost, training
from simulations.bench.round_cost import Cost
from simulations.bench.training import Figure
from simulations.bench.training_ways import BARE, BARE_PROCESSES, IN_PROCESS, PROCESSES, WAYS
from simulations.commands.main import app
from tests.json_forms import conforms

# The machine was slow in the second turn, for all.
FIGURES = (
    Figure(BARE, (0.010, 0.110, 0.010), (0.01, 0.01, 0.01), 1, 0.5),
    Figure(BARE_PROCESSES, (0.006, 0.106, 0.006), (0.02, 0.01, 0.0), 1, 0.5),
    Figure(IN_PROCESS, (0.015, 0.116, 0.018), (0.02, 0.03, 0.04), 1, 0.5),
    Figure(PROCESSES, (0.008, 0.107, 0.010), (0.02, 0.03, 0.01), 1, 0.5),
)


def test_each_backend_is_held_against_the_bare_loop_with_as_many_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []

    def measured(_folder: Path, *, clients: int, **_: object) -> tuple[Figure, ...]:
        asked.append(clients)
        return FIGURES

    monkeypatch.setattr(training, "measure", measured)
    costs = {one.way: one for one in round_cost.measure(Path(), clients=5, rounds=3)}
    assert (asked, tuple(costs)) == ([5], WAYS)
    assert [costs[way].beyond_wall_ms for way in WAYS] == pytest.approx([0, 0, 6, 2])
    assert [costs[way].cpu_ms for way in WAYS] == pytest.approx([10, 10, 30, 20])
    assert [costs[way].beyond_cpu_ms for way in WAYS] == pytest.approx([0, 0, 20, 10])
    assert costs[IN_PROCESS].wall_ms == pytest.approx(18)
    assert costs[IN_PROCESS].message_ms == pytest.approx(6)


def test_command_prints_a_row_for_each_way(monkeypatch: pytest.MonkeyPatch) -> None:
    def measured(folder: Path, *, clients: int, **_: object) -> tuple[Cost, ...]:
        assert folder.is_dir()
        return (Cost(BARE, clients, 5.0, 4.0, 0.0, 0.0), Cost(IN_PROCESS, clients, 9.0, 8.0, 4.0, 4.0))

    monkeypatch.setattr(round_cost, "measure", measured)
    done = CliRunner().invoke(app, ["bench", "round", "--clients", "4", "--clients", "8", "--json"])
    assert done.exit_code == 0, done.output
    conforms("wardround-sim bench round", json.loads(done.stdout))
    rows = json.loads(done.stdout)
    assert [(row["clients"], row["way"]) for row in rows] == [(n, way) for n in (4, 8) for way in (BARE, IN_PROCESS)]
    assert [row["cpu-ms-a-client"] for row in rows] == [1, 2, 0.5, 1]
