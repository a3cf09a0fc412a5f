"""What a sweep varies: keys of the run by their dotted names, each with a range or a list of values.

training.learning-rate=1e-4..1e-2:log      a range, by its logarithm
training.local-steps=10..40                whole numbers, both ends included
model.norm=instance,group                  values, as TOML writes them; quotes may be left out
training.patch-size=[32, 32],[64, 64]
"""

import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from common.config import RunConfig, validate
from common.errors import ConfigError

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution

_RANGE = re.compile(r"([-+0-9.eE_]+)\.\.([-+0-9.eE_]+)(:log)?")
_EXAMPLE = "training.learning-rate=1e-4..1e-2:log or model.norm=instance,group"


@dataclass(frozen=True)
class Axis:
    """One key. low and high: of a range, whole numbers or not; None where `choices` has the values, as TOML text."""

    key: str
    low: float | None = None
    high: float | None = None
    log: bool = False
    choices: tuple[str, ...] = ()

    @property
    def whole(self) -> bool:
        """Whether the range is of whole numbers."""
        return isinstance(self.low, int) and isinstance(self.high, int)

    def distribution(self) -> "BaseDistribution":
        """As Optuna has it."""
        from optuna.distributions import (  # noqa: PLC0415 - heavy
            CategoricalDistribution,
            FloatDistribution,
            IntDistribution,
        )

        if self.low is None or self.high is None:
            return CategoricalDistribution(self.choices)
        if self.whole:
            return IntDistribution(int(self.low), int(self.high), log=self.log)
        return FloatDistribution(self.low, self.high, log=self.log)

    def value(self, drawn: Any) -> Any:
        """What a drawn value is in run.toml."""
        return _value(drawn) if self.choices else drawn

    def ends(self) -> Sequence[Any]:
        """Values that must be possible for the axis to be: the ends of the range, or all choices."""
        return self.choices or (self.low, self.high)


def axis_of(text: str) -> Axis:
    """Read an axis; see the module.

    Raises:
        ConfigError: it is none.
    """
    key, equals, values = (part.strip() for part in text.partition("="))
    if not (key and equals and values):
        raise ConfigError(f"--set {text!r} is not of the form KEY=VALUES. Write for example --set {_EXAMPLE}.")
    if key.startswith("run."):
        raise ConfigError(f"--set {text!r}: the keys of the run are meant, without 'run.'. Write {key[4:]}={values}.")
    if (found := _RANGE.fullmatch(values)) is None:
        parts = _parts(values)
        if len(set(parts)) < len(parts):
            raise ConfigError(f"--set {text!r} names a value twice. Name each once.")
        return Axis(key, choices=parts)
    try:
        low, high = (_number(end) for end in found.groups()[:2])
    except ValueError as error:
        raise ConfigError(f"--set {text!r}: an end of the range is no number. Write for example {_EXAMPLE}.") from error
    if not low < high or (found[3] and low <= 0):
        raise ConfigError(f"--set {text!r}: the range must rise, and with :log start above 0.")
    if isinstance(low, int) != isinstance(high, int):
        low, high = float(low), float(high)
    return Axis(key, low, high, log=bool(found[3]))


def in_grid(axes: Sequence[Axis]) -> Sequence[Axis]:
    """Axes whose values can all be combined.

    Raises:
        ConfigError: one is a range.
    """
    if ranges := [axis.key for axis in axes if not axis.choices]:
        raise ConfigError(f"a grid takes lists, and --set {ranges[0]} is a range. Write its values, such as 1e-4,1e-3.")
    return axes


def run_with(base: RunConfig, values: Mapping[str, Any]) -> RunConfig:
    """The run with some keys replaced, checked again as a whole.

    Raises:
        ConfigError: a key is not known, or the run is not possible with these values.
    """
    # What was not said stays unsaid: the defaults of another kind of network or loss are others.
    table = base.model_dump(mode="json", by_alias=True, exclude_unset=True)
    for key, value in values.items():
        *above, last = key.split(".")
        inner = table
        for part in above:
            inner = inner.setdefault(part, {})
            if not isinstance(inner, dict):
                raise ConfigError(f"--set {key}: {part} is no table of a run. See docs/run.md.")
        inner[last] = value
    return validate(RunConfig, table, "--set", from_file=True)


def check(base: RunConfig, axes: Sequence[Axis]) -> None:
    """Refuse axes that no run can have: each of their values is tried alone.

    Raises:
        ConfigError: with the first.
    """
    if len({axis.key for axis in axes}) < len(axes):
        raise ConfigError("two --set name the same key. Name it once, with all its values.")
    for axis in axes:
        for end in axis.ends():
            run_with(base, {axis.key: axis.value(end)})


def _parts(text: str) -> tuple[str, ...]:
    """Between commas that stand in no brackets or quotes."""
    parts, depth, quoted = [""], 0, ""
    for sign in text:
        if quoted:
            quoted = "" if sign == quoted else quoted
        elif sign in "\"'":
            quoted = sign
        else:
            depth += (sign in "[{") - (sign in "]}")
        if sign == "," and not depth and not quoted:
            parts.append("")
        else:
            parts[-1] += sign
    return tuple(part.strip() for part in parts)


def _value(text: str) -> Any:
    try:
        return tomllib.loads(f"x = {text}")["x"]
    except ValueError:
        return text


def _number(text: str) -> int | float:
    value = tomllib.loads(f"x = {text}")["x"]
    if not isinstance(value, int | float):
        raise ValueError("no number")
    return value


__all__ = ["Axis", "axis_of", "check", "in_grid", "run_with"]
