"""One study explained: what the model answers, which maps are asked for, the check of each, and the way to files.

Order: read, prepare, answer, choose the samples, then for each method the maps of the model and those of random
weights. With a 2D model on a series only some slices are explained, those with the largest answer; elsewhere a map is
NaN. All is computed in float32, whatever prediction does, so that an answer at the very edge of two classes may differ.
"""

import difflib
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from client.data.prepare.preprocess import Way, as_samples, preprocess, restore
from client.data.study.study import Reference, Study
from client.explain import METHODS, Method
from client.explain.grad_cam import LAYERS
from client.explain.method import Answer, Subject
from client.explain.restoring import restored
from client.explain.sanity import Sanity, compared, randomised
from client.explain.windows import explained_numbers
from client.predict.memory import within_memory
from client.predict.prediction import Segmenter, check_fits, load_segmenter, reading
from common.config import RunConfig
from common.errors import ConfigError, DataError, ErrorCode
from common.learning.inference import outputs

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Wanted:
    """What a person asks for.

    methods: names. classes: names; empty: all of the model. slices: at most so many of a series with a 2D model.
    layer, passes, seed: see `Subject`.
    """

    methods: Sequence[str] = ("grad-cam",)
    classes: Sequence[str] = ()
    slices: int = 4
    layer: str = "deepest"
    passes: int = 512
    seed: int = 0


@dataclass(frozen=True, eq=False)
class MapResult:
    """One map. values: (*sp) of the study, NaN where nothing was asked. inside, outside: mean over the explained voxels
    that the model gave to the class, and over the others; of a gate, to any class. None: there are none.
    """

    name: str
    values: NDArray[np.float32]
    inside: float | None
    outside: float | None
    sanity: Sanity


@dataclass(frozen=True, eq=False)
class Explained:
    """What one method found."""

    method: Method
    answer: Answer
    maps: Sequence[MapResult]
    seconds: float


@dataclass(frozen=True, eq=False)
class Explanation:
    """One study.

    labels: (*sp) of the study; None where the model draws nothing. odds: the number that is explained, by class, mean
    over the samples. voxels: of the answer, by class, on the prepared grid. samples: explained, and of how many.
    """

    reference: Reference
    study: Study
    run: RunConfig
    model_sha256: str
    labels: NDArray[np.uint8] | None
    odds: Mapping[str, float]
    voxels: Mapping[str, int]
    samples: tuple[int, int]
    methods: Sequence[Explained]


def explain_study(
    model: Path,
    study: Path,
    wanted: Wanted,
    *,
    members: Sequence[Path] = (),
    device: str | torch.device = "cpu",
    progress: Progress | None = None,
) -> Explanation:
    """Explain the answer of a model to the one study at a path.

    Args:
        model: a run's folder, or its model.safetensors with model.json beside it.
        study: a DICOM series, a volume or a picture.
        wanted: which methods, for which classes.
        members: further models of an ensemble.
        device: where the networks run.
        progress: called with (samples done, samples to do), over all methods.

    Raises:
        ConfigError: a model cannot be loaded, the members do not fit together, or a method cannot be asked of it.
        DataError: there is no study, more than one, or it cannot be used, or does not fit into memory.
    """
    asked = _asked(wanted, members)
    first = load_segmenter(model, device, must_draw=False)
    _check_classes(wanted.classes, first.run)
    ensemble = [first, *(_member(load_segmenter(path, device, must_draw=False), first.run) for path in members)]
    with reading(first.run) as (find, read):
        references = find(study.absolute(), None)
        if len(references) != 1:
            raise DataError(
                f"there are {len(references)} studies at the path, and explain takes one. Give the folder or the file "
                "of one study.",
                ErrorCode.UNSUPPORTED,
            )
        (reference,) = references
        image = read(reference)
    check_fits(image, first.run)
    with within_memory():
        return _explained(ensemble, asked, reference, image, wanted, progress=progress)


def _explained(
    models: Sequence[Segmenter],
    methods: Sequence[Method],
    reference: Reference,
    study: Study,
    wanted: Wanted,
    *,
    progress: Progress | None,
) -> Explanation:
    first = models[0]
    run = first.run
    prepared, _, way = preprocess(study, run)
    samples = as_samples(prepared, run.model.dims)
    drawn = run.task.answer(outputs(first.network, samples, run, first.device)).cpu() if run.task.DRAWS else None
    names = tuple(wanted.classes) or run.data.classes
    regions = torch.stack([_region(drawn, samples, run, 1 + run.data.classes.index(name)) for name in names], 1)
    everything = Subject([model.network for model in models], run, samples, regions, names, first.device)
    answered = regions.flatten(1).sum(1) if run.task.DRAWS else explained_numbers(everything).amax(1)
    chosen = _chosen(answered, wanted.slices)
    subject = replace(
        everything,
        samples=samples[chosen],
        regions=regions[chosen],
        layer=wanted.layer,
        passes=wanted.passes,
        seed=wanted.seed,
        step=_counter(progress, 2 * len(methods) * len(chosen)),
    )
    grid = _Grid(way, chosen, len(samples))
    found = [_of_method(method, subject, grid) for method in methods]
    labels = None if drawn is None else restore(drawn.reshape(prepared.shape[1:]).to(torch.uint8), way)
    voxels = {} if drawn is None else {name: int(regions[:, k].sum()) for k, name in enumerate(names)}
    odds = explained_numbers(subject).mean(0).tolist()
    return Explanation(
        *(reference, study, run, first.sha256, labels, dict(zip(names, odds, strict=True)), voxels),
        *((len(chosen), len(samples)), found),
    )


@dataclass(frozen=True, eq=False)
class _Grid:
    """Where the samples of a study lie. chosen: of `count` samples, those that are explained."""

    way: Way
    chosen: Sequence[int]
    count: int

    def restored(self, values: Tensor) -> NDArray[np.float32]:
        """Values (S, *sp) of the chosen samples on the study's own grid."""
        whole = torch.full((self.count, *values.shape[1:]), torch.nan)
        whole[list(self.chosen)] = values
        return restored(whole.reshape(self.way.shape), self.way)


def _of_method(method: Method, subject: Subject, grid: _Grid) -> Explained:
    began = time.perf_counter()
    if not method.ensemble:
        subject = replace(subject, networks=subject.networks[:1])
    answer = method.explain(subject)
    seconds = time.perf_counter() - began
    random = method.explain(replace(subject, networks=randomised(subject.networks, subject.run, subject.seed)))
    maps = []
    for name, values in answer.maps.items():
        region = _region_of(name, subject)
        inside, outside = (float(values[part].mean()) if part.any() else None for part in (region, ~region))
        maps.append(MapResult(name, grid.restored(values), inside, outside, compared(values, random.maps[name])))
    return Explained(method, answer, maps, seconds)


def _region(drawn: Tensor | None, samples: Tensor, run: RunConfig, number: int) -> Tensor:
    """(S, *sp) the voxels that the model gave to class `number`; nowhere where it draws nothing."""
    if drawn is None:
        return torch.zeros(samples.shape[0], *samples.shape[2:], dtype=torch.bool)
    return run.task.marks(drawn, number)


def _region_of(name: str, subject: Subject) -> Tensor:
    """(S, *sp) of the class that a map is of; of all, where it is of none."""
    of = [one for one in subject.classes if name == one or name.startswith(f"{one}-")]
    if not of:
        return subject.regions.any(1)
    return subject.regions[:, subject.classes.index(max(of, key=len))]


def _chosen(answered: Tensor, most: int) -> list[int]:
    """The samples with the largest answer, voxels or log-odds, in order; the middle one where no voxel is found."""
    if answered.dtype == torch.int64 and not answered.any():
        return [len(answered) // 2]
    ranked = [int(index) for index in answered.argsort(descending=True, stable=True)]
    return sorted(index for index in ranked[:most] if answered.dtype != torch.int64 or answered[index] > 0)


def _counter(progress: Progress | None, total: int) -> Callable[[], None]:
    done = 0

    def step() -> None:
        nonlocal done
        done += 1
        if progress is not None:
            progress(done, total)

    return step


def _asked(wanted: Wanted, members: Sequence[Path]) -> list[Method]:
    by_name = {method.name: method for method in METHODS}
    for name in wanted.methods:
        if name not in by_name:
            near = difflib.get_close_matches(name, by_name, 1)
            meant = f" Did you mean {near[0]}?" if near else ""
            raise ConfigError(f"there is no method {name!r}.{meant} There are: {', '.join(by_name)}.")
    methods = [by_name[name] for name in dict.fromkeys(wanted.methods)]
    if members and not any(method.ensemble for method in methods):
        raise ConfigError("--member is of an ensemble. Add --method uncertainty-ensemble, or leave it out.")
    if wanted.layer not in LAYERS:
        raise ConfigError(f"there is no layer {wanted.layer!r}. Use one of: {', '.join(LAYERS)}.")
    return methods


def _check_classes(names: Sequence[str], run: RunConfig) -> None:
    if unknown := [name for name in names if name not in run.data.classes]:
        raise ConfigError(f"the model has no class {unknown[0]!r}. It has: {', '.join(run.data.classes)}.")


def _member(model: Segmenter, run: RunConfig) -> Segmenter:
    """A further model of an ensemble: of the same network, task, preparation and classes."""
    alike = all(
        getattr(model.run, table) == getattr(run, table) for table in ("model", "task", "data", "preprocessing")
    )
    if not alike or model.run.training.patch_size != run.training.patch_size:
        raise ConfigError(
            "a --member has another network, task, preparation, classes or patch-size than the model. Give models of "
            "one run, or of runs that differ in nothing else than seed, rounds and training."
        )
    return model


__all__ = ["Explained", "Explanation", "MapResult", "Wanted", "explain_study"]
