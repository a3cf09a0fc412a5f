"""A coordinator that asks for scores as it likes, against a real agent, a real worker and DICOM studies.

It holds valid certificates and an approved run; it may send any weights in any message. What it gets is counted.
"""

import hashlib
import itertools
import random
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from client.agent.loop import Agent
from client.agent.worker_process import Worker
from client.home.identity import load_identity
from client.rules import approvals
from client.site import open_site
from client.trail.audit_trail import open_log
from common.config import RunConfig, parse, sha256_of
from common.config.rundocument import from_toml
from common.errors import ErrorCode
from common.learning.checkpoint import pack
from common.learning.network import build_model
from common.wire.messages import (
    EvaluateReply,
    EvaluateRequest,
    Phase,
    Refusal,
    Reply,
    Request,
    TrainReply,
    TrainRequest,
)
from simulations.generators.anatomy import SCANNERS
from simulations.generators.phantoms import write_hospital
from tests.client.coordinator import Authority, Coordinator
from tests.patience import PATIENCE_S, eventually

pytestmark = pytest.mark.slow
PLAIN = """
name = "lesions"
model = { channels = [8, 16] }
data = { modality = "CT", classes = ["lesion"], validation-fraction = 0.4, test-fraction = 0.4 }
preprocessing = { spacing-mm = [6.0, 6.0], intensity = "window", window = [-100, 250] }
training = { local-steps = 1, batch-size = 2, patch-size = [16, 16] }
federation = { rounds = 3, evaluate-every = 2 }
"""
PRIVATE = PLAIN + "privacy = { target-epsilon = 8.0, sampling-rate = 0.5, crops-per-patient = 1 }\n"
OPEN = "require-privacy = false\nmin-patients = 1\nmin-held-out = 1\n"
STRICT = "min-patients = 10\n"  # all else as it is shipped
PATIENTS, DECLARED = 5, 100
PHASES: tuple[Phase, ...] = ("validation", "test")


@dataclass
class Hospital:
    """A site with its agent and worker, and the coordinator it talks to."""

    home: Path
    coordinator: Coordinator
    authority: Authority
    worker: Worker | None = None
    agent: Agent | None = None
    thread: threading.Thread | None = None

    def start(self) -> None:
        self.worker = Worker(self.home, threads=1)
        self.agent = Agent(self.home, load_identity(self.home), self.worker)
        self.thread = threading.Thread(target=self.agent.run, daemon=True)
        self.thread.start()

    def stop(self) -> None:
        if self.agent is not None and self.thread is not None:
            self.agent.stop()
            self.thread.join(timeout=PATIENCE_S)

    def approve(self, toml: str) -> RunConfig:
        run = parse(RunConfig, toml)
        bundle = from_toml(toml).bundle
        digest = hashlib.sha256(bundle).hexdigest()
        self.coordinator.run.fab_hash = digest
        self.coordinator.propose(sha256_of(run), bundle, digest)
        eventually(lambda: sha256_of(run) in {one.run_hash for one in approvals.load_all(self.home)})
        approvals.answer(self.home, sha256_of(run), approved=True, by="person")
        return run

    def ask(self, request: Request) -> Reply:
        self.coordinator.ask(request)
        return self.coordinator.replies.get(timeout=PATIENCE_S)


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("images")
    write_hospital(folder / "pacs", scanner=SCANNERS["a"], patients=PATIENTS, seed=1, slices=3, rows=48)
    return folder / "pacs"


@pytest.fixture
def hospital(tmp_path: Path, images: Path, free_port: int) -> Iterator[Hospital]:
    authority = Authority()
    coordinator = Coordinator(authority, free_port).start()
    authority.admit(tmp_path, "north", coordinator.address)
    (tmp_path / "site.toml").write_text(
        f'name = "north"\nthreads = 1\ncohort-size = {DECLARED}\n[[data]]\npath = "{images}"\n'
        "empty-labels-are-negative = true\n"
    )
    one = Hospital(tmp_path, coordinator, authority)
    yield one
    one.stop()
    coordinator.stop()


def weights(run: RunConfig, number: int) -> bytes:
    return pack(build_model(run.model_copy(update={"seed": number})).state_dict())


def barrage(run: RunConfig) -> list[EvaluateRequest]:
    """Every round and phase, several models each, in an order that a site cannot foresee."""
    asked = [
        EvaluateRequest(sha256_of(run), round_, phase, {"weights": weights(run, number)})
        for round_, phase, number in itertools.product((1, 2, 3), PHASES, range(4))
    ]
    random.Random(0).shuffle(asked)  # noqa: S311 - no secret, an order
    return asked


def test_coordinator_that_asks_for_any_model_gets_one_answer_a_round_that_is_due(hospital: Hospital) -> None:
    (hospital.home / "policy.toml").write_text(OPEN)
    hospital.start()
    run = hospital.approve(PLAIN)
    asked = barrage(run)
    given = [(request, reply) for request in asked if isinstance(reply := hospital.ask(request), EvaluateReply)]
    # Asked without order, it has lost all but the last round, which was among the first that came.
    models = {(request.round, request.parts["weights"]) for request, _ in given}
    assert 1 <= len(models) <= 2
    assert len({round_ for round_, _ in models}) == len(models)
    assert {reply.round for _, reply in given} <= {2, 3}
    # What was asked again was answered with the same.
    for request, reply in given:
        assert hospital.ask(request) == reply
    scored = [entry for entry in open_log(hospital.home).entries() if entry.kind == "evaluated"]
    assert {entry.fields["model"] for entry in scored} == {hashlib.sha256(one).hexdigest() for _, one in models}


def test_with_privacy_it_gets_noised_scores_alone_that_are_paid_for_and_again_the_same_after_a_restart(
    hospital: Hospital,
) -> None:
    (hospital.home / "policy.toml").write_text(STRICT)
    hospital.start()
    run = hospital.approve(PRIVATE)
    asked = barrage(run)
    replies = [hospital.ask(request) for request in asked]
    pairs = list(zip(asked, replies, strict=True))
    given = [(request, reply) for request, reply in pairs if isinstance(reply, EvaluateReply)]
    assert given
    for _, reply in given:
        assert set(reply.metrics) == {
            *("dice", "dice-lesion", "score-noise", "class-score-noise", "scores-epsilon", "scores-delta")
        }
        assert reply.metrics["score-noise"] > 0
    hospital.stop()
    charged = open_site(hospital.home).ledger.entries()
    assert len(charged) == len(given) <= run.evaluations
    hospital.start()
    assert [hospital.ask(request) for request, _ in given] == [reply for _, reply in given]
    assert len(open_site(hospital.home).ledger.entries()) == len(given)
    others = [request for request, reply in pairs if not isinstance(reply, EvaluateReply)]
    assert all(isinstance(hospital.ask(request), Refusal) for request in others)


def test_model_scored_in_a_round_is_what_the_next_must_start_from(hospital: Hospital) -> None:
    (hospital.home / "policy.toml").write_text(OPEN)
    hospital.start()
    run = hospital.approve(PLAIN)
    digest = sha256_of(run)
    assert isinstance(hospital.ask(TrainRequest(digest, 1, {"weights": weights(run, 1)})), TrainReply)
    assert isinstance(
        hospital.ask(EvaluateRequest(digest, 2, "validation", {"weights": weights(run, 2)})), EvaluateReply
    )
    assert hospital.ask(TrainRequest(digest, 3, {"weights": weights(run, 3)})) == Refusal(
        digest, 3, ErrorCode.WRONG_RUN
    )
    assert isinstance(hospital.ask(TrainRequest(digest, 3, {"weights": weights(run, 2)})), TrainReply)


def test_worker_whose_record_is_gone_scores_no_second_model(hospital: Hospital) -> None:
    """The agent's audit log remembers by itself."""
    (hospital.home / "policy.toml").write_text(OPEN)
    hospital.start()
    run = hospital.approve(PLAIN)
    digest = sha256_of(run)
    assert isinstance(
        hospital.ask(EvaluateRequest(digest, 2, "validation", {"weights": weights(run, 1)})), EvaluateReply
    )
    for path in (hospital.home / "state" / "evaluations").glob("*.sealed"):
        path.unlink()
    refused = hospital.ask(EvaluateRequest(digest, 2, "validation", {"weights": weights(run, 2)}))
    assert refused == Refusal(digest, 2, ErrorCode.ROUND_REPEATED)


def test_shipped_policy_gives_no_score_of_few_patients(hospital: Hospital) -> None:
    (hospital.home / "policy.toml").write_text(OPEN.replace("min-held-out = 1\n", ""))
    hospital.start()
    run = hospital.approve(PLAIN)
    refused = hospital.ask(EvaluateRequest(sha256_of(run), 3, "test", {"weights": weights(run, 1)}))
    assert refused == Refusal(sha256_of(run), 3, ErrorCode.TOO_FEW_PATIENTS)


def test_run_that_names_its_weights_is_not_begun_in_a_later_round(hospital: Hospital) -> None:
    (hospital.home / "policy.toml").write_text(OPEN)
    hospital.start()
    right = weights(parse(RunConfig, PLAIN), 1)
    run = hospital.approve(PLAIN + f'initial = {{ sha256 = "{hashlib.sha256(right).hexdigest()}" }}\n')
    digest = sha256_of(run)
    assert hospital.ask(TrainRequest(digest, 2, {"weights": weights(run, 2)})) == Refusal(
        digest, 2, ErrorCode.POLICY_REFUSED
    )
    assert hospital.ask(TrainRequest(digest, 1, {"weights": weights(run, 2)})) == Refusal(
        digest, 1, ErrorCode.WRONG_RUN
    )
    assert isinstance(hospital.ask(TrainRequest(digest, 1, {"weights": right})), TrainReply)
    assert isinstance(hospital.ask(TrainRequest(digest, 2, {"weights": weights(run, 2)})), TrainReply)
