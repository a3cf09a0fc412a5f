"""Maps as DICOM Secondary Captures: pictures in the patient's study, in a series of their own that says what it is.

One image a slice, in colour, as a person sees it: with the map over the slice, and the words below that it explains a
model and is for no diagnosis. Patient and study are those of the source, which each image names; UIDs are new. Whether
burned-in text tells who the patient is follows from the source, to which we add no such text. Compression with loss in
the source's past is told.
Source: DICOM PS3.3 A.8.1 (Secondary Capture), C.7.6.1 (General Image).
"""

import datetime
import io

import numpy as np
import pydicom
from highdicom.sc import SCImage
from numpy.typing import NDArray
from pydicom import Dataset
from pydicom.sr.codedict import codes
from pydicom.uid import ExplicitVRLittleEndian, generate_uid

from client.data.dicom.frames import frame_order
from client.data.study.drawing import upside_down
from client.data.study.study import Study, parsing, quiet
from client.explain.explanation import Explained, Explanation, MapResult
from client.explain.picture import CAUTION, captioned, captions, one_panel
from client.predict.dicom_source import completed, known_class, referable

_LONGEST = 64  # of a description
_LETTERS = (("R", "L"), ("A", "P"), ("F", "H"))
_LOSSY = ("LossyImageCompression", "LossyImageCompressionRatio", "LossyImageCompressionMethod")


def secondary_captures(
    explanation: Explanation, explained: Explained, result: MapResult, *, created: datetime.datetime
) -> list[bytes]:
    """A file for each slice that the map says something of, in order.

    Raises:
        DataError: nothing can be made of the study's images, see `client.predict.dicom_source`.
    """
    study = explanation.study
    values = result.values if result.values.ndim == 3 else result.values[None]
    told = [index for index, plane in enumerate(values) if np.isfinite(plane).any()]
    with parsing("study's header"), quiet():
        headers = {file: pydicom.dcmread(file, stop_before_pixels=True) for file in dict.fromkeys(study.files)}
        sources = referable(list(headers.values()))
        whole = dict(zip(headers, completed(sources), strict=True))
        series = generate_uid()
        files = []
        for number, index in enumerate(told, start=1):
            sheet = captioned(
                [one_panel(explanation, result, index)],
                [f"slice {index + 1} of {len(values)}" if len(values) > 1 else ""],
                captions(explained, result),
            )
            file = study.files[min(index, len(study.files) - 1)]
            image = _image(np.asarray(sheet), whole[file], next(iter(whole.values())), study, (series, number, created))
            image.SeriesDescription = f"Explanation, not for diagnosis: {explained.method.name}"[:_LONGEST]
            image.ImageComments = f"{result.name}. {CAUTION}"
            image.DerivationDescription = (
                f"{explained.method.name} of {result.name}, model {explanation.model_sha256[:16]}; "
                f"{explained.method.means}. {CAUTION}"
            )
            _refer(image, headers[file], index)
            buffer = io.BytesIO()
            image.save_as(buffer, enforce_file_format=True)
            files.append(buffer.getvalue())
    return files


def _image(
    pixels: NDArray[np.uint8],
    source: Dataset,
    first: Dataset,
    study: Study,
    place: tuple[str, int, datetime.datetime],
) -> Dataset:
    """A Secondary Capture of the patient and study of `first`, at its place: series, number, time."""
    series, number, created = place
    directions = _directions(study)
    with known_class():
        image: Dataset = SCImage.from_ref_dataset(
            first,
            np.ascontiguousarray(pixels),
            photometric_interpretation="RGB",
            bits_allocated=8,
            coordinate_system="PATIENT",
            patient_orientation=directions or ("L", "P"),
            series_instance_uid=series,
            series_number=2000 + max(int(first.get("SeriesNumber") or 0), 0),
            sop_instance_uid=generate_uid(),
            instance_number=number,
            manufacturer="Wardround",
            transfer_syntax_uid=ExplicitVRLittleEndian,
        )
    if directions is None:
        image.PatientOrientation = source.get("PatientOrientation") or ""
    image.ContentDate = image.DateOfSecondaryCapture = created.strftime("%Y%m%d")
    image.ContentTime = image.TimeOfSecondaryCapture = created.strftime("%H%M%S")
    image.ConversionType = "WSD"  # made by a workstation
    image.setdefault("Laterality", "")  # required where the body part is paired, which nobody says
    if source.get("BurnedInAnnotation") in ("YES", "NO"):
        image.BurnedInAnnotation = source.BurnedInAnnotation
    if source.get("LossyImageCompression") == "01":
        for keyword in _LOSSY:
            if keyword in source:
                setattr(image, keyword, source[keyword].value)
    return image


def _refer(image: Dataset, source: Dataset, index: int) -> None:
    """Name the image that a capture was made from."""
    item = Dataset()
    item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID = source.SOPClassUID, source.SOPInstanceUID
    if int(source.get("NumberOfFrames") or 1) > 1:
        item.ReferencedFrameNumber = int(frame_order(source)[index]) + 1
    purpose = codes.DCM.SourceImageForImageProcessingOperation
    code = Dataset()
    code.CodeValue, code.CodingSchemeDesignator, code.CodeMeaning = purpose.value, "DCM", purpose.meaning
    item.PurposeOfReferenceCodeSequence = [code]
    image.SourceImageSequence = [item]


def _directions(study: Study) -> tuple[str, str] | None:
    """Where a picture's rows and columns lead in the patient; None where the study does not say."""
    if study.affine is None:
        return None
    flips = upside_down(study)
    along = []
    for axis in (1, 0):  # along a row the column grows
        step = study.affine[:3, 1 + axis] * (-1 if axis in flips else 1)
        main = int(np.abs(step).argmax())
        along.append(_LETTERS[main][int(step[main] > 0)])
    return along[0], along[1]


__all__ = ["secondary_captures"]
