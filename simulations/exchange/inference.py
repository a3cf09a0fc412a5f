"""The inference of a run as a MONAI bundle says it: transforms, network, windows and answer, from the run's settings.

Convention: MONAI loads (C, x, y, z); the run's axes are (z, y, x), to the head, to the back and to the left, which are
MONAI's LPS reversed. Pictures are (C, x, y) and (y, x). Nothing is typed: each entry follows from a key of run.toml,
and what has no equivalent is told by `differences`. Needs neither ignite nor anything of ours to run.
Source: https://docs.monai.io/en/stable/mb_specification.html
"""

import math
from typing import Any

from common.config import PreprocessingConfig, RunConfig
from common.errors import ConfigError
from common.models.network import LAYERS

RESAMPLED = "scripts.resampling.Resampled"
_TRANSFORMS = "monai.transforms"
_VOLUMES = ("CT", "MR")
# The keys of [preprocessing] that are told here; any other that is set has no equivalent.
_KNOWN = frozenset({"spacing_mm", "rows", "intensity", "window", "steps"})


def config_of(run: RunConfig) -> dict[str, Any]:
    """inference.json of a bundle.

    Raises:
        ConfigError: network, task or intensities cannot be told in classes of MONAI.
    """
    suffix = "nii.gz" if of_volumes(run) else "png"
    return {
        "imports": ["$import glob", "$import math", "$import torch"],
        "bundle_root": ".",
        "dataset_dir": "$@bundle_root + '/images'",
        "output_dir": "$@bundle_root + '/eval'",
        "datalist": f"$[{{'image': path}} for path in sorted(glob.glob(@dataset_dir + '/*.{suffix}'))]",
        "device": "$torch.device('cuda' if torch.cuda.is_available() else 'cpu')",
        "network_def": network_of(run),
        "checkpoint": "$@bundle_root + '/models/model.pt'",
        "loaded": "$@network_def.load_state_dict(torch.load(@checkpoint, map_location='cpu', weights_only=True))",
        "network": "$(@loaded, @network_def.to(@device).eval())[1]",
        "preprocessing": {"_target_": f"{_TRANSFORMS}.Compose", "transforms": _preprocessing(run)},
        **_inferers(run),
        "predict": "$torch.no_grad()(lambda images: @inferer(images.to(@device), @network))",
        "postprocessing": {"_target_": f"{_TRANSFORMS}.Compose", "transforms": _postprocessing(run)},
        "run": [
            "$[@postprocessing({**item, 'pred': @predict(item['image'][None])[0].cpu()}) "
            "for item in map(@preprocessing, @datalist)]"
        ],
    }


def network_of(run: RunConfig) -> dict[str, Any]:
    """The network under `_target_`, with its arguments.

    Raises:
        ConfigError: nobody has said how.
    """
    described = run.model.described(run.data.channels, run.task.outputs(len(run.data.classes)))
    if described is None:
        raise ConfigError(
            f"the network {run.model.architecture} has no description in classes of MONAI, so no bundle can hold it. "
            "Export ONNX with --onnx."
        )
    return described


def scripts_of(config: dict[str, Any]) -> list[str]:
    """The modules of its own that a bundle with this inference needs."""
    return sorted({target.rpartition(".")[0] for target in _targets(config) if target.startswith("scripts.")})


def of_volumes(run: RunConfig) -> bool:
    """Whether the bundle reads volumes; else pictures."""
    return run.model.dims == 3 or run.data.modality in _VOLUMES


def by_slices(run: RunConfig) -> bool:
    """Whether the network takes each slice of a volume by itself."""
    return of_volumes(run) and run.model.dims == 2


def differences(run: RunConfig) -> list[str]:
    """What a bundle does otherwise than the run did, a sentence each; only `[preprocessing]` makes outputs differ."""
    told = [
        *(
            f"the preparation step {step} is left out: MONAI has no transform that does the same"
            for step in _unknown(run)
        ),
        "DICOM is not read: convert series to NIfTI, or films and photographs to PNG, first",
        "images are not looked at before: no check of modality, geometry or plausibility, as training had it",
    ]
    if by_slices(run):
        told.append("slices are taken along the axis from feet to head; training took them as they were acquired")
    if run.preprocessing.intensity == "percentile":
        told.append("percentiles are of all voxels; above a million voxels training took them of a regular sample")
    told.append("arithmetic is float32; training and prediction may have used bfloat16 where the processor has it")
    return told


def prepares_alike(run: RunConfig) -> bool:
    """Whether the bundle prepares images as the run did, up to rounding."""
    return not _unknown(run)


def _unknown(run: RunConfig) -> list[str]:
    """Names of steps, and keys of [preprocessing] with their values, that have no equivalent here."""
    chosen, plain = run.preprocessing, PreprocessingConfig()
    keys = [name for name in type(chosen).model_fields if name not in _KNOWN]
    set_ = [name for name in keys if getattr(chosen, name) != getattr(plain, name)]
    return [*(step.kind for step in chosen.steps), *(f"[preprocessing] {name.replace('_', '-')}" for name in set_)]


def _preprocessing(run: RunConfig) -> list[dict[str, Any]]:
    volumes, slices = of_volumes(run), by_slices(run)
    steps = [
        _transform("LoadImaged", reader="NibabelReader" if volumes else "PILReader", image_only=True),
        _transform("EnsureChannelFirstd"),
        _transform("EnsureTyped", dtype="$torch.float32"),
    ]
    if volumes:
        steps.append(_transform("Orientationd", axcodes="LPS"))
    if (channels := _channels(run)) is not None:
        steps.append(_transform("Lambdad", func=channels, track_meta=False))
    if run.preprocessing.spacing_mm is not None or run.preprocessing.rows is not None:
        spacing = run.preprocessing.spacing_mm
        wanted = None if spacing is None else list(reversed(spacing))
        steps.append({"_target_": RESAMPLED, "keys": "image", "spacing_mm": wanted, "rows": run.preprocessing.rows})
    steps.append(_intensity(run))
    steps.append(_transform("Transposed", indices=[0, 3, 2, 1] if volumes else [0, 2, 1]))
    free = [-1] if slices else []
    stride = [1] if slices else []
    return [
        *steps,
        _transform("SpatialPadd", spatial_size=[*free, *run.training.patch_size]),
        _transform("DivisiblePadd", k=[*stride, *[run.model.stride] * run.model.dims]),
    ]


def _channels(run: RunConfig) -> str | None:
    """Grey to three equal channels, colour to grey by brightness (ITU-R BT.601); None where neither is wanted."""
    if run.data.channels == 3:
        return "$lambda image: image if image.shape[0] == 3 else image.repeat(3, *[1] * (image.ndim - 1))"
    if of_volumes(run):
        return None
    grey = "(torch.tensor([0.299, 0.587, 0.114]).reshape(3, 1, 1) * image).sum(0, keepdim=True)"
    return f"$lambda image: image if image.shape[0] == 1 else {grey}"


def _intensity(run: RunConfig) -> dict[str, Any]:
    chosen = run.preprocessing
    match chosen.intensity:
        case "window" if chosen.window is not None:
            low, high = chosen.window
            return _transform("ScaleIntensityRanged", a_min=low, a_max=high, b_min=0.0, b_max=1.0, clip=True)
        case "percentile":
            shares: dict[str, Any] = {"lower": 0.5, "upper": 99.5, "b_min": 0.0, "b_max": 1.0}
            return _transform("ScaleIntensityRangePercentilesd", **shares, clip=True, channel_wise=True)
        case "min-max":
            return _transform("ScaleIntensityd", minv=0.0, maxv=1.0, channel_wise=True)
        case "zscore":
            return _transform("NormalizeIntensityd", channel_wise=True)
    raise ConfigError(
        f"intensity {chosen.intensity!r} has no equivalent among MONAI's transforms, so no bundle can hold this model. "
        "Export ONNX with --onnx."
    )


def _inferers(run: RunConfig) -> dict[str, Any]:
    """Small images at once, larger ones in windows, as common/learning/inference.py does."""
    from common.learning import inference  # noqa: PLC0415 - heavy

    patch = list(run.training.patch_size)
    shared = {"sw_batch_size": inference.WINDOWS, "overlap": inference.OVERLAP, "mode": "gaussian"}
    kind: dict[str, Any] = {"_target_": "monai.inferers.SlidingWindowInferer"}
    if by_slices(run):
        kind = {"_target_": "monai.inferers.SliceInferer", "spatial_dim": 0}
    most, first = inference.WHOLE * math.prod(patch), 3 if by_slices(run) else 2
    return {
        "inferer_whole": {**kind, "roi_size": [-1] * len(patch), **shared},
        "inferer_windows": {**kind, "roi_size": patch, **shared},
        "inferer": (
            "$lambda images, network, *args, **kwargs: (@inferer_whole if math.prod(images.shape"
            f"[{first}:]) <= {most} else @inferer_windows)(images, network, *args, **kwargs)"
        ),
    }


def _postprocessing(run: RunConfig) -> list[dict[str, Any]]:
    _check_answer(run)
    saved = {"output_dir": "@output_dir", "output_postfix": "seg", "output_dtype": "$torch.uint8", "resample": False}
    return [
        *_discrete(run),
        _transform(
            "Invertd", keys="pred", transform="@preprocessing", orig_keys="image", nearest_interp=True, to_tensor=True
        ),
        _transform("SaveImaged", keys="pred", **saved, output_ext=".nii.gz" if of_volumes(run) else ".png"),
    ]


def _discrete(run: RunConfig) -> list[dict[str, Any]]:
    """Outputs to one number a voxel: of the largest, or the sum of 2^(k - 1) over the classes k that are there."""
    if not run.task.overlaps:
        return [_transform("AsDiscreted", keys="pred", argmax=True)]
    joined = "$lambda there: sum(there[k : k + 1] * 2**k for k in range(there.shape[0]))"
    return [
        _transform("Activationsd", keys="pred", sigmoid=True),
        _transform("AsDiscreted", keys="pred", threshold=0.5),
        _transform("Lambdad", keys="pred", func=joined),
    ]


def _check_answer(run: RunConfig) -> None:
    """Refuse a task whose answer is not what `_discrete` makes of the outputs, by asking it."""
    import torch  # noqa: PLC0415 - heavy

    count = run.task.outputs(len(run.data.classes))
    outputs = torch.randn((2, count, *[4] * run.model.dims), generator=torch.Generator().manual_seed(0))
    answers = run.task.answer(outputs) if run.task.DRAWS else None
    expected = sum((outputs[:, k] > 0) * 2**k for k in range(count)) if run.task.overlaps else outputs.argmax(1)
    if answers is None or not torch.equal(answers.long(), expected):
        raise ConfigError(
            f"the task {run.task.kind} gives each voxel something else than one class, which a bundle of Wardround "
            "does not tell. Export ONNX with --onnx."
        )


def _transform(name: str, keys: str = "image", **arguments: Any) -> dict[str, Any]:
    return {"_target_": f"{_TRANSFORMS}.{name}", "keys": keys, **arguments}


def _targets(config: Any) -> list[str]:
    match config:
        case dict():
            own = [config["_target_"]] if "_target_" in config else []
            return own + [target for value in config.values() for target in _targets(value)]
        case list() | tuple():
            return [target for value in config for target in _targets(value)]
    return []


__all__ = [
    "LAYERS",
    "RESAMPLED",
    "by_slices",
    "config_of",
    "differences",
    "network_of",
    "of_volumes",
    "prepares_alike",
    "scripts_of",
]
