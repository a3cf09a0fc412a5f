"""Careless reports: an image that is classed as a whole has another class than it shows, with a probability."""

from collections.abc import Sequence
from typing import Annotated, Literal

import numpy as np
from pydantic import Field

from simulations.shifts.shift import LabelShift


class WrongClasses(LabelShift):
    """Of images that are classed as a whole; maps stay.

    instead: what a wrong report says: any other one of the classes, or also none of them, all equally likely. An image
    of several classes loses one of them to such a choice.
    """

    kind: Literal["wrong-classes"] = "wrong-classes"
    probability: Annotated[float, Field(gt=0, le=1)] = 0.1
    instead: Literal["classes", "classes-or-none"] = "classes"

    def on_findings(
        self, findings: tuple[int, ...], classes: Sequence[str], rng: np.random.Generator
    ) -> tuple[int, ...]:
        """See `LabelShift`; 0 stands for none of the classes."""
        if rng.random() >= self.probability:
            return findings
        choices = range(0 if self.instead == "classes-or-none" and len(findings) != 0 else 1, len(classes) + 1)
        others = [number for number in choices if number not in findings]
        if not others:
            return findings
        lost = int(rng.choice(findings)) if findings else 0
        kept = {*findings, int(rng.choice(others))} - {lost, 0}
        return tuple(sorted(kept))


__all__ = ["WrongClasses"]
