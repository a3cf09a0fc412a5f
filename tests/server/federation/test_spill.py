"""Updates that do not fit into memory wait in a file, and the round is the same, bit for bit."""

import json
import os
import resource
import stat
import tempfile
import tracemalloc
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from common.config import RunConfig
from common.config.rundocument import issue
from common.crypto.stream import Sealer
from common.learning.checkpoint import pack, unpack
from common.learning.network import build_model, weights_of
from common.wire.encoding import encode
from common.wire.messages import TrainRequest
from server.federation import rounds
from server.federation.checks import Update, outliers
from server.federation.rounds import federate
from server.federation.strategies import State, spill
from server.federation.strategies.spill import Spill
from tests.server.fakes import FakeGrid, FakeSite, a_run, trains

NAMES = [f"site-{number}" for number in range(7)]


def moves(number: int) -> FakeSite:
    def moved(request: TrainRequest) -> bytes:
        drawn = torch.Generator().manual_seed(100 * request.round + number)
        state = unpack(request.parts["weights"])
        return pack({name: one + 1e-3 * torch.randn(one.shape, generator=drawn) for name, one in state.items()})

    return trains(moved)


def parts_of(seed: int, size: int = 1000) -> tuple[Mapping[str, State], dict[str, bytes]]:
    drawn = torch.Generator().manual_seed(seed)
    parts = {name: {"w": torch.randn(size, generator=drawn)} for name in ("weights", "control")}
    return parts, {name: pack(state) for name, state in parts.items()}


@pytest.mark.parametrize("kind", ["fedavg", "trimmed-mean", "multi-krum", "fedadam"])
def test_a_round_of_which_nothing_stays_in_memory_is_the_same(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = a_run(rounds=3, quorum=5, format_=2, strategy={"kind": kind})
    told = []
    for name, most in (("memory", 1 << 30), ("some", 3 * 20_000), ("file", 0)):
        monkeypatch.setattr(Spill.__init__, "__defaults__", (most,))
        grid = FakeGrid({name: moves(number) for number, name in enumerate(NAMES)})
        summary = federate(grid, issue(run), tmp_path / name, wake=lambda _: None)
        events = map(json.loads, (tmp_path / name / "metrics.jsonl").read_text().splitlines())
        told.append((summary.model_sha256, [one["moves"] for one in events if one["event"] == "round"]))
    assert told[0] == told[1] == told[2]


@pytest.mark.parametrize("precision", ["float32", "bfloat16", "int8"])
def test_a_round_holds_in_memory_what_is_not_in_the_file_and_nothing_else(
    precision: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By what Python has allocated when all updates of a round are there."""
    names = [f"site-{number}" for number in range(30)]
    tables = {"federation": {"update-precision": precision}, "model": {"channels": [32, 64]}}
    run = a_run(rounds=1, quorum=5, format_=2, **tables)
    size = 4 * sum(one.numel() for one in weights_of(build_model(run)).values())

    def moving(number: int) -> FakeSite:
        def moved(request: TrainRequest) -> bytes:
            start = unpack(request.parts["weights"])
            moves = {name: torch.full_like(one, 1e-3 * (1 + number / 30)) for name, one in start.items()}
            if precision == "float32":
                return pack({name: one + moves[name] for name, one in start.items()})
            return encode({name: one.numpy() for name, one in moves.items()}, precision)

        return trains(moved)

    held: list[int] = []

    def looked(updates: Mapping[str, Update], run: RunConfig) -> frozenset[str]:
        held.append(tracemalloc.get_traced_memory()[0])
        return outliers(updates, run)

    monkeypatch.setattr(rounds, "outliers", looked)
    tracemalloc.start()
    try:
        for name, most in (("file", 0), ("memory", 1 << 30)):
            monkeypatch.setattr(Spill.__init__, "__defaults__", (most,))
            grid = FakeGrid({name: moving(number) for number, name in enumerate(names)})
            before = tracemalloc.get_traced_memory()[0]
            federate(grid, issue(run), tmp_path / name, wake=lambda _: None)
            held[-1] -= before
            del grid
    finally:
        tracemalloc.stop()
    in_file, in_memory = held
    assert in_memory > 30 * size
    assert in_file < 10 * size


def test_so_many_bytes_stay_in_memory_and_no_more(tmp_path: Path) -> None:
    several = [parts_of(seed) for seed in range(20)]
    size = sum(map(len, several[0][1].values()))
    with Spill(tmp_path, most_bytes=4 * size) as kept:
        found = [kept.keep(parts, packed) for parts, packed in several]
        assert [one is parts for one, (parts, _) in zip(found, several, strict=True)] == [True] * 4 + [False] * 16
        for one, (parts, _) in zip(found, several, strict=True):
            assert set(one) == set(parts)
            assert all(torch.equal(one[name]["w"], parts[name]["w"]) for name in parts)


def test_what_lies_on_the_disk_has_no_name_is_the_owners_alone_and_outlasts_the_round(tmp_path: Path) -> None:
    several = [parts_of(seed, size=5001) for seed in range(3)]
    with Spill(tmp_path, most_bytes=0) as kept:
        found = [kept.keep(parts, packed) for parts, packed in several]
        assert list(tmp_path.iterdir()) == []
        assert kept._file is not None
        assert stat.S_IMODE(os.fstat(kept._file.fileno()).st_mode) == 0o600
        handle = kept._file
    assert handle.closed
    for one, (parts, _) in zip(found, several, strict=True):  # the model is made after it
        assert all(torch.equal(one[name]["w"], parts[name]["w"]) for name in parts)


@pytest.mark.parametrize("sealed", [True, False])
def test_where_checkpoints_are_sealed_no_update_is_written(
    sealed: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    document = issue(a_run(rounds=2, quorum=5))
    monkeypatch.setattr(Spill.__init__, "__defaults__", (0,))
    made: list[Any] = []
    really = tempfile.TemporaryFile

    def noted(**how: Any) -> Any:
        made.append(really(**how))
        return made[-1]

    monkeypatch.setattr(tempfile, "TemporaryFile", noted)
    grid = FakeGrid({name: moves(number) for number, name in enumerate(NAMES)})
    sealer = Sealer(os.urandom(32)).at(document.hash) if sealed else None
    federate(grid, document, tmp_path, wake=lambda _: None, sealer=sealer)
    assert len(made) == (0 if sealed else 2)


def test_a_thousand_updates_need_no_thousand_descriptors(tmp_path: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    os.close(free := os.dup(0))
    resource.setrlimit(resource.RLIMIT_NOFILE, (free + 8, hard))
    try:
        with Spill(tmp_path, most_bytes=0) as kept:
            several = [(parts, kept.keep(parts, packed)) for parts, packed in map(parts_of, range(40))]
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    for parts, found in several:
        assert all(torch.equal(found[name]["w"], parts[name]["w"]) for name in parts)


def test_what_is_larger_than_a_mapping_has_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spill, "_MAPPED_BYTES", 3 << 14)
    several = [parts_of(seed, size) for seed, size in enumerate((1, 5001, 9, 3 << 13, 70_000, 2, 40_000, 1023, 1))]
    with Spill(tmp_path, most_bytes=0) as kept:
        found = [kept.keep(parts, packed) for parts, packed in several]
    for one, (parts, _) in zip(found, several, strict=True):
        assert all(torch.equal(one[name]["w"], parts[name]["w"]) for name in parts)


def test_nothing_is_written_while_all_fit(tmp_path: Path) -> None:
    parts, packed = parts_of(1)
    with Spill(tmp_path) as kept:
        assert kept.keep(parts, packed) is parts
        assert kept._file is None
    assert spill.MOST_BYTES == 256 << 20
