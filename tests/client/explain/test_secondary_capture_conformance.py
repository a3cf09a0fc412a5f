"""Every DICOM image of the two collections gets a Secondary Capture that dciodvfy accepts, or a reason."""

import datetime
import os
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from client.explain import METHODS
from client.explain.explanation import Explained, Explanation, MapResult
from client.explain.method import Answer
from client.explain.sanity import Sanity
from client.explain.secondary_capture import secondary_captures
from common.errors import DataError, ErrorCode
from tests.client.data.studies import run_config
from tests.client.predict.test_dicom_seg_conformance import studies

pytestmark = [
    pytest.mark.skipif("WARDROUND_DATA" not in os.environ, reason="WARDROUND_DATA is not set"),
    pytest.mark.skipif(shutil.which("dciodvfy") is None, reason="dciodvfy (dicom3tools) is not installed"),
]


@pytest.mark.parametrize(("collection", "fewest"), [("dicom_labelled", 10), ("dicom_conformance", 39)])
def test_every_image_gets_a_valid_secondary_capture_or_a_reason(tmp_path: Path, collection: str, fewest: int) -> None:
    codes, written = set(), 0
    for reference, study in studies(collection):
        shape = study.image.shape[1:]
        values = np.full(shape, np.nan, np.float32)
        values[:1] = np.random.default_rng(0).normal(size=(1, *shape[1:]))
        result = MapResult("lesion", values, None, None, Sanity(0.1, 0.1))
        explained = Explained(METHODS[0], Answer({}), [result], 0.0)
        labels = np.zeros(shape, np.uint8)
        explanation = Explanation(reference, study, run_config(), "0" * 64, labels, {}, {}, (1, 1), [explained])
        try:
            (data,) = secondary_captures(explanation, explained, result, created=datetime.datetime(2026, 1, 1))
        except DataError as error:
            codes.add(error.code)
            continue
        (tmp_path / "capture.dcm").write_bytes(data)
        done = subprocess.run(["dciodvfy", str(tmp_path / "capture.dcm")], capture_output=True, text=True, check=False)
        lines = (done.stdout + done.stderr).splitlines()
        assert any(line.strip() == "SCImage" for line in lines)  # it knew what it judged
        assert [line for line in lines if line.startswith("Error")] == [], reference.images[0].name
        written += 1
    assert written >= fewest
    assert codes <= {ErrorCode.UNSUPPORTED, ErrorCode.GEOMETRY_MISMATCH}
