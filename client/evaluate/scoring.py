"""What one segmented study amounts to, on its own grid: counts, surfaces, volumes, probabilities in bins, a picture.

All but the picture add up over the studies of a patient, and no voxel is kept. Where the study knows its field of view,
counts, surfaces and probabilities are of the voxels inside, in answer and label alike. Lengths are in mm and volumes in
ml; in pixels where the image does not know its spacing.

A probability is kept in 256 steps, and goes back to the study's grid by nearest neighbour as a label does.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray

from client.data.isolate.isolation import Reading
from client.data.prepare.preprocess import as_samples, preprocess, restore
from client.data.study.study import Study
from client.evaluate.picture import draw
from client.predict.memory import within_memory
from client.predict.prediction import Segmenter
from common.learning.inference import outputs_of_parts
from common.measures import histogram
from common.measures.surface import SurfaceDistances, surface_distances
from common.measures.volumes import voxel_ml
from common.tasks import Task

BINS = 256


@dataclass(frozen=True, eq=False)
class ScoredStudy:
    """One study.

    counts: (K+1, K+1) voxels, row the truth, or (K+1, 2, 2) where classes overlap, as the task counts. chances:
    (K, 2, BINS), for each class a histogram (common/measures) of its probability. surfaces: of each class; none where
    voxels have no size. found, truth: volume of each class. physical: whether lengths are in mm and volumes in ml.
    inside: whether a field of view counted. digest: of the image.
    """

    counts: NDArray[np.int64]
    chances: histogram.Histogram
    surfaces: tuple[SurfaceDistances, ...]
    found: tuple[float, ...]
    truth: tuple[float, ...]
    physical: bool
    inside: bool
    digest: str = field(repr=False)
    picture: bytes = field(repr=False)


def score(reading: Reading, segmenter: Segmenter, tolerance: float) -> ScoredStudy:
    """Answer a study and compare.

    Args:
        reading: a study with its label in the classes of the run.
        segmenter: the model.
        tolerance: of the surface Dice, mm or pixels.

    Raises:
        DataError: the study cannot be prepared, or does not fit into memory.
    """
    study = reading.study
    if study.label is None:
        raise ValueError("a study was read for scoring without its label")
    labels, chances = _answers(study, segmenter)
    run = segmenter.run
    return compare(study, labels, chances, run.data.classes, task=run.task, tolerance=tolerance, digest=reading.digest)


def compare(
    study: Study,
    found: NDArray[np.uint8],
    chances: Sequence[NDArray[np.uint8]],
    classes: Sequence[str],
    *,
    task: Task,
    tolerance: float,
    digest: str = "",
) -> ScoredStudy:
    """Score an answer.

    Args:
        study: with its label.
        found: (*sp) labels on the study's grid.
        chances: of each class (*sp), the probability times 256.
        classes: names of 1..K.
        task: of segmentation; says where a label shows a class.
        tolerance: see `score`.
        digest: of the image.
    """
    truth = study.label
    assert truth is not None  # noqa: S101 - see `score`
    within = None if study.region is None else study.region > 0
    seen, meant = (torch.from_numpy(one.ravel() if within is None else one[within]) for one in (found, truth))
    counts = task.count(seen, meant, len(classes))
    masks = [
        tuple(task.marks(torch.from_numpy(labels), number).numpy() for labels in (found, truth))
        for number in range(1, len(classes) + 1)
    ]
    part = slice(None) if within is None else within
    bins = np.stack(
        [_binned(chance[part].ravel(), true[part].ravel()) for chance, (_, true) in zip(chances, masks, strict=True)]
    )
    if within is not None:
        masks = [(one & within, other & within) for one, other in masks]
    spacing = study.spacing_mm or (1.0,) * truth.ndim
    sized = min(spacing) > 0
    unit = 1.0 if study.spacing_mm is None else voxel_ml(spacing)
    return ScoredStudy(
        counts.numpy(),
        bins,
        tuple(surface_distances(one, other, spacing, tolerance) for one, other in masks) if sized else (),
        tuple(float(one.sum() * unit) for one, _ in masks),
        tuple(float(true.sum() * unit) for _, true in masks),
        study.spacing_mm is not None,
        within is not None,
        digest,
        draw(study, found),
    )


def _answers(study: Study, segmenter: Segmenter) -> tuple[NDArray[np.uint8], list[NDArray[np.uint8]]]:
    """Labels and the probabilities of the classes on the study's own grid."""
    run = segmenter.run
    with within_memory():
        image, _, way = preprocess(study, run)
        answers, chances = [], []
        samples = as_samples(image, run.model.dims)
        for outputs in outputs_of_parts(segmenter.network, samples, run, segmenter.device):
            answers.append(run.task.answer(outputs).to(torch.uint8).cpu())
            steps = (run.task.chances(outputs)[:, -len(run.data.classes) :] * BINS).clamp(max=BINS - 1)
            chances.append(steps.to(torch.uint8).cpu())
        shape = image.shape[1:]
        labels = restore(torch.cat(answers).reshape(shape), way)
        of_class = torch.cat(chances).movedim(1, 0)
        return labels, [restore(one.reshape(shape), way) for one in of_class]


def _binned(steps: NDArray[np.uint8], positive: NDArray[np.bool_]) -> histogram.Histogram:
    return np.bincount(steps + BINS * positive.astype(np.int64), minlength=2 * BINS).reshape(2, BINS)


__all__ = ["BINS", "ScoredStudy", "compare", "score"]
