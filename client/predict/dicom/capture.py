"""Pictures of a study as DICOM Secondary Captures, in the patient's study, in a series of their own.

Patient and study are those of the source, which each image names; UIDs are new. Whether burned-in text tells who the
patient is follows from the source, to which we add no such text. Compression with loss in the source's past is told.
Source: DICOM PS3.3 A.8.1 (Secondary Capture), C.7.6.1 (General Image).
"""

import datetime
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from highdicom.sc import SCImage
from numpy.typing import NDArray
from pydicom import Dataset
from pydicom.sr.codedict import codes
from pydicom.uid import ExplicitVRLittleEndian, generate_uid

from client.data.dicom.frames import frame_order
from client.data.study.drawing import upside_down
from client.data.study.study import Study
from client.predict.dicom.source import completed, known_class, referable

_LONGEST = 64  # of a description
_LETTERS = (("R", "L"), ("A", "P"), ("F", "H"))
_LOSSY = ("LossyImageCompression", "LossyImageCompressionRatio", "LossyImageCompressionMethod")


class Captures:
    """Secondary Captures of one study, in one new series."""

    def __init__(
        self, study: Study, headers: Mapping[Path, Dataset], *, series_number: int, created: datetime.datetime
    ) -> None:
        """None are made yet.

        Args:
            study: of the pictures.
            headers: of its files, in the order of its slices.
            series_number: of the new series, over that of the study's.
            created: date and time written into the images.

        Raises:
            DataError: nothing can be made of the study's images, see `client.predict.dicom.source`.
        """
        self._study, self._headers, self._created = study, headers, created
        self._sources = dict(zip(headers, completed(referable(list(headers.values()))), strict=True))
        self._directions = _directions(study)
        self._series, self._count = generate_uid(), 0
        first = next(iter(self._sources.values()))
        self._series_number = series_number + max(int(first.get("SeriesNumber") or 0), 0)

    def make(self, pixels: NDArray[np.uint8], shown: Sequence[int], description: str) -> Dataset:
        """The next image of the series.

        Args:
            pixels: (Y, X, 3), RGB.
            shown: which slices of the study the picture shows, from 0.
            description: of the series; must not identify the patient. Cut to what the standard allows.
        """
        files = [self._study.files[min(index, len(self._study.files) - 1)] for index in shown]
        source, first = self._sources[files[0]], next(iter(self._sources.values()))
        self._count += 1
        with known_class():
            image: Dataset = SCImage.from_ref_dataset(
                first,
                np.ascontiguousarray(pixels),
                photometric_interpretation="RGB",
                bits_allocated=8,
                coordinate_system="PATIENT",
                patient_orientation=self._directions or ("L", "P"),
                series_instance_uid=self._series,
                series_number=self._series_number,
                sop_instance_uid=generate_uid(),
                instance_number=self._count,
                manufacturer="Wardround",
                transfer_syntax_uid=ExplicitVRLittleEndian,
            )
        if self._directions is None:
            image.PatientOrientation = source.get("PatientOrientation") or ""
        image.SeriesDescription = description[:_LONGEST]
        image.ContentDate = image.DateOfSecondaryCapture = self._created.strftime("%Y%m%d")
        image.ContentTime = image.TimeOfSecondaryCapture = self._created.strftime("%H%M%S")
        image.ConversionType = "WSD"  # made by a workstation
        image.setdefault("Laterality", "")  # required where the body part is paired, which nobody says
        if source.get("BurnedInAnnotation") in ("YES", "NO"):
            image.BurnedInAnnotation = source.BurnedInAnnotation
        if source.get("LossyImageCompression") == "01":
            for keyword in _LOSSY:
                if keyword in source:
                    setattr(image, keyword, source[keyword].value)
        image.SourceImageSequence = [
            _reference(self._headers[file], index) for file, index in zip(files, shown, strict=True)
        ]
        return image


def _reference(source: Dataset, index: int) -> Dataset:
    """The name of an image that a capture was made from."""
    item = Dataset()
    item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID = source.SOPClassUID, source.SOPInstanceUID
    if int(source.get("NumberOfFrames") or 1) > 1:
        item.ReferencedFrameNumber = int(frame_order(source)[index]) + 1
    purpose = codes.DCM.SourceImageForImageProcessingOperation
    code = Dataset()
    code.CodeValue, code.CodingSchemeDesignator, code.CodeMeaning = purpose.value, "DCM", purpose.meaning
    item.PurposeOfReferenceCodeSequence = [code]
    return item


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


__all__ = ["Captures"]
