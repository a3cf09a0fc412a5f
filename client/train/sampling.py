"""Whose crops a step takes, without differential privacy: every patient as often, or every class.

Balanced sampling draws a class first and then a patient who has it, so that patients of a rare class are taken more
often than their share (over-sampling) and those of common ones less often (under-sampling). Who has nothing labelled
is a class of its own. It is for runs without privacy: there each patient is in a step with one public probability,
which is what the accountant counts with, and not with one that the other patients' labels decide.
"""

from collections.abc import Iterator, Mapping, Sequence

import torch

from client.data.cohort import Case
from common.tasks import Task


def groups_of(patients: Mapping[str, Sequence[Case]], classes: int, task: Task) -> tuple[tuple[str, ...], ...]:
    """The patients of each class that somebody has, in label order; first those who have none of 1..K."""
    groups: dict[int, list[str]] = {}
    for patient, cases in patients.items():
        there = {number for case in cases for number in _shown(case, classes, task)}
        for number in there or {0}:
            groups.setdefault(number, []).append(patient)
    return tuple(tuple(groups[number]) for number in sorted(groups))


def draw(groups: Sequence[Sequence[str]], count: int, generator: torch.Generator) -> Iterator[str]:
    """So many patients, with replacement: a group uniformly, where there are several, then one of it uniformly.

    Each is drawn when it is asked for: what is drawn of one comes before the next, and a run of an earlier version
    draws the same again.
    """
    for _ in range(count):
        group = groups[_integer(len(groups), generator)] if len(groups) > 1 else groups[0]
        yield group[_integer(len(group), generator)]


def _shown(case: Case, classes: int, task: Task) -> list[int]:
    """The classes that a study shows."""
    return [number for number in range(1, classes + 1) if bool(task.marks(case.labels, number).any())]


def _integer(limit: int, generator: torch.Generator) -> int:
    return int(torch.randint(limit, (), generator=generator))


__all__ = ["draw", "groups_of"]
