"""client/pacs against a real Orthanc, and against peers that behave badly."""
