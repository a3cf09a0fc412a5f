"""dataset.json, as nnU-Net (both versions) and the Decathlon write it: what its labels and channels are called.

Names are only offered: a label map must name a run's classes, which the folder's maker did not know. A region of
several values has no place in a label map and is told apart.
Source: https://github.com/MIC-DKFZ/nnUNet, documentation/dataset_format.md; http://medicaldecathlon.com
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common.text import NAME_PATTERN, as_name

NAME = "dataset.json"
_MOST_BYTES = 2**22
_MOST_LABELS = 254


@dataclass(frozen=True)
class Names:
    """labels: value, as text -> a name that a class may have. regions: names of those that are of several values.

    channels: what each channel of an image is, such as "CT" or "T1w", in order.
    """

    labels: Mapping[str, str]
    regions: tuple[str, ...]
    channels: tuple[str, ...] = ()


def names_in(folder: Path) -> Names:
    """The names in a folder's dataset.json; none where there is no such file, or it is another."""
    path = folder / NAME
    try:
        text = path.read_text(encoding="utf-8") if path.stat().st_size <= _MOST_BYTES else ""
        values = json.loads(text)
    except (OSError, ValueError, RecursionError):
        return Names({}, ())
    said = values.get("labels") if isinstance(values, dict) else None
    labels: dict[str, str] = {}
    regions: list[str] = []
    for key, value in (said if isinstance(said, dict) else {}).items():
        # nnU-Net 2 writes name to value, or values; its first version and the Decathlon value to name.
        name, number = (value, key) if isinstance(value, str) else (key, value)
        plain = as_name(name)
        if not re.fullmatch(NAME_PATTERN, plain):
            continue
        if isinstance(number, list):
            regions.append(plain)
        elif re.fullmatch("0*[1-9][0-9]{0,8}", str(number)) and plain != "ignore" and len(labels) < _MOST_LABELS:
            labels[str(int(number))] = plain
    return Names(labels, tuple(regions), _channels(values) if isinstance(values, dict) else ())


def _channels(values: Mapping[str, Any]) -> tuple[str, ...]:
    """nnU-Net 2 calls them channel_names, its first version and the Decathlon modality."""
    said = values.get("channel_names", values.get("modality"))
    named = said if isinstance(said, dict) else {}
    return tuple(str(named[key]) for key in sorted(named, key=str))


__all__ = ["NAME", "Names", "names_in"]
