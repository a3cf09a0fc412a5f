"""Carry the facts of PS3.15 Table E.1-1 into client/data/deidentify/ps315.json, one attribute a line.

    python deploy/ps315.py confidentiality_profile_attributes.json client/data/deidentify/ps315.json

The input is the table as JSON of innolitics/dicom-standard, generated from edition 2024e of the standard. Masks such as
60xx3000 stay as they are; private attributes get the key "private".
"""

import json
import sys
from pathlib import Path

EDITION = "2024e"
OPTIONS = {
    "rtnSafePrivOpt": "retain-safe-private",
    "rtnUIDsOpt": "retain-uids",
    "rtnDevIdOpt": "retain-device-identity",
    "rtnInstIdOpt": "retain-institution-identity",
    "rtnPatCharsOpt": "retain-patient-characteristics",
    "rtnLongFullDatesOpt": "retain-long-full-dates",
    "rtnLongModifDatesOpt": "retain-long-modified-dates",
    "cleanDescOpt": "clean-descriptors",
    "cleanStructContOpt": "clean-structured-content",
    "cleanGraphOpt": "clean-graphics",
}


def convert(source: Path) -> str:
    """The table in our form."""
    lines = []
    for row in json.loads(source.read_text(encoding="utf-8")):
        key = "private" if "gggg" in row["id"] else row["id"]
        actions = {"basic": row["basicProfile"]} | {OPTIONS[name]: row[name] for name in OPTIONS if name in row}
        lines.append(f"{json.dumps(key)}: {json.dumps(actions)}")
    title = json.dumps("DICOM PS3.15 Table E.1-1")
    body = ",\n".join(sorted(lines))
    return f'{{"source": {title}, "edition": {json.dumps(EDITION)}, "attributes": {{\n{body}\n}}}}\n'


if __name__ == "__main__":
    Path(sys.argv[2]).write_text(convert(Path(sys.argv[1])), encoding="utf-8")
