"""What the bytes of a DICOM file say: values, texts, frames, pixels. Imports `study` alone."""
