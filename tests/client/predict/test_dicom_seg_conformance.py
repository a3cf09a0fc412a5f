"""Every DICOM image of the two collections gets a segmentation that dicom3tools' dciodvfy accepts, or a reason."""

import contextlib
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from client.data.read import dicom_header, dicom_series, sources
from client.data.study.study import Reference, Study
from client.predict.files import encode
from common.errors import DataError, ErrorCode
from tests.client.data.studies import run_config, source

pytestmark = [
    pytest.mark.skipif("WARDROUND_DATA" not in os.environ, reason="WARDROUND_DATA is not set"),
    pytest.mark.skipif(shutil.which("dciodvfy") is None, reason="dciodvfy (dicom3tools) is not installed"),
]
ROOT = Path(os.environ.get("WARDROUND_DATA", "."))
OPEN = source(path=".", pixel_text_checked=True, patient_pattern="^(dicom)_")


def errors(path: Path) -> list[str]:
    """What the validator calls an error."""
    done = subprocess.run(["dciodvfy", str(path)], capture_output=True, text=True, check=False)
    lines = (done.stdout + done.stderr).splitlines()
    assert any(line.strip() == "Segmentation" for line in lines)  # it knew what it judged
    return [line for line in lines if line.startswith("Error")]


def studies(collection: str) -> Iterator[tuple[Reference, Study]]:
    """What is read as an image: each file alone, and the series that they make together."""
    files = sorted(path for path in (ROOT / collection).rglob("*") if path.suffix == ".dcm")
    for group in (*([path] for path in files), files):
        for reference in dicom_series.find_among(group, ROOT, OPEN, dicom_header.look_at_all).references:
            if reference.problem is None and len(reference.images) >= min(len(group), 2):
                with contextlib.suppress(DataError):  # for tests/client/data/test_conformance.py
                    yield reference, sources.read(reference, None)


@pytest.mark.parametrize(("collection", "fewest"), [("dicom_labelled", 10), ("dicom_conformance", 39)])
def test_every_image_gets_a_valid_segmentation_or_a_reason(tmp_path: Path, collection: str, fewest: int) -> None:
    codes, written = [], 0
    for reference, study in studies(collection):
        labels = np.zeros(study.image.shape[1:], np.uint8)
        labels[..., :3, :2] = 1
        try:
            result = encode(reference, "", study, labels, run=run_config(), model_sha256="0" * 64)
        except DataError as error:
            codes.append(error.code)
            continue
        (tmp_path / "seg.dcm").write_bytes(result["segmentation.dcm"])
        assert errors(tmp_path / "seg.dcm") == [], reference.images[0].name
        written += 1
    assert written >= fewest
    assert set(codes) <= {ErrorCode.UNSUPPORTED, ErrorCode.GEOMETRY_MISMATCH}  # and not "could not be decoded"
