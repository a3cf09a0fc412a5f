"""What is sealed opens with its key, under its name, as it was; anything else does not open."""

import io
import json
from collections.abc import Callable

import numpy as np
import pytest
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from common.crypto.stream import Sealer, new_header, read_header, seal, seal_parts, unseal_parts
from common.errors import ConfigError

KEY = bytes(range(32))
HEADER, CHUNK, TAG = 24, 2**20, 16  # as the module's docstring says
SEALED = CHUNK + TAG
SEALER = Sealer(KEY).at("run 7")


def payload(length: int = 2 * CHUNK + 12345) -> bytes:
    return np.random.default_rng(length).bytes(length)


@pytest.mark.parametrize("length", [0, 1, CHUNK - 1, CHUNK, CHUNK + 1, 2 * CHUNK, 2 * CHUNK + 12345])
def test_what_opens_is_what_was_sealed(length: int) -> None:
    sealed = SEALER.seal(payload(length), "model")
    assert SEALER.open(sealed, "model") == payload(length)
    assert length < 32 or payload(length)[:32] not in sealed


def test_it_opens_with_what_the_format_says() -> None:
    sealed = SEALER.seal(payload(), "model")
    header, body = sealed[:HEADER], sealed[HEADER:]
    info = b"wardround sealer v1: " + json.dumps(["run 7", "model"]).encode()
    key = HKDF(SHA256(), length=32, salt=header[8:], info=info).derive(KEY)
    chunks = [body[start : start + SEALED] for start in range(0, len(body), SEALED)]
    plain = [
        AESGCM(key).decrypt(index.to_bytes(11, "big") + bytes([index == 2]), chunk, header)
        for index, chunk in enumerate(chunks)
    ]
    assert b"".join(plain) == payload()


def _parts(data: bytes) -> list[bytes]:
    return [data[:HEADER], *(data[start : start + SEALED] for start in range(HEADER, len(data), SEALED))]


def _flip(position: int) -> Callable[[bytes], bytes]:
    def change(data: bytes) -> bytes:
        at = position % len(data)
        return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]

    return change


DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "magic": _flip(0),
    "salt": _flip(8),
    "first chunk": _flip(HEADER),
    "last tag": _flip(-1),
    "chunks swapped": lambda data: b"".join(_parts(data)[index] for index in (0, 2, 1, 3)),
    "last chunk gone": lambda data: b"".join(_parts(data)[:-1]),
    "last byte gone": lambda data: data[:-1],
    "a byte more": lambda data: data + b"\0",
    "last chunk twice": lambda data: data + _parts(data)[-1],
    "header only": lambda data: data[:HEADER],
    "half a header": lambda data: data[:11],
    "empty": lambda _: b"",
    "plain": lambda _: payload(),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES.keys())
def test_altered_bytes_do_not_open(damage: Callable[[bytes], bytes]) -> None:
    with pytest.raises(ConfigError, match="run 7, model does not open: it is damaged"):
        SEALER.open(damage(SEALER.seal(payload(), "model")), "model")


@pytest.mark.parametrize(
    ("sealer", "name"),
    [
        (SEALER, "manifest"),
        (Sealer(KEY).at("run 8"), "model"),
        (Sealer(KEY), "model"),
        (SEALER.at("model"), ""),
        (Sealer(KEY).at("run"), " 7model"),
        (Sealer(bytes(32)).at("run 7"), "model"),
    ],
)
def test_another_name_place_or_key_does_not_open(sealer: Sealer, name: str) -> None:
    with pytest.raises(ConfigError, match="does not open"):
        sealer.open(SEALER.seal(b"weights", "model"), name)


def test_no_two_sealed_payloads_share_a_key() -> None:
    assert len({SEALER.seal(bytes(64), "model")[HEADER:] for _ in range(8)}) == 8


def test_key_is_in_no_repr() -> None:
    assert KEY.hex() not in repr(SEALER)
    assert str(KEY) not in repr(SEALER)


@pytest.mark.parametrize("size", [0, 1, CHUNK - 1, CHUNK, CHUNK + 1, 2 * CHUNK])
def test_payload_in_parts_is_sealed_as_a_whole_one_is(size: int) -> None:
    header, whole = new_header(b"WRTESTED"), payload(size)
    parts = [whole[start : start + 70_000] for start in range(0, size, 70_000)]
    sealed = b"".join(seal_parts(header, KEY, parts, b"here"))
    assert sealed == b"".join(seal(header, KEY, whole, b"here"))
    file = io.BytesIO(sealed)
    assert b"".join(unseal_parts(read_header(file, b"WRTESTED"), KEY, file, b"here")) == whole


@pytest.mark.parametrize("kept", [CHUNK + 16, CHUNK + 15, 16, 0, 2 * CHUNK + 32])
def test_payload_in_parts_that_is_cut_or_of_elsewhere_does_not_open(kept: int) -> None:
    header = new_header(b"WRTESTED")
    sealed = b"".join(seal_parts(header, KEY, [bytes(2 * CHUNK)], b"here"))[: 24 + kept]
    file = io.BytesIO(sealed)
    with pytest.raises(InvalidTag):
        list(unseal_parts(read_header(file, b"WRTESTED"), KEY, file, b"here" if kept < 2 * CHUNK else b"there"))
