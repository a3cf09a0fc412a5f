"""What a site finds out about its own certificate and keys at each start."""

from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from client.home.identity import load_identity
from common.errors import EnrolmentError
from tests.client.coordinator import Authority


@pytest.fixture(scope="module")
def authority() -> Authority:
    return Authority()


def test_receipt_key_that_the_certificate_does_not_name_is_refused_at_each_start(
    tmp_path: Path, authority: Authority
) -> None:
    authority.admit(tmp_path, "north", "127.0.0.1:9443")
    (tmp_path / "tls" / "receipt.key").write_bytes(Ed25519PrivateKey.generate().private_bytes_raw())
    with pytest.raises(EnrolmentError, match="names another key for the receipts"):
        load_identity(tmp_path)


def test_damaged_files_are_explained(tmp_path: Path, authority: Authority) -> None:
    authority.admit(tmp_path, "north", "127.0.0.1:9443")
    (tmp_path / "tls" / "coordinator.json").write_text("{")
    with pytest.raises(EnrolmentError, match="cannot be read"):
        load_identity(tmp_path)


def test_identity_does_not_print_its_key(tmp_path: Path, authority: Authority) -> None:
    assert "PRIVATE" not in repr(authority.admit(tmp_path, "north", "127.0.0.1:9443"))
