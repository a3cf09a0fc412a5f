"""The declared number of patients is the hospital's: it is set by an approval, and by nothing that a coordinator does.

A real agent and worker over mutual TLS, pictures on disk, the real command line; a site whose site.toml has no
cohort-size, so that the number is one that was found.
"""

import hashlib
import json
import queue
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest

from client.agent.loop import Agent
from client.agent.worker_process import Worker
from client.home.declared import declare, declared_size
from client.home.identity import load_identity
from client.home.offer import Offer
from client.rules import approvals
from client.site import open_site
from client.worker.loop import answer as answer_question
from client.worker.protocol import Describe
from common.config import RunConfig, SiteConfig, parse, sha256_of
from common.config.rundocument import from_toml, issue
from common.errors import ConfigError
from common.wire.messages import EvaluateRequest, Refusal, TrainReply, TrainRequest
from tests.client.commands.test_main import succeed
from tests.client.coordinator import Authority, Coordinator
from tests.client.test_hostile_coordinator import RUN_TOML, model
from tests.patience import PATIENCE_S, eventually
from tests.simulations.tiny import tiny_site

pytestmark = pytest.mark.slow
PRIVATE = parse(RunConfig, RUN_TOML.replace("NAME", "lesions").replace("STEPS", "2"))


@dataclass
class Hospital:
    """A site without a cohort-size, and the coordinator that it talks to."""

    home: Path
    pictures: Path
    coordinator: Coordinator
    agent: Agent | None = None
    thread: threading.Thread | None = None

    def has(self, patients: int) -> None:
        """So many patients are on disk from now on; the agent reads them when it starts."""
        for path in self.pictures.rglob("*.*"):
            path.unlink()
        tiny_site(self.pictures, "north", patients=patients)

    def start(self) -> None:
        self.agent = Agent(self.home, load_identity(self.home), Worker(self.home, threads=1))
        self.thread = threading.Thread(target=self.agent.run, daemon=True)
        self.thread.start()

    def stop(self) -> None:
        if self.agent is not None and self.thread is not None:
            self.agent.stop()
            self.thread.join(timeout=PATIENCE_S)

    def proposed(self, name: str) -> RunConfig:
        """A private run that nobody has answered, once the hospital knows what it would mean."""
        toml = RUN_TOML.replace("NAME", name).replace("STEPS", "2")
        run = parse(RunConfig, toml)
        bundle = from_toml(toml).bundle
        digest = hashlib.sha256(bundle).hexdigest()
        self.coordinator.propose(sha256_of(run), bundle, digest)
        self.coordinator.run.run_id, self.coordinator.run.fab_hash = int(sha256_of(run)[:12], 16), digest
        eventually(lambda: self.offered(run))
        return run

    def offered(self, run: RunConfig) -> Offer | None:
        known = [one for one in approvals.load_all(self.home) if one.run_hash == sha256_of(run)]
        return known[0].appraisal.offer if known and known[0].appraisal else None

    def declared(self) -> dict[str, int]:
        """The numbers that were set."""
        path = self.home / "state" / "declared.json"
        return json.loads(path.read_bytes()) if path.exists() else {}


@pytest.fixture
def hospital(tmp_path: Path, free_port: int) -> Iterator[Hospital]:
    home, pictures = tmp_path / "home", tmp_path / "pictures"
    authority = Authority()
    coordinator = Coordinator(authority, free_port).start()
    authority.admit(home, "north", coordinator.address)
    source = tiny_site(pictures, "north", patients=3).data[0]
    (home / "site.toml").write_text(f'name = "north"\nthreads = 1\n[[data]]\npath = "{source.path}"\nkind = "images"\n')
    (home / "policy.toml").write_text("lifetime-epsilon = 100.0\n")
    one = Hospital(home, pictures, coordinator)
    yield one
    one.stop()
    coordinator.stop()


def test_coordinator_whose_runs_nobody_approves_sets_no_number_and_learns_none(hospital: Hospital) -> None:
    for number, patients in enumerate((12, 24)):
        hospital.has(patients)
        hospital.start()
        probes = [hospital.proposed(f"probe-{number}-{again}") for again in range(2)]
        for run in probes:
            for request in (
                TrainRequest(sha256_of(run), 1, {"weights": model(run)}),
                EvaluateRequest(sha256_of(run), 3, "test", {"weights": model(run)}),
            ):
                hospital.coordinator.run.fab_hash = approvals.load(hospital.home, sha256_of(run)).bundle_sha256
                hospital.coordinator.run.run_id = int(sha256_of(run)[:12], 16)
                hospital.coordinator.ask(request)
                assert isinstance(hospital.coordinator.replies.get(timeout=PATIENCE_S), Refusal)
        assert hospital.declared() == {}
        hospital.stop()
    # Nothing was told of the counts: no answer, no code.
    with pytest.raises(queue.Empty):
        hospital.coordinator.answers.get_nowait()
    assert hospital.coordinator.codes == {}

    hospital.has(37)
    hospital.start()
    run = hospital.proposed("wanted")
    shown = succeed(hospital.home, "approve", sha256_of(run), "--yes")
    assert "40 patients" in shown
    assert hospital.declared() == {"photo": 40}
    hospital.coordinator.ask(TrainRequest(sha256_of(run), 1, {"weights": model(run)}))
    trained = hospital.coordinator.replies.get(timeout=PATIENCE_S)
    assert isinstance(trained, TrainReply)
    assert trained.metrics["delta"] == pytest.approx(1 / 400)

    # And no number of before is shown any more, nor one of patients who came since.
    hospital.stop()
    hospital.has(53)
    hospital.start()
    for earlier in (one for one in approvals.load_all(hospital.home) if one.run.name.startswith("probe")):
        eventually(partial(offer_is, hospital, earlier.run, (53, 40)))
    assert hospital.declared() == {"photo": 40}


def test_approval_sets_the_number_that_it_showed_whoever_has_come_since(hospital: Hospital) -> None:
    hospital.has(12)
    hospital.start()
    run = hospital.proposed("lesions")
    hospital.stop()
    hospital.has(37)
    assert "15 patients" in succeed(hospital.home, "approve", sha256_of(run), "--yes")
    assert hospital.declared() == {"photo": 15}
    hospital.start()
    hospital.coordinator.ask(TrainRequest(sha256_of(run), 1, {"weights": model(run)}))
    trained = hospital.coordinator.replies.get(timeout=PATIENCE_S)
    assert isinstance(trained, TrainReply)
    assert trained.metrics["delta"] == pytest.approx(1 / 150)


def test_number_set_or_declared_meanwhile_is_shown_for_runs_counted_before(hospital: Hospital) -> None:
    hospital.has(12)
    hospital.start()
    first, second, third = (hospital.proposed(name) for name in ("first", "second", "third"))
    state = hospital.home / "state" / "declared.json"
    state.write_text('{"photo": 60}')
    eventually(lambda: offer_is(hospital, first, (12, 60)))
    assert "60 patients" in succeed(hospital.home, "approve", sha256_of(first), "--yes")
    hospital.stop()  # nobody counts anew from here on
    state.write_text('{"photo": 70}')
    assert "70 patients" in succeed(hospital.home, "approve", sha256_of(second), "--yes")
    site_toml = hospital.home / "site.toml"
    site_toml.write_text(site_toml.read_text().replace("threads = 1", "threads = 1\ncohort-size = 80"))
    assert "80 patients" in succeed(hospital.home, "approve", sha256_of(third), "--yes")
    assert hospital.declared() == {"photo": 70}


def test_policy_that_approves_by_itself_sets_the_number(hospital: Hospital) -> None:
    (hospital.home / "policy.toml").write_text("lifetime-epsilon = 100.0\nauto-approve = true\nmax-rounds = 3\n")
    hospital.has(12)
    hospital.start()
    run = hospital.proposed("lesions")
    eventually(lambda: approvals.load(hospital.home, sha256_of(run)).answer is not None)
    offer = hospital.offered(run)
    assert offer is not None
    assert hospital.declared() == {"photo": 15} == {"photo": offer.declared_size}


def test_policy_that_denies_by_itself_sets_no_number(hospital: Hospital) -> None:
    (hospital.home / "policy.toml").write_text("auto-approve = true\n")
    hospital.has(3)  # fewer than min-patients
    hospital.start()
    run = hospital.proposed("lesions")
    eventually(lambda: approvals.load(hospital.home, sha256_of(run)).answer is not None)
    assert hospital.declared() == {}


def test_run_approved_before_anybody_was_counted_sets_the_number_when_it_is_asked_for(hospital: Hospital) -> None:
    hospital.has(12)
    hospital.start()
    run = hospital.proposed("lesions")
    approvals.answer(hospital.home, sha256_of(run), approved=True, by="person")
    assert hospital.declared() == {}
    hospital.coordinator.ask(TrainRequest(sha256_of(run), 1, {"weights": model(run)}))
    assert isinstance(hospital.coordinator.replies.get(timeout=PATIENCE_S), TrainReply)
    assert hospital.declared() == {"photo": 15}


def test_worker_that_is_asked_what_there_is_only_looks(hospital: Hospital) -> None:
    hospital.has(12)
    before = sorted(path.name for path in (hospital.home / "state").glob("*"))
    offer = answer_question(Describe(issue(PRIVATE)), hospital.home)
    assert isinstance(offer, Offer)
    assert offer.declared_size == 15
    assert sorted(path.name for path in (hospital.home / "state").glob("*")) == before
    # The cohort that is held in memory has the number of today.
    (hospital.home / "state" / "declared.json").write_text('{"photo": 60}')
    assert open_site(hospital.home).cohort(PRIVATE).declared_size == 60
    again = answer_question(Describe(issue(PRIVATE)), hospital.home)
    assert isinstance(again, Offer)
    assert again.declared_size == 60


def offer_is(hospital: Hospital, run: RunConfig, expected: tuple[int, int]) -> bool:
    offer = hospital.offered(run)
    return offer is not None and (offer.patients, offer.declared_size) == expected


def test_number_that_was_set_does_not_follow_the_live_count(
    hospital: Hospital, caplog: pytest.LogCaptureFixture
) -> None:
    sizes = []
    for patients in (8, 10, 11, 12):
        hospital.has(patients)
        site = open_site(hospital.home)
        site.let_go()
        sizes.append(site.cohort(PRIVATE).declared_size)
        declare(site.config, PRIVATE, sizes[-1], hospital.home)
    assert sizes == [10, 10, 10, 10]
    assert hospital.declared() == {"photo": 10}
    said = [record.message for record in caplog.records if "has declared 10" in record.message]
    assert [text.split()[0] for text in said] == ["11", "12"]
    assert "set cohort-size in site.toml" in said[0]


def test_a_person_may_declare_another_number_than_was_set_at_first(tmp_path: Path) -> None:
    assert declare(SiteConfig(name="north"), PRIVATE, 10, tmp_path) == 10
    for given, expected in ((None, 10), (40, 40), (5, 5), (None, 10)):
        config = SiteConfig(name="north", cohort_size=given)
        assert declared_size(config, PRIVATE, 9, tmp_path) == expected
        assert declare(config, PRIVATE, 30, tmp_path) == expected


def test_damaged_declaration_is_refused_and_not_made_anew(tmp_path: Path) -> None:
    kept = tmp_path / "state" / "declared.json"
    kept.parent.mkdir()
    for damage in (b"{", b"[40]", b'{"photo": 0}', b'{"photo": "40"}'):
        kept.write_bytes(damage)
        for question in (declared_size, declare):
            with pytest.raises(ConfigError, match=r"declared\.json .* is damaged"):
                question(SiteConfig(name="north"), PRIVATE, 9, tmp_path)
        assert kept.read_bytes() == damage
