"""A vault's files open for who made them, as they were made, where they were made; otherwise not at all."""

import json
import logging
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from client.data.keep.vault import Vault
from tests.client.data.studies import KEY

HEADER, CHUNK, TAG = 56, 2**20, 16  # as the module's docstring says
SEALED = CHUNK + TAG
STAMP = bytes(range(100, 132))


def payload(length: int = 3 * CHUNK + 12345) -> bytes:
    """3 whole chunks and a part of one."""
    return np.random.default_rng(length).bytes(length)


@pytest.fixture
def vault() -> Vault:
    return Vault(KEY, "things")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "home" / "kept" / "one.thing"


@pytest.mark.parametrize("length", [0, 1, CHUNK - 1, CHUNK, CHUNK + 1, 2 * CHUNK, 3 * CHUNK + 12345])
def test_what_is_read_is_what_was_written(vault: Vault, path: Path, length: int) -> None:
    assert vault.read(path) is None
    vault.write(path, payload(length))
    assert vault.read(path) == bytearray(payload(length))


def test_file_opens_with_what_the_format_says(vault: Vault, path: Path) -> None:
    vault.write(path, payload(), STAMP)
    data = path.read_bytes()
    header, sealed = data[:HEADER], data[HEADER:]
    assert header[24:] == STAMP
    key = HKDF(SHA256(), length=32, salt=header[8:24], info=b"wardround things v1: encryption").derive(KEY)
    chunks = [sealed[start : start + SEALED] for start in range(0, len(sealed), SEALED)]
    assert len(chunks) == 4
    plain = b"".join(
        AESGCM(key).decrypt(index.to_bytes(11, "big") + bytes([index == 3]), chunk, header + b"kept/one.thing")
        for index, chunk in enumerate(chunks)
    )
    assert plain == payload()
    with pytest.raises(InvalidTag):  # the site key itself opens nothing
        AESGCM(KEY).decrypt(bytes(12), chunks[0], header + b"kept/one.thing")


def test_other_stamp_is_quietly_out_of_date(vault: Vault, path: Path, caplog: pytest.LogCaptureFixture) -> None:
    vault.write(path, payload(), STAMP)
    assert vault.read(path) is None
    assert caplog.records == []
    assert vault.read(path, STAMP) == bytearray(payload())


def _flip(position: int) -> Callable[[bytes], bytes]:
    def change(data: bytes) -> bytes:
        at = position % len(data)
        return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]

    return change


def _chunks(data: bytes) -> Iterator[bytes]:
    yield data[:HEADER]
    yield from (data[start : start + SEALED] for start in range(HEADER, len(data), SEALED))


def _swap(data: bytes) -> bytes:
    """Two whole chunks that hold nothing but pixels: only their order tells."""
    header, first, second, third, last = _chunks(data)
    return header + first + third + second + last


def _without(index: int) -> Callable[[bytes], bytes]:
    return lambda data: b"".join(part for number, part in enumerate(_chunks(data)) if number != index)


DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "magic flipped": _flip(0),
    "salt flipped": _flip(8),
    "first chunk flipped": _flip(HEADER),
    "middle of second chunk flipped": _flip(HEADER + SEALED + 4321),
    "last tag flipped": _flip(-1),
    "two chunks swapped": _swap,
    "first chunk gone": _without(1),
    "second chunk gone": _without(2),
    "last chunk gone": _without(4),
    "last byte gone": lambda data: data[:-1],
    "half of the last tag gone": lambda data: data[:-8],
    "header only": lambda data: data[:HEADER],
    "half a header": lambda data: data[:30],
    "empty": lambda data: data[:0],
    "a byte more": lambda data: data + b"\0",
    "last chunk twice": lambda data: data + list(_chunks(data))[-1],
    "zeros": lambda data: bytes(len(data)),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES.keys())
def test_damaged_file_is_not_there_and_says_so(
    vault: Vault, path: Path, damage: Callable[[bytes], bytes], caplog: pytest.LogCaptureFixture
) -> None:
    vault.write(path, payload(), STAMP)
    path.write_bytes(damage(path.read_bytes()))
    assert vault.read(path, STAMP) is None
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "damaged; its content is made again" in caplog.text
    vault.write(path, payload(), STAMP)
    assert vault.read(path, STAMP) == bytearray(payload())


@pytest.mark.parametrize("part", ["file", "chunk", "stamp"])
def test_parts_of_two_files_cannot_be_exchanged(vault: Vault, path: Path, part: str) -> None:
    other = path.with_name("two.thing")
    vault.write(path, payload(), STAMP)
    vault.write(other, bytes(len(payload())), bytes(32))
    ours, theirs = list(_chunks(path.read_bytes())), list(_chunks(other.read_bytes()))
    if part == "file":
        ours = theirs
    elif part == "chunk":
        ours[2] = theirs[2]
    else:
        ours[0] = ours[0][:24] + bytes(32)
    path.write_bytes(b"".join(ours))
    assert vault.read(path, bytes(32)) is None
    assert vault.read(path, STAMP) is None


@pytest.mark.parametrize("other", [Vault(b"x" * 32, "things"), Vault(KEY, "other")], ids=["site", "purpose"])
def test_another_site_and_another_purpose_open_nothing_and_name_otherwise(
    vault: Vault, path: Path, other: Vault
) -> None:
    vault.write(path, payload(), STAMP)
    assert other.read(path, STAMP) is None
    assert vault.name("a", 1) == Vault(KEY, "things").name("a", 1) != other.name("a", 1)
    assert vault.mac("a") != other.mac("a")


def test_same_payload_twice_is_not_the_same_file_and_tells_nothing(vault: Vault, path: Path) -> None:
    text = json.dumps({"patient": "SECRET"}).encode() * 1000
    files = []
    for _ in range(2):
        vault.write(path, text)
        files.append(path.read_bytes())
    assert files[0][HEADER : HEADER + 64] != files[1][HEADER : HEADER + 64]
    for data in files:
        assert b"SECRET" not in data
        assert np.bincount(np.frombuffer(data[HEADER:], np.uint8), minlength=256).max() < 200  # of 22,000 / 256


def test_files_and_folders_are_for_their_owner_only(vault: Vault, path: Path, tmp_path: Path) -> None:
    vault.write(path, payload())
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    for folder in (path.parent, path.parent.parent):
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert list(tmp_path.rglob("*.partial")) == []


def test_write_that_fails_leaves_the_old_file_and_no_debris(
    vault: Vault, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    vault.write(path, payload())

    def full(*_: object) -> Iterator[bytes]:
        yield b"half"
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("client.data.keep.vault.seal", full)
    with pytest.raises(OSError, match="No space"):
        vault.write(path, b"new")
    assert vault.read(path) == bytearray(payload())
    assert [one.name for one in path.parent.iterdir()] == [path.name]


def test_folder_in_the_place_of_a_file_is_a_miss(vault: Vault, path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path.mkdir(parents=True)
    caplog.set_level(logging.WARNING)
    assert vault.read(path) is None
    assert "cannot be read" in caplog.text
