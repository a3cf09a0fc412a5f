"""A study in, a segmentation out: in a folder, in a watched folder, as DICOM SEG and as a picture. No network."""
