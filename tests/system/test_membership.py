"""Joining, renewing, rotating and leaving: the client's and the coordinator's own code, over real TLS ports."""

import dataclasses
import datetime
import json
import threading
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
from cryptography import x509

from client.agent.loop import Agent
from client.home import enrolment as client_enrol
from client.home.identity import Identity, load_identity
from client.trail.audit_trail import AuditTrail
from client.trail.log_exchange import LogExchange
from common.crypto.passphrase import is_sealed
from common.errors import ConfigError, EnrolmentError
from common.identity import certificates, rotation
from common.identity.receipt_keys import receipt_key_of
from common.system.files import write_private
from common.wire import channels
from common.wire.channels import Credentials
from common.wire.wardround_pb2 import ListProposalsRequest
from common.wire.wardround_pb2_grpc import CoordinationStub
from server.coordinator import serve
from server.gateway import enrolment
from server.gateway.services import Gateway
from server.home import root as roots
from server.home.folder import Home
from server.registry import operators
from server.registry.audit_trail import open_log
from server.registry.registry import Registry
from tests.client.agent.test_loop import FakeWorker, good
from tests.patience import PATIENCE_S, eventually
from tests.server.coordinators import new_home, status_of

PASSPHRASE = "correct horse battery"  # noqa: S105 - of these tests alone


class Office:
    """A coordinator's two doors; `reopen` is a restart."""

    def __init__(self, home: Home) -> None:
        self.home, self.registry = home, Registry(home.registry)
        self._servers: list[grpc.Server] = []
        self.reopen()

    def reopen(self) -> None:
        self.close()
        gateway = Gateway(self.home, self.registry)
        self._servers = [serve.start_gateway(self.home, gateway), serve.start_enrolment(self.home, self.registry)]

    def close(self) -> None:
        for server in self._servers:
            server.stop(0).wait()

    def join(self, folder: Path, site: str = "st-mary") -> Identity:
        invitation = enrolment.invite(self.home, self.registry, site)

        def approve_if_equal(phrase: str) -> None:
            def approve() -> None:
                eventually(lambda: self.registry.site(site).state == "pending", "it asks")
                assert enrolment.phrase_of(self.registry.site(site)) == phrase
                enrolment.approve(self.home, self.registry, site, PASSPHRASE)

            threading.Thread(target=approve, daemon=True).start()

        return client_enrol.join(folder, invitation, timeout_s=PATIENCE_S, show_phrase=approve_if_equal)


@pytest.fixture
def office(tmp_path: Path) -> Iterator[Office]:
    opened = Office(new_home(tmp_path / "coordinator"))
    yield opened
    opened.close()


def knocks(identity: Identity) -> grpc.StatusCode:
    """How a call at the gateway ends with this identity."""
    with identity.channel() as channel:
        return status_of(CoordinationStub(channel).ListProposals, ListProposalsRequest())


def age(office: Office, identity: Identity, days: float) -> x509.Certificate:
    """The same site with a certificate that was signed `days` ago; the registry knows it."""
    root_key, _ = roots.root_credentials(office.home)
    then = certificates.now() - datetime.timedelta(days=days)
    old = identity.certificate
    builder = x509.CertificateBuilder(old.issuer, old.subject, old.public_key(), x509.random_serial_number())
    builder = builder.not_valid_before(then).not_valid_after(then + certificates.SITE_LIFETIME)
    for extension in old.extensions:
        builder = builder.add_extension(extension.value, extension.critical)
    certificate = builder.sign(root_key, old.signature_hash_algorithm)  # type: ignore[arg-type]
    fields = {"site": identity.site, "certificate": certificates.fingerprint(certificate)}
    open_log(office.home).append("renewed", fields)
    office.registry.renew(identity.site, certificates.to_pem(certificate), knows_successor=False)
    return certificate


def test_phrase_of_both_sides_is_equal_and_the_site_gets_in(office: Office, tmp_path: Path) -> None:
    identity = office.join(tmp_path / "site")
    assert knocks(identity) == grpc.StatusCode.OK
    receipt_key = identity.receipt_key.public_key().public_bytes_raw()
    assert office.registry.site("st-mary").receipt_key == receipt_key
    assert identity.log_key == office.home.log_key.public_key().public_bytes_raw()


def test_site_joins_by_mail_without_a_connection(office: Office, tmp_path: Path) -> None:
    invitation = enrolment.invite(office.home, office.registry, "st-mary")
    office.close()
    phrase, text = client_enrol.request_by_file(tmp_path / "site", invitation)
    assert enrolment.redeem_file(office.home, office.registry, text.encode()) == "st-mary"
    assert enrolment.phrase_of(office.registry.site("st-mary")) == phrase
    enrolment.approve(office.home, office.registry, "st-mary")
    identity = client_enrol.accept_certificate(tmp_path / "site", office.registry.site("st-mary").certificate or b"")
    office.reopen()
    assert knocks(identity) == grpc.StatusCode.OK


def test_mailed_request_is_good_once(office: Office, tmp_path: Path) -> None:
    invitation = enrolment.invite(office.home, office.registry, "st-mary")
    enrolment.redeem_file(
        office.home, office.registry, client_enrol.request_by_file(tmp_path / "one", invitation)[1].encode()
    )
    other = client_enrol.request_by_file(tmp_path / "two", invitation)[1].encode()
    with pytest.raises(EnrolmentError, match="used already"):
        enrolment.redeem_file(office.home, office.registry, other)
    with pytest.raises(EnrolmentError, match="no request to join"):
        enrolment.redeem_file(office.home, office.registry, b'{"site": "st-mary"}')


def test_mailed_request_with_a_receipt_key_of_another_is_refused(office: Office, tmp_path: Path) -> None:
    invitation = enrolment.invite(office.home, office.registry, "st-mary")
    request = json.loads(client_enrol.request_by_file(tmp_path / "mary", invitation)[1])
    stranger = enrolment.invite(office.home, office.registry, "st-john")
    other = json.loads(client_enrol.request_by_file(tmp_path / "john", stranger)[1])
    for wrong in ({"receipt_key": other["receipt_key"]}, {"proof": other["proof"]}, {"proof": ""}):
        with pytest.raises(EnrolmentError, match="receipt key has not signed this request"):
            enrolment.redeem_file(office.home, office.registry, json.dumps(request | wrong).encode())
    del request["proof"]
    with pytest.raises(EnrolmentError, match="no request to join"):
        enrolment.redeem_file(office.home, office.registry, json.dumps(request).encode())
    assert office.registry.site("st-mary").state == "invited"


def test_certificate_of_another_key_is_not_accepted(office: Office, tmp_path: Path) -> None:
    office.join(tmp_path / "john", "st-john")
    stranger = office.registry.site("st-john").certificate or b""
    client_enrol.request_by_file(tmp_path / "mary", enrolment.invite(office.home, office.registry, "st-mary"))
    with pytest.raises(EnrolmentError, match="not for site 'st-mary'"):
        client_enrol.accept_certificate(tmp_path / "mary", stranger)
    with pytest.raises(EnrolmentError, match="has not joined"):
        load_identity(tmp_path / "mary")


def test_renewal_is_due_after_two_thirds_and_brings_a_new_key(office: Office, tmp_path: Path) -> None:
    folder = tmp_path / "site"
    first = office.join(folder)
    assert not first.renewal_is_due
    for days, due in ((59, False), (61, True)):
        write_private(folder / "tls" / "certificate.pem", certificates.to_pem(age(office, first, days)))
        assert load_identity(folder).renewal_is_due is due
    old = load_identity(folder)
    renewed = client_enrol.renew(folder, old)
    assert renewed.days_left in (89, 90)
    assert renewed.key_pem != old.key_pem
    assert not (folder / "tls" / "next-key.pem").exists()
    assert load_identity(folder).certificate == renewed.certificate
    assert knocks(old) == grpc.StatusCode.OK  # until the new one is used
    assert knocks(renewed) == grpc.StatusCode.OK
    assert knocks(old) == grpc.StatusCode.PERMISSION_DENIED
    assert knocks(renewed) == grpc.StatusCode.OK


def test_lost_answer_to_a_renewal_is_asked_for_again(office: Office, tmp_path: Path) -> None:
    folder = tmp_path / "site"
    identity = office.join(folder)
    key = certificates.new_key()
    write_private(folder / "tls" / "next-key.pem", certificates.key_to_pem(key))
    signed = enrolment.renew(
        office.home, office.registry, "st-mary", certificates.to_pem(certificates.csr_for("st-mary", key))
    )
    renewed = client_enrol.renew(folder, identity)
    assert signed is not None
    assert renewed.certificate == certificates.load_certificate(signed)


def test_site_that_never_got_its_renewal_is_not_shut_out(
    office: Office, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The answer is lost, and the site switched off for a week; twice, the second time with its next key lost, too."""
    folder = tmp_path / "site"
    identity = office.join(folder)
    real = certificates.now
    for days in (7, 14):
        lost = certificates.csr_for("st-mary", certificates.new_key())
        assert enrolment.renew(office.home, office.registry, "st-mary", certificates.to_pem(lost))
        monkeypatch.setattr(certificates, "now", lambda days=days: real() + datetime.timedelta(days=days))
        assert knocks(identity) == grpc.StatusCode.OK
    monkeypatch.undo()
    renewed = client_enrol.renew(folder, identity)
    assert knocks(renewed) == grpc.StatusCode.OK
    assert knocks(identity) == grpc.StatusCode.PERMISSION_DENIED


def test_earlier_certificate_does_not_outlive_its_own_time(
    office: Office, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    identity = office.join(tmp_path / "site")
    lost = certificates.csr_for("st-mary", certificates.new_key())
    enrolment.renew(office.home, office.registry, "st-mary", certificates.to_pem(lost))
    ended = identity.certificate.not_valid_after_utc + datetime.timedelta(seconds=1)
    monkeypatch.setattr(certificates, "now", lambda: ended)
    assert office.registry.active_site(certificates.fingerprint(identity.certificate)) is None


def test_site_killed_between_certificate_and_key_starts_with_the_new_pair(office: Office, tmp_path: Path) -> None:
    folder = tmp_path / "site"
    office.join(folder)
    key = certificates.new_key()
    signed = enrolment.renew(
        office.home, office.registry, "st-mary", certificates.to_pem(certificates.csr_for("st-mary", key))
    )
    write_private(folder / "tls" / "next-key.pem", certificates.key_to_pem(key))
    write_private(folder / "tls" / "certificate.pem", signed or b"")
    assert knocks(load_identity(folder)) == grpc.StatusCode.OK


def test_site_cannot_renew_another(office: Office, tmp_path: Path) -> None:
    identity = office.join(tmp_path / "mary")
    office.join(tmp_path / "john", "st-john")
    before = office.registry.site("st-john").fingerprint
    key = certificates.new_key()
    write_private(tmp_path / "mary" / "tls" / "next-key.pem", certificates.key_to_pem(key))
    stolen = Identity(**(vars(identity) | {"site": "st-john"}))
    with pytest.raises(EnrolmentError, match="must name site 'st-mary'"):
        client_enrol.renew(tmp_path / "mary", stolen)
    assert office.registry.site("st-john").fingerprint == before


def test_revoked_site_is_out_and_cannot_renew(office: Office, tmp_path: Path) -> None:
    identity = office.join(tmp_path / "site")
    with identity.channel() as channel:
        stub = CoordinationStub(channel)
        assert status_of(stub.ListProposals, ListProposalsRequest()) == grpc.StatusCode.OK
        office.registry.revoke("st-mary")
        assert status_of(stub.ListProposals, ListProposalsRequest()) == grpc.StatusCode.PERMISSION_DENIED
    with pytest.raises(EnrolmentError, match="refused"):
        client_enrol.renew(tmp_path / "site", identity)


def test_after_a_rotation_old_and_new_certificates_open_the_door(office: Office, tmp_path: Path) -> None:
    folder = tmp_path / "site"
    first = office.join(folder)
    old_root = office.home.root_pem
    roots.rotate_root(office.home)
    office.reopen()
    informed = client_enrol.renew(folder, first)
    assert office.registry.site("st-mary").knows_successor
    assert informed.root_pem.startswith(old_root)
    assert informed.root_pem.count(b"BEGIN CERTIFICATE") == 2
    roots.finish_rotation(office.home)
    office.reopen()
    assert office.home.root_pem != old_root
    assert office.home.root_pem in informed.root_pem
    # Signed by the old root, to a server whose certificate the new root signed; then all new.
    assert knocks(informed) == grpc.StatusCode.OK
    assert knocks(client_enrol.renew(folder, informed)) == grpc.StatusCode.OK


def test_site_that_missed_the_rotation_does_not_trust_the_new_root(office: Office, tmp_path: Path) -> None:
    identity = office.join(tmp_path / "site")
    roots.rotate_root(office.home)
    roots.finish_rotation(office.home)
    office.reopen()
    assert knocks(identity) == grpc.StatusCode.UNAVAILABLE


def exchanges(identity: Identity, folder: Path, times: int = 1) -> LogExchange:
    """What a site knows after it has shown its log and looked at what the coordinator passes on."""
    trail = AuditTrail(folder, identity, b"k" * 32)
    trail.begin(identity)
    exchange = LogExchange(folder, trail.log, identity.log_key)
    with identity.channel() as channel:
        for _ in range(times):
            exchange.exchange(CoordinationStub(channel), identity.root_pem)
    return exchange


@pytest.mark.parametrize("rotations", [1, 2])
def test_site_that_joins_after_a_rotation_believes_those_that_have_yet_to_renew(
    office: Office, tmp_path: Path, rotations: int
) -> None:
    mary = office.join(tmp_path / "mary")
    exchanges(mary, tmp_path / "mary", times=2)  # the second time it has seen the coordinator's log
    for _ in range(rotations):
        roots.rotate_root(office.home)
        roots.finish_rotation(office.home)
    office.reopen()
    john = office.join(tmp_path / "john", "st-john")
    assert john.root_pem == office.home.root_pem
    assert not certificates.is_signed_by_any(mary.certificate, john.root_pem)
    exchange = exchanges(john, tmp_path / "john")
    assert (exchange.problem, exchange.conflict) == ("", "")
    assert {site: other.key for site, other in exchange._others.items()} == {
        "st-mary": mary.receipt_key.public_key().public_bytes_raw()
    }


def test_root_vouches_for_each_before_it_until_the_last_certificate_of_that_runs_out(
    office: Office, monkeypatch: pytest.MonkeyPatch
) -> None:
    began = certificates.now()
    retired, seen = [office.home.root_pem], []
    for days in (0, 80, 180):
        then = began + datetime.timedelta(days=days)
        monkeypatch.setattr(certificates, "now", lambda then=then: then)
        roots.rotate_root(office.home)
        roots.finish_rotation(office.home)
        vouchers = x509.load_pem_x509_certificates((office.home.path / "pki" / "vouchers.pem").read_bytes())
        root = certificates.load_certificate(office.home.root_pem)
        for voucher in vouchers:
            voucher.verify_directly_issued_by(root)
        keys = [certificates.load_certificate(pem).public_key() for pem in retired]
        ends = [round((one.not_valid_after_utc - began) / datetime.timedelta(days=1)) for one in vouchers]
        seen.append({keys.index(one.public_key()): end for one, end in zip(vouchers, ends, strict=True)})
        retired.append(office.home.root_pem)
    assert seen == [{0: 90}, {0: 90, 1: 170}, {2: 270}]


def test_old_root_with_a_voucher_opens_no_connection(office: Office, tmp_path: Path, free_port: int) -> None:
    """Whoever has the old root's key, from a backup say, cannot be the coordinator for who joined since."""
    old_key, old_root = roots.root_credentials(office.home)
    roots.rotate_root(office.home)
    roots.finish_rotation(office.home)
    office.reopen()
    john = office.join(tmp_path / "john", "st-john")
    address, key = f"127.0.0.1:{free_port}", certificates.new_key()
    voucher = (office.home.path / "pki" / "vouchers.pem").read_bytes()

    def as_server(root: x509.Certificate, root_key: certificates.PrivateKey) -> Credentials:
        certificate = certificates.server_certificate(key, ["127.0.0.1"], root, root_key)
        return Credentials(certificates.key_to_pem(key), certificates.to_pem(certificate) + voucher, None)

    shown = [as_server(old_root, old_key)]
    impostor = channels.serve(address, lambda: shown[0], lambda _: None, workers=1)
    try:
        identity = dataclasses.replace(john, gateway=address)
        assert knocks(identity) == grpc.StatusCode.UNAVAILABLE
        key_now, root_now = roots.root_credentials(office.home)
        shown[0] = as_server(root_now, key_now)
        assert knocks(identity) == grpc.StatusCode.UNIMPLEMENTED  # connected: it was not the address
    finally:
        impostor.stop(0).wait()


def test_rotation_is_not_finished_without_the_next_roots_key(tmp_path: Path) -> None:
    home = new_home(tmp_path / "coordinator")
    roots.protect_root(home, PASSPHRASE)
    roots.rotate_root(home, PASSPHRASE)
    before = {path.name: path.read_bytes() for path in (home.path / "pki").iterdir()}
    for wrong in (None, "another passphrase"):
        with pytest.raises(ConfigError, match=r"root key (is under a passphrase|does not open)"):
            roots.finish_rotation(home, wrong)
    assert {path.name: path.read_bytes() for path in (home.path / "pki").iterdir()} == before
    roots.finish_rotation(home, PASSPHRASE)
    assert not home.successor_pem


def dated_as(other: x509.Certificate, root: x509.Certificate, key: certificates.PrivateKey) -> x509.Certificate:
    """A root's self-signed certificate with the dates of another one."""
    builder = x509.CertificateBuilder(root.subject, root.subject, root.public_key(), x509.random_serial_number())
    builder = builder.not_valid_before(other.not_valid_before_utc).not_valid_after(other.not_valid_after_utc)
    for extension in root.extensions:
        builder = builder.add_extension(extension.value, extension.critical)
    return builder.sign(key, root.signature_hash_algorithm)  # type: ignore[arg-type]


def test_voucher_does_not_bring_a_root_back_that_was_rotated_away(office: Office, tmp_path: Path) -> None:
    """A hostile coordinator answers a renewal with the old root, whose key it may have, and with the voucher for it."""
    old_key, old_root = roots.root_credentials(office.home)
    roots.rotate_root(office.home)
    roots.finish_rotation(office.home)
    office.reopen()
    folder = tmp_path / "john"
    john = office.join(folder, "st-john")
    pinned = (folder / "tls" / "root.pem").read_bytes()
    voucher = (office.home.path / "pki" / "vouchers.pem").read_bytes()
    for old in (old_root, dated_as(certificates.load_certificate(voucher), old_root, old_key)):
        write_private(office.home.path / "pki" / "next-root.pem", certificates.to_pem(old) + voucher)
        with pytest.raises(EnrolmentError, match="not cross-signed as a next root"):
            client_enrol.renew(folder, john)
        assert (folder / "tls" / "root.pem").read_bytes() == pinned


def test_next_root_that_is_out_of_date_or_older_than_the_pinned_one_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    key, following_key = certificates.new_key(), certificates.new_key()
    older = certificates.new_root(following_key, "next")
    root = certificates.new_root(key, "root", older)
    with pytest.raises(EnrolmentError, match="not newer than one pinned here"):
        rotation.check_successor(
            certificates.to_pem(older) + certificates.to_pem(rotation.cross_sign(older, root, key)),
            certificates.to_pem(root),
        )
    following = certificates.new_root(following_key, "next", root)
    good = certificates.to_pem(following) + certificates.to_pem(rotation.cross_sign(following, root, key))
    assert rotation.check_successor(good, certificates.to_pem(root)) == following
    assert (
        rotation.check_successor(good, certificates.to_pem(root) + certificates.to_pem(following)) == following
    )  # told of it once more
    # The same name and key with other dates than the present root has signed.
    other = certificates.new_root(following_key, "next", following)
    with pytest.raises(EnrolmentError, match="not cross-signed"):
        rotation.check_successor(
            certificates.to_pem(other) + certificates.to_pem(rotation.cross_sign(following, root, key)),
            certificates.to_pem(root),
        )
    for then in (older.not_valid_before_utc, following.not_valid_after_utc):
        outside = then + datetime.timedelta(seconds=-1 if then == older.not_valid_before_utc else 1)
        monkeypatch.setattr(certificates, "now", lambda outside=outside: outside)
        with pytest.raises(EnrolmentError, match=f"by this computer's clock it is {outside:%Y-%m-%d %H:%M} UTC"):
            rotation.check_successor(good, certificates.to_pem(root))


def test_old_root_is_let_go_of_with_the_first_certificate_of_the_new_one(office: Office, tmp_path: Path) -> None:
    folder = tmp_path / "mary"
    first = office.join(folder)
    john = office.join(tmp_path / "john", "st-john")
    roots.rotate_root(office.home)
    office.reopen()
    informed = client_enrol.renew(folder, first)
    assert informed.knows_successor
    with pytest.raises(EnrolmentError, match="no coordinator with a certificate of the pinned root"):
        client_enrol.renew(folder, informed, to_successor=True)  # the rotation is not over
    roots.finish_rotation(office.home)
    office.reopen()
    assert not informed.renewal_is_due
    agent = Agent(folder, informed, FakeWorker(good))
    agent._renew_if_due()  # by itself, long before the certificate's time
    renewed = agent._renewed
    assert renewed is not None
    assert not renewed.knows_successor
    assert renewed.root_pem == (folder / "tls" / "root.pem").read_bytes() == office.home.root_pem
    assert load_identity(folder).root_pem == office.home.root_pem
    assert knocks(renewed) == grpc.StatusCode.OK
    # Who has not renewed yet is believed all the same: the new root vouches for the one before.
    shown = roots.with_vouchers(office.home, office.registry.site("st-john").certificate or b"")
    receipt_key = john.receipt_key.public_key().public_bytes_raw()
    assert receipt_key_of(shown, renewed.root_pem, "st-john") == receipt_key


def test_next_root_that_the_present_one_did_not_sign_is_refused() -> None:
    key, other = certificates.new_key(), certificates.new_key()
    root, stranger = certificates.new_root(key, "root"), certificates.new_root(other, "stranger")
    following = certificates.new_root(certificates.new_key(), "next", root)
    good = certificates.to_pem(following) + certificates.to_pem(rotation.cross_sign(following, root, key))
    assert rotation.check_successor(good, certificates.to_pem(root)) == following
    another = certificates.new_root(certificates.new_key(), "next")
    for wrong in (
        certificates.to_pem(following) + certificates.to_pem(rotation.cross_sign(following, stranger, other)),
        certificates.to_pem(following) + certificates.to_pem(rotation.cross_sign(another, root, key)),
        certificates.to_pem(following),
        b"",
    ):
        with pytest.raises(EnrolmentError, match="next root"):
            rotation.check_successor(wrong, certificates.to_pem(root))


def test_sealed_root_key_signs_only_with_its_passphrase(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = new_home(tmp_path / "plain")
    home = roots.create(tmp_path / "sealed", plain.config, PASSPHRASE)
    operators.add(home, Registry(home.registry), operators.FIRST, "admin", root_passphrase=PASSPHRASE)
    assert b"PRIVATE KEY" not in (home.path / "pki" / "root.key").read_bytes()
    office = Office(home)
    try:
        identity = office.join(tmp_path / "site")
        with pytest.raises(EnrolmentError, match="waits for the coordinator's approval"):
            client_enrol.renew(tmp_path / "site", identity)
        assert knocks(load_identity(tmp_path / "site")) == grpc.StatusCode.OK
        with pytest.raises(ConfigError, match="does not open"):
            enrolment.approve(home, office.registry, "st-mary", "another passphrase")
        monkeypatch.setenv(roots.ROOT_PASSPHRASE, PASSPHRASE)
        enrolment.approve(home, office.registry, "st-mary")
        assert knocks(client_enrol.renew(tmp_path / "site", identity)) == grpc.StatusCode.OK
    finally:
        office.close()


@pytest.mark.parametrize("protected", ["before", "during"])
def test_rotation_leaves_no_root_key_in_the_clear(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, protected: str
) -> None:
    home = new_home(tmp_path / "coordinator")
    keys = [home.path / "pki" / name for name in ("root.key", "next-root.key")]
    if protected == "before":
        roots.protect_root(home, PASSPHRASE)
        monkeypatch.setenv(roots.ROOT_PASSPHRASE, PASSPHRASE)
    roots.rotate_root(home)
    if protected == "during":
        assert not is_sealed(keys[1].read_bytes())  # with the coordinator's key alone
        roots.protect_root(home, PASSPHRASE)
        monkeypatch.setenv(roots.ROOT_PASSPHRASE, PASSPHRASE)
    assert all(b"PRIVATE KEY" not in key.read_bytes() for key in keys)
    roots.finish_rotation(home)
    assert b"PRIVATE KEY" not in keys[0].read_bytes()
    roots.root_credentials(home)
    with pytest.raises(ConfigError, match="does not open"):
        roots.root_credentials(home, "another passphrase")


def test_enrolment_is_expected_from_the_invitation_until_the_certificate_is_collected(
    office: Office, tmp_path: Path
) -> None:
    assert not office.registry.is_expecting()
    enrolment.invite(office.home, office.registry, "st-john")
    assert office.registry.is_expecting()
    office.registry.revoke("st-john")
    assert not office.registry.is_expecting()
    office.join(tmp_path / "site")
    assert not office.registry.is_expecting()
