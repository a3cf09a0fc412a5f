"""An operator whom an admin removes is removed at the hospitals with their next call; the site's own code judges.

The commands' own functions, the real gateway and mutual TLS.
"""

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from client.home.identity import Identity
from client.proposals import signers
from common.config.rundocument import from_toml
from common.errors import PolicyError
from common.identity.operators import check_endorsements, people
from common.wire.wardround_pb2 import ListProposalsReply, ListProposalsRequest
from common.wire.wardround_pb2_grpc import CoordinationStub
from server.home import root as roots
from server.registry import operators
from server.registry.proposals import Proposal
from tests.patience import PATIENCE_S
from tests.server.coordinators import RUN_TOML, new_home, signed
from tests.system.test_membership import Office


@pytest.fixture
def office(tmp_path: Path) -> Iterator[Office]:
    opened = Office(new_home(tmp_path / "coordinator"))
    yield opened
    opened.close()


def listed(site: Identity, revision: int = 0, wait_s: float = 0.0) -> ListProposalsReply:
    with site.channel() as channel:
        request = ListProposalsRequest(revision=revision, wait_s=wait_s)
        reply: ListProposalsReply = CoordinationStub(channel).ListProposals(request, timeout=PATIENCE_S)
    return reply


def add(office: Office, name: str) -> bytes:
    operators.add(office.home, office.registry, name, "operator")
    return next(one.certificate for one in office.registry.operators() if one.name == name)


def remove(office: Office, name: str) -> None:
    admin = operators.acting(office.home, office.registry, "operator-remove")
    operators.remove(office.home, office.registry, name, admin)


def learned(folder: Path, site: Identity) -> list[str]:
    return [signer.name for signer, _ in signers.learn(folder, listed(site).removals, site.root_pem)]


def test_removal_reaches_a_hospital_whose_call_is_held(office: Office, tmp_path: Path) -> None:
    site = office.join(tmp_path / "site")
    add(office, "maria")
    known = listed(site).revision
    threading.Timer(0.5, remove, [office, "maria"]).start()
    reply = listed(site, known, wait_s=20.0)
    assert [signer.name for signer, _ in signers.learn(tmp_path / "site", reply.removals, site.root_pem)] == ["maria"]
    assert learned(tmp_path / "site", site) == []  # known already
    assert len(signers.removed(tmp_path / "site")) == 1


def test_hospital_that_joins_later_learns_of_it_too_and_the_name_may_be_given_anew(
    office: Office, tmp_path: Path
) -> None:
    add(office, "maria")
    remove(office, "maria")
    add(office, "maria")
    site = office.join(tmp_path / "site")
    assert learned(tmp_path / "site", site) == ["maria"]
    signer = operators.acting(office.home, office.registry, "run", "maria")
    assert signer.key.public_key().public_bytes_raw().hex() not in signers.removed(tmp_path / "site")


def test_rotation_removes_nobody(office: Office, tmp_path: Path) -> None:
    """Operators get other certificates for the keys they have, and the earlier ones are removed at the coordinator."""
    add(office, "maria")
    roots.rotate_root(office.home)
    roots.finish_rotation(office.home)
    admin = operators.acting(office.home, office.registry, "root-finish")
    operators.certify_again(office.home, office.registry, admin)
    office.reopen()
    site = office.join(tmp_path / "site")
    assert learned(tmp_path / "site", site) == []
    remove(office, "maria")
    assert learned(tmp_path / "site", site) == ["maria"]


def test_damaged_list_is_written_anew(office: Office, tmp_path: Path) -> None:
    add(office, "maria")
    remove(office, "maria")
    site = office.join(tmp_path / "site")
    path = tmp_path / "site" / "tls" / "removed-operators.json"
    path.write_text("{")
    with pytest.raises(PolicyError, match="the coordinator tells it again"):
        signers.removed(tmp_path / "site")
    assert learned(tmp_path / "site", site) == ["maria"]
    assert len(signers.removed(tmp_path / "site")) == 1


def test_run_of_a_removed_operator_is_signed_by_whoever_resumes_it(office: Office, tmp_path: Path) -> None:
    add(office, "maria")
    bundle = from_toml(RUN_TOML).bundle
    signer = operators.acting(office.home, office.registry, "run", "maria")
    run_hash = office.registry.propose(from_toml(RUN_TOML), [operators.endorse(signer, "", bundle)]).run_hash
    office.registry.close(run_hash, "stopped", act=signed(office.home, office.registry, "stop", run_hash))
    admin = operators.acting(office.home, office.registry, "resume")
    for _ in range(2):  # once is enough
        endorsement = operators.endorse(admin, run_hash, bundle)
        act = admin.sign(run_hash)
        operators.enter(office.home, act)
        office.registry.reopen(run_hash, act, endorsement)
        office.registry.close(run_hash, "failed")
    found: Proposal = office.registry.proposal(run_hash)
    assert len(found.endorsements) == 2
    (told,) = listed(office.join(tmp_path / "site")).proposals
    found_signers = check_endorsements(found.endorsements, office.home.root_pem, run_hash, told.bundle_sha256)
    assert people(found_signers) == ("admin",)
