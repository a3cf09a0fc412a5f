"""The model of a run's best round, kept beside its checkpoints: [federation] keep = "best".

    best/round-00007   the weights that had the best scores so far, written whole before the next round begins

An older one goes when the checkpoint of the round after it is on disk: until then a run that is resumed may need it.
"""

import shutil
from collections.abc import Sequence
from pathlib import Path

from common.config.rundocument import RunDocument
from common.crypto.stream import Sealer
from common.errors import ConfigError
from common.learning.checkpoint import load_model, pack, save_model
from common.system.files import move
from common.tasks import Task
from server.federation.events import Event
from server.federation.model import Model, manifest_of
from server.federation.selection import best_round
from server.home.checkpoints import at, best_folder_of


def keep_best(
    model: Model, name: str, document: RunDocument, events: Sequence[Event], *, out: Path, sealer: Sealer | None
) -> None:
    """Write the model whose scores were the best so far, if it is this one.

    Args:
        model: just scored.
        name: of the part that was scored.
        document: the run.
        events: with the scores.
        out: the run's folder.
        sealer: of the run; None: plain files.
    """
    if best_round(events, document.config.task) != model.round:
        return
    folder = best_folder_of(out, model.round)
    partial = folder.with_name(f"{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    manifest = manifest_of(model, name, document, events)
    save_model(partial, model.packed[name], manifest, _sealer(sealer, folder), durable=False)
    shutil.rmtree(folder, ignore_errors=True)  # of an earlier start, which was cut short after this round
    move(partial, folder)


def prune(events: Sequence[Event], task: Task, out: Path) -> None:
    """Remove models that are no longer the best; the checkpoint that is on disk by now came after them."""
    best = best_round(events, task)
    kept = None if best is None else best_folder_of(out, best)
    for other in best_folder_of(out, 0).parent.glob("*"):
        if other != kept:
            shutil.rmtree(other)


def kept_model(
    model: Model, name: str, document: RunDocument, events: Sequence[Event], *, out: Path, sealer: Sealer | None
) -> Model:
    """The model that the run keeps, after its last round; `model` is that round's. See `keep_best`.

    Raises:
        ConfigError: the best round's is gone or damaged.
    """
    best = best_round(events, document.config.task)
    if document.config.federation.keep == "last" or best in (None, model.round):
        return model
    folder = best_folder_of(out, best)
    _, state, manifest = load_model(folder, _sealer(sealer, folder))
    if (manifest.run_hash, manifest.round) != (document.hash, best):
        raise ConfigError(f"{folder} holds another model than its place says. Remove {out} and run it anew.")
    return Model(best, model.name, {name: pack(state)}, {})


def _sealer(sealer: Sealer | None, folder: Path) -> Sealer | None:
    return at(at(sealer, folder.parent.name), folder.name)


__all__ = ["keep_best", "kept_model", "prune"]
