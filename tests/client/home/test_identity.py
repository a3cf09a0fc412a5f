"""What a site finds out about its own certificate and keys at each start."""

from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from client.home.identity import load_identity
from client.trail.audit_trail import open_log
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


@pytest.mark.parametrize("name", ["coordinator.json", "certificate.pem", "root.pem", "receipt.key", "key.pem"])
def test_a_file_that_is_missing_is_named_and_no_new_invitation_is_the_first_advice(
    tmp_path: Path, authority: Authority, name: str
) -> None:
    authority.admit(tmp_path, "north", "127.0.0.1:9443")
    (tmp_path / "tls" / name).unlink()
    with pytest.raises(
        EnrolmentError, match=rf"{name} is missing, .* has joined a federation\. Restore the folder tls"
    ):
        load_identity(tmp_path)
    if name in ("coordinator.json", "receipt.key"):
        with pytest.raises(EnrolmentError, match=rf"{name} is missing"):
            open_log(tmp_path)


def test_a_folder_that_has_not_joined_is_told_to(tmp_path: Path) -> None:
    for look in (load_identity, open_log):
        with pytest.raises(EnrolmentError, match="has not joined a federation"):
            look(tmp_path)


def test_identity_does_not_print_its_key(tmp_path: Path, authority: Authority) -> None:
    assert "PRIVATE" not in repr(authority.admit(tmp_path, "north", "127.0.0.1:9443"))
