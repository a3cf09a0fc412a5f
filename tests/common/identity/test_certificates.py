import datetime

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.x509.oid import ExtendedKeyUsageOID

from common.errors import EnrolmentError
from common.identity import certificates


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
    certificate = certificates.server_certificate(
        certificates.new_key(), ["fl.example.org", "127.0.0.1", "::1"], root[1], root[0]
    )
    assert_is_leaf(certificate, ExtendedKeyUsageOID.SERVER_AUTH)
    assert set(certificates.hosts_of(certificate)) == {"fl.example.org", "127.0.0.1", "::1"}


def test_site_certificate_names_the_site_and_cannot_act_as_a_server(root):
    key = certificates.new_key()
    certificate = certificates.site_certificate(certificates.csr_for("st-mary", key), "st-mary", root[1], root[0])
    assert_is_leaf(certificate, ExtendedKeyUsageOID.CLIENT_AUTH)
    assert certificates.common_name(certificate) == "st-mary"
    assert (certificate.not_valid_after_utc - certificates.now()).days == 89
    assert (
        certificates.check_site_certificate(
            certificates.to_pem(certificate), certificates.to_pem(root[1]), "st-mary", key
        )
        == certificate
    )


def test_fingerprint_is_the_sha256_of_the_der(root):
    assert certificates.fingerprint(root[1]) == root[1].fingerprint(hashes.SHA256()).hex()


def test_request_for_another_name_is_refused():
    with pytest.raises(EnrolmentError, match="must name site 'st-mary'"):
        certificates.check_csr(certificates.to_pem(certificates.csr_for("st-john", certificates.new_key())), "st-mary")


def test_request_with_a_second_name_is_refused():
    name = x509.Name(
        [
            x509.NameAttribute(x509.NameOID.COMMON_NAME, "st-mary"),
            x509.NameAttribute(x509.NameOID.ORGANIZATION_NAME, "admin"),
        ]
    )
    csr = x509.CertificateSigningRequestBuilder().subject_name(name).sign(certificates.new_key(), hashes.SHA256())
    with pytest.raises(EnrolmentError, match="and nothing else"):
        certificates.check_csr(certificates.to_pem(csr), "st-mary")


def test_altered_request_is_refused():
    der = bytearray(certificates.csr_for("st-mary", certificates.new_key()).public_bytes(serialization.Encoding.DER))
    der[-1] ^= 1
    altered = x509.load_der_x509_csr(bytes(der))
    with pytest.raises(EnrolmentError, match="signature"):
        certificates.check_csr(certificates.to_pem(altered), "st-mary")


def test_text_that_is_no_request_is_refused():
    with pytest.raises(EnrolmentError, match="cannot be read"):
        certificates.check_csr(b"hello", "st-mary")


def test_certificate_of_another_root_is_refused_by_the_site(root):
    key, other = certificates.new_key(), certificates.new_key()
    other_root = certificates.new_root(other, "Test root")
    certificate = certificates.site_certificate(certificates.csr_for("st-mary", key), "st-mary", other_root, other)
    with pytest.raises(EnrolmentError, match="not signed by this federation's root"):
        certificates.check_site_certificate(
            certificates.to_pem(certificate), certificates.to_pem(root[1]), "st-mary", key
        )


def test_certificate_for_another_key_is_refused_by_the_site(root):
    certificate = certificates.site_certificate(
        certificates.csr_for("st-mary", certificates.new_key()), "st-mary", root[1], root[0]
    )
    with pytest.raises(EnrolmentError, match="and its key"):
        certificates.check_site_certificate(
            certificates.to_pem(certificate), certificates.to_pem(root[1]), "st-mary", certificates.new_key()
        )


def test_server_certificate_is_refused_as_a_site_certificate(root):
    key = certificates.new_key()
    certificate = certificates.server_certificate(key, ["st-mary"], root[1], root[0])
    with pytest.raises(EnrolmentError, match="not a client certificate"):
        certificates.check_site_certificate(
            certificates.to_pem(certificate), certificates.to_pem(root[1]), "st-mary", key
        )


@pytest.mark.parametrize("days", [-400, 400])
def test_certificate_out_of_date_is_refused_and_the_message_says_since_when(root, monkeypatch, days):
    key, real = certificates.new_key(), certificates.now()
    monkeypatch.setattr(certificates, "now", lambda: real + datetime.timedelta(days=days))
    certificate = certificates.site_certificate(certificates.csr_for("st-mary", key), "st-mary", root[1], root[0])
    monkeypatch.undo()
    with pytest.raises(EnrolmentError, match=f"{certificate.not_valid_after_utc:%Y-%m-%d}"):
        certificates.check_site_certificate(
            certificates.to_pem(certificate), certificates.to_pem(root[1]), "st-mary", key
        )


@pytest.mark.parametrize(
    ("hours", "days"), [(90 * 24, 90), (90 * 24 - 1, 90), (25, 1), (23, 1), (1, 0), (-1, -1), (-25, -2)]
)
def test_days_that_are_left_are_those_that_people_count_and_none_once_it_has_ended(hours: int, days: int) -> None:
    end = certificates.now() + datetime.timedelta(hours=hours)
    assert certificates.days_left(end) == days


def test_key_survives_its_file_and_other_bytes_are_no_key():
    key = certificates.new_key()
    assert certificates.load_key(certificates.key_to_pem(key)).private_numbers() == key.private_numbers()
    with pytest.raises(EnrolmentError, match="not a private key"):
        certificates.load_key(b"hello")
