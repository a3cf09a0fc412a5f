"""What is written is read back by tomllib, and what a person wrote stays as it was."""

import tomllib
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.document.tomlfile import to_toml, with_entry, without_entry
from common.errors import ConfigError

_TEXTS = st.text(st.characters(codec="utf-8"), max_size=8)
_PLAIN = st.one_of(_TEXTS, st.integers(-(2**63), 2**63 - 1), st.booleans(), st.floats(allow_nan=False))
_VALUES = st.recursive(
    st.one_of(_PLAIN, st.lists(_PLAIN, max_size=3)),
    lambda inner: st.one_of(
        st.dictionaries(_TEXTS, inner, max_size=3), st.lists(st.dictionaries(_TEXTS, inner, max_size=3), max_size=3)
    ),
    max_leaves=12,
)
WRITTEN = """\
# Ours, since 2024.
name   = "north"    # not "North"

[[data]]
path = "/first"  # [[data]]

[data.label-map]
1 = "lesion"
"""


@given(st.dictionaries(_TEXTS, _VALUES, max_size=5))
def test_what_is_written_is_what_is_read(values: dict[str, Any]) -> None:
    assert tomllib.loads(to_toml(values)) == values


@pytest.mark.parametrize(
    "text",
    [
        'name = "north"',
        WRITTEN,
        f"{WRITTEN}\n[other]\nkey = 1\n",
        'name = "north"\ndata = [{ path = "/first" }]  # in one line\n',
    ],
)
@pytest.mark.parametrize("values", [{"path": "/x"}, {"path": 'a "b"\x7f', "label-map": {"1": "x", "a b": "y"}}])
def test_entry_is_added_and_taken_out_and_the_rest_stays_byte_for_byte(text: str, values: dict[str, Any]) -> None:
    before = tomllib.loads(text)
    grown = with_entry(text, "data", values)
    after = tomllib.loads(grown)
    assert after == before | {"data": [*before.get("data", []), values]}
    assert without_entry(grown, "data", len(after["data"]) - 1) == text.rstrip() + "\n"


def test_entry_is_taken_out_of_the_middle() -> None:
    text = with_entry(with_entry(WRITTEN, "data", {"path": "/second"}), "data", {"path": "/third"})
    left = without_entry(text, "data", 1)
    assert left == with_entry(WRITTEN, "data", {"path": "/third"})


@pytest.mark.parametrize("index", [1, 5])
def test_entry_that_is_not_there_is_refused(index: int) -> None:
    with pytest.raises(ConfigError, match="by hand"):
        without_entry(WRITTEN.replace("/first", '/first"\n[[data]]\npath = "/2'), "data", index + 1)


def test_other_values_of_that_name_are_refused() -> None:
    with pytest.raises(ConfigError, match="by hand"):
        with_entry('data = "text"\n', "data", {"path": "/x"})
