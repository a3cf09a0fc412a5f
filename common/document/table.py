"""What all documents have in common: a TOML table, how it is read, its format, and its one canonical text.

TOML keys are kebab-case, fields snake_case. Unknown keys are refused with the nearest valid name. The canonical text is
JSON with sorted keys, no spaces and defaults filled in; keys that are not of the first format
(common/document/formats.py) stand in it only where they have another value than documents of the first format mean. So
two documents that mean the same have the same SHA-256, a changed value never has, and a later version gives an earlier
document the hash it had.
"""

import hashlib
import json
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Self, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ModelWrapValidatorHandler, ValidationError, model_validator

from common.document.faults import sentence
from common.document.formats import FIRST, Since, later_keys, read_as, with_defaults, written
from common.document.strict import mistaken
from common.errors import ConfigError
from common.text import NAME_PATTERN

Name = Annotated[str, Field(pattern=NAME_PATTERN)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NonNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Fraction = Annotated[float, Field(ge=0, le=1)]
# Of whole numbers: exact in JSON and as float64. One of 400 digits would have no float at all.
MOST = 10**15
Count = Annotated[int, Field(ge=1, le=MOST)]


class Table(BaseModel):
    """One TOML table: kebab-case keys, frozen, nothing unknown."""

    model_config = ConfigDict(
        alias_generator=lambda field: field.replace("_", "-"),
        populate_by_name=True,
        extra="forbid",
        frozen=True,
        allow_inf_nan=False,  # neither has a canonical form
    )

    @model_validator(mode="before")
    @classmethod
    def _as_its_format_means(cls, values: Any) -> Any:
        return with_defaults(cls, values) if isinstance(values, dict) else values


class Document(Table):
    """A table that is a file of its own, and says its format."""

    # What its format is a format of, for a person; and the newest that this version reads.
    KIND: ClassVar[str]
    LATEST: ClassVar[int] = FIRST

    # Of this file: what it may say, and what it means where it says nothing.
    format: Annotated[int, Field(ge=FIRST, strict=True), Since(FIRST + 1)] = FIRST

    @model_validator(mode="wrap")
    @classmethod
    def _of_a_format(cls, values: Any, handler: ModelWrapValidatorHandler[Self]) -> Self:
        said = values.get("format", FIRST) if isinstance(values, dict) else FIRST
        is_format = type(said) is int and said >= FIRST  # else the handler says what is wrong
        if is_format and said > cls.LATEST:  # before anything else: what it says besides cannot be judged
            raise ValueError(
                f"this {cls.KIND} is of format {said}, this version reads up to {cls.LATEST}: update wardround"
            )
        with read_as(said if is_format else FIRST):
            document = handler(values)
        for key, format_, is_earliest in later_keys(document):
            if format_ > document.format and not is_earliest and key != "format":
                raise ValueError(
                    f"{key} is a key of format {format_}. Write format = {format_} at the top of the {cls.KIND}"
                )
        return document


TableType = TypeVar("TableType", bound=Table)


def load(model: type[TableType], path: Path) -> TableType:
    """Read one TOML file.

    Raises:
        ConfigError: not found, not TOML, or not valid; the message names file, key and what to do.
    """
    return parse(model, read_text(path), source=str(path))


def read_text(path: Path) -> str:
    """The text of a TOML file.

    Raises:
        ConfigError: it cannot be read.
    """
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise ConfigError(f"{path} cannot be read: it is not there. Give the path of a file that is.") from error
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} cannot be read ({error}). Give the path of a TOML file in UTF-8.") from error


def parse(model: type[TableType], text: str, source: str = "text", *, lenient: bool = False) -> TableType:
    """Parse TOML text; see `load`.

    Args:
        model: of the table.
        text: as written.
        source: what to call it in an error.
        lenient: take a text for a number, as the first versions did: for what was issued then.
    """
    try:
        values = tomllib.loads(text)
        json.dumps(values, default=str)  # a hexadecimal number may be read that is too long to be written again
    except RecursionError as error:
        raise ConfigError(
            f"{source} is nested too deeply. Write tables and lists as the documentation does."
        ) from error
    except ValueError as error:  # also a number of too many digits
        raise ConfigError(f"{source} is not valid TOML: {error}. Correct that line.") from error
    table = validate(model, values, source, from_file=True)
    if not lenient and (faults := list(mistaken(values, table.model_dump(by_alias=True)))):
        raise ConfigError(f"{source}: {'; '.join(faults)}.")
    return table


def validate(
    model: type[TableType], values: Mapping[str, Any], source: str = "text", *, from_file: bool = False
) -> TableType:
    """Check a parsed table; see `load`."""
    try:
        # Fields have underscores, and code may use them; a file may not.
        return model.model_validate(values, by_alias=True, by_name=not from_file)
    except ValidationError as error:
        raise ConfigError(f"{source}: {sentence(model, error.errors())}") from error


def canonical(table: Table) -> str:
    """The one JSON text of a table: kebab-case keys, sorted; see the module."""
    return json.dumps(written(table), sort_keys=True, separators=(",", ":"), allow_nan=False)


def sha256_of(table: Table) -> str:
    """SHA-256 (hex) of `canonical`."""
    return hashlib.sha256(canonical(table).encode()).hexdigest()


def from_canonical(model: type[TableType], text: str) -> TableType:
    """Inverse of `canonical`, also of the text that an earlier version wrote.

    Raises:
        ConfigError: not JSON, of a later format, or not valid.
    """
    try:
        values = json.loads(text, object_pairs_hook=_once)
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"the {model.__name__} is not valid JSON ({type(error).__name__})") from error
    with read_as(FIRST):  # what such a text leaves out has its earliest value, whatever its format
        return validate(model, values, source=model.__name__, from_file=True)


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object, of which each reader understands the same: no key stands twice."""
    values = dict(pairs)
    if len(values) < len(pairs):
        raise ValueError("a key stands twice")
    return values
