"""Pretraining gives weights that no patient stands behind, says so by their hash, and trains no more than it must."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from client.site import Site
from common.config import InitialConfig, RunConfig, SourceConfig, sha256_of, validate
from common.config.rundocument import RunDocument, issue
from common.errors import ConfigError
from common.learning.checkpoint import pack, unpack
from common.learning.network import build_model
from common.wire.frames import Buffer
from common.wire.messages import TrainRequest
from common.wire.records import request_from_record
from server.federation.events import INITIAL_NAME
from server.federation.rounds import federate
from simulations.backends.in_process import InProcessGrid
from simulations.scenarios import pretraining
from simulations.scenarios.homes import make_site
from simulations.scenarios.pretraining import PretrainingConfig, pretrain, public_run
from tests.simulations.tiny import tiny_run, tiny_run_of_format, tiny_site

RUN = tiny_run()
CONFIG = PretrainingConfig(images="retinas", patients=4, seed=1, rounds=2)


class Calls:
    """The federations that pretraining begins, and how often images were written."""

    def __init__(self) -> None:
        self.runs: list[RunConfig] = []
        self.images: list[tuple[int, int]] = []  # (count, seed)


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Calls:
    """Retinas become tiny pictures with a disc; all else is as it is."""
    calls = Calls()

    def write(folder: Path, *, count: int, seed: int, progress: Callable[[int, int], None] | None = None) -> None:
        calls.images.append((count, seed))
        tiny_site(folder, "drawn", count, seed)

    def counted(grid: InProcessGrid, document: RunDocument, out: Path, **options: Any) -> object:
        calls.runs.append(document.config)
        return federate(grid, document, out, **options)

    monkeypatch.setitem(pretraining._WRITERS, "retinas", (write, "images"))
    monkeypatch.setattr(pretraining, "federate", counted)
    return calls


def distance(first: bytes, second: bytes) -> float:
    """Largest difference of any weight."""
    pairs = zip(unpack(first).values(), unpack(second).values(), strict=True)
    return max(float((one - other).abs().max()) for one, other in pairs)


def test_weights_are_trained_and_named_by_the_hash_of_their_bytes(tmp_path: Path, calls: Calls) -> None:
    weights, initial = pretrain(RUN, CONFIG, tmp_path)
    random = pack(build_model(RUN).state_dict())
    assert {name: tensor.shape for name, tensor in unpack(weights).items()} == {
        name: tensor.shape for name, tensor in unpack(random).items()
    }
    assert distance(weights, random) > 1e-3
    assert initial.sha256 == hashlib.sha256(weights).hexdigest()


def test_statement_names_images_number_and_seed(tmp_path: Path, calls: Calls) -> None:
    _, initial = pretrain(RUN, CONFIG, tmp_path)
    assert initial.public is not None
    for part in ("4 generated images", "retinas", "seed 1", "no patient"):
        assert part in initial.public


def test_what_is_finished_is_not_trained_again(tmp_path: Path, calls: Calls) -> None:
    first = pretrain(RUN, CONFIG, tmp_path)
    assert (len(calls.runs), calls.images) == (1, [(4, 1)])
    assert pretrain(RUN, CONFIG, tmp_path) == first
    assert (len(calls.runs), calls.images) == (1, [(4, 1)])


def test_result_that_was_altered_is_refused(tmp_path: Path, calls: Calls) -> None:
    weights, _ = pretrain(RUN, CONFIG, tmp_path)
    (path,) = tmp_path.glob("model-*/model.safetensors")
    assert path.read_bytes() == weights
    path.write_bytes(pack({name: tensor + 1 for name, tensor in unpack(weights).items()}))
    with pytest.raises(ConfigError, match="another SHA-256 than its manifest"):
        pretrain(RUN, CONFIG, tmp_path)


def test_result_without_its_manifest_is_finished_from_the_last_checkpoint(tmp_path: Path, calls: Calls) -> None:
    first = pretrain(RUN, CONFIG, tmp_path)
    (path,) = tmp_path.glob("model-*/model.json")
    path.unlink()
    assert pretrain(RUN, CONFIG, tmp_path) == first
    assert path.exists()


def test_interrupted_pretraining_goes_on(tmp_path: Path, calls: Calls) -> None:
    whole = pretrain(RUN, CONFIG, tmp_path / "whole")

    def stop(event: dict[str, Any]) -> None:
        if event["event"] == "round":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pretrain(RUN, CONFIG, tmp_path / "cut", observe=stop)
    assert pretrain(RUN, CONFIG, tmp_path / "cut") == whole
    assert calls.images == [(4, 1), (4, 1)], "images that are complete are not written again"


def test_images_that_were_not_finished_are_written_again(
    tmp_path: Path, calls: Calls, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = pretrain(RUN, CONFIG, tmp_path / "whole")
    write, kind = pretraining._WRITERS["retinas"]

    def cut(folder: Path, *, count: int, seed: int, progress: Callable[[int, int], None] | None = None) -> None:
        write(folder, count=count - 2, seed=seed)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setitem(pretraining._WRITERS, "retinas", (cut, kind))
        with pytest.raises(KeyboardInterrupt):
            pretrain(RUN, CONFIG, tmp_path / "cut")
    assert pretrain(RUN, CONFIG, tmp_path / "cut") == whole


@pytest.mark.parametrize(
    ("changed", "images"),
    [
        ({"patients": 5}, (5, 1)),
        ({"seed": 2}, (4, 2)),
        ({"rounds": 3}, None),
        ({"training": RUN.training.model_copy(update={"learning_rate": 5e-2})}, None),
    ],
    ids=["patients", "seed", "rounds", "training"],
)
def test_another_table_trains_anew(
    tmp_path: Path, calls: Calls, changed: dict[str, Any], images: tuple[int, int] | None
) -> None:
    first, _ = pretrain(RUN, CONFIG, tmp_path)
    other, initial = pretrain(RUN, CONFIG.model_copy(update=changed), tmp_path)
    assert other != first
    assert len(calls.runs) == 2
    assert calls.images == [(4, 1), *([images] if images else [])], "the same images are drawn once"
    assert initial.sha256 == hashlib.sha256(other).hexdigest()
    assert pretrain(RUN, CONFIG, tmp_path)[0] == first, "and the first is still there"


def test_another_seed_of_the_run_has_a_pretraining_of_its_own(tmp_path: Path, calls: Calls) -> None:
    first, _ = pretrain(RUN, CONFIG, tmp_path)
    other, _ = pretrain(RUN.model_copy(update={"seed": 4}), CONFIG, tmp_path)
    assert other != first
    assert [run.seed for run in calls.runs] == [3, 4]
    assert calls.images == [(4, 1)]


def test_pretraining_is_the_run_on_one_site_without_privacy_average_or_frozen_weights() -> None:
    run = tiny_run(
        privacy={"target-epsilon": 8.0, "sampling-rate": 0.5, "crops-per-patient": 1},
        federation={"quorum": 2, "averaging": 0.9},
        training={"trainable": "norm-and-head", "learning-rate": 7e-3},
        data={"folds": 3, "fold": 2},
        initial={"sha256": "0" * 64},
    )
    public = public_run(run, None, 5)
    assert (public.privacy, public.initial) == (None, None)
    assert (public.federation.rounds, public.federation.quorum, public.federation.averaging) == (5, 1, 0)
    assert public.training == run.training.model_copy(update={"trainable": "all"})
    assert (public.data.folds, public.data.validation_fraction) == (None, 0)
    assert (public.model, public.preprocessing, public.seed) == (run.model, run.preprocessing, run.seed)
    assert public.data.classes == run.data.classes
    chosen = tiny_run_of_format(2, federation={"keep": "best", "patience": 1})
    assert not public_run(chosen, None, 5).chooses  # it has nobody to choose by
    own = run.training.model_copy(update={"batch_size": 3})
    assert public_run(run, own, 5).training.batch_size == 3


def test_real_hippocampi_pretrain_their_scenarios_network(tmp_path: Path) -> None:
    run = tiny_run(
        model={"dims": 3},
        data={"modality": "MR", "classes": ["anterior", "posterior"]},
        training={"patch-size": [16, 16, 16], "local-steps": 1},
        preprocessing={"spacing-mm": [2.0, 2.0, 2.0], "intensity": "zscore"},
    )
    config = PretrainingConfig(images="hippocampi", patients=4, rounds=1)
    weights, initial = pretrain(run, config, tmp_path)
    assert distance(weights, pack(build_model(run).state_dict())) > 1e-4
    assert initial.sha256 == hashlib.sha256(weights).hexdigest()
    assert initial.public is not None
    assert "4 generated images (hippocampi, seed 0)" in initial.public


def test_mammograms_pretrain_a_network_of_two_classes(tmp_path: Path) -> None:
    run = tiny_run(data={"modality": "MG", "classes": ["benign", "malignant"]}, preprocessing={"rows": 64})
    weights, initial = pretrain(run, PretrainingConfig(images="mammograms", patients=3, rounds=1), tmp_path)
    assert distance(weights, pack(build_model(run).state_dict())) > 1e-4
    assert initial.public is not None
    assert "3 generated images (mammograms, seed 0)" in initial.public


# --- published images ------------------------------------------------------------------------------------------------


def published(folder: Path, *numbers: int) -> SourceConfig:
    """Some patients of an archive of six."""
    (source,) = tiny_site(folder / "archive", "known", 6, seed=5).data
    return source.model_copy(update={"patients": tuple(f"known-{number}" for number in numbers)})


TWICE = CONFIG.model_copy(update={"published_rounds": 1})


def test_published_images_are_trained_on_after_the_generated_ones(tmp_path: Path, calls: Calls) -> None:
    before, _ = pretrain(RUN, CONFIG, tmp_path)
    weights, initial = pretrain(RUN, TWICE, tmp_path, published=published(tmp_path, 0, 1, 2))
    generated, second = calls.runs
    assert generated.initial is None
    assert second.initial is not None
    assert second.initial.sha256 == hashlib.sha256(before).hexdigest(), "it starts where the generated ones ended"
    assert second.training == RUN.training
    assert weights != before
    assert initial.sha256 == hashlib.sha256(weights).hexdigest()
    assert initial.public is not None
    for part in ("4 generated images", "retinas", "seed 1", "3 patients of a published archive", "at no site"):
        assert part in initial.public
    assert "no patient stands" not in initial.public


def test_published_images_are_left_alone_where_no_rounds_are_for_them(tmp_path: Path, calls: Calls) -> None:
    plain = pretrain(RUN, CONFIG, tmp_path)
    assert pretrain(RUN, CONFIG, tmp_path, published=published(tmp_path, 0, 1, 2)) == plain
    assert len(calls.runs) == 1


def test_other_published_patients_train_anew(tmp_path: Path, calls: Calls) -> None:
    first = pretrain(RUN, TWICE, tmp_path, published=published(tmp_path, 0, 1, 2))
    # As many, but others: those of before may now be a site's.
    other = pretrain(RUN, TWICE, tmp_path, published=published(tmp_path, 3, 4, 5))
    assert other[0] != first[0]
    assert len(calls.runs) == 3
    assert pretrain(RUN, TWICE, tmp_path, published=published(tmp_path, 0, 1, 2)) == first
    assert len(calls.runs) == 3


# --- the run that starts from them -----------------------------------------------------------------------------------


class Recording(InProcessGrid):
    """Keeps the weights of every training request: (round, weights)."""

    def __init__(self, sites: list[Site], run: RunConfig) -> None:
        super().__init__(sites, issue(run))
        self.trained: list[tuple[int, Buffer]] = []

    def push_messages(self, messages: Any) -> Any:
        messages = list(messages)
        requests = [request_from_record(message.content) for message in messages]
        self.trained += [(one.round, one.parts["weights"]) for one in requests if isinstance(one, TrainRequest)]
        return super().push_messages(messages)


def a_start(run: RunConfig, initial: InitialConfig, learning_rate: float) -> RunConfig:
    values = run.model_dump(by_alias=True) | {"initial": initial.model_dump(by_alias=True)}
    values["training"] |= {"learning-rate": learning_rate, "weight-decay": 0.0}
    return validate(RunConfig, values, "run.toml")


@pytest.fixture
def sites(tmp_path: Path) -> list[Site]:
    return [make_site(tmp_path / "sites", tiny_site(tmp_path / name, name)) for name in ("north", "south")]


def federated(sites: list[Site], run: RunConfig, out: Path, weights: bytes) -> tuple[Recording, bytes]:
    out.mkdir()
    (out / INITIAL_NAME).write_bytes(weights)
    grid = Recording(sites, run)
    federate(grid, issue(run), out)
    return grid, (out / "model.safetensors").read_bytes()


def test_federated_run_starts_from_the_pretrained_weights(tmp_path: Path, sites: list[Site], calls: Calls) -> None:
    weights, initial = pretrain(RUN, CONFIG, tmp_path / "pretraining")
    run = a_start(RUN, initial, learning_rate=1e-7)
    grid, model = federated(sites, run, tmp_path / "out", weights)
    assert [one for round_, one in grid.trained if round_ == 1] == [weights, weights]
    assert 0 < distance(model, weights) < 1e-5
    assert distance(model, pack(build_model(run).state_dict())) > 1e-3


def test_sites_enter_round_1_only_with_the_weights_their_run_names(
    tmp_path: Path, sites: list[Site], calls: Calls
) -> None:
    weights, initial = pretrain(RUN, CONFIG, tmp_path / "pretraining")
    run = a_start(RUN, initial, learning_rate=1e-3)
    with pytest.raises(ConfigError, match="holds other weights"):
        federated(sites, run, tmp_path / "out", pack({n: t + 1 for n, t in unpack(weights).items()}))
    assert not (tmp_path / "out" / "metrics.jsonl").exists()


def test_model_says_what_it_started_from(tmp_path: Path, sites: list[Site], calls: Calls) -> None:
    weights, initial = pretrain(RUN, CONFIG, tmp_path / "pretraining")
    run = a_start(RUN, initial, learning_rate=1e-3)
    federated(sites, run, tmp_path / "out", weights)
    manifest = json.loads((tmp_path / "out" / "model.json").read_text())
    assert json.loads(manifest["run"])["initial"] == {"sha256": initial.sha256, "public": initial.public}
    assert manifest["run_hash"] == sha256_of(run) != sha256_of(RUN)
    assert all(torch.isfinite(tensor).all() for tensor in unpack(weights).values())
