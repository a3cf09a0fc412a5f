"""A task that answers less than others says so to whoever asks."""

from collections.abc import Callable, Sequence
from typing import ClassVar, Literal

import pytest
import torch
from torch import Tensor

from common.errors import ConfigError, DataError, ErrorCode
from common.tasks import Task


class Brightness(Task):
    """All that a task must have."""

    kind: Literal["brightness"] = "brightness"
    SCORES: ClassVar[tuple[str, ...]] = ("accuracy",)
    SHOWN: ClassVar[tuple[str, ...]] = SCORES

    def outputs(self, classes: int) -> int:
        return classes

    def loss(self, outputs: Tensor, labels: Tensor) -> Tensor:
        return (outputs.mean() - labels.float().mean()) ** 2

    def answer(self, outputs: Tensor) -> Tensor:
        return outputs.flatten(1).mean(1)

    def count(self, answers: Tensor, labels: Tensor, classes: int) -> Tensor:
        return torch.ones(1)

    def scores(
        self, patients: Sequence[Tensor], classes: Sequence[str], *, every_class: bool = False
    ) -> dict[str, float]:
        return {"accuracy": 1.0}


@pytest.mark.parametrize(
    ("asked", "says"),
    [
        (lambda task: task.log_odds(torch.zeros(1, 2, 4, 4)), r"brightness has no probability.*Give a model that"),
        (lambda task: task.tell(torch.zeros(1), ["lesion"]), r"brightness says nothing of an image.*Give a model that"),
    ],
)
def test_what_a_task_does_not_answer_is_refused_with_what_to_do(asked: Callable[[Task], object], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        asked(Brightness())


def test_classes_of_a_whole_image_are_refused_by_a_task_of_maps() -> None:
    with pytest.raises(DataError, match=r"brightness is labelled by maps. Give a map") as refused:
        Brightness().mark([1])
    assert refused.value.code is ErrorCode.UNSUPPORTED
