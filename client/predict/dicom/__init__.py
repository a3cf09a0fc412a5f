"""What is made of a study as DICOM objects: segmentation, report, picture. Valid though their source may not be."""
