"""Joining: the key stays, the root is pinned before anything is sent, an interrupted join goes on.

Real certificates and TLS; the coordinator's side is a double that decides as the test says.
"""

# ruff: noqa: N802 - the methods' names and arguments are the protocol's

import dataclasses
import datetime
import hashlib
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding

from client.home import enrolment
from client.home.folder import check_private
from client.home.identity import Identity, load_identity
from client.home.templates import UNNAMED, prepare_home
from common.config import PolicyConfig, SiteConfig, load
from common.errors import ConfigError, EnrolmentError
from common.identity import certificates
from common.identity.invitation import Invitation
from common.identity.phrase import as_phrase
from common.identity.receipt_keys import check_receipt_key
from common.wire import wardround_pb2, wardround_pb2_grpc
from common.wire.channels import Credentials, serve
from tests.client.coordinator import Authority
from tests.patience import PATIENCE_S

TOKEN = "c0ffee" + 26 * "0"


class Office(wardround_pb2_grpc.EnrolmentServicer):
    """Redeems the token once, and decides."""

    def __init__(self, authority: Authority) -> None:
        self.authority = authority
        self.decision = wardround_pb2.CollectReply.APPROVED
        self.sign_as = "north"
        self.vouch_for = b""  # another receipt key than the site's
        self.csr = b""
        self.receipt_key = b""
        self.enrolled = 0
        self.collected = 0

    @property
    def digest(self) -> str:
        der = certificates.check_csr(self.csr, "north").public_bytes(Encoding.DER)
        return hashlib.sha256(der + self.receipt_key).hexdigest()

    def Enrol(self, request, context):
        if request.token != TOKEN or self.enrolled:
            context.abort(grpc.StatusCode.UNAUTHENTICATED, "the token is not valid any more")
        self.enrolled += 1
        self.csr = request.csr_pem
        csr = certificates.check_csr(self.csr, request.site)
        self.receipt_key = check_receipt_key(request.receipt_key, request.proof, csr, request.site)
        return wardround_pb2.EnrolReply()

    def Collect(self, request, context):
        self.collected += 1
        csr = certificates.check_csr(self.csr, request.site)
        assert request.request_sha256 == self.digest
        if self.decision != wardround_pb2.CollectReply.APPROVED:
            return wardround_pb2.CollectReply(state=self.decision)
        key = self.vouch_for or self.receipt_key
        certificate = certificates.site_certificate(
            csr, self.sign_as, self.authority.root, self.authority.root_key, key
        )
        chain = certificates.to_pem(certificate) + certificates.to_pem(self.authority.root)
        return wardround_pb2.CollectReply(state=self.decision, certificate_pem=chain)


@pytest.fixture(scope="module")
def authority() -> Authority:
    return Authority()


@pytest.fixture
def office(
    authority: Authority, free_port: int, monkeypatch: pytest.MonkeyPatch
) -> Iterator[tuple[Office, Invitation]]:
    monkeypatch.setattr(enrolment, "RETRY_PAUSE_S", 0.05)
    double = Office(authority)
    address = f"127.0.0.1:{free_port}"
    server = serve(
        address,
        lambda: Credentials(certificates.key_to_pem(authority.server_key), certificates.to_pem(authority.server), None),
        lambda one: wardround_pb2_grpc.add_EnrolmentServicer_to_server(double, one),
        workers=2,
    )
    yield double, invitation_to(authority, address)
    server.stop(0).wait()


def invitation_to(authority: Authority, address: str) -> Invitation:
    expires = (certificates.now() + datetime.timedelta(hours=1)).isoformat()
    return Invitation(
        "north", TOKEN, certificates.to_pem(authority.root).decode(), address, "127.0.0.1:9443", "ab" * 32, expires
    )


def join(home: Path, invitation: Invitation, *, timeout_s: float = PATIENCE_S) -> tuple[Identity, list[str]]:
    phrases: list[str] = []
    return enrolment.join(home, invitation, timeout_s=timeout_s, show_phrase=phrases.append), phrases


def test_joined_site_has_a_checked_certificate_and_strict_settings(
    tmp_path: Path, office: tuple[Office, Invitation]
) -> None:
    double, invitation = office
    identity, phrases = join(tmp_path / "home", invitation)
    home = tmp_path / "home"
    assert (identity.site, identity.gateway) == ("north", invitation.gateway)
    assert identity.days_left == 90
    assert phrases == [as_phrase(double.digest)]
    assert load_identity(home).certificate == identity.certificate
    assert load(PolicyConfig, home / "policy.toml") == PolicyConfig()
    assert load(SiteConfig, home / "site.toml") == SiteConfig(name="north")


def test_private_key_is_this_users_alone_and_is_not_sent(tmp_path: Path, office: tuple[Office, Invitation]) -> None:
    double, invitation = office
    identity, _ = join(tmp_path, invitation)
    assert (tmp_path / "tls").stat().st_mode & 0o077 == 0
    assert (tmp_path / "tls" / "key.pem").stat().st_mode & 0o077 == 0
    assert b"PRIVATE" in identity.key_pem
    assert b"PRIVATE" not in double.csr
    assert TOKEN.encode() not in b"".join(path.read_bytes() for path in (tmp_path / "tls").iterdir())


def test_coordinator_with_another_root_learns_nothing(tmp_path: Path, office: tuple[Office, Invitation]) -> None:
    double, invitation = office
    stranger = dataclasses.replace(invitation, root_pem=certificates.to_pem(Authority().root).decode())
    with pytest.raises(EnrolmentError, match="no coordinator with the invitation's certificate"):
        join(tmp_path, stranger)
    assert double.enrolled == 0


def test_wrong_token_is_refused_with_the_coordinators_reason(tmp_path: Path, office: tuple[Office, Invitation]) -> None:
    _, invitation = office
    with pytest.raises(EnrolmentError, match="the token is not valid any more"):
        join(tmp_path, dataclasses.replace(invitation, token="ab" * 16))


def test_join_that_was_interrupted_goes_on_with_the_same_key(tmp_path: Path, office: tuple[Office, Invitation]) -> None:
    double, invitation = office
    double.decision = wardround_pb2.CollectReply.PENDING
    with pytest.raises(EnrolmentError, match="wardround-server approve north"):
        join(tmp_path, invitation, timeout_s=0.2)
    key = (tmp_path / "tls" / "key.pem").read_bytes()
    double.decision = wardround_pb2.CollectReply.APPROVED
    identity, phrases = join(tmp_path, invitation)
    assert identity.key_pem == key
    assert double.enrolled == 1
    assert phrases == [as_phrase(double.digest)]


def test_refused_site_has_no_certificate(tmp_path: Path, office: tuple[Office, Invitation]) -> None:
    double, invitation = office
    double.decision = wardround_pb2.CollectReply.REFUSED
    with pytest.raises(EnrolmentError, match="refused this site"):
        join(tmp_path, invitation)
    with pytest.raises(EnrolmentError, match="has not joined"):
        load_identity(tmp_path)


def test_certificate_of_another_site_is_not_stored(tmp_path: Path, office: tuple[Office, Invitation]) -> None:
    double, invitation = office
    double.sign_as = "south"
    with pytest.raises(EnrolmentError, match="not for site 'north'"):
        join(tmp_path, invitation)
    assert not (tmp_path / "tls" / "certificate.pem").exists()


def test_certificate_that_names_another_receipt_key_is_not_stored(
    tmp_path: Path, office: tuple[Office, Invitation]
) -> None:
    """Whoever has that other key could sign receipts and checkpoints as this site."""
    double, invitation = office
    double.vouch_for = Ed25519PrivateKey.generate().public_key().public_bytes_raw()
    with pytest.raises(EnrolmentError, match="names another key for the receipts of site 'north'"):
        join(tmp_path, invitation)
    assert not (tmp_path / "tls" / "certificate.pem").exists()


def test_closed_port_is_explained_and_what_was_made_is_told(
    tmp_path: Path, authority: Authority, free_port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where the invitation was used elsewhere, and nobody else is expected."""
    monkeypatch.setattr(enrolment, "PORT_PATIENCE_S", 0.1)
    home, invitation = tmp_path / "home", invitation_to(authority, f"127.0.0.1:{free_port}")
    with pytest.raises(EnrolmentError, match="ask whether this invitation was used") as told:
        join(home, invitation)
    assert f"{home} was made for it" in str(told.value)
    with pytest.raises(EnrolmentError, match="ask whether this invitation was used") as told:
        join(home, invitation)
    assert "was made for it" not in str(told.value)


def test_second_join_into_a_home_is_refused(tmp_path: Path, office: tuple[Office, Invitation]) -> None:
    _, invitation = office
    join(tmp_path, invitation)
    with pytest.raises(EnrolmentError, match="has joined already"):
        join(tmp_path, invitation)


def test_settings_a_person_wrote_before_joining_stay(tmp_path: Path, office: tuple[Office, Invitation]) -> None:
    (tmp_path / "policy.toml").write_text("min-patients = 99\n")
    join(tmp_path, office[1])
    assert load(PolicyConfig, tmp_path / "policy.toml").min_patients == 99


def test_home_that_others_can_look_into_is_refused_and_joining_closes_it(
    tmp_path: Path, office: tuple[Office, Invitation]
) -> None:
    tmp_path.chmod(0o755)
    join(tmp_path, office[1])
    check_private(tmp_path)
    for path in (tmp_path, tmp_path / "tls", tmp_path / "tls" / "key.pem", tmp_path / "tls" / "receipt.key"):
        mode = path.stat().st_mode
        path.chmod(mode | 0o040)
        with pytest.raises(ConfigError, match=f"{path}.*chmod -R go-rwx"):
            check_private(tmp_path)
        path.chmod(mode)


def test_site_that_looked_at_its_data_before_joining_gets_its_name(
    tmp_path: Path, office: tuple[Office, Invitation]
) -> None:
    prepare_home(tmp_path)
    assert load(SiteConfig, tmp_path / "site.toml").name == UNNAMED
    with (tmp_path / "site.toml").open("a") as settings:
        settings.write('\n[[data]]\npath = "/images"\nlabel-map = { "x" = "unnamed" }\n')
    join(tmp_path, office[1])
    site = load(SiteConfig, tmp_path / "site.toml")
    assert (site.name, site.data[0].path, site.data[0].label_map) == ("north", "/images", {"x": "unnamed"})
