import datetime

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.x509.oid import ExtendedKeyUsageOID

from common import pki
from common.errors import EnrolmentError


@pytest.fixture
def root() -> tuple[pki.PrivateKey, x509.Certificate]:
    key = pki.new_key()
    return key, pki.new_root(key, "Test root")


def assert_is_ca(certificate: x509.Certificate) -> None:
    assert certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    assert certificate.extensions.get_extension_for_class(x509.KeyUsage).value.key_cert_sign


def assert_is_leaf(certificate: x509.Certificate, usage: x509.ObjectIdentifier) -> None:
    assert not certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    assert not certificate.extensions.get_extension_for_class(x509.KeyUsage).value.key_cert_sign
    assert list(certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value) == [usage]


def test_root_may_sign_leaves_and_nothing_deeper(root):
    assert_is_ca(root[1])
    assert root[1].extensions.get_extension_for_class(x509.BasicConstraints).value.path_length == 0
    root[1].verify_directly_issued_by(root[1])


def test_server_certificate_carries_every_host_and_cannot_act_as_a_site(root):
    certificate = pki.server_certificate(pki.new_key(), ["fl.example.org", "127.0.0.1", "::1"], root[1], root[0])
    assert_is_leaf(certificate, ExtendedKeyUsageOID.SERVER_AUTH)
    assert set(pki.hosts_of(certificate)) == {"fl.example.org", "127.0.0.1", "::1"}


def test_site_certificate_names_the_site_and_cannot_act_as_a_server(root):
    key = pki.new_key()
    certificate = pki.site_certificate(pki.csr_for("st-mary", key), "st-mary", root[1], root[0])
    assert_is_leaf(certificate, ExtendedKeyUsageOID.CLIENT_AUTH)
    assert pki.common_name(certificate) == "st-mary"
    assert (certificate.not_valid_after_utc - pki.now()).days == 89
    assert pki.check_site_certificate(pki.to_pem(certificate), pki.to_pem(root[1]), "st-mary", key) == certificate


def test_fingerprint_is_the_sha256_of_the_der(root):
    assert pki.fingerprint(root[1]) == root[1].fingerprint(hashes.SHA256()).hex()


def test_phrase_is_the_published_proquint_encoding():
    # Examples of the proposal: 127.0.0.1 and 63.84.220.193.
    assert pki.phrase("7f000001" + "3f54dcc1" + "00" * 24) == "lusab-babad-gutih-tugad"


def test_request_for_another_name_is_refused():
    with pytest.raises(EnrolmentError, match="must name site 'st-mary'"):
        pki.check_csr(pki.to_pem(pki.csr_for("st-john", pki.new_key())), "st-mary")


def test_request_with_a_second_name_is_refused():
    name = x509.Name(
        [
            x509.NameAttribute(x509.NameOID.COMMON_NAME, "st-mary"),
            x509.NameAttribute(x509.NameOID.ORGANIZATION_NAME, "admin"),
        ]
    )
    csr = x509.CertificateSigningRequestBuilder().subject_name(name).sign(pki.new_key(), hashes.SHA256())
    with pytest.raises(EnrolmentError, match="and nothing else"):
        pki.check_csr(pki.to_pem(csr), "st-mary")


def test_altered_request_is_refused():
    der = bytearray(pki.csr_for("st-mary", pki.new_key()).public_bytes(pki.serialization.Encoding.DER))
    der[-1] ^= 1
    altered = x509.load_der_x509_csr(bytes(der))
    with pytest.raises(EnrolmentError, match="signature"):
        pki.check_csr(pki.to_pem(altered), "st-mary")


def test_text_that_is_no_request_is_refused():
    with pytest.raises(EnrolmentError, match="cannot be read"):
        pki.check_csr(b"hello", "st-mary")


def test_certificate_of_another_root_is_refused_by_the_site(root):
    key, other = pki.new_key(), pki.new_key()
    other_root = pki.new_root(other, "Test root")
    certificate = pki.site_certificate(pki.csr_for("st-mary", key), "st-mary", other_root, other)
    with pytest.raises(EnrolmentError, match="not signed by this federation's root"):
        pki.check_site_certificate(pki.to_pem(certificate), pki.to_pem(root[1]), "st-mary", key)


def test_certificate_for_another_key_is_refused_by_the_site(root):
    certificate = pki.site_certificate(pki.csr_for("st-mary", pki.new_key()), "st-mary", root[1], root[0])
    with pytest.raises(EnrolmentError, match="and its key"):
        pki.check_site_certificate(pki.to_pem(certificate), pki.to_pem(root[1]), "st-mary", pki.new_key())


def test_server_certificate_is_refused_as_a_site_certificate(root):
    key = pki.new_key()
    certificate = pki.server_certificate(key, ["st-mary"], root[1], root[0])
    with pytest.raises(EnrolmentError, match="not a client certificate"):
        pki.check_site_certificate(pki.to_pem(certificate), pki.to_pem(root[1]), "st-mary", key)


@pytest.mark.parametrize("days", [-400, 400])
def test_certificate_out_of_date_is_refused_and_the_message_says_since_when(root, monkeypatch, days):
    key, real = pki.new_key(), pki.now()
    monkeypatch.setattr(pki, "now", lambda: real + datetime.timedelta(days=days))
    certificate = pki.site_certificate(pki.csr_for("st-mary", key), "st-mary", root[1], root[0])
    monkeypatch.undo()
    with pytest.raises(EnrolmentError, match=f"{certificate.not_valid_after_utc:%Y-%m-%d}"):
        pki.check_site_certificate(pki.to_pem(certificate), pki.to_pem(root[1]), "st-mary", key)


def invitation(root: x509.Certificate, hours: float) -> pki.Invitation:
    expires = (pki.now() + datetime.timedelta(hours=hours)).isoformat()
    return pki.Invitation("st-mary", "00ff", pki.to_pem(root).decode(), "h:9444", "h:9443", "ab" * 32, expires)


def test_invitation_survives_its_file(root):
    written = invitation(root[1], 24)
    assert pki.Invitation.from_text(written.to_text()) == written


def test_expired_invitation_is_refused(root):
    with pytest.raises(EnrolmentError, match="expired at"):
        pki.Invitation.from_text(invitation(root[1], -1).to_text())


@pytest.mark.parametrize("text", ["", "{}", "[]", "null", '{"site": 1}', "not json"])
def test_other_files_are_no_invitations(text):
    with pytest.raises(EnrolmentError, match="not an invitation"):
        pki.Invitation.from_text(text)


def test_invitation_with_a_field_of_the_wrong_type_is_refused(root):
    text = invitation(root[1], 24).to_text().replace('"00ff"', "255")
    with pytest.raises(EnrolmentError, match="not an invitation"):
        pki.Invitation.from_text(text)


def test_key_survives_its_file_and_other_bytes_are_no_key():
    key = pki.new_key()
    assert pki.load_key(pki.key_to_pem(key)).private_numbers() == key.private_numbers()
    with pytest.raises(EnrolmentError, match="not a private key"):
        pki.load_key(b"hello")
