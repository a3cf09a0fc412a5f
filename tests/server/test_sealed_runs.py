"""A run's models lie sealed at the coordinator: nothing of them in the clear, nothing altered or exchanged opens."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from common.config import RunConfig, sha256_of
from common.config.rundocument import issue
from common.crypto.stream import Sealer
from common.errors import ConfigError
from common.learning.checkpoint import load_model, pack, sha256, unpack
from common.wire.messages import Request, TrainRequest
from server.federation.events import Summary
from server.federation.rounds import federate
from tests.server.fakes import FakeGrid, FakeSite, Said, a_run, trains
from tests.server.search import found, pieces

KEY = bytes(range(32))
AVERAGED = {"averaging": 0.5}


def moves(seed: int) -> FakeSite:
    """A site that adds its own fixed noise to what it gets."""

    def change(request: TrainRequest) -> bytes:
        state = unpack(request.parts["weights"])
        random = torch.Generator().manual_seed(seed)
        return pack({name: tensor + torch.randn(tensor.shape, generator=random) for name, tensor in state.items()})

    return trains(change)


def stops_in(round_: int) -> FakeSite:
    def site(request: Request) -> Said:
        if isinstance(request, TrainRequest) and request.round == round_:
            raise KeyboardInterrupt
        return moves(2)(request)

    return site


def sealed_run(out: Path, run: RunConfig, other: FakeSite | None = None, key: bytes = KEY) -> tuple[Summary, FakeGrid]:
    grid = FakeGrid({"a": moves(1), "b": other or moves(2)})
    return federate(grid, issue(run), out, wake=lambda _: None, sealer=Sealer(key).at(sha256_of(run))), grid


def interrupted(out: Path, run: RunConfig, round_: int) -> Path:
    """A run that was killed; its last checkpoint."""
    with pytest.raises(KeyboardInterrupt):
        sealed_run(out, run, stops_in(round_))
    (folder,) = (out / "checkpoint").iterdir()
    return folder


@pytest.mark.parametrize("tables", [{}, AVERAGED], ids=["last", "average"])
def test_no_byte_of_a_model_lies_in_the_clear(tmp_path: Path, tables: dict[str, object]) -> None:
    run = a_run(rounds=2, federation=tables)
    plain = federate(FakeGrid({"a": moves(1), "b": moves(2)}), issue(run), tmp_path / "plain", wake=lambda _: None)
    summary, _ = sealed_run(tmp_path / "sealed", run)
    assert summary.model_sha256 == plain.model_sha256
    models = [path.read_bytes() for path in (tmp_path / "plain").rglob("model.safetensors")]
    secrets = set().union(*map(pieces, models))
    assert "model.safetensors" in found(tmp_path / "plain", secrets)  # the search finds what there is
    assert found(tmp_path / "sealed", secrets | {b"run_hash", b"F32", KEY}) == []
    assert {path.stat().st_mode & 0o777 for path in (tmp_path / "sealed").rglob("model.*")} == {0o600}


def test_sealed_model_opens_to_the_one_the_summary_names(tmp_path: Path) -> None:
    run = a_run(rounds=2)
    summary, _ = sealed_run(tmp_path, run)
    _, state, manifest = load_model(tmp_path, Sealer(KEY).at(sha256_of(run)))
    assert sha256(pack(state)) == manifest.sha256 == summary.model_sha256
    assert json.loads((tmp_path / "summary.json").read_text())["model-sha256"] == manifest.sha256
    with pytest.raises(ConfigError, match=r"sealed.*wardround-server export"):
        load_model(tmp_path)


@pytest.mark.parametrize("tables", [{}, AVERAGED], ids=["last", "average"])
def test_killed_run_resumes_from_its_sealed_checkpoint_to_the_same_model(
    tmp_path: Path, tables: dict[str, object]
) -> None:
    run = a_run(rounds=4, federation=tables)
    whole, _ = sealed_run(tmp_path / "whole", run)
    interrupted(tmp_path / "cut", run, 3)
    resumed, grid = sealed_run(tmp_path / "cut", run)
    assert resumed.model_sha256 == whole.model_sha256
    assert {request.round for _, request in grid.requests if isinstance(request, TrainRequest)} == {3, 4}


def flipped(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


@pytest.mark.parametrize("name", ["model.safetensors.sealed", "model.json.sealed"])
@pytest.mark.parametrize("damage", [flipped, cut, Path.unlink])
def test_damaged_checkpoint_stops_the_run(tmp_path: Path, damage: Callable[[Path], None], name: str) -> None:
    run = a_run(rounds=3)
    damage(interrupted(tmp_path, run, 3) / name)
    with pytest.raises(ConfigError, match=r"round-00002.*(does not open|cannot be read)"):
        sealed_run(tmp_path, run)


def test_earlier_round_does_not_pass_as_a_later_one(tmp_path: Path) -> None:
    run = a_run(rounds=4)
    first = interrupted(tmp_path / "first", run, 2)
    folder = interrupted(tmp_path / "second", run, 4)
    shutil.rmtree(folder)
    shutil.copytree(first, folder)
    with pytest.raises(ConfigError, match=r"round-00003, model\.json does not open: it is damaged, or was sealed as"):
        sealed_run(tmp_path / "second", run)


def test_average_does_not_pass_as_the_model_and_cannot_be_left_out(tmp_path: Path) -> None:
    run = a_run(rounds=4, federation=AVERAGED)
    folder = interrupted(tmp_path / "swapped", run, 3)
    for path in (folder / "average").iterdir():
        shutil.copyfile(path, folder / path.name)
    with pytest.raises(ConfigError, match="does not open"):
        sealed_run(tmp_path / "swapped", run)
    shutil.rmtree(interrupted(tmp_path / "cut", run, 3) / "average")
    with pytest.raises(ConfigError, match=r"there is no .*round-00002/average\."):
        sealed_run(tmp_path / "cut", run)


def test_checkpoint_of_another_run_or_key_does_not_open(tmp_path: Path) -> None:
    run, other = a_run(rounds=3), a_run(rounds=3, quorum=1)
    interrupted(tmp_path, run, 3)
    with pytest.raises(ConfigError, match="does not open"):
        sealed_run(tmp_path, other)
    with pytest.raises(ConfigError, match="with another key"):
        sealed_run(tmp_path, run, key=bytes(32))


def test_plain_checkpoint_is_not_taken_for_a_sealed_one(tmp_path: Path) -> None:
    run = a_run(rounds=3)
    with pytest.raises(KeyboardInterrupt):
        federate(FakeGrid({"a": moves(1), "b": stops_in(3)}), issue(run), tmp_path, wake=lambda _: None)
    with pytest.raises(ConfigError, match="cannot be read"):
        sealed_run(tmp_path, run)
