"""What a model of classification says of a study, as scores.json: probabilities, the answer, and which model it was.

    {"run": "...", "model-sha256": "...", "chances": {"malignant": 0.81}, "none": 0.19, "answer": ["malignant"]}

`chances` are of each class by name; `none` is that of none of them, and null where the run has no such answer. `answer`
lists the classes that are answered: the likeliest, none if that is likelier, or all of at least 1/2 where an image may
show several. Of a series, and of what is larger than a patch, the outputs of slices and windows are taken together by
their mean before they become probabilities: see `common.tasks.classification`.
"""

import json

from common.config import RunConfig
from common.tasks import Told

SCORES_NAME = "scores.json"


def scores_name(stem: str) -> str:
    """File name of a study's scores."""
    return f"{stem}-{SCORES_NAME}" if stem else SCORES_NAME


def encode_scores(told: Told, run: RunConfig, model_sha256: str) -> bytes:
    """The file's content."""
    values = {
        "run": run.name,
        "model-sha256": model_sha256,
        "chances": told.chances,
        "none": told.none,
        "answer": list(told.answer),
    }
    return f"{json.dumps(values, indent=2, allow_nan=False)}\n".encode()


__all__ = ["SCORES_NAME", "encode_scores", "scores_name"]
