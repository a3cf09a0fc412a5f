"""What is wrong with a setting, said in our words: what was found, what is allowed, and where a key belongs.

Pydantic finds the faults; its sentences name types of Python and rules of its own, which whoever writes a TOML file
does not know. Keys are dotted, with the table before them: `training.learning-rate`.
"""

import difflib
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from pydantic import BaseModel

from common.document.choice import OneOf, choice_of

# What people look for, and this version does not have.
_ABSENT = {
    "aggregation": "how updates become a model is said in [strategy]",
    "algorithm": "how updates become a model is said in [strategy]",
    "proximal-mu": "how updates become a model is said in [strategy]",
    "secure-aggregation": "the coordinator sees each site's update",
    "epochs": "a round is counted in steps, with local-steps in [training]",
    "local-epochs": "a round is counted in steps, with local-steps in [training]",
    "clients": "a run names no sites; each one that is enrolled may approve it",
    "sites": "a run names no sites; each one that is enrolled may approve it",
    "noise-multiplier": "the noise follows from target-epsilon in [privacy]",
}
_PATTERNS = {
    r"^[0-9a-f]{64}$": "64 hexadecimal digits",
    r"^([01]\d|2[0-3]):[0-5]\d-([01]\d|2[0-3]):[0-5]\d$": "hours such as 20:00-06:00",
}
_NAME = r"^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$"
_KINDS = (
    (("int_", "int_type"), "a whole number"),
    (("float_", "finite_number", "decimal_"), "a finite number"),
    (("bool_",), "true or false"),
    (("string_type", "string_sub_type"), 'text in quotes, such as "north"'),
    (("model_type", "model_attributes_type", "dict_type"), "a table"),
)
_BOUNDS = {"greater_than": ("above", "gt"), "greater_than_equal": ("at least", "ge")} | {
    "less_than": ("below", "lt"),
    "less_than_equal": ("at most", "le"),
}
_LONGEST, _LONGEST_REASON, _LONGEST_NAME = 80, 400, 63


def sentence(model: type[BaseModel], problems: Sequence[Mapping[str, Any]]) -> str:
    """All of pydantic's problems with a table, with the full stop at the end."""
    places = [problem["loc"] for problem in problems]
    told = [
        explain(model, problem)
        for problem, place in zip(problems, places, strict=True)
        # A list without its wrong entries is no list that is too short.
        if not (problem["type"] == "too_short" and any(other[: len(place)] == place != other for other in places))
    ]
    said = "; ".join(told)
    return said if said.endswith("?") else f"{said}."


def explain(model: type[BaseModel], problem: Mapping[str, Any]) -> str:
    """One of pydantic's problems with a table, as a sentence without its full stop."""
    path, table = _place_of(model, [str(part) for part in problem["loc"]])
    name = ".".join(path)
    match problem["type"]:
        case "extra_forbidden":
            return _unknown(model, path, table)
        case "missing":
            return f"{name} is not there, and has no default{_choices(table, path)}"
        case "union_tag_invalid" | "union_tag_not_found":
            return _no_such_kind(_choice_at(table, path), name, problem)
        case "value_error":
            reason = _shortened(str(problem["ctx"]["error"]), _LONGEST_REASON)
            return f"{name}: {reason}" if name else reason
    return f"{name} is {_said(problem['input'])}, must be {_allowed(problem)}"


def _unknown(model: type[BaseModel], path: Sequence[str], table: type[BaseModel] | None) -> str:
    """Why a key is not known, and what was probably meant: the table that it stands in comes first."""
    *above, key = path
    own = list(_keys(table)) if table is not None else []
    name = ".".join(path)
    hyphened = key.replace("_", "-")
    if (own_fault := _of_its_table(model, path, table)) is not None:
        return f"unknown key {name!r}{own_fault}"
    if homes := [place for place, keys in _tables(model) if hyphened in keys and place != ".".join(above)]:
        return f"unknown key {name!r}. {hyphened!r} stands {' and '.join(map(_place, homes))}. Move or remove it"
    if near := _near(hyphened, own) or [one for one in own if hyphened and one.startswith(f"{hyphened}-")]:
        return f"unknown key {name!r}. Did you mean {near[0]!r}? Remove or correct it"
    if hyphened in _ABSENT:
        return f"unknown key {name!r}. This version does not have it: {_ABSENT[hyphened]}. Remove it"
    for place, keys in _tables(model):
        if near := _near(hyphened, keys):
            return f"unknown key {name!r}. Did you mean {near[0]!r} {_place(place)}? Remove or correct it"
    return f"unknown key {name!r}. {_whole(own)}Remove or correct it"


def _of_its_table(model: type[BaseModel], path: Sequence[str], table: type[BaseModel] | None) -> str | None:
    """A key written otherwise, or one of another kind of this table; None: it is neither."""
    *above, key = path
    own = list(_keys(table)) if table is not None else []
    hyphened = key.replace("_", "-")
    if hyphened != key and hyphened in own:
        return f": keys are written with hyphens. Write {hyphened!r}"
    choice = _choice_along(model, above)
    kinds = [kind for kind, member in choice.by_name.items() if hyphened in _keys(member)] if choice else []
    if table is None or choice is None or not kinds:
        return None
    kind = table.model_fields[choice.key].default
    return f". It is a key of {' and '.join(kinds)}; {kind} has {', '.join(own)}. Remove it"


def _no_such_kind(choice: OneOf | None, name: str, problem: Mapping[str, Any]) -> str:
    """Of a choice of kinds (common/document/choice.py): one that is not there, or a table that says none."""
    if choice is None:  # only a choice has these problems
        return f"{name}: {problem['msg']}"
    kinds, value = ", ".join(map(repr, choice.by_name)), problem["input"]
    if problem["type"] == "union_tag_invalid":
        tag = problem["ctx"]["tag"]
        return (
            f"{name}.{choice.key} is {_said(tag)}, must be {kinds}; this version has no other"
            f"{_nearest(tag, choice.by_name)}"
        )
    if isinstance(value, Mapping):
        return f"{name}.{choice.key} is not there. Write one of {kinds}"
    near = next(iter(_near(str(value), choice.by_name)), choice.first)
    return f"{name} is {_said(value)}, must be a table such as {{ {choice.key} = {json.dumps(near)} }}"


def _allowed(problem: Mapping[str, Any]) -> str:
    kind, about = problem["type"], problem.get("ctx", {})
    if kind == "literal_error":
        offered = re.findall("'([^']+)'", about["expected"])
        return f"{about['expected']}; this version has no other{_nearest(problem['input'], offered)}"
    if kind in ("string_pattern_mismatch", "tuple_type", "list_type"):
        return _by_example(problem)
    if kind in _BOUNDS:
        words, limit = _BOUNDS[kind]
        return f"{words} {about[limit]:g}"
    if kind in ("too_short", "string_too_short"):
        return f"{_counted(about['min_length'], kind)} or more"
    if kind in ("too_long", "string_too_long"):
        return f"{_counted(about['max_length'], kind)} or fewer"
    return next((words for starts, words in _KINDS if kind.startswith(starts)), str(problem["msg"]))


def _choices(table: type[BaseModel] | None, path: Sequence[str]) -> str:
    """Which values a missing key may have, where they can be counted."""
    field = next((one for name, one in _fields(table) if name == path[-1]), None) if table is not None else None
    values = getattr(field.annotation, "__args__", ()) if field is not None else ()
    if not values or not all(isinstance(value, str | int) for value in values):
        return ""
    return f". Write one of {', '.join(map(json.dumps, values))}"


def _by_example(problem: Mapping[str, Any]) -> str:
    if problem["type"] == "string_pattern_mismatch":
        return _pattern(problem["ctx"]["pattern"], problem["input"])
    return _list_of(problem["input"])


def _pattern(pattern: str, value: object) -> str:
    if pattern != _NAME:
        return _PATTERNS.get(pattern, f"of the form {pattern}")
    such = re.sub(r"[^a-z0-9]+", "-", str(value).lower())[:_LONGEST_NAME].strip("-")
    return f"small letters, digits and hyphens, such as {such or 'st-mary-2'}"


def _list_of(value: object) -> str:
    """A list, by the example of the one value that was written without brackets."""
    if isinstance(value, Mapping):
        return "a list of tables: each begins with its name in double brackets, [[...]]"
    return f"a list in brackets, such as {f'[{_said(value)}]' if isinstance(value, str | int | float) else '[1, 2]'}"


def _counted(count: int, kind: str) -> str:
    one, many = ("sign", "signs") if kind.startswith("string") else ("entry", "entries")
    return f"{count} {one if count == 1 else many}"


def _said(value: object) -> str:
    text = json.dumps(value, ensure_ascii=False, default=str)
    return _shortened(text, _LONGEST)


def _shortened(text: str, longest: int) -> str:
    return text if len(text) <= longest else f"{text[:longest]}..."


def _nearest(value: object, offered: Iterable[str]) -> str:
    near = _near(str(value), offered)
    return f". Did you mean {near[0]!r}?" if near else ""


def _near(value: str, offered: Iterable[str]) -> list[str]:
    """The nearest of those offered, if any is near; capitals make no distance."""
    by_small = {one.lower(): one for one in offered}
    return [by_small[near] for near in difflib.get_close_matches(value.lower(), list(by_small), n=1)]


def _whole(keys: Sequence[str]) -> str:
    return f"Known here: {', '.join(keys)}. " if keys else ""


def _place(table: str) -> str:
    return f"in [{table}]" if table else "at the top of the file"


def _tables(model: type[BaseModel], path: str = "") -> Iterator[tuple[str, list[str]]]:
    """Every table of a file: its dotted name, empty for the top, and its keys; of all its kinds, where it has some."""
    yield path, list(_keys(model))
    for name, field in _fields(model):
        place = f"{path}.{name}" if path else name
        if (choice := choice_of(field.annotation, field.metadata)) is not None:
            yield place, sorted({key for member in choice.members for key in _keys(member)})
            for member in choice.members:
                yield from list(_tables(member, place))[1:]
        elif (below := _below(field.annotation)) is not None:
            yield from _tables(below, place)


def _place_of(model: type[BaseModel], loc: Sequence[str]) -> tuple[list[str], type[BaseModel] | None]:
    """A place as people write it, without the names of kinds, and the table that its last key stands in."""
    found: type[BaseModel] | None = model
    inside, path = found, []
    parts = iter(loc)
    for part in parts:
        path.append(part)
        inside = found
        if part.isdecimal():  # in a list of tables
            continue
        field = next((one for name, one in _fields(found) if name == part), None) if found is not None else None
        choice = choice_of(field.annotation, field.metadata) if field is not None else None
        if choice is not None:
            kind = next(parts, "")
            if kind.isdecimal():  # one of a list of them
                path.append(kind)
                kind = next(parts, "")
            found = choice.by_name.get(kind)
        else:
            found = _below(field.annotation) if field is not None else None
    return path, inside


def _choice_at(table: type[BaseModel] | None, path: Sequence[str]) -> OneOf | None:
    key = next((part for part in reversed(path) if not part.isdecimal()), "")
    field = next((one for name, one in _fields(table) if name == key), None) if table is not None else None
    return None if field is None else choice_of(field.annotation, field.metadata)


def _choice_along(model: type[BaseModel], path: Sequence[str]) -> OneOf | None:
    """The choice of kinds that the table at a place is one of; None: it is a table of its own."""
    found: list[type[BaseModel]] = [model]
    choice: OneOf | None = None
    for part in path:
        if part.isdecimal():  # in a list of tables
            continue
        field = next((one for table in found for name, one in _fields(table) if name == part), None)
        choice = None if field is None else choice_of(field.annotation, field.metadata)
        below = None if field is None or choice is not None else _below(field.annotation)
        found = list(choice.members) if choice is not None else [below] if below is not None else []
    return choice


def _fields(model: type[BaseModel]) -> Iterator[tuple[str, Any]]:
    for name, field in model.model_fields.items():
        yield field.alias or name, field


def _keys(model: type[BaseModel]) -> Iterator[str]:
    for name, _ in _fields(model):
        yield name


def _below(annotation: Any) -> type[BaseModel] | None:
    """The table in a field's type: itself, an optional one, or the entries of a list or mapping."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((found for part in getattr(annotation, "__args__", ()) if (found := _below(part)) is not None), None)


__all__ = ["sentence"]
