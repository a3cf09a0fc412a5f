"""What all documents have in common: a TOML table, how it is read, and its one canonical text.

TOML keys are kebab-case, fields snake_case. Unknown keys are refused with the nearest valid name. A document is
identified by the SHA-256 of its canonical JSON (sorted keys, no spaces, defaults filled in), so two texts that mean the
same have the same hash and a changed value never has.
"""

import hashlib
import json
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from common.errors import ConfigError
from common.faults import explain
from common.text import NAME_PATTERN

Name = Annotated[str, Field(pattern=NAME_PATTERN)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NonNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Fraction = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=1)]


class Table(BaseModel):
    """One TOML table: kebab-case keys, frozen, nothing unknown."""

    model_config = ConfigDict(
        alias_generator=lambda field: field.replace("_", "-"),
        populate_by_name=True,
        extra="forbid",
        frozen=True,
        allow_inf_nan=False,  # neither has a canonical form
    )


TableType = TypeVar("TableType", bound=Table)


def load(model: type[TableType], path: Path) -> TableType:
    """Read one TOML file.

    Raises:
        ConfigError: not found, not TOML, or not valid; the message names file, key and what to do.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} cannot be read ({error}). Give the path of a TOML file in UTF-8.") from error
    return parse(model, text, source=str(path))


def parse(model: type[TableType], text: str, source: str = "text") -> TableType:
    """Parse TOML text; see `load`."""
    try:
        values = tomllib.loads(text)
    except RecursionError as error:
        raise ConfigError(
            f"{source} is nested too deeply. Write tables and lists as the documentation does."
        ) from error
    except ValueError as error:  # also a number of too many digits
        raise ConfigError(f"{source} is not valid TOML: {error}. Correct that line.") from error
    return validate(model, values, source, from_file=True)


def validate(
    model: type[TableType], values: Mapping[str, Any], source: str = "text", *, from_file: bool = False
) -> TableType:
    """Check a parsed table; see `load`."""
    try:
        # Fields have underscores, and code may use them; a file may not.
        return model.model_validate(values, by_alias=True, by_name=not from_file)
    except ValidationError as error:
        problems = "; ".join(explain(model, problem) for problem in error.errors())
        raise ConfigError(f"{source}: {problems}.") from error


def canonical(table: Table) -> str:
    """The one JSON text of a table: kebab-case keys, sorted, defaults filled in."""
    return json.dumps(
        table.model_dump(mode="json", by_alias=True), sort_keys=True, separators=(",", ":"), allow_nan=False
    )


def sha256_of(table: Table) -> str:
    """SHA-256 (hex) of `canonical`: the identity of a run or policy."""
    return hashlib.sha256(canonical(table).encode()).hexdigest()


def from_canonical(model: type[TableType], text: str) -> TableType:
    """Inverse of `canonical`.

    Raises:
        ConfigError: not JSON, or not valid.
    """
    try:
        values = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"the {model.__name__} is not valid JSON ({type(error).__name__})") from error
    return validate(model, values, source=model.__name__, from_file=True)
