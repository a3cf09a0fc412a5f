"""Maps as DICOM Secondary Captures: pictures in the patient's study, in a series of their own that says what it is.

One image a slice, in colour, as a person sees it: with the map over the slice, and the words below that it explains a
model and is for no diagnosis. What each holds of the patient and the source: see `client.predict.dicom.capture`.
"""

import datetime
import io

import numpy as np
import pydicom

from client.data.study.study import parsing, quiet
from client.explain.explanation import Explained, Explanation, MapResult
from client.explain.picture import CAUTION, captioned, captions, one_panel
from client.predict.dicom.capture import Captures

# Added to the number of the study's series.
_SERIES = 2000


def secondary_captures(
    explanation: Explanation, explained: Explained, result: MapResult, *, created: datetime.datetime
) -> list[bytes]:
    """A file for each slice that the map says something of, in order.

    Raises:
        DataError: nothing can be made of the study's images, see `client.predict.dicom.source`.
    """
    study = explanation.study
    values = result.values if result.values.ndim == 3 else result.values[None]
    told = [index for index, plane in enumerate(values) if np.isfinite(plane).any()]
    with parsing("study's header"), quiet():
        headers = {file: pydicom.dcmread(file, stop_before_pixels=True) for file in dict.fromkeys(study.files)}
        captures = Captures(study, headers, series_number=_SERIES, created=created)
        files = []
        for index in told:
            sheet = captioned(
                [one_panel(explanation, result, index)],
                [f"slice {index + 1} of {len(values)}" if len(values) > 1 else ""],
                captions(explained, result),
            )
            about = f"Explanation, not for diagnosis: {explained.method.name}"
            image = captures.make(np.asarray(sheet), [index], about)
            image.ImageComments = f"{result.name}. {CAUTION}"
            image.DerivationDescription = (
                f"{explained.method.name} of {result.name}, model {explanation.model_sha256[:16]}; "
                f"{explained.method.means}. {CAUTION}"
            )
            buffer = io.BytesIO()
            image.save_as(buffer, enforce_file_format=True)
            files.append(buffer.getvalue())
    return files


__all__ = ["secondary_captures"]
