"""The root names each site's receipt key in its certificate: at approval, at renewal, and across a rotation.

The coordinator's own code and the clients', over real TLS; what a site believes of another is asked of
common/identity/receipt_keys.py.
"""

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from client.home import enrolment as client_enrol
from client.home.identity import Identity, load_identity
from common.audit.entries import Entry
from common.errors import EnrolmentError
from common.identity import certificates
from common.identity.receipt_keys import receipt_key_of
from common.wire.wardround_pb2 import SiteCheckpoint
from server.gateway import enrolment
from server.home.folder import Home
from server.home.root import finish_rotation, rotate_root, with_vouchers
from server.registry.audit_trail import open_log
from server.registry.registry import Registry
from tests.server.coordinators import asked, enrol, new_home, receipt_key
from tests.server.registry.test_audit_trail import Stage, stage
from tests.system.test_membership import Office

__all__ = ["stage"]  # a fixture


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return new_home(tmp_path / "home")


@pytest.fixture
def registry(home: Home) -> Registry:
    return Registry(home.registry)


@pytest.fixture
def office(tmp_path: Path) -> Iterator[Office]:
    opened = Office(new_home(tmp_path / "coordinator"))
    yield opened
    opened.close()


def certificate_of(registry: Registry, site: str) -> bytes:
    return registry.site(site).certificate or b""


def alter_receipt_key(home: Home, site: str) -> None:
    """As somebody who has the coordinator's host, and wants a key of their own vouched for."""
    with closing(sqlite3.connect(home.registry, isolation_level=None)) as database:
        database.execute("UPDATE sites SET receipt_key = ? WHERE name = ?", (receipt_key(), site))


def public(identity: Identity) -> bytes:
    return identity.receipt_key.public_key().public_bytes_raw()


def kinds(home: Home) -> list[str]:
    entries: tuple[Entry, ...] = open_log(home).entries()
    return [entry.kind for entry in entries]


def test_approved_certificate_names_the_key_that_the_site_asked_for(home: Home, registry: Registry) -> None:
    member = enrol(home, registry, "north")
    named = receipt_key_of(member.certificate, home.root_pem, "north")
    assert named == member.receipt_key.public_key().public_bytes_raw()


def test_key_that_was_altered_before_the_approval_is_not_vouched_for(home: Home, registry: Registry) -> None:
    token = enrolment.invite(home, registry, "north").token
    registry.redeem("north", token, *asked("north"))
    alter_receipt_key(home, "north")
    with pytest.raises(EnrolmentError, match="another receipt key for site north than the one that was compared"):
        enrolment.approve(home, registry, "north")
    assert registry.site("north").certificate is None
    assert "enrolled" not in kinds(home)


def test_renewal_carries_the_key_on(office: Office, tmp_path: Path) -> None:
    first = office.join(tmp_path / "mary")
    renewed = client_enrol.renew(tmp_path / "mary", first)
    assert renewed.certificate != first.certificate
    assert receipt_key_of(renewed.certificate_pem, office.home.root_pem, "st-mary") == public(first)


def test_renewal_that_names_another_key_is_not_stored(
    office: Office, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, other = office.join(tmp_path / "mary"), receipt_key()
    monkeypatch.setattr(enrolment, "_receipt_key", lambda *_: other)
    with pytest.raises(EnrolmentError, match="names another key for the receipts of site 'st-mary'"):
        client_enrol.renew(tmp_path / "mary", first)
    assert load_identity(tmp_path / "mary").certificate == first.certificate


def test_key_that_was_altered_before_a_renewal_is_not_vouched_for(home: Home, registry: Registry) -> None:
    member = enrol(home, registry, "north")
    csr = certificates.to_pem(certificates.csr_for("north", certificates.new_key()))
    registry.ask_renewal("north", csr)
    alter_receipt_key(home, "north")
    with pytest.raises(EnrolmentError, match="unproven"):
        enrolment.renew(home, registry, "north", csr)
    with pytest.raises(EnrolmentError, match="another receipt key for site north"):
        enrolment.approve(home, registry, "north")
    assert registry.site("north").certificate == member.certificate


def test_checkpoints_are_passed_on_with_the_certificate_that_names_their_key(stage: Stage) -> None:
    stage.south.exchange(0)
    stage.south.log.append("data-forgotten")
    size = stage.south.show(0).seen_size
    stage.south.exchange(size)
    reply = stage.north.exchange(0)
    (other,) = reply.others
    assert isinstance(other, SiteCheckpoint)
    assert receipt_key_of(other.certificate_pem, stage.home.root_pem, "south") == stage.south.log.public_key


def test_sites_believe_each_other_through_a_rotation(office: Office, tmp_path: Path) -> None:
    mary, john = (office.join(tmp_path / name, f"st-{name}") for name in ("mary", "john"))
    rotate_root(office.home)
    office.reopen()
    mary, john = (client_enrol.renew(tmp_path / one.site.removeprefix("st-"), one) for one in (mary, john))

    def believes(who: Identity, whom: Identity) -> bool:
        certificate = with_vouchers(office.home, certificate_of(office.registry, whom.site))  # as it is passed on
        return receipt_key_of(certificate, who.root_pem, whom.site) == public(whom)

    assert believes(mary, john)
    assert believes(john, mary)
    finish_rotation(office.home)
    office.reopen()
    renewed = client_enrol.renew(tmp_path / "mary", mary)
    assert renewed.certificate.issuer == certificates.load_certificate(office.home.root_pem).subject
    assert believes(john, renewed)  # certified by the next root, which john knows of since it was announced
    assert believes(renewed, john)  # still certified by the one before
    # Who joins now is told of the new root alone: that vouches for the one before until john has renewed.
    luke = office.join(tmp_path / "luke", "st-luke")
    assert believes(luke, renewed)
    with pytest.raises(EnrolmentError, match="no root that is known here"):
        receipt_key_of(certificate_of(office.registry, "st-john"), luke.root_pem, "st-john")
    assert believes(luke, john)
    assert believes(luke, client_enrol.renew(tmp_path / "john", john))
