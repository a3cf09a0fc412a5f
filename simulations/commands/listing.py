"""The tables of what a run or a scenario may choose from, as rows for a person or a program."""

import inspect
from collections.abc import Callable, Mapping
from typing import Literal, TypeAlias

import torch
from pydantic import ValidationError

from common.losses import LOSS_CHOICE
from common.models import NETWORK_CHOICE, Network
from common.preparation import STEP_CHOICE, Step
from common.privacy.guarantee import COVERED_PARTS
from common.strategies import STRATEGY_CHOICE, Strategy
from common.tasks import TASK_CHOICE, Task
from simulations.backends import BACKENDS
from simulations.commands.options import Listed
from simulations.faults import FAULT_CHOICE
from simulations.partitions import PARTITION_CHOICE
from simulations.shifts import SHIFT_CHOICE

What: TypeAlias = Listed
Rows: TypeAlias = tuple[list[str], list[list[object]]]


def rows(what: What) -> Rows:
    """Column names and one row for each member, in the order of its table: the default comes first."""
    return _TABLES[what]()


def _networks() -> Rows:
    found: list[list[object]] = [
        [name, _weights(member, 2), _weights(member, 3), _about(member)]
        for name, member in NETWORK_CHOICE.by_name.items()
        if issubclass(member, Network)
    ]
    return ["network", "weights-2d", "weights-3d", "what"], found


def _weights(member: type[Network], dims: Literal[2, 3]) -> int | None:
    """How many weights it has with its own defaults, for grey images and one class; None where it has no defaults."""
    try:
        settings = member.model_validate({"dims": dims})
    except ValidationError:
        return None
    with torch.device("meta"):
        return sum(weights.numel() for weights in settings.build(1, 2).parameters())


def _tasks() -> Rows:
    found: list[list[object]] = [
        [name, member.SCORES[0], list(member.SCORES), _about(member)]
        for name, member in TASK_CHOICE.by_name.items()
        if issubclass(member, Task)
    ]
    return ["task", "headline", "scores", "what"], found


def _losses() -> Rows:
    return _named("loss", LOSS_CHOICE.by_name)


def _strategies() -> Rows:
    found: list[list[object]] = [
        [
            name,
            [member.MODEL, *member.DOWN],
            [member.MODEL, *member.UP],
            member.NEEDS,
            _is_private(member),
            _about(member),
        ]
        for name, member in STRATEGY_CHOICE.by_name.items()
        if issubclass(member, Strategy)
    ]
    return ["strategy", "down", "up", "needs", "private", "what"], found


def _is_private(member: type[Strategy]) -> bool:
    """Whether a run with it may have [privacy]."""
    return COVERED_PARTS.issuperset(member.UP) and not member.BY_SCORES


def _steps() -> Rows:
    found: list[list[object]] = [
        [
            name,
            member.PLACE,
            [str(field.alias) for key, field in member.model_fields.items() if key != "kind"],
            _about(member),
        ]
        for name, member in STEP_CHOICE.by_name.items()
        if issubclass(member, Step)
    ]
    return ["step", "place", "keys", "what"], found


def _partitions() -> Rows:
    return _named("partition", PARTITION_CHOICE.by_name)


def _shifts() -> Rows:
    return _named("shift", SHIFT_CHOICE.by_name)


def _faults() -> Rows:
    return _named("fault", FAULT_CHOICE.by_name)


def _backends() -> Rows:
    return _named("backend", BACKENDS)


def _named(column: str, members: Mapping[str, object]) -> Rows:
    return [column, "what"], [[name, _about(member)] for name, member in members.items()]


def _about(member: object) -> str:
    """The first line of what its file says; its own, where several share a file."""
    module = inspect.getmodule(member if callable(member) else type(member))
    shared = sum(getattr(one, "__module__", None) == member.__module__ for one in STRATEGY_CHOICE.members) > 1
    return (inspect.getdoc(member if shared else module) or "").partition("\n")[0]


_TABLES: Mapping[str, Callable[[], Rows]] = {
    "networks": _networks,
    "tasks": _tasks,
    "losses": _losses,
    "strategies": _strategies,
    "steps": _steps,
    "partitions": _partitions,
    "shifts": _shifts,
    "faults": _faults,
    "backends": _backends,
}

__all__ = ["What", "rows"]
