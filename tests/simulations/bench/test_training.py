"""The bare loop trains what we train, and the ways are measured by turns."""

import statistics
import sys
from pathlib import Path

import torch

from common.audit.entries import bucketed
from common.config.rundocument import issue
from common.learning.checkpoint import load_model
from common.learning.network import build_model
from common.system.environment import PACKAGES
from server.federation.rounds import federate
from simulations.backends import opened
from simulations.bench import bare_loop, training
from simulations.bench.training import Figure
from simulations.bench.training_ways import BARE, IN_PROCESS
from simulations.scenarios.homes import make_site
from tests.simulations.tiny import tiny_run, tiny_site


def test_the_bare_loop_makes_the_model_of_a_federation(tmp_path: Path) -> None:
    run = tiny_run()
    sites = [make_site(tmp_path / "sites", tiny_site(tmp_path / name, name, 17)) for name in ("north", "south")]
    (tmp_path / "bare").mkdir()
    (tmp_path / "bare" / bare_loop.RUN_NAME).write_text(issue(run).text)
    for site in sites:
        cohort = site.cohort(run)
        patients = cohort.patients("train")
        cases = [[(case.images, case.labels) for case in cohort.cases_of(patient)] for patient in patients]
        bare_loop.write_client(tmp_path / "bare", site.config.name, bucketed(len(patients)), cases)
    with opened(sites, issue(run)) as grid:
        federate(grid, issue(run), tmp_path / "out")
    _, ours, _ = load_model(tmp_path / "out")
    first = state = dict(build_model(run).state_dict())
    with bare_loop.in_one_process(tmp_path / "bare") as one_round:
        for number in (1, 2):
            state = one_round(state, number)
    for name, tensor in state.items():
        assert torch.equal(ours[name], tensor)
    assert any(not torch.equal(first[name], tensor) for name, tensor in state.items())


def test_ways_take_turns_and_end_with_one_model(tmp_path: Path) -> None:
    ways = (BARE, IN_PROCESS)
    turns: list[int] = []
    figures = training.measure(
        tmp_path, rounds=2, clients=2, patients=6, steps=1, channels=(4, 8), rows=32, batch=2, ways=ways,
        progress=lambda done, _: turns.append(done),
    )  # fmt: skip
    assert turns == [0, 1, 2]
    assert [(one.way, len(one.seconds), len(one.cpu_s)) for one in figures] == [(way, 2, 2) for way in ways]
    assert all(one.memory > 2**26 and min(one.seconds) > 0 for one in figures)
    assert figures[0].headline == figures[1].headline
    assert all(0 < one.headline < 1 for one in figures)


AHEAD = """
import pathlib, sys, threading, time
from common.learning.network import build_model
from simulations.bench import bare_loop
from simulations.bench.training_ways import Turns

def spin():
    end = time.thread_time() + 0.5
    while time.thread_time() < end:
        pass

folder = pathlib.Path(sys.argv[2])
turns = Turns(sys.argv[1], folder)
turns.after(0)
for number in range(1, turns.run.federation.rounds + 1):
    turns.keep(number, build_model(turns.run).state_dict())
    ahead = threading.Thread(target=spin)
    ahead.start()
    turns.after(number)
    ahead.join()
"""


def test_who_works_on_between_its_turns_is_seen(tmp_path: Path) -> None:
    def others(folder: Path) -> dict[str, training.Child]:
        variables = {"PYTHONPATH": str(PACKAGES)}
        return {"ahead": training.Child((sys.executable, "-P", "-c", AHEAD, "ahead", str(folder)), variables)}

    bare, other = training.measure(
        tmp_path, rounds=3, clients=2, patients=6, steps=20, channels=(4, 8), rows=64, batch=8, ways=[BARE],
        others=others,
    )  # fmt: skip
    assert len(bare.outside_s) == len(other.outside_s) == 2
    assert statistics.median(bare.outside_s) < 0.1
    assert statistics.median(other.outside_s) > 0.1  # as far as it came while the other one had its turn


def test_ratios_are_those_within_a_turn() -> None:
    """A turn in which the machine was slow for all counts as any other."""
    one = Figure("a", (2.0, 20.0, 3.0), (1.0, 1.0, 1.0), 50, 0.5)
    other = Figure("b", (1.0, 10.0, 2.0), (2.0, 2.0, 2.0), 100, 0.5)
    assert one.times(other) == (2.0, 0.5, 0.5)
