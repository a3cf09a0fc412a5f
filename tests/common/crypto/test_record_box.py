"""What is sealed for one place opens there alone."""

import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from common.crypto.derivation import derived
from common.crypto.record_box import RecordBox

KEY = bytes(range(32))


def test_sealed_bytes_open_as_the_docstring_says():
    sealed = RecordBox(KEY, "things").seal(b"a secret", b"shelf 1")
    key = HKDF(SHA256(), length=32, salt=None, info=b"wardround things v1: encryption").derive(KEY)
    assert AESGCM(key).decrypt(sealed[:12], sealed[12:], b"shelf 1") == b"a secret"
    assert len(sealed) == len(b"a secret") + 28
    assert b"secret" not in sealed


@pytest.mark.parametrize(
    ("key", "purpose", "context"),
    [(bytes(32), "things", b"shelf 1"), (KEY, "thing", b"shelf 1"), (KEY, "things", b"shelf 2"), (KEY, "things", b"")],
)
def test_another_site_purpose_or_place_opens_nothing(key, purpose, context):
    sealed = RecordBox(KEY, "things").seal(b"a secret", b"shelf 1")
    assert RecordBox(KEY, "things").unseal(sealed, b"shelf 1") == b"a secret"
    with pytest.raises(ValueError, match="do not open"):
        RecordBox(key, purpose).unseal(sealed, context)


@pytest.mark.parametrize("length", range(0, 36, 5))
def test_parts_do_not_open(length):
    safe = RecordBox(KEY, "things")
    with pytest.raises(ValueError):  # noqa: PT011 -- of the library where the nonce is too short
        safe.unseal(safe.seal(b"a secret", b"")[:length], b"")


def test_the_same_bytes_are_sealed_differently_each_time():
    safe = RecordBox(KEY, "things")
    assert len({safe.seal(b"", b"")[:12] for _ in range(100)}) == 100


def test_names_follow_from_key_purpose_and_each_part():
    names = [
        RecordBox(key, purpose).name(*parts)
        for key in (KEY, bytes(32))
        for purpose in ("things", "others")
        for parts in (("a", "b"), ("ab",), ("a", "b", ""), ("a", 1), ("a", "1"), ())
    ]
    assert len(set(names)) == len(names)
    assert {len(name) for name in names} == {32}
    assert RecordBox(KEY, "things").name("a", 1) == RecordBox(KEY, "things").name("a", 1)


def test_every_use_has_a_key_of_its_own_and_none_is_the_sites():
    keys = {derived(KEY, purpose, use, salt) for purpose in "ab" for use in "cd" for salt in (b"", b"salt")}
    assert len(keys | {KEY}) == 9
