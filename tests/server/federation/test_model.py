"""A run starts from the weights it names or not at all; what it keeps is its own, and may be an average of rounds."""

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch

from common.config import RunConfig, sha256_of
from common.config.rundocument import issue
from common.errors import ConfigError
from common.learning.checkpoint import load_model, pack, sha256, unpack
from common.learning.network import build_model
from common.system import files
from common.wire.frames import Buffer
from common.wire.messages import EvaluateRequest, Request, TrainRequest
from server.federation import model
from server.federation.events import INITIAL_NAME, JOURNAL_NAME, Summary
from server.federation.rounds import federate
from tests.server import fakes
from tests.server.fakes import FakeGrid, FakeSite, Said, trains

PUBLIC = "trained on pictures of teapots, behind which no patient stands"


def a_run(rounds: int = 2, **tables: Any) -> RunConfig:
    """With patience: here nobody is silent, and a busy machine is no reason to miss an answer."""
    federation = {"round-timeout-s": 60.0, **tables.pop("federation", {})}
    return fakes.a_run(rounds, federation=federation, **tables)


def moves(seed: int) -> FakeSite:
    """A site that adds noise of its own to what it gets, other noise in every round."""

    def change(request: TrainRequest) -> bytes:
        random = torch.Generator().manual_seed(100 * seed + request.round)
        state = unpack(request.parts["weights"])
        return pack({name: tensor + torch.randn(tensor.shape, generator=random) for name, tensor in state.items()})

    return trains(change)


def a_grid(b: FakeSite | None = None) -> FakeGrid:
    return FakeGrid({"a": moves(1), "b": b or moves(2)})


def go(grid: FakeGrid, run: RunConfig, out: Path) -> Summary:
    return federate(grid, issue(run), out, wake=lambda _: None)


def sent(grid: FakeGrid, round_: int) -> set[Buffer]:
    """What was trained from in a round."""
    return {one.parts["weights"] for _, one in grid.requests if isinstance(one, TrainRequest) and one.round == round_}


def events(out: Path, kind: str) -> list[dict[str, object]]:
    lines = map(json.loads, (out / "metrics.jsonl").read_text().splitlines())
    return [line for line in lines if line["event"] == kind]


def initial_weights(**tables: Any) -> bytes:
    """Weights of the run's network that no seed gives."""
    state = build_model(a_run(**tables)).state_dict()
    return pack({name: tensor + 0.25 for name, tensor in state.items()})


def starts_from(weights: bytes, **tables: Any) -> RunConfig:
    return a_run(initial={"sha256": hashlib.sha256(weights).hexdigest(), "public": PUBLIC}, **tables)


def laid(out: Path, weights: bytes) -> Path:
    out.mkdir(exist_ok=True)
    (out / INITIAL_NAME).write_bytes(weights)
    return out


def test_round_1_carries_exactly_the_initial_bytes(tmp_path: Path) -> None:
    weights, grid = initial_weights(), a_grid()
    go(grid, starts_from(weights), laid(tmp_path, weights))
    assert sent(grid, 1) == {weights}
    assert sent(grid, 2) != {weights}
    assert (tmp_path / INITIAL_NAME).read_bytes() == weights


def test_run_without_initial_weights_starts_from_random_ones_whatever_lies_there(tmp_path: Path) -> None:
    weights, grid = initial_weights(), a_grid()
    go(grid, a_run(), laid(tmp_path, weights))
    assert sent(grid, 1) == {pack(build_model(a_run()).state_dict())}


def assert_refused(grid: FakeGrid, run: RunConfig, out: Path, message: str) -> None:
    """With a reason that tells what to do, and before any site was asked and any file written."""
    before = {path: path.read_bytes() for path in out.rglob("*")}
    with pytest.raises(ConfigError, match=message):
        go(grid, run, out)
    assert not grid.requests
    assert {path: path.read_bytes() for path in out.rglob("*")} == before


def test_missing_initial_weights_are_refused(tmp_path: Path) -> None:
    weights = initial_weights()
    short = hashlib.sha256(weights).hexdigest()[:8]
    assert_refused(a_grid(), starts_from(weights), tmp_path, rf"is not there; .*{short}.*--initial")


@pytest.mark.parametrize("place", [0, 8, -1])
def test_altered_initial_weights_are_refused(tmp_path: Path, place: int) -> None:
    weights = initial_weights()
    altered = bytearray(weights)
    altered[place] ^= 1
    out = laid(tmp_path, bytes(altered))
    assert_refused(a_grid(), starts_from(weights), out, r"holds other weights than \[initial\] sha256 names.*--initial")


@pytest.mark.parametrize(
    "tables",
    [{"model": {"channels": [4, 8, 16]}}, {"model": {"channels": [4, 6]}}, {"data": {"classes": ["lesion", "disc"]}}],
    ids=["deeper", "narrower", "more classes"],
)
def test_initial_weights_of_another_network_are_refused(tmp_path: Path, tables: dict[str, Any]) -> None:
    weights = initial_weights(**tables)
    out = laid(tmp_path, weights)
    assert_refused(a_grid(), starts_from(weights), out, "another network.*Pretrain with the same")


def test_initial_weights_of_another_precision_or_without_sense_are_refused(tmp_path: Path) -> None:
    state = unpack(initial_weights())
    name = next(iter(state))
    cases = {
        "another network": pack({key: tensor.double() for key, tensor in state.items()}),
        "not all finite": pack(state | {name: torch.full_like(state[name], float("nan"))}),
        "holds no weights": b"no safetensors",
    }
    for number, (message, weights) in enumerate(cases.items()):
        assert_refused(a_grid(), starts_from(weights), laid(tmp_path / str(number), weights), message)


def test_the_same_weights_in_other_bytes_are_refused(tmp_path: Path) -> None:
    # Round 1 would carry the bytes as this program packs them, and no site would know them by the name it approved.
    foreign = safetensors.torch.save(unpack(initial_weights()), metadata={"format": "pt"})
    assert_refused(a_grid(), starts_from(foreign), laid(tmp_path, foreign), "was not written by this program")


def stops_in(round_: int) -> FakeSite:
    def site(request: Request) -> Said:
        if isinstance(request, TrainRequest) and request.round == round_:
            raise KeyboardInterrupt
        return moves(2)(request)

    return site


def test_resumed_run_goes_on_from_its_checkpoint_and_not_from_the_initial_weights(tmp_path: Path) -> None:
    weights = initial_weights()
    run = starts_from(weights, federation={"rounds": 3})
    whole = go(a_grid(), run, laid(tmp_path / "whole", weights))
    with pytest.raises(KeyboardInterrupt):
        go(a_grid(stops_in(2)), run, laid(tmp_path / "cut", weights))
    (tmp_path / "cut" / INITIAL_NAME).unlink()
    grid = a_grid()
    assert go(grid, run, tmp_path / "cut").model_sha256 == whole.model_sha256
    assert not sent(grid, 1)


def rounds_models(grid: FakeGrid, out: Path, rounds: int) -> list[dict[str, np.ndarray]]:
    """The model after each round: what the next round was asked to train, and at last the checkpoint."""
    weights = [next(iter(sent(grid, number))) for number in range(2, rounds + 1)]
    weights.append((out / "checkpoint" / f"round-{rounds:05}" / "model.safetensors").read_bytes())
    return [{name: tensor.double().numpy() for name, tensor in unpack(one).items()} for one in weights]


@pytest.mark.parametrize(
    ("decay", "shares"),
    [
        (0.5, (1 / 8, 1 / 8, 1 / 4, 1 / 2)),
        # Longer than the run so far: the plain mean of its rounds, in which the first does not weigh double.
        (0.9, (1 / 4, 1 / 4, 1 / 4, 1 / 4)),
        # The plain mean of three rounds, then the decay takes over.
        (2 / 3, (2 / 9, 2 / 9, 2 / 9, 1 / 3)),
        (0.25, (1 / 64, 3 / 64, 3 / 16, 3 / 4)),
    ],
)
def test_result_is_the_exponential_average_of_the_rounds_models(
    tmp_path: Path, decay: float, shares: tuple[float, ...]
) -> None:
    grid = a_grid()
    go(grid, a_run(rounds=4, federation={"averaging": decay}), tmp_path)
    models = rounds_models(grid, tmp_path, 4)
    _, got, manifest = load_model(tmp_path)
    assert manifest.round == 4
    for name, tensor in got.items():
        expected = sum(share * model[name] for share, model in zip(shares, models, strict=True))
        np.testing.assert_allclose(tensor.numpy(), expected, rtol=1e-5, atol=1e-6)


def test_averaging_does_not_change_what_the_rounds_train(tmp_path: Path) -> None:
    plain, averaged = a_grid(), a_grid()
    go(plain, a_run(rounds=4), tmp_path / "plain")
    go(averaged, a_run(rounds=4, federation={"averaging": 0.5}), tmp_path / "averaged")
    assert [sent(plain, number) for number in range(1, 5)] == [sent(averaged, number) for number in range(1, 5)]
    last = [
        (tmp_path / name / "checkpoint" / "round-00004" / "model.safetensors").read_bytes()
        for name in ("plain", "averaged")
    ]
    assert last[0] == last[1]


def test_without_averaging_the_result_is_the_last_rounds_model(tmp_path: Path) -> None:
    grid = a_grid()
    summary = go(grid, a_run(rounds=3, federation={"averaging": 0.0}), tmp_path)
    folder = tmp_path / "checkpoint" / "round-00003"
    assert (tmp_path / "model.safetensors").read_bytes() == (folder / "model.safetensors").read_bytes()
    assert sorted(path.name for path in folder.iterdir()) == ["model.json", "model.safetensors"]
    last = events(tmp_path, "round")[-1]
    assert last["model-sha256"] == summary.model_sha256
    assert "average-sha256" not in last


def test_what_is_evaluated_is_what_is_kept(tmp_path: Path) -> None:
    grid = a_grid()
    summary = go(grid, a_run(rounds=3, federation={"averaging": 0.5}), tmp_path)
    tested = [
        one.parts["weights"] for _, one in grid.requests if isinstance(one, EvaluateRequest) and one.phase == "test"
    ]
    kept = (tmp_path / "model.safetensors").read_bytes()
    assert set(tested) == {kept}
    assert hashlib.sha256(kept).hexdigest() == summary.model_sha256
    averages = [event["average-sha256"] for event in events(tmp_path, "round")]
    validated = [one for _, one in grid.requests if isinstance(one, EvaluateRequest) and one.phase == "validation"]
    assert averages == [
        hashlib.sha256(next(one.parts["weights"] for one in validated if one.round == number)).hexdigest()
        for number in (1, 2, 3)
    ]
    assert averages[-1] == summary.model_sha256
    assert events(tmp_path, "round")[-1]["model-sha256"] != summary.model_sha256


@pytest.mark.parametrize("stop", [2, 3, 4])
def test_interrupted_run_resumes_to_the_same_average(tmp_path: Path, stop: int) -> None:
    run = a_run(rounds=4, federation={"averaging": 0.6})
    go(a_grid(), run, tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        go(a_grid(stops_in(stop)), run, tmp_path / "cut")
    grid = a_grid()
    go(grid, run, tmp_path / "cut")
    assert not sent(grid, stop - 1)
    whole, cut = ((tmp_path / name / "model.safetensors").read_bytes() for name in ("whole", "cut"))
    assert cut == whole


def test_average_starts_from_the_first_round_and_not_from_the_initial_weights(tmp_path: Path) -> None:
    weights, grid = initial_weights(), a_grid()
    run = starts_from(weights, federation={"rounds": 1, "averaging": 0.9})
    go(grid, run, laid(tmp_path, weights))
    folder = tmp_path / "checkpoint" / "round-00001"
    assert (tmp_path / "model.safetensors").read_bytes() == (folder / "model.safetensors").read_bytes()


def test_folder_of_another_run_is_not_touched(tmp_path: Path) -> None:
    go(a_grid(), a_run(rounds=1), tmp_path)
    before = (tmp_path / "metrics.jsonl").read_bytes()
    with pytest.raises(ConfigError, match="holds another run"):
        go(a_grid(), a_run(rounds=2), tmp_path)
    assert (tmp_path / "metrics.jsonl").read_bytes() == before


def test_model_and_checkpoint_on_disk_are_the_ones_the_summary_names(tmp_path: Path) -> None:
    run = a_run(rounds=2)
    summary = go(a_grid(), run, tmp_path)
    assert sha256((tmp_path / "model.safetensors").read_bytes()) == summary.model_sha256
    _, _, manifest = load_model(tmp_path)
    assert (manifest.round, manifest.sites, manifest.run_hash) == (2, ("a", "b"), sha256_of(run))
    assert [folder.name for folder in (tmp_path / "checkpoint").iterdir()] == ["round-00002"]


def test_what_sites_said_is_on_disk_before_the_checkpoint_that_came_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A power failure leaves no checkpoint of a round that the journal does not tell."""
    flushed: dict[int, int] = {}
    moved: list[tuple[str, int, int]] = []

    def fsync(descriptor: int) -> None:
        found = os.fstat(descriptor)
        flushed[found.st_ino] = found.st_size

    def move(fresh: Path, place: Path) -> None:
        found = (tmp_path / JOURNAL_NAME).stat()
        moved.append((place.name, flushed.get(found.st_ino, 0), found.st_size))
        files.move(fresh, place)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(model, "move", move)
    go(a_grid(), a_run(rounds=2), tmp_path)
    assert [name for name, _, _ in moved] == ["round-00001", "round-00002"]
    assert all(on_disk == written > 0 for _, on_disk, written in moved)
