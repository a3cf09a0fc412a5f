"""What can be written into a log, and what cannot whatever one tries."""

import json
import math
import re
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.audit.entries import (
    KINDS,
    RECEIPT,
    Entry,
    bucketed,
    canonical,
    check,
    check_site,
    decimal_text,
    parse_canonical,
)
from common.errors import AuditError, ErrorCode
from tests import ROOT

HASH = "ab" * 32
NAUGHTY = [
    "Mueller^Hans", "mueller hans", "1.2.840.113619.2.55", "/data/patient7/1.dcm", "C:\\scans", "a@b.example", "", "-a",
    "x" * 64, "AB" * 32, HASH[:-1], HASH + "\n", "patient\u00e4", 1, -1, 1.5, True, None, ["a"], {"a": "b"},
    b"abc", 2**53,
]  # fmt: skip


def fields_of(specification):
    return {name.removeprefix("?") for name in specification.split()}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("text", ["Mueller^Hans", "/data/patient7/1.dcm", "1.2.840.113619.2.55.3", "PatientID: 4711"])
def test_no_kind_has_a_field_that_takes_free_text(kind, text):
    for name in fields_of(KINDS[kind]) | fields_of(RECEIPT):
        with pytest.raises(AuditError) as caught:
            check(kind, {name: text})
        assert text not in str(caught.value)


@pytest.mark.parametrize("kind", KINDS)
def test_no_kind_takes_a_field_that_is_not_its_own(kind):
    with pytest.raises(AuditError):
        check(kind, {"comment": "seen Mr Mueller"})


def test_every_kind_and_field_is_documented():
    document = (ROOT / "docs" / "audit.md").read_text(encoding="utf-8")
    named = set(re.findall(r"`([a-z-]+)`", document))
    assert set(KINDS) <= named
    assert set().union(*map(fields_of, KINDS.values())) | fields_of(RECEIPT) <= named


def test_an_unknown_kind_is_refused():
    with pytest.raises(AuditError, match="no entries of kind"):
        check("remark", {})


@pytest.mark.parametrize("value", NAUGHTY)
def test_a_hash_is_64_small_hex_digits(value):
    with pytest.raises(AuditError):
        check("policy-changed", {"policy": value})


@pytest.mark.parametrize("value", NAUGHTY)
def test_a_code_is_on_the_closed_list(value):
    check("refusal", {"code": "no-data"})
    with pytest.raises(AuditError):
        check("refusal", {"code": value})


@pytest.mark.parametrize("code", ErrorCode)
def test_every_code_can_be_recorded(code):
    assert b"code" in Entry(0, 0, "refusal", {"code": str(code)}).to_bytes()
    check("refusal", {"code": str(code)})


@pytest.mark.parametrize("patients", [0, 1, 5, 9, 11, 37, 151, "20", 20.0, True, -10])
def test_an_exact_or_small_count_cannot_be_written(patients):
    with pytest.raises(AuditError):
        check("data-added", {"patients": patients})


@pytest.mark.parametrize("patients", [10, 15, 20, 35, 50, 100, 5_000_000])
def test_a_bucket_can_be_written(patients):
    check("data-added", {"patients": patients})


@given(st.integers(0, 10_000_000))
def test_a_bucket_is_the_nearest_multiple_of_five_and_at_least_ten(patients):
    rounded = bucketed(patients)
    assert rounded == max(10, 5 * round(patients / 5))


@given(st.floats(0, 1e6, allow_subnormal=False).filter(lambda value: value == 0 or value > 1e-12))
def test_a_cost_is_written_in_plain_digits_and_never_too_small(value):
    text = decimal_text(value)
    check("spend", {"run": HASH, "round": 1, "epsilon": text, "delta": text})
    assert Fraction(repr(value)) <= Fraction(text)
    assert math.isclose(Fraction(text), value, rel_tol=1.1e-5)


@pytest.mark.parametrize("text", ["1e-5", "01", "1.50", ".5", "1.", "-1", "inf", "nan", "1,5", 0.5])
def test_a_cost_has_one_form(text):
    with pytest.raises(AuditError):
        check("spend", {"run": HASH, "round": 1, "epsilon": text, "delta": "0.00001"})


def test_a_hospital_can_name_only_itself():
    check_site("site/north", {"site": "north"})
    check_site("coordinator", {"site": "south"})
    for fields in ({"site": "hans-mueller"}, {"receipt": {"site": "south"}}):
        with pytest.raises(AuditError):
            check_site("site/north", fields)


def test_an_entry_survives_the_round_trip():
    entry = Entry(7, 1_790_000_000, "refusal", {"code": "no-data", "run": HASH, "round": 3})
    data = entry.to_bytes()
    assert data == (
        b'{"code":"no-data","kind":"refusal","round":3,"run":"%s","seq":7,"time":1790000000}' % HASH.encode()
    )
    assert Entry.from_bytes(data) == entry


@pytest.mark.parametrize(
    "data",
    [
        b"", b"[]", b"7", b"nothing", b'{"kind":"data-forgotten","seq":0}',
        b'{"kind":"data-forgotten","seq":0,"time":-1}',
        b'{"kind":"data-forgotten","seq":0,"time":1.0}', b'{"kind":"data-forgotten","seq":true,"time":1}',
        b'{"kind":"data-forgotten", "seq":0,"time":1}', b'{"seq":0,"kind":"data-forgotten","time":1}',
        b'{"kind":"data-forgotten","seq":0,"seq":0,"time":1}', b'{"kind":"data-forgotten","seq":0,"time":1}\n',
        b'{"kind":["data-forgotten"],"seq":0,"time":1}', b'{"kind":"data-forgotten","seq":0,"time":NaN}', b"\xff\xfe",
        b'{"a":' * 2000, b"[" * 5000, b"1" * 6000, b'{"kind":"data-forgotten","seq":0,"time":' + b"1" * 5000 + b"}",
    ],
)  # fmt: skip
def test_anything_but_the_canonical_bytes_is_refused(data):
    with pytest.raises(AuditError):
        Entry.from_bytes(data)


@given(st.dictionaries(st.text(), st.integers(0, 2**53) | st.text(), max_size=5))
def test_canonical_json_is_plain_ascii_json_and_is_read_back(values):
    data = canonical(values)
    assert json.loads(data.decode("ascii")) == values
    assert parse_canonical(data) == values
