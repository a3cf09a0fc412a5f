"""The bench makes the same step in every way, each in a process of its own, and its command prints the ratios."""

import json
import math

import pytest
import torch
from torch import nn
from typer.testing import CliRunner

from simulations.bench import private_steps
from simulations.bench.private_steps import AUTOTUNED, GHOST, HOOKS, PLAIN, Case, Figure, measure, ways
from simulations.commands.main import app
from tests.json_forms import conforms

# Of Opacus' hooks, which are not told what the network's input is.
pytestmark = pytest.mark.filterwarnings("ignore:Full backward hook is firing")

SMALL = Case("small", (16, 16), patients=2, channels=(4, 8))


def test_every_way_runs_and_changes_the_weights() -> None:
    for way in ways():
        model = private_steps._model(SMALL)
        before = [parameter.clone() for parameter in model.parameters()]
        private_steps._step(way, model, *private_steps._batch(SMALL))()
        assert any(not torch.equal(one, two) for one, two in zip(before, model.parameters(), strict=True)), way


def test_every_private_way_clips_and_averages_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(private_steps, "_NOISE", 1e-7)
    moved = {}
    for way in ways()[1:]:
        model = private_steps._model(SMALL)
        before = nn.utils.parameters_to_vector(model.parameters()).detach().clone()
        private_steps._step(way, model, *private_steps._batch(SMALL))()
        moved[way] = nn.utils.parameters_to_vector(model.parameters()).detach() - before
    for way, change in moved.items():
        torch.testing.assert_close(change, moved[HOOKS], rtol=1e-3, atol=1e-7, msg=way)


def test_ways_are_measured_by_turns_in_processes_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(private_steps, "ways", lambda: (PLAIN, AUTOTUNED))
    told: list[int] = []
    plain, ours = measure(SMALL, repeats=2, progress=lambda done, _: told.append(done))
    assert told == [0, 1, 2]
    assert (plain.way, ours.way) == (PLAIN, AUTOTUNED)
    assert math.isnan(plain.noise_s)
    assert 0 < ours.noise_s < ours.cpu_s
    assert plain.cpu_s > 0


def test_command_prints_ratios(monkeypatch: pytest.MonkeyPatch) -> None:
    def measured(*_: object, **__: object) -> tuple[Figure, ...]:
        return Figure(PLAIN, 0.2, 2**21), Figure(GHOST, math.nan, math.nan), Figure(AUTOTUNED, 0.3, 2**20, 0.03)

    monkeypatch.setattr(private_steps, "measure", measured)
    done = CliRunner().invoke(app, ["bench", "privacy", "--json"])
    assert done.exit_code == 0, done.output
    rows = json.loads(done.stdout)
    conforms("wardround-sim bench privacy", rows)
    assert len(rows) == 3 * len(private_steps.CASES)
    assert rows[2]["way"] == AUTOTUNED
    assert rows[2]["times-plain-sgd"] == pytest.approx(1.5)
    assert rows[2]["times-its-memory"] == 0.5
    assert rows[2]["noise-share"] == pytest.approx(0.1)
