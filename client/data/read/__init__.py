"""From files to a study: DICOM, NIfTI, pictures, MIAS, and their labels. In a process without network and secrets."""
