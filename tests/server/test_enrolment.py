import hashlib
import stat
import threading
import time

import grpc
import pytest
from cryptography.hazmat.primitives.serialization import Encoding

from common import pki
from common.errors import EnrolmentError
from common.wire import channels
from common.wire.wardround_pb2 import CollectReply, CollectRequest, EnrolRequest
from common.wire.wardround_pb2_grpc import EnrolmentStub
from server import enrolment, serve
from server.registry import Registry
from tests.server.coordinator import free_ports, new_home, receipt_key, status_of

RECEIPT_KEY = receipt_key()


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


def csr_for(site: str) -> tuple[pki.PrivateKey, bytes, str]:
    key = pki.new_key()
    csr = pki.csr_for(site, key)
    digest = hashlib.sha256(csr.public_bytes(Encoding.DER) + RECEIPT_KEY).hexdigest()
    return key, pki.to_pem(csr), digest


def test_site_joins_with_invitation_request_and_approval(home, registry, stub):
    invitation = enrolment.invite(home, registry, "st-mary")
    key, csr, digest = csr_for("st-mary")
    stub.Enrol(EnrolRequest(site="st-mary", token=invitation.token, csr_pem=csr, receipt_key=RECEIPT_KEY))
    assert enrolment.phrase_of(registry.site("st-mary")) == pki.phrase(digest)
    question = CollectRequest(site="st-mary", request_sha256=digest)
    assert stub.Collect(question).state == CollectReply.PENDING
    enrolment.approve(home, registry, "st-mary")
    reply = stub.Collect(question)
    assert reply.state == CollectReply.APPROVED
    pki.check_site_certificate(reply.certificate_pem, home.root_pem, "st-mary", key)
    assert reply.certificate_pem.endswith(home.root_pem)


def test_invitation_file_is_private_holds_128_bits_and_goes_with_the_approval(home, registry, stub):
    invitation = enrolment.invite(home, registry, "st-john")
    assert len(bytes.fromhex(invitation.token)) == 16
    path = home.invitation("st-john")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert pki.Invitation.from_text(path.read_text()) == invitation
    stub.Enrol(
        EnrolRequest(site="st-john", token=invitation.token, csr_pem=csr_for("st-john")[1], receipt_key=RECEIPT_KEY)
    )
    enrolment.approve(home, registry, "st-john")
    assert not path.exists()


@pytest.mark.parametrize(
    ("site", "token"), [("st-luke", "00" * 16), ("st-luke", ""), ("st-mark", "right"), ("nobody", "right"), ("", "")]
)
def test_wrong_token_or_site_is_unauthenticated(home, registry, stub, site, token):
    right = enrolment.invite(home, registry, "st-luke").token
    used = token.replace("right", right)
    request = EnrolRequest(site=site, token=used, csr_pem=csr_for(site or "x")[1], receipt_key=RECEIPT_KEY)
    assert status_of(stub.Enrol, request) == grpc.StatusCode.UNAUTHENTICATED
    assert registry.site("st-luke").state == "invited"


def test_second_use_of_an_invitation_is_refused(home, registry, stub):
    token = enrolment.invite(home, registry, "st-anne").token
    stub.Enrol(EnrolRequest(site="st-anne", token=token, csr_pem=csr_for("st-anne")[1], receipt_key=RECEIPT_KEY))
    again = EnrolRequest(site="st-anne", token=token, csr_pem=csr_for("st-anne")[1], receipt_key=RECEIPT_KEY)
    assert status_of(stub.Enrol, again) == grpc.StatusCode.UNAUTHENTICATED


def test_certificate_goes_only_to_who_knows_the_request(home, registry, stub):
    token = enrolment.invite(home, registry, "st-paul").token
    stub.Enrol(EnrolRequest(site="st-paul", token=token, csr_pem=csr_for("st-paul")[1], receipt_key=RECEIPT_KEY))
    enrolment.approve(home, registry, "st-paul")
    for guess in ("", "00" * 32, csr_for("st-paul")[2]):
        assert stub.Collect(CollectRequest(site="st-paul", request_sha256=guess)).state == CollectReply.REFUSED
    assert stub.Collect(CollectRequest(site="nobody", request_sha256="00" * 32)).state == CollectReply.REFUSED


def test_collect_is_held_until_the_decision(home, registry, stub):
    token = enrolment.invite(home, registry, "st-jude").token
    _, csr, digest = csr_for("st-jude")
    stub.Enrol(EnrolRequest(site="st-jude", token=token, csr_pem=csr, receipt_key=RECEIPT_KEY))
    threading.Timer(0.3, registry.revoke, ["st-jude"]).start()
    start = time.monotonic()
    reply = stub.Collect(CollectRequest(site="st-jude", request_sha256=digest, wait_s=20.0))
    assert reply.state == CollectReply.REFUSED
    assert 0.2 < time.monotonic() - start < 10.0


def test_only_a_pending_site_can_be_approved(home, registry):
    enrolment.invite(home, registry, "st-rita")
    with pytest.raises(EnrolmentError, match="is invited, only a pending one"):
        enrolment.approve(home, registry, "st-rita")
    with pytest.raises(EnrolmentError, match="no site is called"):
        enrolment.approve(home, registry, "nobody")


def test_a_site_that_pins_another_root_sends_nothing(home, stub):
    key = pki.new_key()
    other_root = pki.to_pem(pki.new_root(key, "Other root"))
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
