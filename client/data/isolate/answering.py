"""What a reader process does: one answer for each question, in order, and a beat for each file in between.

What a parser raises ends here: an error crosses the pipe as a code and a sentence.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from client.data.isolate import frames
from client.data.quality import quality
from client.data.quality.picture import thumbnail
from client.data.read import dicom_header, sources
from client.data.study.as_json import problem_to_json, reference_from_json, reference_to_json
from client.data.study.labels import Vocabulary
from client.data.study.pulse import beating
from client.data.study.study import Reference, Study, parsing
from common.config import SourceConfig, from_canonical
from common.errors import ConfigError, DataError, ErrorCode

Answer = tuple[dict[str, Any], Sequence[NDArray[Any]]]


@dataclass(frozen=True)
class Job:
    """A study to read. wanted: the label in these classes; None: no label, for prediction. most_missing: share of its
    values that may be no numbers.
    """

    reference: Reference
    wanted: Vocabulary | None
    empty_is_negative: bool = False
    most_missing: float = 0.0


@dataclass(frozen=True, eq=False)
class Reading:
    """A study that was read and found plausible. digest: of its image, label_digest: of what its label says, see
    `client.data.quality.quality`.
    """

    study: Study
    digest: str = field(repr=False)
    label_digest: str = field(default="", repr=False)


def read_study(job: Job) -> Reading:
    """Read a study, for training and for prediction; what `check_study` refuses is refused.

    Raises:
        DataError: whatever makes it unusable.
        ConfigError: the source's label map does not fit.
    """
    study, facts = _judged(job)
    return Reading(study, facts.digest, facts.label_digest)


def check_study(job: Job, most_bytes: int | None = None) -> quality.Checked:
    """Read a study and look at it: what `data check` does with each.

    Args:
        job: where it lies.
        most_bytes: that it may take when decoded; None: there is no limit.

    Raises:
        DataError: whatever makes it unusable.
        ConfigError: the source's label map does not fit.
    """
    study, facts = _judged(job, most_bytes)
    with parsing("study"):
        return quality.Checked(facts, thumbnail(study))


def serve(questions: int, answers: int, network: str, *, most_bytes: int) -> None:
    """Answer until the other end closes the pipe.

    Args:
        questions: file descriptor to read from.
        answers: file descriptor to write to.
        network: "removed", or why it is not.
        most_bytes: of a study's arrays.
    """
    frames.send(answers, {"kind": "ready", "network": network})
    while (frame := frames.receive(questions)) is not None:
        for question in frame[0]["questions"]:
            with beating(lambda: frames.send(answers, {"kind": "beat"})):
                answer = answer_to(question, most_bytes)
            frames.send(answers, *answer)
            del answer  # before the next study is decoded


def answer_to(question: Mapping[str, Any], most_bytes: int) -> Answer:
    """Header and arrays for one question."""
    try:
        with parsing("study"):
            header, arrays = _WORK[question["do"]](question, most_bytes)
    except DataError as error:
        return {"kind": "problem", "problem": problem_to_json(error)}, ()
    except ConfigError as error:
        return {"kind": "misconfigured", "problem": {"code": str(error.code), "text": str(error)}}, ()
    return {"kind": "answer", **header}, arrays


def _look(question: Mapping[str, Any], _most_bytes: int) -> Answer:
    entry = dicom_header.look(Path(question["path"]))
    return {"entry": None if entry is None else dicom_header.entry_to_json(entry)}, ()


def _find(question: Mapping[str, Any], _most_bytes: int) -> Answer:
    found = sources.find(from_canonical(SourceConfig, question["source"]), Path(question["root"]))
    references = [reference_to_json(reference) for reference in found.references]
    return {"references": references, "left-out": dict(found.left_out), "assumed": dict(found.assumed)}, ()


def _read(question: Mapping[str, Any], most_bytes: int) -> Answer:
    job = _job(question)
    study, facts = _judged(job, most_bytes)
    places = {path: index for index, path in enumerate(job.reference.images)}
    header = {
        "spacing-mm": study.spacing_mm,
        "affine": None if study.affine is None else study.affine.tolist(),
        "modality": study.modality,
        "order": [places[path] for path in study.files],
        "classes": study.classes,
        "labelling": None if study.labelling is None else asdict(study.labelling),
        "findings": study.findings,
        "digest": facts.digest,
        "label-digest": facts.label_digest,
        "padded": study.padding is not None,
        "within": study.region is not None,
    }
    label = () if study.label is None else (study.label,)
    padding = () if study.padding is None else (study.padding.astype(np.uint8),)
    region = () if study.region is None else (study.region,)
    return header, (study.image, *label, *padding, *region)


def _check(question: Mapping[str, Any], most_bytes: int) -> Answer:
    checked = check_study(_job(question), most_bytes)
    return {"facts": quality.facts_to_json(checked.facts)}, (np.frombuffer(checked.thumbnail, np.uint8),)


def _judged(job: Job, most_bytes: int | None = None) -> tuple[Study, quality.Facts]:
    """A study, and the facts about it: whatever makes it unusable is refused here, whoever asks."""
    study = sources.read(job.reference, job.wanted)
    with parsing("study"):
        # mini-MIAS says of each film what it shows: a normal one is a finding.
        negative = job.empty_is_negative or job.reference.kind == "mias"
        facts = quality.examine(
            study,
            empty_is_negative=negative,
            labels_checked=job.reference.labels_checked,
            most_missing=job.most_missing,
        )
    decoded = sum(one.nbytes for one in (study.image, study.label, study.padding) if one is not None)
    if most_bytes is not None and decoded > most_bytes:
        raise DataError(
            f"the study takes more than {most_bytes >> 20} MiB when decoded. Split it, or take it out.",
            ErrorCode.OUT_OF_MEMORY,
        )
    return study, facts


def _job(question: Mapping[str, Any]) -> Job:
    wanted = question["wanted"]
    return Job(
        reference_from_json(question["reference"]),
        None if wanted is None else Vocabulary.from_json(wanted),
        question["empty-is-negative"],
        question["most-missing"],
    )


_WORK: Mapping[str, Callable[[Mapping[str, Any], int], Answer]] = {
    "look": _look,
    "find": _find,
    "read": _read,
    "check": _check,
}
