"""A table of several kinds: the key decides, and only that kind's keys are known."""

from typing import Annotated, Literal

import pytest

from common.config import canonical, from_canonical, parse
from common.document.choice import OneOf
from common.document.table import Count, Table
from common.errors import ConfigError


class Animal(Table):
    kind: str
    legs: Count = 4


class Cat(Animal):
    kind: Literal["cat"] = "cat"
    lives: Count = 9


class Hen(Animal):
    kind: Literal["hen"] = "hen"
    legs: Count = 2
    eggs_a_week: Count


class Farm(Table):
    animal: Annotated[Animal, OneOf("kind", (Cat, Hen))] = Cat()
    second: Annotated[Animal, OneOf("kind", (Cat, Hen))] | None = None


def refused(text: str) -> str:
    with pytest.raises(ConfigError) as raised:
        parse(Farm, text, "farm.toml")
    return str(raised.value)


def test_the_key_says_which_kind_it_is() -> None:
    assert parse(Farm, '[animal]\nkind = "hen"\neggs-a-week = 5\n').animal == Hen(eggs_a_week=5)


def test_without_the_key_it_is_the_first_kind() -> None:
    assert parse(Farm, "[animal]\nlives = 7\n").animal == Cat(lives=7)
    assert parse(Farm, "").animal == Cat()


@pytest.mark.parametrize("text", ["", '[animal]\nkind = "hen"\neggs-a-week = 5\n', "[second]\nlives = 1\n"])
def test_canonical_text_gives_back_the_same_kind(text: str) -> None:
    farm = parse(Farm, text)
    assert from_canonical(Farm, canonical(farm)) == farm


def test_code_may_hand_in_a_table_that_is_made_already() -> None:
    assert Farm(animal=Hen(eggs_a_week=1)).animal == Hen(eggs_a_week=1)


@pytest.mark.parametrize("table", ["animal", "second"])
@pytest.mark.parametrize(
    ("body", "why"),
    [
        ('kind = "dog"', """T.kind is "dog", must be 'cat', 'hen'; this version has no other."""),
        ("kind = 3", """T.kind is "3", must be 'cat', 'hen'; this version has no other."""),
        ("lives = 0", "T.lives is 0, must be at least 1."),
        ("live = 1", "unknown key 'T.live'. Did you mean 'lives'? Remove or correct it."),
        ('kind = "hen"', "T.eggs-a-week is not there, and has no default."),
        ('kind = "hen"\neggs-a-week = 1\neggs = 2', "unknown key 'T.eggs'. Did you mean 'legs'? Remove or correct it."),
        ('kind = "cat"\neggs_a_week = 1', "unknown key 'T.eggs_a_week'. 'eggs-a-week' stands in [animal]"),
    ],
)
def test_faults_are_told_by_the_names_in_the_file(table: str, body: str, why: str) -> None:
    told = refused(f"[{table}]\n{body}\n")
    assert "cat.lives" not in told
    if "stands in" in why:
        assert told.startswith("farm.toml: unknown key")
    else:
        assert why.replace("T.", f"{table}.") in told


def test_what_is_no_table_is_refused() -> None:
    assert refused("animal = 3") == "farm.toml: animal is 3, must be a table."
