"""The [training] table of run.toml: what a site does in one round."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from common.config.augmentation import AugmentationConfig
from common.config.crops import Crops
from common.document.formats import Since
from common.document.table import MOST, Count, Fraction, NonNegative, Positive, Table
from common.text import counted


class TrainingConfig(Table):
    """One site's work in one round."""

    # Optimiser steps a site makes in a round; with DP, the Poisson-sampled steps.
    local_steps: Count = 20
    # A site ends its round with the first step after so many seconds; local-steps is then the most that it makes.
    local_seconds: Annotated[Positive | None, Since(2)] = None
    # Crops in a step, without DP. With DP the expected number of patients follows from the sampling rate.
    batch_size: Crops = 4
    # Crop size in voxels after preprocessing; the network sees nothing larger in training.
    patch_size: tuple[Annotated[int, Field(ge=1, le=8192)], ...]
    # Share of crops centred on a foreground voxel, against class imbalance.
    foreground_fraction: Fraction = 0.5
    # Whose voxel that is: any alike, or of a class that is drawn first, of those in the study.
    foreground_classes: Annotated[Literal["all", "balanced"], Since(2)] = "all"
    # Of patients: each as often, or each class, and then somebody who has it.
    sampling: Annotated[Literal["uniform", "balanced"], Since(2)] = "uniform"
    optimizer: Literal["adamw", "sgd"] = "adamw"
    learning_rate: Positive = 1e-3
    # Over the whole run, from learning-rate down to 1 % of it; poly by the power 0.9 of what remains.
    schedule: Literal["cosine", "poly", "constant"] = "cosine"
    # How often the schedule runs down, beginning again at learning-rate.
    cycles: Annotated[Count, Since(2)] = 1
    # Steps of the run, before the schedule, in which the rate rises in equal parts to learning-rate.
    warmup_steps: Annotated[int, Field(ge=0, le=MOST), Since(2)] = 0
    weight_decay: NonNegative = 1e-5
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    # Of sgd: look ahead by the momentum.
    nesterov: Annotated[bool, Since(2)] = False
    # Weight of the sum of the weights' absolute values beside the loss.
    l1: Annotated[NonNegative, Since(2)] = 0.0
    # The most that a step's gradient may be long (L2), over all weights; a longer one is shortened.
    gradient_clipping: Annotated[Positive | None, Since(2)] = None
    augmentation: AugmentationConfig = AugmentationConfig()
    # Which weights a site trains: all; or the affine part of the normalisations, the PReLUs and the last block, for
    # fine-tuning a pretrained network with privacy, where every further weight costs noise.
    trainable: Literal["all", "norm-and-head"] = "all"

    @model_validator(mode="after")
    def _looks_ahead_by_something(self) -> Self:
        if self.nesterov and (self.optimizer != "sgd" or not self.momentum):
            raise ValueError("nesterov is for optimizer = 'sgd' with a momentum above 0: set both, or take it out")
        return self

    @model_validator(mode="after")
    def _runs_down_to_begin_again(self) -> Self:
        if self.cycles > 1 and self.schedule == "constant":
            raise ValueError("cycles is for a schedule that runs down: set schedule to cosine or poly, or take it out")
        return self

    @property
    def work(self) -> str:
        """What a site does in a round, for a sentence."""
        steps = counted(self.local_steps, "step")
        return steps if self.local_seconds is None else f"at most {steps}, as many as end in {self.local_seconds:g} s"


__all__ = ["TrainingConfig"]
