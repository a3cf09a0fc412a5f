"""The run.toml that `wardround-server new` writes is a run, shows every setting, and says the defaults that are."""

import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pydantic_core import PydanticUndefined
from typer.testing import CliRunner

from client.rules import policy
from client.rules.policy import Purpose
from common.config import PolicyConfig, RunConfig, Table, load, parse
from server.commands.main import app
from server.commands.template import TEMPLATE

OPEN = re.sub(r"^# (\[[a-z.-]+\]|[a-z0-9-]+ = )", r"\1", TEMPLATE, flags=re.MULTILINE)


def settings(model: type[Table], path: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted key and default of every setting; ... where there is none."""
    for name, field in model.model_fields.items():
        key = f"{path}{field.alias or name}"
        # Of a table of several kinds the default one's keys are shown.
        parts = [type(field.default), field.annotation, *getattr(field.annotation, "__args__", ())]
        below = next((part for part in parts if isinstance(part, type) and issubclass(part, Table)), None)
        if below is None:
            yield key, ... if field.default is PydanticUndefined else field.default
        else:
            yield from settings(below, f"{key}.")


def flat(values: dict[str, Any], path: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in values.items():
        found |= flat(value, f"{path}{key}.") if isinstance(value, dict) else {path + key: value}
    return found


def test_new_writes_a_run_that_the_strict_policy_of_a_hospital_allows(tmp_path: Path) -> None:
    path = tmp_path / "run.toml"
    result = CliRunner().invoke(app, ["new", str(path)])
    assert result.exit_code == 0, result.output
    assert str(path) in result.output
    run = load(RunConfig, path)
    assert run.name == "lesions"
    assert run.privacy is not None
    policy.decide(run, PolicyConfig(), Purpose.APPROVAL).enforce()


def test_new_overwrites_nothing(tmp_path: Path) -> None:
    (tmp_path / "run.toml").write_text("mine")
    result = CliRunner().invoke(app, ["new", str(tmp_path / "run.toml")])
    assert result.exit_code == 1
    assert "is there already" in result.stderr
    assert (tmp_path / "run.toml").read_text() == "mine"


def test_every_setting_stands_in_it_and_nothing_else() -> None:
    assert set(flat(tomllib.loads(OPEN))) == {key for key, _ in settings(RunConfig)}


@pytest.mark.parametrize(("key", "default"), list(settings(RunConfig)), ids=str)
def test_what_is_commented_out_is_the_default_or_an_example(key: str, default: Any) -> None:
    shown = flat(tomllib.loads(OPEN))[key]
    if key in flat(tomllib.loads(TEMPLATE)) or default is None or default is ...:
        return
    assert shown == (list(default) if isinstance(default, tuple) else default)


def test_each_line_may_be_taken_into_use_alone_and_nearly_all_of_them_together() -> None:
    whole = TEMPLATE.index("# [privacy.adaptive-clipping]")  # from here on tables are commented out as a whole
    for line in re.findall(r"^# ([a-z0-9-]+ = .*)$", TEMPLATE[:whole], re.MULTILINE):
        text = TEMPLATE.replace(f"# {line}\n", f"{line}\n")
        if line.startswith("rows"):
            text = text.replace("spacing-mm", "# spacing-mm", 1)
        if line.startswith(("gradient-clipping", "local-seconds")):
            text = text[: text.index("\n[privacy]")]
        if line.startswith("patience"):
            text = text.replace("# evaluate-every", "evaluate-every")
        parse(RunConfig, text)
    parse(RunConfig, re.sub(r"^(rows|gradient-clipping|local-seconds) = ", r"# \1 = ", OPEN, flags=re.MULTILINE))


def test_choices_that_it_names_are_those_that_there_are() -> None:
    """Each value in a comment that lists choices is accepted, and the list is whole."""
    for key, table in (("modality", "data"), ("intensity", "preprocessing"), ("optimizer", "training")):
        (comment,) = re.findall(rf"^#? ?{key} = .*# (.*)$", TEMPLATE, re.MULTILINE)
        named = set(re.findall(r"[A-Za-z-]+", comment.split(";")[0])) - {"or"}
        field = RunConfig.model_fields[table].annotation.model_fields[key]  # type: ignore[union-attr]
        assert named == set(field.annotation.__args__)
