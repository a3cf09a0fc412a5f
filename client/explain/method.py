"""What a method of explanation is, what it is asked, and what it answers.

Convention: a sample is what the network takes, (C, *sp) as preprocessed; a map lies on the grid of its sample. What is
explained is one number for each class: the mean of the class's log-odds, log(p / (1 - p)), over the voxels that the
model gave to it, and over the whole image where it gave none (Seg-Grad-CAM, Vinogradova et al., AAAI 2020, sums the
logits of a region likewise). Of a task that answers for the image as a whole it is the log-odds of the class.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

import torch
from torch import Tensor, nn

from common.config import RunConfig

# Name of a map -> (S, *sp) float32 on the CPU, one map for each sample.
Maps: TypeAlias = Mapping[str, Tensor]


@dataclass(frozen=True, eq=False)
class Subject:
    """What is to be explained.

    networks: one, or the members of an ensemble; in evaluation mode on `device`, and left so.
    samples: (S, C, *sp) float32 on the CPU.
    regions: (S, K, *sp) bool, the voxels whose log-odds are explained; the whole sample where a class has none.
    classes: K names, those of the run's classes that are asked for.
    layer: of Grad-CAM: "deepest" or "last".
    passes: about how many passes through the network a method may take that chooses their number.
    seed: of what is drawn.
    """

    networks: Sequence[nn.Module]
    run: RunConfig
    samples: Tensor
    regions: Tensor
    classes: Sequence[str]
    device: torch.device
    layer: str = "deepest"
    passes: int = 512
    seed: int = 0
    step: Callable[[], None] = field(default=lambda: None)

    @property
    def indices(self) -> list[int]:
        """Where the classes asked for stand among the run's, from 0."""
        return [self.run.data.classes.index(name) for name in self.classes]


@dataclass(frozen=True, eq=False)
class Answer:
    """What a method found. numbers: by name, what has no place. passes: how often a network ran, forward."""

    maps: Maps
    numbers: Mapping[str, float] = field(default_factory=dict)
    passes: int = 0
    settings: Mapping[str, object] = field(default_factory=dict)


@dataclass(frozen=True)
class Method:
    """One method.

    name: on the command line. source: where it was published. means: what a high value says, and a negative one where
    there are such. caveats: what it does not say. signed: whether negative values mean the opposite of positive ones.
    ensemble: whether it asks for several models.
    """

    name: str
    source: str
    means: str
    caveats: tuple[str, ...]
    explain: Callable[[Subject], Answer]
    signed: bool = False
    ensemble: bool = False


__all__ = ["Answer", "Maps", "Method", "Subject"]
