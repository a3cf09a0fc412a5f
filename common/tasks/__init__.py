"""What a run may learn: one file each, with its outputs, loss and scores, and one line in `TASKS`.

The first is what a run without [task] means. No other file knows the names of its scores. Imports
`common.document.table`; torch only where something is computed.
"""

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import TypeAdapter

from common.document.choice import OneOf
from common.tasks.classification import Classification
from common.tasks.segmentation import Segmentation
from common.tasks.task import Task, Told, of_local

TASKS: tuple[type[Task], ...] = (
    Segmentation,
    Classification,
)  # fmt: skip
# Of the [task] table.
TASK_CHOICE = OneOf("kind", TASKS)
# All scores of all tasks.
SCORE_NAMES = tuple(dict.fromkeys(name for task in TASKS for name in task.SCORES))

# The score of each that stands for all; of models of a site's own it alone is told.
HEADLINES = tuple(dict.fromkeys(task.SCORES[0] for task in TASKS))


def task_of(settings: Mapping[str, Any] | None) -> Task:
    """The task of a run's settings as a summary holds them; the first, where it says none."""
    adapter: TypeAdapter[Task] = TypeAdapter(Annotated[Task, TASK_CHOICE])
    return adapter.validate_python((settings or {}).get("task") or {})


__all__ = ["HEADLINES", "SCORE_NAMES", "TASKS", "TASK_CHOICE", "Task", "Told", "of_local", "task_of"]
