"""What a shift is: some sites, and what becomes of a study there. Of the image or of the label, never of both.

What is drawn for an image follows from the seed, the shift's place in the list, the patient and the image: it is the
same whoever else is at the site, wherever the site's folder lies, and whatever is done to other images.
"""

import hashlib
import json
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import replace
from typing import Annotated

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from client.data.study.study import Study
from common import labelmap
from common.document.table import Name, Table


class Shift(Table):
    """One table of [[shifts]]."""

    kind: str
    # Whose studies, all of them: of patients who train, validate and test.
    sites: Annotated[tuple[Name, ...], Field(min_length=1)]
    # Of what is drawn at random.
    seed: Annotated[int, Field(ge=0)] = 0

    @property
    def in_words(self) -> str:
        """Its kind and settings: "gamma (gamma 1.5)"."""
        values = self.model_dump(by_alias=True, exclude={"kind", "sites", "seed"})
        return f"{self.kind} ({', '.join(f'{key} {value}' for key, value in values.items())})"

    @abstractmethod
    def apply(self, study: Study, rng: np.random.Generator) -> Study:
        """The study as the site has it, on the same grid.

        Args:
            study: as it was read.
            rng: of this shift and this image.
        """


class ImageShift(Shift):
    """Another scanner: labels stay as they are."""

    def apply(self, study: Study, rng: np.random.Generator) -> Study:
        """See `Shift`; padding around an image, and values that are no numbers, are no image and stay."""
        missing = ~np.isfinite(study.image)
        whole = study.image
        if missing.any():  # a run may fill them in; until then one would spread over all that is near
            axes = tuple(range(1, whole.ndim))
            whole = np.where(missing, whole.min(axes, keepdims=True, initial=np.inf, where=~missing), whole)
        stays = missing if study.padding is None else missing | study.padding
        image = np.asarray(self.on(whole, rng), np.float32)
        return replace(study, image=np.where(stays, study.image, image))

    @abstractmethod
    def on(self, image: NDArray[np.float32], rng: np.random.Generator) -> NDArray[np.float32]:
        """The image (C, *sp), in the units of its source."""


class LabelShift(Shift):
    """Other annotators: images stay as they are."""

    def apply(self, study: Study, rng: np.random.Generator) -> Study:
        """See `Shift`; a study without a label of the kind stays as it is."""
        label = None if study.label is None else self.on_map(study.label, study, rng)
        findings = None if study.findings is None else self.on_findings(study.findings, study.classes, rng)
        return replace(study, label=label, findings=findings)

    def on_map(self, label: NDArray[np.uint8], study: Study, rng: np.random.Generator) -> NDArray[np.uint8]:
        """The label map (*sp), which holds what `common.labelmap` says; as it is, unless a shift is of maps."""
        return label

    def on_findings(
        self, findings: tuple[int, ...], classes: Sequence[str], rng: np.random.Generator
    ) -> tuple[int, ...]:
        """The classes of the image as a whole, rising; as they are, unless a shift is of those."""
        return findings


def shifted(study: Study, shifts: Sequence[Shift]) -> Study:
    """A study after several shifts, in their order."""
    for place, shift in enumerate(shifts):
        named = json.dumps([shift.seed, place, shift.kind, study.patient, study.key]).encode()
        study = shift.apply(study, np.random.default_rng(list(hashlib.sha256(named).digest())))
    return study


def masks_of(label: NDArray[np.uint8], study: Study) -> dict[int, NDArray[np.bool_]]:
    """Where each class that a map shows is, by its number."""
    found = {
        number: labelmap.marks(label, number, overlap=study.overlap) for number in range(1, len(study.classes) + 1)
    }
    return {number: mask for number, mask in found.items() if mask.any()}


__all__ = ["ImageShift", "LabelShift", "Shift", "masks_of", "shifted"]
