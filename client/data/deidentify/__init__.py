"""Who a patient is stays here: keyed pseudonyms, the minimal copy, the profile of PS3.15. Imports `dicom`, `study`."""
