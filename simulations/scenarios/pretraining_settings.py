"""[pretraining] of a scenario, apart from what pretrains: a scenario is checked before anything heavy is loaded."""

from typing import Annotated, Literal

from pydantic import Field

from common.config import Count, Table, TrainingConfig


class PretrainingConfig(Table):
    """Which images, how many, and how long to train on them."""

    images: Literal["hippocampi", "mammograms", "retinas"]
    patients: Count = 200
    # Of the images. The run's seed sets the initial weights and crops, so each seed has a pretraining of its own.
    seed: Annotated[int, Field(ge=0)] = 0
    rounds: Count = 10
    # None: as in the run.
    training: TrainingConfig | None = None
    # Then so many rounds on the published part of the archive ([partition] published), with the run's own training.
    published_rounds: Annotated[int, Field(ge=0)] = 0


__all__ = ["PretrainingConfig"]
