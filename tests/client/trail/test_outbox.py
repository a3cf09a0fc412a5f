"""A parcel opens at the site that made it, for its run, whichever version of the program made it."""

import json
import os
import stat
import time
from hashlib import sha256
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from client.trail.outbox import KEPT_S, Outbox, Parcel
from common.audit.receipts import Receipt
from common.wire.messages import TrainReply

KEY = bytes(range(32))
RUN, OTHER = sha256(b"run").hexdigest(), sha256(b"other").hexdigest()
WEIGHTS = os.urandom(5000)
RECEIVED, POLICY = (sha256(name).hexdigest() for name in (b"received", b"policy"))
RECEIPT = Receipt(
    RUN, 3, "north", RECEIVED, update=sha256(WEIGHTS).hexdigest(), size=len(WEIGHTS), policy=POLICY, minute=60
)
PARCEL = Parcel(TrainReply(RUN, 3, {"weights": WEIGHTS}, 20, {"loss": 0.5}), RECEIPT, b"signature")


@pytest.fixture
def outbox(tmp_path: Path) -> Outbox:
    return Outbox(tmp_path / "outbox", KEY)


def test_parcel_is_found_as_it_was_kept_by_its_own_site_and_run_alone(outbox: Outbox) -> None:
    outbox.keep(PARCEL)
    assert outbox.find(RUN) == PARCEL
    assert outbox.find(OTHER) is None
    assert Outbox(outbox.folder, bytes(32)).find(RUN) is None
    (outbox.folder / RUN).rename(outbox.folder / OTHER)
    assert outbox.find(OTHER) is None
    assert stat.S_IMODE((outbox.folder / OTHER).stat().st_mode) == 0o600


def test_parcel_of_several_parts_comes_back_part_by_part(outbox: Outbox) -> None:
    parts = {"weights": WEIGHTS, "": b"", "control": WEIGHTS[::-1]}
    kept = Parcel(TrainReply(RUN, 3, parts, 20), RECEIPT, b"signature")
    outbox.keep(kept)
    assert outbox.find(RUN) == kept


def test_parcel_that_an_earlier_version_kept_is_found(outbox: Outbox) -> None:
    """As it was written before sealing stood in one room."""
    head = {"receipt": RECEIPT.to_fields(), "signature": "c2lnbmF0dXJl", "patients": 20, "metrics": {"loss": 0.5}}
    text = json.dumps(head).encode()
    plain = len(text).to_bytes(4, "big") + text + WEIGHTS
    key = HKDF(SHA256(), 32, None, b"wardround outbox v1").derive(KEY)
    nonce = os.urandom(12)
    outbox.folder.mkdir()
    (outbox.folder / RUN).write_bytes(nonce + AESGCM(key).encrypt(nonce, plain, RUN.encode()))
    assert outbox.find(RUN) == PARCEL


@pytest.mark.parametrize("length", [0, 5, 12, 40, 1000])
def test_cut_off_parcel_is_none(outbox: Outbox, length: int) -> None:
    outbox.keep(PARCEL)
    path = outbox.folder / RUN
    path.write_bytes(path.read_bytes()[:length])
    assert outbox.find(RUN) is None


def test_what_a_crash_left_of_a_parcel_does_not_stay_for_ever(outbox: Outbox) -> None:
    outbox.keep(PARCEL)
    left = outbox.folder / f".{RUN}.0123456789abcdef"
    left.write_bytes(WEIGHTS)
    old = time.time() - KEPT_S - 60
    for path in (left, outbox.folder / RUN):
        os.utime(path, (old, old))
    outbox.drop_old([RUN])
    assert list(outbox.folder.iterdir()) == [outbox.folder / RUN]
