"""The global model of a run at the coordinator: where it starts, and the checkpoint after each round.

A checkpoint is a folder of its own (`checkpoint/round-00007`), written whole or not at all, and holds all that the
run's strategy holds: a run that is started again in the same folder goes on from there.
"""

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from torch import Tensor

from common.config import RunConfig
from common.config.rundocument import RunDocument
from common.crypto.stream import Sealer
from common.errors import ConfigError, UpdateError
from common.learning.checkpoint import Manifest, load_model, pack, save_model, sha256, unpack
from common.learning.network import build_model, weights_of
from common.system.files import move
from common.wire.messages import Parts
from server.federation.events import INITIAL_NAME, Event, guarantee_of, latest_scores
from server.federation.strategies import Aggregation
from server.home.checkpoints import at, folder_of, latest


@dataclass(frozen=True)
class Model:
    """What is held after a round, as the bytes that every site receives."""

    round: int  # 0: initial weights
    name: str  # of the part that holds the weights
    packed: Parts  # of all that the strategy holds
    request: Parts  # of the next round

    @cached_property
    def digests(self) -> dict[str, str]:
        """SHA-256 (hex) of each, made once."""
        return {name: sha256(part) for name, part in self.packed.items()}


def model_of(round_: int, aggregation: Aggregation) -> Model:
    """What the strategy holds after a round, packed."""
    packed = {name: pack(state) for name, state in aggregation.held.items()}
    request = aggregation.request()
    held = aggregation.held
    parts = {name: packed[name] if held.get(name) is state else pack(state) for name, state in request.items()}
    return Model(round_, aggregation.model, packed, parts)


def initial_weights(run: RunConfig, out: Path) -> Mapping[str, Tensor]:
    """Those that the run names, or random ones from its seed."""
    random = weights_of(build_model(run))
    if run.initial is None:
        return random
    path = out / INITIAL_NAME
    data = path.read_bytes() if path.exists() else b""
    if sha256(data) != run.initial.sha256:
        raise ConfigError(
            f"{path} {'holds other weights than' if data else 'is not there; it must hold the weights that'} [initial] "
            f"sha256 names ({run.initial.sha256[:8]}). Give the model with --initial."
        )
    try:
        state = unpack(data)
    except UpdateError as error:
        raise ConfigError(f"{path} holds no weights. Give a model as `export` or a simulation wrote it.") from error
    if pack(state) != data:
        raise ConfigError(f"{path} was not written by this program. Give a model as `export` or a simulation wrote it.")
    if _kinds(state) != _kinds(random):
        raise ConfigError(
            "the initial weights are of another network than [model] and [data] describe. Pretrain with the same ones."
        )
    if not all(bool(tensor.isfinite().all()) for tensor in state.values()):
        raise ConfigError("the initial weights are not all finite numbers. Pretrain with a lower learning rate.")
    return state


def keep(model: Model, document: RunDocument, events: Sequence[Event], out: Path, sealer: Sealer | None) -> None:
    """Write this round's checkpoint whole, then remove older ones."""
    folder = folder_of(out, model.round)
    partial = folder.with_name(f"{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    sealer = at(sealer, folder.name)
    for name, part in model.packed.items():
        place, key = (partial, sealer) if name == model.name else (partial / name, at(sealer, name))
        save_model(place, part, manifest_of(model, name, document, events), key, durable=False)
    move(partial, folder)
    for other in folder.parent.iterdir():
        if other != folder:
            shutil.rmtree(other)


def last_checkpoint(
    document: RunDocument, out: Path, sealer: Sealer | None, holds: Sequence[str]
) -> tuple[int, dict[str, Mapping[str, Tensor]]] | None:
    """The round of the last checkpoint, and what the run's strategy held after it: `holds`, the weights first."""
    folder = latest(out)
    if folder is None:
        return None
    sealer = at(sealer, folder.name)
    _, state, manifest = load_model(folder, sealer)
    _check_run(manifest, document, out)
    weights, *others = holds
    held: dict[str, Mapping[str, Tensor]] = {weights: state}
    for name in others:  # one that is missing would start anew, and the run would not be the same
        _, held[name], _ = load_model(folder / name, at(sealer, name))
    return manifest.round, held


def refuse_another(document: RunDocument, out: Path) -> None:
    """Before anything is made for a run in `out`.

    Raises:
        ConfigError: it holds another run.
    """
    if (folder := latest(out)) is not None:
        _check_run(load_model(folder, None)[2], document, out)


def manifest_of(model: Model, name: str, document: RunDocument, events: Sequence[Event]) -> Manifest:
    """What is said beside one part of a model: the run, and what led to it."""
    return Manifest(
        run=document.text,
        run_hash=document.hash,
        round=model.round,
        sites=tuple(sorted({site for event in events if event["event"] == "round" for site in event["sites"]})),
        sha256=model.digests[name],
        guarantee=guarantee_of(document.config, events),
        scores=latest_scores(events),
    )


def _check_run(manifest: Manifest, document: RunDocument, out: Path) -> None:
    if manifest.run_hash != document.hash:
        raise ConfigError(
            f"{out} holds another run ({manifest.run_hash[:8]}, this one is {document.hash[:8]}): another "
            "run.toml, seed or number of rounds. Give another output folder, or remove this one."
        )


def _kinds(state: Mapping[str, Tensor]) -> dict[str, tuple[tuple[int, ...], object]]:
    return {name: (tuple(tensor.shape), tensor.dtype) for name, tensor in state.items()}
