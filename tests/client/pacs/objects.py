"""Small objects of one study, as a bad peer makes them up."""

from io import BytesIO

import numpy as np
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian

STUDY, SERIES = "1.2.3", "1.2.3.1"
COUNT = 4


def uid_of(number: int) -> str:
    return f"{SERIES}.{number}"


def object_of(
    number: int, *, study: str = STUDY, series: str = SERIES, uid: str | None = None, value: int = 0
) -> Dataset:
    """One slice."""
    made = Dataset()
    made.SOPClassUID, made.SOPInstanceUID = CTImageStorage, uid or uid_of(number)
    made.StudyInstanceUID, made.SeriesInstanceUID, made.Modality = study, series, "CT"
    made.PatientID, made.PatientName, made.StudyDate = "4711", "DOE^JANE", "20240301"
    made.Rows = made.Columns = 8
    made.BitsAllocated = made.BitsStored = 16
    made.HighBit, made.PixelRepresentation, made.SamplesPerPixel = 15, 0, 1
    made.PhotometricInterpretation = "MONOCHROME2"
    made.PixelData = np.full((8, 8), value, np.uint16).tobytes()
    made.file_meta = FileMetaDataset()
    made.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    made.file_meta.MediaStorageSOPClassUID, made.file_meta.MediaStorageSOPInstanceUID = (
        CTImageStorage,
        made.SOPInstanceUID,
    )
    return made


def encoded(made: Dataset) -> bytes:
    file = BytesIO()
    made.save_as(file, enforce_file_format=True)
    return file.getvalue()


def study_answer(study: str = STUDY) -> Dataset:
    answer = Dataset()
    answer.StudyInstanceUID, answer.PatientID, answer.StudyDate = study, "4711", "20240301"
    return answer


def series_answer(series: str = SERIES, count: int = COUNT) -> Dataset:
    answer = Dataset()
    answer.SeriesInstanceUID, answer.Modality, answer.NumberOfSeriesRelatedInstances = series, "CT", count
    return answer


def instance_answer(number: int, uid: str | None = None) -> Dataset:
    answer = Dataset()
    answer.SOPInstanceUID, answer.SOPClassUID = uid or uid_of(number), CTImageStorage
    return answer
