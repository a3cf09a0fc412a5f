"""An explanation as files, in one folder.

    METHOD-MAP.png       the picture, see `client.explain.picture`
    METHOD-MAP.nii.gz    the map as float32 with the study's affine; NaN where it says nothing
    METHOD-MAP.npz       the same of a picture, which has no affine: the array `map`
    METHOD-MAP-NNN.dcm   with DICOM asked for: a Secondary Capture for each slice
    explain.json         what was asked and found, the check, the caveats

Nothing from a DICOM header enters a file name. A file that carries a name of its own lends it:
scan-grad-cam-vessel.png.
"""

import datetime
import gzip
import io
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import nibabel
import numpy as np
from numpy.typing import NDArray

from client.explain.explanation import Explained, Explanation
from client.explain.picture import CAUTION, draw_map
from client.explain.sanity import ALIKE, Sanity
from client.explain.secondary_capture import secondary_captures
from client.predict.files import stem_of
from client.predict.overlay import png
from common.errors import DataError, ErrorCode
from common.text import as_json

REPORT_NAME = "explain.json"

# Printed with every explanation, before those of the method.
CAVEATS = (
    "A map shows where the model's number is sensitive, not why, and not whether the answer is right.",
    "It is for no diagnosis and no treatment.",
)
_LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])


def encode(explanation: Explanation, *, dicom: bool, created: datetime.datetime) -> dict[str, bytes]:
    """The files: name -> content.

    Raises:
        DataError: DICOM is asked for of a study that is none, or whose images cannot be referred to.
    """
    if dicom and explanation.reference.kind != "dicom":
        raise DataError(
            "--dicom makes a part of a DICOM study, and this study is none. Leave it out.", ErrorCode.UNSUPPORTED
        )
    stem = stem_of(explanation.reference)
    prefix = f"{stem}-" if stem else ""
    files: dict[str, bytes] = {}
    for explained in explanation.methods:
        for result in explained.maps:
            name = f"{prefix}{explained.method.name}-{result.name}"
            files[f"{name}.png"] = png(draw_map(explanation, explained, result))
            if explanation.study.affine is None:
                files[f"{name}.npz"] = _npz(result.values)
            else:
                files[f"{name}.nii.gz"] = _nifti(result.values, explanation.study.affine)
            if dicom:
                captures = secondary_captures(explanation, explained, result, created=created)
                files |= {f"{name}-{number:03}.dcm": data for number, data in enumerate(captures, start=1)}
    files[f"{prefix}{REPORT_NAME}"] = f"{as_json(report(explanation))}\n".encode()
    return files


def report(explanation: Explanation) -> Mapping[str, Any]:
    """What was asked and found, without the maps."""
    done, count = explanation.samples
    return {
        "model": explanation.model_sha256,
        "explained": "mean log-odds of the class over the voxels that the model gave it; over all, where it gave none",
        "log-odds": explanation.odds,
        "voxels": explanation.voxels,
        "samples": {"explained": done, "of": count},
        "methods": [_of(explained) for explained in explanation.methods],
        "caveats": CAVEATS,
    }


def verdict(sanity: Sanity) -> str:
    """What the comparison with random weights says, in words."""
    if sanity.spearman is None:
        return "flat: one of the maps has one value everywhere, so the check says nothing"
    if sanity.passed:
        return "depends on the model"
    return f"WARNING: random weights give nearly the same map (rank correlation {sanity.spearman:.2f}): it says little"


def warnings(explanation: Explanation) -> list[str]:
    """What the check found against maps."""
    return [
        f"{explained.method.name} {result.name}: {verdict(result.sanity)}."
        for explained in explanation.methods
        for result in explained.maps
        if not result.sanity.passed
    ]


def _of(explained: Explained) -> dict[str, Any]:
    return {
        "method": explained.method.name,
        "source": explained.method.source,
        "means": explained.method.means,
        "settings": explained.answer.settings,
        "passes": explained.answer.passes,
        "seconds": explained.seconds,
        "numbers": explained.answer.numbers,
        "maps": [
            {
                "map": result.name,
                "mean-inside": result.inside,
                "mean-outside": result.outside,
                "random-weights": {**asdict(result.sanity), "alike-from": ALIKE, "verdict": verdict(result.sanity)},
            }
            for result in explained.maps
        ],
        "caveats": explained.method.caveats,
    }


def _nifti(values: NDArray[np.float32], affine: NDArray[np.float64]) -> bytes:
    # (z, y, x) to LPS becomes (x, y, z) to RAS.
    turned = _LPS_TO_RAS @ affine[:, [2, 1, 0, 3]]
    volume: Any = nibabel.Nifti1Image  # nibabel types its images in part only
    image = volume(values.transpose(2, 1, 0), turned)
    return gzip.compress(image.to_bytes(), compresslevel=6, mtime=0)


def _npz(values: NDArray[np.float32]) -> bytes:
    buffer = io.BytesIO()
    np.savez_compressed(buffer, map=values)
    return buffer.getvalue()


__all__ = ["CAUTION", "CAVEATS", "REPORT_NAME", "encode", "report", "verdict", "warnings"]
