import json
from pathlib import Path

import pytest

from common.crypto.passphrase import is_sealed, passphrase_from, seal, unseal
from common.errors import ConfigError

PASSPHRASE = "five random words would do"  # noqa: S105 - of these tests alone


@pytest.fixture(scope="module")
def sealed() -> bytes:
    return seal(b"a secret", PASSPHRASE, "root key")


def test_secret_opens_with_its_passphrase_and_purpose_alone(sealed: bytes) -> None:
    assert unseal(sealed, PASSPHRASE, "root key") == b"a secret"
    assert b"a secret" not in sealed
    assert b"a secret".hex().encode() not in sealed
    for passphrase, purpose in ((PASSPHRASE + " ", "root key"), (PASSPHRASE, "site key")):
        with pytest.raises(ConfigError, match="does not open"):
            unseal(sealed, passphrase, purpose)


@pytest.mark.parametrize("name", ["n", "salt", "nonce", "sealed"])
def test_changed_field_does_not_open(sealed: bytes, name: str) -> None:
    values = json.loads(sealed)
    old = values[name]
    values[name] = old // 2 if isinstance(old, int) else f"{int(old[:2], 16) ^ 1:02x}{old[2:]}"
    with pytest.raises(ConfigError, match="does not open"):
        unseal(json.dumps(values).encode(), PASSPHRASE, "root key")


@pytest.mark.parametrize(
    "changes", [{"n": 2**40}, {"n": 0}, {"r": 10**9}, {"p": 10**9}, {"format": "wardround sealed 2"}, {"salt": 7}]
)
def test_parameters_out_of_bounds_are_refused_before_any_work(sealed: bytes, changes: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match="does not open"):
        unseal(json.dumps(json.loads(sealed) | changes).encode(), PASSPHRASE, "root key")


@pytest.mark.parametrize("data", [b"", b"{}", b"[]", b"\xff\xfe", b'"text"'])
def test_other_bytes_are_not_sealed_and_do_not_open(data: bytes) -> None:
    assert not is_sealed(data)
    with pytest.raises(ConfigError, match="does not open"):
        unseal(data, PASSPHRASE, "root key")


def test_same_secret_is_sealed_differently_each_time(sealed: bytes) -> None:
    assert is_sealed(sealed)
    again = json.loads(seal(b"a secret", PASSPHRASE, "root key"))
    assert all(again[name] != json.loads(sealed)[name] for name in ("salt", "nonce", "sealed"))


def test_short_passphrase_is_refused() -> None:
    with pytest.raises(ConfigError, match="at least 12"):
        seal(b"a secret", "short", "root key")


def test_passphrase_comes_from_a_variable_or_the_file_it_names(tmp_path: Path) -> None:
    path = tmp_path / "passphrase"
    path.write_text(f"{PASSPHRASE}\n", encoding="utf-8")
    assert passphrase_from("P", {}) is None
    assert passphrase_from("P", {"P": "given"}) == "given"
    assert passphrase_from("P", {"P_FILE": str(path)}) == PASSPHRASE
    with pytest.raises(ConfigError, match="P_FILE"):
        passphrase_from("P", {"P_FILE": str(tmp_path / "nowhere")})


def test_secret_that_an_earlier_version_sealed_opens() -> None:
    kept = {
        "format": "wardround sealed 1",
        "n": 131072,
        "r": 8,
        "p": 1,
        "salt": "ec7ef92877fbba0c1b5bf9bd4b1108d2",
        "nonce": "612d4a16e66c2f9b872a18e6",
        "sealed": "ce3a1057ec9637a364402aa12212712bfb3f28e51dc179233274a5c60021f5286f6b",
    }
    assert unseal(json.dumps(kept).encode(), PASSPHRASE, "root key") == b"a secret of before"
