"""What a bundle says of itself: metadata.json after MONAI's schema, and a page for a person.

All of it follows from the model's manifest and its run. Source: https://docs.monai.io/en/stable/mb_specification.html
"""

from collections.abc import Sequence
from importlib import metadata
from typing import Any

from common.config import RunConfig, canonical
from common.labelmap import value_of
from common.learning.checkpoint import Manifest
from simulations.exchange.gate import Agreement
from simulations.exchange.inference import by_slices, of_volumes

_OVERLAPS = """Classes may overlap: a voxel holds the sum of the numbers of all that it is. Each has a probability of
its own, the sigmoid of its output, and is there above 1/2."""
_MODALITIES = {"photo": "photograph"}


def metadata_of(run: RunConfig, manifest: Manifest, agreement: Agreement, told: Sequence[str]) -> dict[str, Any]:
    """metadata.json; what is ours stands under `wardround`.

    Args:
        run: of the model.
        manifest: of the model.
        agreement: with ours, as measured.
        told: differences, a sentence each.
    """
    overlap, classes = run.task.overlaps, run.data.classes if run.task.overlaps else ("background", *run.data.classes)
    reader = "nibabel" if of_volumes(run) else "pillow"
    return {
        "schema": (
            "https://github.com/Project-MONAI/MONAI-extra-test-data/releases/download/0.8.1/meta_schema_20240725.json"
        ),
        "version": "1.0.0",
        "changelog": {"1.0.0": f"exported from the Wardround run {manifest.run_hash[:12]}"},
        "monai_version": metadata.version("monai"),
        "pytorch_version": metadata.version("torch").partition("+")[0],
        "numpy_version": metadata.version("numpy"),
        "required_packages_version": {reader: metadata.version(reader)},
        "task": f"{run.data.modality} {run.task.kind} of {', '.join(run.data.classes)}",
        "description": (
            f"{run.model.architecture} in {run.model.dims}D, after {manifest.round} rounds at "
            f"{len(manifest.sites)} sites"
        ),
        "authors": "the sites and the coordinator of the run",
        "copyright": "theirs",
        "data_type": "nifti" if of_volumes(run) else "picture",
        "image_classes": _modality(run),
        "label_classes": "a bit a class, summed" if overlap else "one number a voxel",
        "pred_classes": ", ".join(f"{number}: {name}" for number, name in _values(run)),
        "eval_metrics": manifest.scores,
        "intended_use": "research; not a medical device",
        "network_data_format": {
            "inputs": {"image": _input(run)},
            "outputs": {
                "pred": {
                    "type": "image",
                    "format": "segmentation",
                    "num_channels": run.task.outputs(len(run.data.classes)),
                    "spatial_shape": _sizes(run),
                    "dtype": "float32",
                    "value_range": [],
                    "is_patch_data": False,
                    "channel_def": {str(number): name for number, name in enumerate(classes)},
                }
            },
        },
        "wardround": {
            "run-hash": manifest.run_hash,
            "run": canonical(run),
            "sha256": manifest.sha256,
            "sites": list(manifest.sites),
            "guarantee": manifest.guarantee,
            "differences": list(told),
            "largest-difference": {
                "outputs": agreement.outputs,
                "prepared": agreement.prepared,
                "labels": agreement.labels,
            },
        },
    }


def _values(run: RunConfig) -> list[tuple[int, str]]:
    """What a saved label holds, by name."""
    numbered = enumerate(("background", *run.data.classes))
    return [(value_of(number, overlap=run.task.overlaps), name) for number, name in numbered]


def page_of(run: RunConfig, manifest: Manifest, agreement: Agreement, told: Sequence[str]) -> str:
    """docs/README.md of a bundle."""
    classes = "\n".join(f"- {number}: {name}" for number, name in _values(run))
    if run.task.overlaps:
        classes += f"\n\n{_OVERLAPS}"
    suffix, kind = ("nii.gz", "volumes") if of_volumes(run) else ("png", "pictures")
    sentences = "\n".join(f"- {sentence}." for sentence in told)
    return f"""# {run.name}

{run.model.architecture} in {run.model.dims}D for {_modality(run)}, trained by Wardround in a federation of \
{len(manifest.sites)} sites, {manifest.round} rounds. Run {manifest.run_hash}, model {manifest.sha256}.

Labels:

{classes}

Put {kind} (`*.{suffix}`) into `images/` and run it; the labels come to `eval/`. With the package fire installed:

    PYTHONPATH=. python -m monai.bundle run --config_file configs/inference.json --bundle_root .

or from Python, in the bundle's folder:

    from monai.bundle import ConfigParser
    parser = ConfigParser()
    parser.read_config("configs/inference.json")
    parser.get_parsed_content("run")

Largest difference from Wardround's own outputs, on made-up images: {_shown(agreement.outputs)} of an output, \
{_shown(agreement.prepared)} of a prepared value, {_shown(agreement.labels)} of the labels.

What it does otherwise than Wardround:

{sentences}

Not a medical device: for research.
"""


def _input(run: RunConfig) -> dict[str, Any]:
    chosen = run.preprocessing
    value_range = [] if chosen.intensity == "zscore" else [0, 1]
    return {
        "type": "image",
        "format": _modality(run),
        "modality": run.data.modality,
        "num_channels": run.data.channels,
        "spatial_shape": _sizes(run),
        "dtype": "float32",
        "value_range": value_range,
        "is_patch_data": False,
        "channel_def": dict.fromkeys(map(str, range(run.data.channels)), "image"),
    }


def _sizes(run: RunConfig) -> list[str]:
    """Of what the network takes, as MONAI's schema writes sizes: `8*n` is any multiple of 8."""
    return [*(["*"] if by_slices(run) else []), *[f"{run.model.stride}*n"] * run.model.dims]


def _modality(run: RunConfig) -> str:
    return _MODALITIES.get(run.data.modality, run.data.modality)


def _shown(value: float | None) -> str:
    return "not compared" if value is None else f"{value:.1g}"


__all__ = ["metadata_of", "page_of"]
