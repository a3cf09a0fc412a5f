"""The settings of a run that suit a folder's images, and what is behind each.

They are for a first curve in about a minute on two cores, and not for the best model: a small network, images of 256
rows or 96 voxels an edge at most, and so many voxels in all crops of all rounds (_VOXELS) as two cores train on in less
than half a minute. Lengths are in mm and ordered (z, y, x) or (y, x), as in run.toml.
"""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import get_args

from common.config import SourceConfig
from common.config.run import DataConfig
from common.errors import ConfigError
from common.models import NETWORKS
from common.tasks import TASKS
from simulations.drafts.classes import classes_of
from simulations.drafts.dealing import Sites
from simulations.drafts.folder import Look

MODALITIES: tuple[str, ...] = get_args(DataConfig.model_fields["modality"].annotation)
_MOST_ROWS = 256  # of a picture or slice, rows or columns, after resampling
_MOST_ROWS_OF_WHOLE = 96  # where a crop is the whole image
_MOST_EDGE = 96  # of a volume, as the cube root of its voxels
# Of all crops, by axes of the network. A core of a small machine trains on half a million in a second.
_VOXELS = {2: 10e6, 3: 16e6}
_LARGEST_CROP = {2: 96, 3: 32}
_SMALLEST_CROP = 16
_CROP_STEP = 16  # a multiple of every stride of a network as small as this
_ROUNDS = 10
_STEPS = (4, 40)
_FEWEST_SLICES = 16  # of volumes worth a network of three axes
_MOST_UNLIKE = 4.0  # spacing of slices to that within them, likewise
_AIR_HU = -500.0
_SMALL_SITE = 20  # patients: below, larger shares are held out


@dataclass(frozen=True)
class Settings:
    """tables: of [run], by their dotted names, in the order of the file. why: what is behind a key, "data.modality".

    source: of the images, with what the settings ask of it. unknown: what the folder does not say, in sentences.
    """

    tables: Mapping[str, Mapping[str, object]]
    why: Mapping[str, str]
    source: SourceConfig
    unknown: Sequence[str]


@dataclass(frozen=True)
class _Grid:
    """Images after resampling. size: of the median one, as many axes as the network."""

    dims: int
    slices: float
    size: tuple[float, ...]
    preprocessing: Mapping[str, object]
    why: Mapping[str, str]


def choose(look: Look, sites: Sites, modality: str | None) -> Settings:
    """The settings for what lies in a folder.

    Args:
        look: the folder.
        sites: where its patients are.
        modality: as a person says; None: as the files say, or as their values look.

    Raises:
        ConfigError: the images are of several modalities, or of one that no run can ask for.
    """
    modality, of_modality, unknown = _modality(look, modality)
    classes = classes_of(look)
    channels, channel, of_channels = _channels(look, modality)
    grid = _grid(look, _MOST_ROWS_OF_WHOLE if classes.whole else _MOST_ROWS)
    intensity, of_intensity = _intensity(look, modality)
    smallest = min(sites.sizes.values())
    share = 0.2 if smallest < _SMALL_SITE else 0.15
    crop = _crop(grid, whole=classes.whole)
    batch = {2: 8 if math.prod(crop) <= 64 * 64 else 4, 3: 2}[grid.dims]
    rounds, steps = _pace(grid.dims, batch * math.prod(crop), len(sites.sizes))
    every = _every(look, grid, share, rounds, rounds_voxels=steps * batch * math.prod(crop) * len(sites.sizes))
    flips = grid.dims == 2 and len(classes.names) == 1
    tables: dict[str, dict[str, object]] = {
        "model": _model(grid.dims, whole=classes.whole),
        **({"task": {"kind": _task_of_whole()}} if classes.whole else {}),
        "data": {
            **{"modality": modality, "channels": channels, "classes": list(classes.names)},
            **{"validation-fraction": share, "test-fraction": share},
        },
        "preprocessing": {**grid.preprocessing, **intensity},
        "training": {
            **{"local-steps": steps, "batch-size": batch, "patch-size": list(crop)},
            "learning-rate": 5e-3,
        },
        **({} if flips else {"training.augmentation": {"flips": False}}),
        "federation": {"rounds": rounds, "quorum": len(sites.sizes), "evaluate-every": every},
    }
    why = {
        **grid.why,
        "data.modality": of_modality,
        "data.channels": of_channels,
        "data.classes": classes.said,
        "data.validation-fraction": f"Shares of each site's patients; the smallest site has {smallest}.",
        "preprocessing.intensity": of_intensity,
        "training.local-steps": "So few and so small that the first curve is there in about a minute on two cores.",
        "training.augmentation.flips": "A mirrored image may show another class, or no anatomy. Where not: true.",
        "federation.rounds": "For a good model: five to ten times as many rounds, then wider channels, larger patches.",
    }
    changes: dict[str, object] = {"label_map": dict(classes.label_map)}
    if channel is not None:
        changes["channel"] = channel
    return Settings(tables, why, look.source.model_copy(update=changes), [*unknown, *classes.unknown])


def check_modality(said: str | None) -> None:
    """Refuse a modality that no run knows, before a folder is read.

    Raises:
        ConfigError: it is none.
    """
    if said is not None and said not in MODALITIES:
        raise ConfigError(f"--modality is {said!r}, expected one of {', '.join(MODALITIES)}.")


def _modality(look: Look, said: str | None) -> tuple[str, str, list[str]]:
    """The modality, what is behind it, and what could not be known."""
    found = Counter(study.facts.modality for study in look.studies)
    named = {name: count for name, count in sorted(found.items()) if name}
    known = ", ".join(MODALITIES)
    if said is not None:
        if named and said not in named:
            raise ConfigError(f"--modality is {said}, and the files say {', '.join(named)}. Leave it out.")
        return said, "As --modality says.", []
    if len(named) > 1:
        there = ", ".join(f"{count} {name}" for name, count in named.items())
        raise ConfigError(
            f"the folder mixes modalities: {there}; a run takes one. Say which: --modality {next(iter(named))}; "
            "the other studies are then set aside as the run reads them."
        )
    if named:
        (modality,) = named
        if modality not in MODALITIES:
            raise ConfigError(f"the images are {modality}, and a run is of one of {known}. Give such images.")
        return modality, "As the files say.", []
    if look.source.kind == "images":
        return "photo", "Pictures do not say; for radiographs CR, DX or MG, for ultrasound US.", ["the modality"]
    channels = look.told.channels[look.source.channel or 0 :] or ("",)
    if channels[0]:
        modality = "CT" if "CT" in channels[0].upper().split() else "MR"
        return modality, f"dataset.json calls the channel {channels[0]!r}.", []
    if median(study.facts.intensities[0] for study in look.studies) <= _AIR_HU:
        return "CT", "NIfTI does not say; the lowest values are those of air in HU.", ["the modality"]
    return "MR", "NIfTI does not say; the values are not HU.", ["the modality"]


def _channels(look: Look, modality: str) -> tuple[int, int | None, str]:
    """Channels of the run, the one to take of each image (None: all), and what is behind them."""
    found = sorted({study.facts.channels for study in look.studies})
    several = found[-1] > 1
    if not several:
        return 1, None, "All images have one."
    if found[-1] == 3 and look.source.kind != "nifti" and modality not in ("CT", "MR"):
        return 3, None, "Colour." if found == [3] else "Colour; grey images get three equal channels."
    names = f" ({', '.join(look.told.channels)})" if look.told.channels else ""
    return 1, 0, f"The images have {found[-1]} channels{names}: the first is used, see `channel` of the source."


def _grid(look: Look, most_rows: int) -> _Grid:
    facts = [study.facts for study in look.studies]
    flat = [(1, *one.shape) if len(one.shape) == 2 else one.shape for one in facts]
    size = tuple(median(edges) for edges in zip(*flat, strict=True))
    spacings = [one.spacing_mm for one in facts if one.spacing_mm is not None and len(one.spacing_mm) == 3]
    if len(spacings) < len(facts):
        factor = max(1.0, max(size[1:]) / most_rows)
        rows = round(size[1] / factor)
        return _Grid(
            2,
            size[0],
            (size[1] / factor, size[2] / factor),
            {"rows": rows},
            {"preprocessing.rows": f"The median image is {size[1]:g} x {size[2]:g} pixels, and has no spacing."},
        )
    spacing = tuple(median(edges) for edges in zip(*spacings, strict=True))
    said = f"The median image is {_sizes(size)} voxels of {_sizes(spacing)} mm."
    if size[0] < _FEWEST_SLICES or spacing[0] > _MOST_UNLIKE * max(spacing[1:]):
        factor = max(1.0, max(size[1:]) / most_rows)
        target = [_rounded(edge * factor) for edge in spacing[1:]]
        after = tuple(edge / factor for edge in size[1:])
        of_dims = "Slices by themselves: there are few, or they lie far apart." if size[0] > 1 else "Single slices."
        why = {"model.dims": of_dims, "preprocessing.spacing-mm": said}
        return _Grid(2, size[0], after, {"spacing-mm": target}, why)
    least = 0.0
    extent = [count * edge for count, edge in zip(size, spacing, strict=True)]
    while math.prod(all_ / max(edge, least) for all_, edge in zip(extent, spacing, strict=True)) > _MOST_EDGE**3:
        least = max(least * 1.05, min(spacing))
    target = [_rounded(max(edge, least)) for edge in spacing]
    after = tuple(all_ / edge for all_, edge in zip(extent, target, strict=True))
    why = {"model.dims": "Volumes, with enough slices.", "preprocessing.spacing-mm": said}
    return _Grid(3, 1.0, after, {"spacing-mm": target}, why)


def _crop(grid: _Grid, *, whole: bool) -> tuple[int, ...]:
    """Edges of a crop; of an image that has a class as a whole all of it, larger than that it is padded."""
    if whole:
        return tuple(math.ceil(edge / _CROP_STEP) * _CROP_STEP for edge in grid.size)
    largest = _LARGEST_CROP[grid.dims]
    return tuple(max(_SMALLEST_CROP, int(min(edge, largest)) // _CROP_STEP * _CROP_STEP) for edge in grid.size)


def _pace(dims: int, step: int, sites: int) -> tuple[int, int]:
    """Rounds, and steps of each site in one. step: voxels of a site's step."""
    fewest, most = _STEPS
    steps = int(min(most, max(fewest, _VOXELS[dims] / (_ROUNDS * sites * step))))
    rounds = int(min(_ROUNDS, max(4, _VOXELS[dims] / (steps * sites * step))))
    return rounds, steps


def _every(look: Look, grid: _Grid, share: float, rounds: int, *, rounds_voxels: int) -> int:
    """Rounds between evaluations: their voxels, seen forwards alone, shall not cost more than training does."""
    seen = share * len(look.studies) * grid.slices * math.prod(grid.size)
    return min(max(1, math.ceil(seen / 3 / rounds_voxels)), max(1, rounds // 4))


def _intensity(look: Look, modality: str) -> tuple[dict[str, object], str]:
    if modality == "CT":
        lungs = median(study.facts.intensities[2] for study in look.studies) < _AIR_HU
        window = "lung" if lungs else "soft-tissue"
        said = "Half of the voxels are air or lung." if lungs else "Of soft tissue; take that of what is to be found."
        return {"intensity": "window", "window": window}, f"{said} Windows: docs/run.md."
    if modality == "MR":
        return {"intensity": "zscore"}, "MR has no scale of its own."
    low, high = (median(study.facts.intensities[at] for study in look.studies) for at in (0, -1))
    return {"intensity": "percentile"}, f"The median image goes from {low:g} to {high:g}."


def _model(dims: int, *, whole: bool) -> dict[str, object]:
    if whole:
        smallest = [network for network in NETWORKS if not network.DENSE][-1]
        return {"dims": dims, "architecture": str(smallest.model_fields["architecture"].default)}
    return {"dims": dims, "channels": {2: [16, 32, 64], 3: [8, 16, 32]}[dims]}


def _task_of_whole() -> str:
    """The kind of the task whose answer is of an image as a whole."""
    return next(str(task.model_fields["kind"].default) for task in TASKS if task.TELLS)


def _sizes(edges: Sequence[float]) -> str:
    return " x ".join(f"{edge:.4g}" for edge in edges)


def _rounded(length: float) -> float:
    return float(f"{length:.3g}")


__all__ = ["MODALITIES", "Settings", "check_modality", "choose"]
