"""What both sides must agree on. No DICOM; imports nothing else of ours. Errors and text stand here, on the ground."""
