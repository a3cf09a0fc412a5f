"""Signed checkpoints: the form is the published one, and only one text stands for one statement."""

import base64

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from common.audit import notes
from common.audit.notes import Checkpoint, Head
from common.errors import AuditError

KEY = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
PUBLIC = notes.public_bytes(KEY)
PLAIN = Checkpoint("coordinator", 1042, bytes(range(32)), 1_790_000_000)
SEEING = Checkpoint("site/north-clinic", 7, bytes(range(32)), 1_790_000_000, Head(311, b"\7" * 32))


@pytest.mark.parametrize("checkpoint", [PLAIN, SEEING, Checkpoint("site/a", 0, bytes(32), 0)])
def test_a_checkpoint_survives_the_round_trip(checkpoint):
    note = notes.sign(checkpoint, KEY)
    assert notes.read(note, PUBLIC) == notes.peek(note) == checkpoint


def test_the_text_is_the_documented_one():
    text, signature = notes.sign(SEEING, KEY).split("\n\n")
    assert text.split("\n") == [
        "site/north-clinic",
        "7",
        "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=",
        "time 1790000000",
        "seen 311 BwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwc=",
    ]
    assert signature.startswith("\u2014 site/north-clinic ")
    assert signature.endswith("\n")


def test_key_ids_and_signatures_are_those_of_signed_notes():
    """The example of Go's golang.org/x/mod/sumdb/note, made by another implementation."""
    name, key_id = "PeterNeumann", "c74f20a3"
    public_key = base64.b64decode("ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW")[1:]
    text = "If you think cryptography is the answer to your problem,\nthen you don't know what your problem is.\n"
    blob = base64.b64decode(
        "x08go/ZJkuBS9UG/SffcvIAQxVBtiFupLLr8pAcElZInNIuGUgYN1FFYC2pZSNXgKvqfqdngotpRZb6KE6RyyBwJnAM="
    )
    assert notes.key_id(name, public_key).hex() == key_id == blob[:4].hex()
    assert notes.is_signed(text.encode(), blob[4:], public_key)
    assert not notes.is_signed(text.encode() + b"\n", blob[4:], public_key)


def test_another_key_is_refused():
    other = Ed25519PrivateKey.generate()
    with pytest.raises(AuditError, match="not signed with the key"):
        notes.read(notes.sign(PLAIN, other), PUBLIC)


def test_a_key_of_no_use_is_refused():
    with pytest.raises(AuditError):
        notes.read(notes.sign(PLAIN, KEY), b"")


@pytest.mark.parametrize("checkpoint", [PLAIN, SEEING])
def test_no_byte_of_a_checkpoint_can_be_changed(checkpoint):
    note = notes.sign(checkpoint, KEY).encode()
    for place in range(len(note)):
        for bit in (1, 4, 0x20):
            changed = note[:place] + bytes([note[place] ^ bit]) + note[place + 1 :]
            with pytest.raises(AuditError):
                notes.read(changed.decode(errors="replace"), PUBLIC)


def test_a_signature_of_one_origin_is_not_one_of_another():
    note = notes.sign(Checkpoint("site/a", 1, bytes(32), 5), KEY).replace("site/a", "site/b")
    with pytest.raises(AuditError):
        notes.read(note, PUBLIC)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("1042", "01042"), ("1042", "-1042"), ("coordinator", "Coordinator"), ("coordinator", "site/"), ("\n\n", "\n"),
        ("time", "Time"), ("1790000000\n", "1790000000\nhello\n"), ("\u2014", "-"),
        ("1042", "1" * 20),
    ],
)  # fmt: skip
def test_another_form_is_refused(old, new):
    with pytest.raises(AuditError):
        notes.peek(notes.sign(PLAIN, KEY).replace(old, new))


def test_two_base64_texts_of_the_same_bytes_are_not_both_accepted():
    assert base64.b64decode("Hh8=") == base64.b64decode("Hh9=")
    with pytest.raises(AuditError, match="canonical"):
        notes.peek(notes.sign(PLAIN, KEY).replace("Hh8=", "Hh9="))
    note = notes.sign(PLAIN, KEY)
    last = note[-3]
    with pytest.raises(AuditError, match="canonical"):
        notes.peek(note[:-3] + chr(ord(last) + 1) + "=\n")
