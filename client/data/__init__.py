"""From files to a cohort: read, isolated, checked, de-identified, prepared, kept; and a patient who is forgotten."""
