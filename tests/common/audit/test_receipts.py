"""Receipts: what stands in them, and that neither side can change one afterwards."""

import base64

import pytest

from common.audit import receipts
from common.audit.receipts import Receipt
from common.errors import AuditError
from tests.common.audit.federation import RUN, Federation


@pytest.fixture(scope="module")
def federation(tmp_path_factory):
    return Federation(tmp_path_factory.mktemp("logs"), "north", "south")


@pytest.fixture(scope="module")
def signed(federation):
    receipt = federation.receipt("north", 3)
    signature = receipts.sign(receipt, federation.private["north"])
    counter = receipts.countersign(receipt, signature, federation.public["north"], federation.private["coordinator"])
    return receipt, signature, counter


def test_a_receipt_survives_the_round_trip(signed):
    receipt = signed[0]
    assert Receipt.from_bytes(receipt.to_bytes()) == receipt
    assert Receipt.from_fields(receipt.to_fields()) == receipt


def test_the_bytes_are_the_documented_ones(federation):
    # SHA-256 of "model" and "north 3", by coreutils' sha256sum.
    received, update = (
        "9372c470eeadd5ecd9c3c74c2b3cb633f8e2f2fad799250a0f70d652b6b825e4",
        "c30106a61024e3013c6fdb8ecca213a0917b1e55022c0a2b0763b467913441f8",
    )
    assert federation.receipt("north", 3, time=1_790_000_123).to_bytes().decode() == (
        f'{{"delta":"0.00001","epsilon":"0.25","minute":1790000100,"patients":35,"policy":"{"2e" * 32}",'
        f'"received":"{received}","round":3,"run":"{"1f" * 32}","site":"north","size":7,"update":"{update}"}}'
    )


def test_a_count_that_did_not_leave_is_left_out(federation):
    assert b"patients" not in federation.receipt("north", 1, patients=0).to_bytes()


@pytest.mark.parametrize("patients", [1, 9, 37])
def test_an_exact_count_cannot_be_signed(federation, patients):
    with pytest.raises(AuditError):
        federation.receipt("north", 1, patients=patients)


def test_without_privacy_there_is_no_epsilon(federation):
    fields = federation.receipt("north", 1, spent=None).to_fields()
    assert not {"epsilon", "delta"} & fields.keys()


def test_the_time_is_a_minute(federation):
    assert federation.receipt("north", 1, time=1_790_000_123.9).minute == 1_790_000_100


@pytest.mark.parametrize(
    "change",
    [
        {"patients": 9}, {"patients": 37}, {"site": "Hans Mueller"}, {"run": "x"}, {"round": -1}, {"minute": 61},
        {"epsilon": "1e-3"}, {"update": ""}, {"size": 1.5}, {"policy": None}, {"received": "AB" * 32},
    ],
)  # fmt: skip
def test_a_receipt_with_another_value_cannot_be_made(signed, change):
    fields = signed[0].to_fields() | change
    with pytest.raises(AuditError):
        Receipt(**fields)


@pytest.mark.parametrize("data", [b"", b"{}", b"[]", b"null", b'{"run": "x"}'])
def test_bytes_that_are_no_receipt_are_refused(data):
    with pytest.raises(AuditError):
        Receipt.from_bytes(data)


def test_an_added_field_is_refused(signed):
    with pytest.raises(AuditError, match="unknown field"):
        Receipt.from_fields(signed[0].to_fields() | {"remark": "seen Mr Mueller"})


def test_both_signatures_are_right(federation, signed):
    assert receipts.is_signed_by_site(signed[0], signed[1], federation.public["north"])
    assert receipts.is_countersigned(signed[0], signed[1], signed[2], federation.public["coordinator"])


@pytest.mark.parametrize(
    "change",
    [
        {"round": 4}, {"epsilon": "0.26"}, {"update": "00" * 32}, {"patients": 50}, {"patients": None}, {"size": 8},
        {"site": "south"}, {"minute": 1_790_003_700}, {"delta": "0.1"}, {"policy": RUN}, {"received": RUN},
        {"run": "00" * 32},
    ],
)  # fmt: skip
def test_no_field_can_be_changed_afterwards(federation, signed, change):
    receipt, signature, counter = signed
    fields = {name: value for name, value in (receipt.to_fields() | change).items() if value is not None}
    changed = Receipt.from_fields(fields)
    assert not receipts.is_signed_by_site(changed, signature, federation.public["north"])
    assert not receipts.is_countersigned(changed, signature, counter, federation.public["coordinator"])


def test_a_signature_by_another_is_refused(federation, signed):
    receipt, signature, counter = signed
    assert not receipts.is_signed_by_site(receipt, signature, federation.public["south"])
    assert not receipts.is_countersigned(receipt, signature, counter, federation.public["north"])
    with pytest.raises(AuditError, match="not signed with its key"):
        receipts.countersign(receipt, signature, federation.public["south"], federation.private["coordinator"])


def test_one_signature_does_not_stand_for_the_other(federation, signed):
    """Even a party that is both sides signs two different texts."""
    receipt, signature, _ = signed
    assert not receipts.is_countersigned(receipt, signature, signature, federation.public["north"])


def test_the_coordinators_signature_covers_the_hospitals(federation, signed):
    receipt, signature, counter = signed
    other = bytes([signature[0] ^ 1]) + signature[1:]
    assert not receipts.is_countersigned(receipt, other, counter, federation.public["coordinator"])


def test_entries_hold_the_receipt_and_its_signatures(signed):
    receipt, signature, counter = signed
    fields = receipts.entry_fields(receipt, signature, counter)
    assert Receipt.from_fields(fields["receipt"]) == receipt
    assert base64.b64decode(fields["signature"]) == signature
    assert base64.b64decode(fields["countersignature"]) == counter
    assert "countersignature" not in receipts.entry_fields(receipt, signature)
