"""The evidence of the pages on security and reliability is there: each threat names a control, and each test exists."""

import ast
import re
from functools import lru_cache

import pytest

from tests import ROOT

PAGE = (ROOT / "docs" / "security.md").read_text(encoding="utf-8")
LETTERS = "STRIDE"
TABLE = PAGE.partition("## Threats, controls and tests")[2].partition("\n## ")[0]
ROWS = [
    tuple(cell.strip() for cell in line.strip("|").split("|"))
    for line in TABLE.splitlines()
    if line.startswith("|") and line[2:3] in LETTERS
]
RELIABILITY = (ROOT / "docs" / "reliability.md").read_text(encoding="utf-8")
NAMED = sorted(set(re.findall(r"tests/[\w/]+\.py(?:::\w+)?", PAGE + RELIABILITY)))


def test_table_has_thirty_rows_of_all_six_kinds() -> None:
    assert len(ROWS) >= 30
    assert {row[0] for row in ROWS} == set(LETTERS)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row[1])
def test_every_threat_has_a_control_and_one_test(row: tuple[str, ...]) -> None:
    letter, threat, control, test = row
    assert letter in LETTERS
    assert threat
    assert control
    assert re.fullmatch(r"`tests/[\w/]+\.py::test_\w+`", test), test


@pytest.mark.parametrize("name", NAMED)
def test_named_test_exists_and_is_not_skipped_for_good(name: str) -> None:
    path, _, function = name.partition("::")
    tests = _tests(path)
    assert tests, f"{path} has no test"
    if function:
        assert function in tests, f"{path} has no {function}"
        assert not tests[function] & {"skip", "xfail"}


def test_no_threat_is_listed_twice() -> None:
    threats = [row[1] for row in ROWS]
    assert len(threats) == len(set(threats))


@pytest.mark.parametrize("part", ["Who trusts whom", "What is not covered", "See for yourself", "GDPR and HIPAA"])
def test_page_says_what_an_officer_asks(part: str) -> None:
    assert f"\n## {part}\n" in PAGE


@lru_cache
def _tests(path: str) -> dict[str, set[str]]:
    """Tests of a file by name, with the names in their decorators; the syntax tree is read, nothing is run."""
    tree = ast.parse((ROOT / path).read_text(encoding="utf-8"))
    return {
        node.name: {
            one.attr for part in node.decorator_list for one in ast.walk(part) if isinstance(one, ast.Attribute)
        }
        for node in tree.body
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")
    }
