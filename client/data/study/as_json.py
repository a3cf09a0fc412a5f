"""Problems and references as plain values, and back: what is kept of them, and what crosses a pipe."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from client.data.study.study import Reference
from common.errors import DataError, ErrorCode
from common.text import shown

TEXT_LIMIT = 2000  # characters of a message


def problem_to_json(problem: DataError | None) -> dict[str, str] | None:
    """Code and sentence of a problem."""
    return None if problem is None else {"code": str(problem.code), "text": str(problem)}


def problem_from_json(values: Mapping[str, Any] | None) -> DataError | None:
    """Inverse of `problem_to_json`."""
    if values is None:
        return None
    return DataError(shown(text_of(values["text"]))[:TEXT_LIMIT], ErrorCode(values["code"]))


def reference_to_json(reference: Reference) -> dict[str, Any]:
    """Plain values."""
    return {
        "kind": reference.kind,
        "patient": reference.patient,
        "key": reference.key,
        "images": list(map(str, reference.images)),
        "labels": list(map(str, reference.labels)),
        "label-map": dict(reference.label_map),
        "problem": problem_to_json(reference.problem),
        "fractional-threshold": reference.fractional_threshold,
        "labels-checked": reference.labels_checked,
        "words": None if reference.words is None else list(reference.words),
        "class-attribute": reference.class_attribute,
        "channel": reference.channel,
        "label-names": list(reference.label_names),
        "region": None if reference.region is None else str(reference.region),
        "reports": None if reference.reports is None else list(map(str, reference.reports)),
    }


def reference_from_json(values: Mapping[str, Any]) -> Reference:
    """Inverse of `reference_to_json`; TypeError, ValueError or KeyError where it is none."""
    kind = values["kind"]
    if kind not in ("dicom", "nifti", "images", "mias"):
        raise ValueError("unknown kind")
    return Reference(
        kind,
        text_of(values["patient"]),
        text_of(values["key"]),
        tuple(Path(text_of(path)) for path in values["images"]),
        tuple(Path(text_of(path)) for path in values["labels"]),
        {text_of(local): text_of(own) for local, own in values["label-map"].items()},
        problem_from_json(values["problem"]),
        float(values["fractional-threshold"]),
        bool(values["labels-checked"]),
        words=None if values["words"] is None else tuple(map(text_of, values["words"])),
        reports=None if values["reports"] is None else tuple(Path(text_of(path)) for path in values["reports"]),
        class_attribute=None if values["class-attribute"] is None else text_of(values["class-attribute"]),
        channel=None if values["channel"] is None else int(values["channel"]),
        label_names=tuple(map(text_of, values["label-names"])),
        region=None if values["region"] is None else Path(text_of(values["region"])),
    )


def text_of(value: Any) -> str:
    """The value, which must be text."""
    if not isinstance(value, str):
        raise TypeError("not a text")
    return value


__all__ = ["problem_from_json", "problem_to_json", "reference_from_json", "reference_to_json", "text_of"]
