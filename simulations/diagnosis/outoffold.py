"""What a model of each fold says of the patients it never saw: answers for all patients, to be scored together.

A column of a comparison (a site alone, all pooled, federated, or the first weights untrained) is trained once for each
fold of its run, as `crossval` does, and answers the fold's test patients of EVERY site. What is kept of a study are the
counts of the run's task, from which its scores follow; `decisions` puts intervals around them.

A fold that is finished is kept in its folder, so that an interrupted study goes on. Answers stay on this machine: they
are of single patients, by pseudonym.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from client.site import Site
from common.config import RunConfig
from common.config.rundocument import issue
from common.errors import ConfigError, FederationError
from common.learning.checkpoint import WEIGHTS_NAME, unpack
from common.learning.inference import predict_stack
from common.learning.network import build_model
from common.system.files import write_atomically
from server.federation.events import INITIAL_NAME
from server.federation.rounds import federate
from simulations.backends import Backend, opened
from simulations.studies.compare import Column
from simulations.studies.crossval import fold_runs

ANSWERS_NAME = "answers.json"


@dataclass(frozen=True, eq=False)
class Answered:
    """One study and what the task counted of it. patient: site and pseudonym; case: the study's pseudonym."""

    patient: str
    case: str
    counts: Tensor


def answer_all(
    column: Column,
    sites: Sequence[Site],
    out: Path,
    *,
    initial: bytes = b"",
    backend: Backend = opened,
    tell: Callable[[str], None] = lambda _: None,
) -> list[Answered]:
    """Train a column for each fold, and let it answer the fold's test patients; ordered by site and patient.

    Args:
        column: its run has folds.
        sites: whose patients are answered.
        out: results; finished folds found here are not trained again.
        initial: the first weights, where the run names them.
        backend: where the sites work.
        tell: told what is going on.

    Raises:
        ConfigError: the run has no folds, or `out` holds another run.
        FederationError: a round failed, or a patient was not answered.
    """
    runs = fold_runs(column.run)
    found: dict[tuple[str, str], Answered] = {}
    for number, run in enumerate(runs):
        tell(f"{column.name}: fold {number + 1} of {len(runs)}")
        for one in _fold(column, run, sites, out / f"fold-{number}", initial=initial, backend=backend):
            found[one.patient, one.case] = one
    wanted = [(f"{site.config.name} {case.patient}", case.key) for site in sites for case in site.cohort(runs[0]).cases]
    if set(wanted) != set(found):
        raise FederationError(
            f"{len(found)} of {len(wanted)} studies were tested in the folds, expected each once. Remove {out} and "
            "train again."
        )
    return [found[key] for key in wanted]


def _fold(
    column: Column, run: RunConfig, sites: Sequence[Site], folder: Path, *, initial: bytes, backend: Backend
) -> list[Answered]:
    document, kept = issue(run), folder / ANSWERS_NAME
    if kept.exists():
        values = json.loads(kept.read_text(encoding="utf-8"))
        if values["run-hash"] != document.hash:
            raise ConfigError(f"{folder} holds another run. Give another --out, or remove that folder.")
        return [Answered(one["patient"], one["case"], _tensor(one["counts"])) for one in values["answers"]]
    weights = initial
    if column.sites:
        if run.initial is not None:
            write_atomically(folder / INITIAL_NAME, initial)
        with backend(column.sites, document) as grid:
            federate(grid, document, folder)
        weights = (folder / WEIGHTS_NAME).read_bytes()
    answers = _answers(run, sites, weights)
    lines = [{"patient": one.patient, "case": one.case, "counts": one.counts.tolist()} for one in answers]
    write_atomically(kept, f"{json.dumps({'run-hash': document.hash, 'answers': lines})}\n".encode())
    return answers


def _answers(run: RunConfig, sites: Sequence[Site], weights: bytes) -> list[Answered]:
    model = build_model(run)
    model.load_state_dict(unpack(weights))
    found = []
    for site in sites:
        for case in site.cohort(run).cases:
            if case.split == "test":
                said = predict_stack(model, case.images, run, "cpu")
                counts = run.task.count(said, case.labels, len(run.data.classes))
                found.append(Answered(f"{site.config.name} {case.patient}", case.key, counts))
    return found


def _tensor(values: Any) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


__all__ = ["ANSWERS_NAME", "Answered", "answer_all"]
