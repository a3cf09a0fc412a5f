import contextlib
import datetime
import sqlite3
from concurrent.futures import ThreadPoolExecutor

import pytest

from common.config import RunConfig, parse, sha256_of
from common.config.rundocument import from_toml
from common.errors import ConfigError, EnrolmentError, FederationError
from common.identity import certificates
from common.wire.endings import Ending
from server.registry.registry import Registry
from server.registry.sites import check_name
from tests.server.coordinators import RUN, RUN_TOML, asked, enrol, invite, new_home

HASH = sha256_of(RUN)


@pytest.fixture
def home(tmp_path):
    return new_home(tmp_path / "home")


@pytest.fixture
def registry(home):
    return Registry(home.registry)


@pytest.fixture
def proposal(registry):
    return registry.propose(from_toml(RUN_TOML), ())


def tomorrow() -> datetime.datetime:
    return certificates.now() + datetime.timedelta(days=1)


def test_token_is_not_in_the_file(home, registry):
    registry.invite("st-mary", "00112233445566778899aabbccddeeff", tomorrow())
    assert b"00112233445566778899aabbccddeeff" not in home.registry.read_bytes()


def test_invitation_works_once(home, registry):
    invite(home, registry, "st-mary", "token", tomorrow())
    first = asked("st-mary")
    registry.redeem("st-mary", "token", *first)
    registry.redeem("st-mary", "token", *first)  # the same request again: its answer may have been lost
    with pytest.raises(EnrolmentError, match="by another request"):
        registry.redeem("st-mary", "token", *asked("st-mary"))


@pytest.mark.parametrize(
    ("site", "token"), [("st-mary", "other"), ("st-mary", ""), ("unknown", "token"), ("unknown", "")]
)
def test_wrong_token_or_site_is_refused_in_the_same_words(home, registry, site, token):
    invite(home, registry, "st-mary", "token", tomorrow())
    with pytest.raises(EnrolmentError, match="unknown, used or expired"):
        registry.redeem(site, token, *asked(site))


def test_expired_invitation_is_refused(home, registry):
    invite(home, registry, "st-mary", "token", certificates.now() - datetime.timedelta(seconds=1))
    with pytest.raises(EnrolmentError, match="expired"):
        registry.redeem("st-mary", "token", *asked("st-mary"))


def test_invitation_for_one_site_does_not_admit_another(home, registry):
    invite(home, registry, "st-mary", "token", tomorrow())
    with pytest.raises(EnrolmentError, match="must name site"):
        registry.redeem("st-mary", "token", *asked("st-john"))


def test_two_at_once_cannot_both_use_one_invitation(home, registry):
    invite(home, registry, "st-mary", "token", tomorrow())

    def redeem(request: tuple[bytes, bytes, bytes]) -> bool:
        try:
            registry.redeem("st-mary", "token", *request)
        except EnrolmentError:
            return False
        return True

    with ThreadPoolExecutor(8) as pool:
        assert sum(pool.map(redeem, [asked("st-mary") for _ in range(8)])) == 1


def test_spent_invitation_is_void_after_approval(home, registry):
    enrol(home, registry, "st-mary")
    with pytest.raises(EnrolmentError, match="unknown, used or expired"):
        registry.redeem("st-mary", "", *asked("st-mary"))


def test_active_site_is_found_by_its_certificate_until_it_is_revoked(home, registry):
    member = enrol(home, registry, "st-mary")
    fingerprint = certificates.fingerprint(certificates.load_certificate(member.certificate))
    found = registry.active_site(fingerprint)
    assert found is not None
    assert found.name == "st-mary"
    registry.revoke("st-mary")
    assert registry.active_site(fingerprint) is None


def test_site_whose_certificate_expired_is_not_active(home, registry):
    member = enrol(home, registry, "st-mary")
    with sqlite3.connect(home.registry) as database:
        database.execute(
            "UPDATE sites SET expires = ?", ((certificates.now() - datetime.timedelta(days=1)).isoformat(),)
        )
    assert registry.active_site(certificates.fingerprint(certificates.load_certificate(member.certificate))) is None


def test_active_site_is_not_invited_over_but_a_revoked_one_may_return(home, registry):
    enrol(home, registry, "st-mary")
    with pytest.raises(EnrolmentError, match="revoke st-mary"):
        registry.invite("st-mary", "token", tomorrow())
    registry.revoke("st-mary")
    enrol(home, registry, "st-mary")
    assert registry.site("st-mary").state == "active"


@pytest.mark.parametrize("name", ["", "St-Mary", "st mary", "../etc", "-a", "a" * 64, "ä"])
def test_names_that_are_no_site_names_are_refused(name):
    with pytest.raises(ConfigError, match="no site name"):
        check_name(name)


def test_a_run_is_proposed_once(registry, proposal):
    with pytest.raises(ConfigError, match="change its name or seed"):
        registry.propose(proposal.document, ())


def test_a_run_is_found_by_name_hash_and_beginning_of_the_hash(registry, proposal):
    for word in ("lesions", HASH, HASH[:8], HASH[:2]):
        assert registry.proposal(word).run_hash == HASH
    for word in ("", "lesion", "zz", HASH + "0"):
        with pytest.raises(ConfigError, match="no run is called"):
            registry.proposal(word)


def test_the_latest_run_of_a_name_is_meant(registry, proposal):
    text = RUN_TOML.replace('name = "lesions"', 'name = "lesions"\nseed = 5')
    later = parse(RunConfig, text)
    registry.propose(from_toml(text), ())
    assert registry.proposal("lesions").run_hash == sha256_of(later)


def test_answers_are_kept_by_site_and_may_change(registry, proposal):
    registry.answer(HASH, "st-mary", approved=False)
    registry.answer(HASH, "st-john", approved=True)
    registry.answer(HASH, "st-mary", approved=True)
    assert registry.proposal(HASH).approved == {"st-mary", "st-john"}
    assert not registry.proposal(HASH).denied


def test_closed_runs_take_no_answers(registry, proposal):
    assert registry.close(HASH, "stopped")
    with pytest.raises(FederationError, match="not open"):
        registry.answer(HASH, "st-mary", approved=True)
    with pytest.raises(FederationError, match="not open"):
        registry.answer("0" * 64, "st-mary", approved=True)


def test_a_run_ends_once(registry, proposal):
    assert registry.close(HASH, "completed")
    assert not registry.close(HASH, "failed", "too late")
    assert registry.proposal(HASH).state == "completed"


def test_how_a_run_ended_is_kept_until_it_goes_on(registry, proposal):
    assert registry.proposal(HASH).ending is None
    registry.close(HASH, "failed", "too few", code="too-few-updates", rounds=2)
    assert registry.proposal(HASH).ending == Ending("failed", "too-few-updates", 2)
    registry.reopen(HASH)
    assert registry.proposal(HASH).ending is None
    registry.close(HASH, "completed")
    assert registry.proposal(HASH).ending == Ending("completed")


def test_run_that_an_earlier_version_closed_has_its_state_as_its_ending(registry, proposal):
    registry.close(HASH, "failed", "too few", code="too-few-updates", rounds=2)
    with contextlib.closing(sqlite3.connect(registry._path)) as database, database:
        database.execute("DROP TABLE endings")
    opened = Registry(registry._path)
    assert opened.proposal(HASH).ending == Ending("failed")


def test_a_closed_run_is_not_started(registry, proposal):
    registry.close(HASH, "stopped")
    registry.started(HASH, 1)
    assert registry.proposal(HASH).state == "stopped"


def test_failed_runs_open_again_with_their_answers_completed_ones_do_not(registry, proposal):
    registry.answer(HASH, "st-mary", approved=True)
    registry.close(HASH, "failed", "no quorum")
    registry.reopen(HASH)
    assert registry.proposal(HASH).state == "proposed"
    assert registry.proposal(HASH).approved == {"st-mary"}
    registry.close(HASH, "completed")
    with pytest.raises(ConfigError, match="nothing to resume"):
        registry.reopen(HASH)


def test_revision_grows_with_every_change_of_a_proposal(registry, proposal):
    seen = [registry.revision()]
    registry.started(HASH, 2**64 - 1)
    seen.append(registry.revision())
    registry.close(HASH, "failed")
    seen.append(registry.revision())
    registry.reopen(HASH)
    seen.append(registry.revision())
    assert seen == sorted(set(seen))


def test_flower_run_ids_of_64_bits_fit(registry, proposal):
    registry.started(HASH, 2**64 - 1)
    assert registry.proposal(HASH).run_id == 2**64 - 1


def test_a_run_is_unfinished_until_its_server_app_is_gone(registry, proposal):
    registry.started(HASH, 5)
    registry.close(HASH, "stopped")
    assert [one.run_id for one in registry.unfinished()] == [5]
    registry.ended(HASH)
    assert registry.unfinished() == []


def test_many_threads_may_write_at_once(registry, proposal):
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda number: registry.answer(HASH, f"site-{number}", approved=True), range(40)))
    assert len(registry.proposal(HASH).approved) == 40
