"""The reference names every key with its type, range, default and format, and the page in docs is the one it makes."""

import json
import re
import tomllib

import pytest
from click.testing import Result
from typer.testing import CliRunner

from server.commands.template import TEMPLATE
from simulations.commands import settings
from simulations.commands.main import app
from tests import ROOT
from tests.json_forms import conforms


def sim(*arguments: str) -> Result:
    return CliRunner().invoke(app, list(arguments))


def one(place: str, kind: str | None = None) -> settings.Key:
    (found,) = [
        key for key in settings.all_keys(place) if (key.place, key.kind, key.document) == (place, kind, "run.toml")
    ]
    return found


def test_page_is_the_one_that_the_tables_make() -> None:
    """If it is not: wardround-sim reference --page docs/reference.md"""
    assert (ROOT / "docs" / "reference.md").read_text(encoding="utf-8") == settings.page()


@pytest.mark.parametrize("asked", ["clahe", "preprocessing.steps.clahe"])
def test_the_keys_of_a_kind_are_found_by_its_name(asked: str) -> None:
    assert [key.place.rpartition(".")[2] for key in settings.all_keys(asked)] == ["kind", "clip-limit", "tiles"]


def test_every_key_of_a_new_run_is_in_it() -> None:
    """The template is written by hand, each key on a line of its own, most of them commented out."""
    places = {key.place for key in settings.all_keys() if key.document == "run.toml"}
    table, found = "", set()
    for line in TEMPLATE.splitlines():
        if (heading := re.match(r"(?:# )?\[([a-z.-]+)\]", line)) is not None:
            table = f"{heading[1]}."
        elif (key := re.match(r"(?:# )?([a-z0-9-]+) = ", line)) is not None:
            found.add(f"{table}{key[1]}")
    assert len(found) > 40
    assert found - places == set()


@pytest.mark.parametrize(
    ("place", "kind", "type_", "default", "since", "beginning"),
    [
        ("training.learning-rate", None, "number, above 0", "0.001", 1, ""),
        ("training.schedule", None, 'one of `"cosine"`, `"poly"`, `"constant"`', '"cosine"', 1, "Over the whole run"),
        (
            "training.patch-size",
            None,
            "list of whole numbers, at least 1, at most 8192",
            None,
            1,
            "Crop size in voxels",
        ),
        (
            "training.warmup-steps",
            None,
            "whole number, at least 0, at most 1000000000000000",
            "0",
            2,
            "Steps of the run",
        ),
        ("training.momentum", None, "number, at least 0, below 1", "0.9", 1, ""),
        ("model.residual-units", "unet", "whole number, at least 0, at most 4", "1", 1, ""),
        ("initial.sha256", None, "64 hexadecimal digits", None, 1, "Of the weights' file, hex"),
        ("deterministic", None, "true or false", "false", 1, "Bit-equal results"),
    ],
)
def test_a_key_is_told_in_words(  # noqa: PLR0917 - one argument a column
    place: str, kind: str | None, type_: str, default: str | None, since: int, beginning: str
) -> None:
    key = one(place, kind)
    assert (key.type, key.default, key.since) == (type_, default, since)
    assert key.meaning.startswith(beginning)


def test_defaults_are_toml() -> None:
    for key in settings.all_keys():
        if key.default not in (None, "-", "its own"):
            tomllib.loads(f"x = {key.default}")


def test_the_command_shows_a_table_and_names_what_is_near() -> None:
    done = sim("reference", "privacy", "--json")
    assert done.exit_code == 0, done.output
    rows = json.loads(done.stdout)
    conforms("wardround-sim reference", rows)
    assert {"privacy.target-epsilon", "privacy.adaptive-clipping.quantile"} <= {row["key"] for row in rows}
    missed = sim("reference", "training.learning-rat")
    assert missed.exit_code == 1
    assert "training.learning-rate" in missed.output


def test_list_without_a_table_names_them() -> None:
    done = sim("list", "--json")
    assert done.exit_code == 0, done.output
    assert {"networks", "losses", "backends"} <= {row["what"] for row in json.loads(done.stdout)}
