"""The scores of single patients behind a study's table, on one machine alone: no hospital is asked for them.

They stay beside the model as patients.json, {"model-sha256", "sites": {site: {pseudonym: {measure: value}}}}. Of a
segmentation a site's score is their mean; a task whose scores need several images has those of `Task.of_each`.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TypeAlias

import torch

from client.site import Site
from common.config import RunConfig
from common.learning.checkpoint import sha256, unpack
from common.learning.inference import predict_stack
from common.learning.network import load_model
from common.system.files import write_atomically

Scores: TypeAlias = Mapping[str, Mapping[str, Mapping[str, float]]]  # site -> pseudonym -> measure -> value

_KEPT = "patients.json"


def score_patients(run: RunConfig, sites: Sequence[Site], folder: Path, weights: bytes) -> Scores:
    """The scores of each test patient of some sites; what is kept of that model in its folder is not made again.

    Args:
        run: of the model.
        sites: whose test patients.
        folder: of the model.
        weights: the model, safetensors.
    """
    digest = sha256(weights)
    path = folder / _KEPT
    if path.exists() and (before := json.loads(path.read_text(encoding="utf-8")))["model-sha256"] == digest:
        return dict(before["sites"])
    plain = run.model_copy(update={"privacy": None})  # scored by the rules of a plain run, see compare.py
    model = load_model(plain, unpack(weights))
    found = {site.config.name: _at(site, plain, model) for site in sites}
    write_atomically(path, f"{json.dumps({'model-sha256': digest, 'sites': found}, indent=2)}\n".encode())
    return found


def kept_scores(folder: Path) -> Scores:
    """What `score_patients` left in the folder of a model."""
    return dict(json.loads((folder / _KEPT).read_text(encoding="utf-8"))["sites"])


def _at(site: Site, run: RunConfig, model: torch.nn.Module) -> dict[str, dict[str, float]]:
    device = "cuda" if site.config.device != "cpu" and torch.cuda.is_available() else "cpu"
    model, cohort, classes = model.to(device), site.cohort(run), run.data.classes
    patients = cohort.patients("test")
    counts = [
        run.task.together(
            [
                run.task.count(predict_stack(model, case.images, run, device), case.labels, len(classes))
                for case in cohort.cases_of(patient)
            ]
        )
        for patient in patients
    ]
    return dict(zip(patients, run.task.of_each(counts, classes), strict=True))


__all__ = ["Scores", "kept_scores", "score_patients"]
