"""Other simulators train what the bare loop trains; what is not installed, or trains something else, is named."""

import importlib.util
import os
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from common.errors import ConfigError
from simulations.bench import training
from simulations.bench.peers.peer import FLOWER, NVFLARE, PFL, Peer, children_of
from simulations.bench.training import Child, Figure
from simulations.bench.training_ways import BARE

# What names a peer's Python. But for Flower, which shares ours, a peer is tested where that is set, and must be there.
PYTHONS = {FLOWER.way: "", NVFLARE.way: "WARDROUND_NVFLARE", PFL.way: "WARDROUND_PFL"}
NO_RAY = pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="the extra ray is not installed")
HERE = [pytest.param(FLOWER, marks=NO_RAY), *(peer for peer in (NVFLARE, PFL) if PYTHONS[peer.way] in os.environ)]


def measured(folder: Path, peer: Peer, python: Path) -> Figure:
    def others(folder: Path) -> Mapping[str, Child]:
        return {peer.way: peer.child(python, folder)}

    bare, other = training.measure(
        folder, rounds=1, clients=3, patients=6, steps=2, channels=(4, 8), rows=32, batch=2, ways=[BARE], others=others
    )
    assert bare.apart == 0
    assert other.way == peer.way
    assert (len(other.seconds), len(other.cpu_s)) == (1, 1)
    assert other.first_s > other.seconds[0] > 0
    assert other.memory > 2**26
    assert abs(other.headline - bare.headline) < 0.01
    assert other.drifted < 0.5  # another number of the round, or crops of another client, leave about 1
    return other


@pytest.mark.parametrize("peer", HERE, ids=lambda peer: peer.way.partition(",")[0])
def test_peers_make_the_rounds_of_the_bare_loop(tmp_path: Path, peer: Peer) -> None:
    python = Path(os.environ.get(PYTHONS[peer.way], sys.executable))
    assert not peer.missing(python)
    figure = measured(tmp_path, peer, python)
    assert figure.is_the_same, figure.apart
    assert figure.apart > 0  # it averages otherwise, so it has averaged


SHORTER = """
import pathlib, sys
from common.learning.network import build_model
from simulations.bench import bare_loop
from simulations.bench.training_ways import Turns

def one_step(run, *others):
    train(run.model_copy(update={"training": run.training.model_copy(update={"local_steps": 1})}), *others)

train, bare_loop.train = bare_loop.train, one_step
folder = pathlib.Path(sys.argv[2])
turns, state = Turns(sys.argv[1], folder), dict(build_model(bare_loop.run_of(folder)).state_dict())
turns.after(0)
with bare_loop.in_one_process(folder) as one_round:
    for number in range(1, turns.run.federation.rounds + 1):
        state = one_round(state, number)
        turns.after(number)
        turns.keep(number, state)
"""


def test_who_makes_other_steps_is_told_apart(tmp_path: Path) -> None:
    def others(folder: Path) -> Mapping[str, Child]:
        start = FLOWER.child(Path(sys.executable), folder)
        return {"shorter": Child((*start.command[:3], SHORTER, "shorter", str(folder)), start.variables)}

    bare, other = training.measure(
        tmp_path, rounds=1, clients=2, patients=6, steps=2, channels=(4, 8), rows=32, batch=2, ways=[BARE],
        others=others,
    )  # fmt: skip
    assert bare.is_the_same
    assert not other.is_the_same
    assert other.apart > 0.1


def test_what_is_not_installed_is_named_with_what_to_do(tmp_path: Path) -> None:
    absent = Path(sys.executable).parent / "no-python"
    said: list[str] = []
    with pytest.raises(ConfigError, match=r"no-python cannot be started .* --nvflare: pip install nvflare"):
        children_of(tmp_path, {NVFLARE.way: absent}, said.append)
    found = children_of(tmp_path, {}, said.append)
    for peer in (NVFLARE, PFL):
        told = [one for one in said if peer.way in one]
        assert (peer.way in found) == (not told)
        assert all(f"pip install {peer.imports[0]}" in one and f"with {peer.option}" in one for one in told)
