import hashlib
import stat
import threading

import grpc
import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding

from common.errors import ConfigError, EnrolmentError
from common.identity import certificates
from common.identity.invitation import Invitation
from common.identity.phrase import as_phrase
from common.identity.receipt_keys import prove_receipt_key
from common.wire import channels
from common.wire.wardround_pb2 import CollectReply, CollectRequest, EnrolRequest
from common.wire.wardround_pb2_grpc import EnrolmentStub
from server.coordinator import serve
from server.federation.events import OVERALL
from server.gateway import enrolment
from server.registry.audit_trail import open_log
from server.registry.registry import Registry
from tests.server.coordinators import enrol_request, free_ports, new_home, status_of

HELD_S = 30.0  # at most


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return new_home(tmp_path_factory.mktemp("coordinator") / "home")


@pytest.fixture(scope="module")
def registry(home):
    return Registry(home.registry)


@pytest.fixture(scope="module")
def stub(home, registry):
    server = serve.start_enrolment(home, registry)
    with channels.secure_channel(home.enrolment_address, home.root_pem) as channel:
        yield EnrolmentStub(channel)
    server.stop(None)


def digest_of(request: EnrolRequest) -> str:
    der = x509.load_pem_x509_csr(request.csr_pem).public_bytes(Encoding.DER)
    return hashlib.sha256(der + request.receipt_key).hexdigest()


def test_site_joins_with_invitation_request_and_approval(home, registry, stub):
    invitation = enrolment.invite(home, registry, "st-mary")
    key = certificates.new_key()
    request = enrol_request("st-mary", invitation.token, certificates.csr_for("st-mary", key))
    digest = digest_of(request)
    stub.Enrol(request)
    assert enrolment.phrase_of(registry.site("st-mary")) == as_phrase(digest)
    question = CollectRequest(site="st-mary", request_sha256=digest)
    assert stub.Collect(question).state == CollectReply.PENDING
    enrolment.approve(home, registry, "st-mary")
    reply = stub.Collect(question)
    assert reply.state == CollectReply.APPROVED
    certificates.check_site_certificate(reply.certificate_pem, home.root_pem, "st-mary", key)
    assert reply.certificate_pem.endswith(home.root_pem)


def test_nobody_is_invited_by_the_name_that_journals_give_to_all_sites_together(home, registry):
    with pytest.raises(ConfigError, match="overall stands for all sites together"):
        enrolment.invite(home, registry, OVERALL)
    assert not any(site.name == OVERALL for site in registry.sites())


def test_invitation_file_is_private_holds_128_bits_and_goes_with_the_approval(home, registry, stub):
    invitation = enrolment.invite(home, registry, "st-john")
    assert len(bytes.fromhex(invitation.token)) == 16
    path = home.invitation("st-john")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert Invitation.from_text(path.read_text()) == invitation
    stub.Enrol(enrol_request("st-john", invitation.token))
    enrolment.approve(home, registry, "st-john")
    assert not path.exists()


@pytest.mark.parametrize(
    ("site", "token"), [("st-luke", "00" * 16), ("st-luke", ""), ("st-mark", "right"), ("nobody", "right"), ("", "")]
)
def test_wrong_token_or_site_is_unauthenticated(home, registry, stub, site, token):
    right = enrolment.invite(home, registry, "st-luke").token
    used = token.replace("right", right)
    assert (
        status_of(stub.Enrol, enrol_request(site, used, certificates.csr_for(site or "x", certificates.new_key())))
        == grpc.StatusCode.UNAUTHENTICATED
    )
    assert registry.site("st-luke").state == "invited"


def test_second_use_of_an_invitation_is_refused(home, registry, stub):
    token = enrolment.invite(home, registry, "st-anne").token
    stub.Enrol(enrol_request("st-anne", token))
    assert status_of(stub.Enrol, enrol_request("st-anne", token)) == grpc.StatusCode.UNAUTHENTICATED


def with_another_key(request: EnrolRequest) -> None:
    """Another site's public key and that site's own proof, as anybody may have seen them."""
    other = enrol_request("st-mary", "")
    request.receipt_key, request.proof = other.receipt_key, other.proof


def with_another_keys_signature(request: EnrolRequest) -> None:
    csr = x509.load_pem_x509_csr(request.csr_pem)
    request.proof = prove_receipt_key(csr, request.site, Ed25519PrivateKey.generate())


def with_a_signature_for_another_request(request: EnrolRequest) -> None:
    signing = Ed25519PrivateKey.generate()
    request.receipt_key = signing.public_key().public_bytes_raw()
    request.proof = prove_receipt_key(certificates.csr_for(request.site, certificates.new_key()), request.site, signing)


def with_a_signature_for_another_site(request: EnrolRequest) -> None:
    signing = Ed25519PrivateKey.generate()
    request.receipt_key = signing.public_key().public_bytes_raw()
    request.proof = prove_receipt_key(x509.load_pem_x509_csr(request.csr_pem), "st-mary", signing)


def with_a_signature_under_the_bare_digest(request: EnrolRequest) -> None:
    signing = Ed25519PrivateKey.generate()
    request.receipt_key = signing.public_key().public_bytes_raw()
    request.proof = signing.sign(f"{request.site}\n{digest_of(request)}\n".encode())


def without_a_signature(request: EnrolRequest) -> None:
    request.proof = b""


def test_receipt_key_that_the_site_does_not_prove_to_have_is_refused_and_recorded(tmp_path):
    home = new_home(tmp_path / "home")
    registry = Registry(home.registry)
    server = serve.start_enrolment(home, registry)
    token = enrolment.invite(home, registry, "st-lucy").token
    try:
        with channels.secure_channel(home.enrolment_address, home.root_pem) as channel:
            stub = EnrolmentStub(channel)
            for spoil in (
                with_another_key,
                with_another_keys_signature,
                with_a_signature_for_another_request,
                with_a_signature_for_another_site,
                with_a_signature_under_the_bare_digest,
                without_a_signature,
            ):
                request = enrol_request("st-lucy", token)
                spoil(request)
                before = len(open_log(home).entries())
                assert status_of(stub.Enrol, request) == grpc.StatusCode.UNAUTHENTICATED, spoil.__name__
                (entry,) = open_log(home).entries()[before:]
                assert (entry.kind, entry.fields) == ("call-refused", {"status": "unauthenticated"})
                site = registry.site("st-lucy")
                assert (site.state, site.csr, site.receipt_key) == ("invited", None, None)
            honest = enrol_request("st-lucy", token)  # the invitation is not used up
            assert status_of(stub.Enrol, honest) == grpc.StatusCode.OK
            assert registry.site("st-lucy").receipt_key == honest.receipt_key
    finally:
        server.stop(None)


def test_certificate_goes_only_to_who_knows_the_request(home, registry, stub):
    token = enrolment.invite(home, registry, "st-paul").token
    stub.Enrol(enrol_request("st-paul", token))
    enrolment.approve(home, registry, "st-paul")
    for guess in ("", "00" * 32, digest_of(enrol_request("st-paul", token))):
        assert stub.Collect(CollectRequest(site="st-paul", request_sha256=guess)).state == CollectReply.REFUSED
    assert stub.Collect(CollectRequest(site="nobody", request_sha256="00" * 32)).state == CollectReply.REFUSED


def test_collect_is_held_until_the_decision(home, registry, stub):
    token = enrolment.invite(home, registry, "st-jude").token
    request = enrol_request("st-jude", token)
    digest = digest_of(request)
    stub.Enrol(request)
    threading.Timer(0.3, registry.revoke, ["st-jude"]).start()
    reply = stub.Collect(CollectRequest(site="st-jude", request_sha256=digest, wait_s=HELD_S), timeout=0.8 * HELD_S)
    assert reply.state == CollectReply.REFUSED


def test_only_a_pending_site_can_be_approved(home, registry):
    enrolment.invite(home, registry, "st-rita")
    with pytest.raises(EnrolmentError, match="has not used its invitation yet"):
        enrolment.approve(home, registry, "st-rita")
    with pytest.raises(EnrolmentError, match="no site is called"):
        enrolment.approve(home, registry, "nobody")


def test_a_site_that_pins_another_root_sends_nothing(home, stub):
    key = certificates.new_key()
    other_root = certificates.to_pem(certificates.new_root(key, "Other root"))
    with channels.secure_channel(home.enrolment_address, other_root) as channel:
        code = status_of(EnrolmentStub(channel).Enrol, EnrolRequest(site="st-mary"))
    assert code == grpc.StatusCode.UNAVAILABLE


def test_oversize_request_is_refused(stub):
    request = EnrolRequest(site="st-mary", csr_pem=b"x" * (channels.MAX_ENROLMENT_BYTES + 1))
    assert status_of(stub.Enrol, request) == grpc.StatusCode.RESOURCE_EXHAUSTED


def test_port_in_use_names_the_port_and_what_to_do(home, registry, stub):
    with pytest.raises(Exception, match=f"{home.config.enrolment_port}.*choose another port"):
        serve.start_enrolment(home, registry)


def test_nobody_listens_on_a_free_port(home):
    with channels.secure_channel(f"127.0.0.1:{free_ports(1)[0]}", home.root_pem) as channel:
        code = status_of(EnrolmentStub(channel).Collect, CollectRequest())
    assert code == grpc.StatusCode.UNAVAILABLE
