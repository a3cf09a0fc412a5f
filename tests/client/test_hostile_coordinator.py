"""Attacks of a hostile coordinator on a real agent with its real worker: images, training, ledger, audit log, TLS.

One site for all tests: its worker takes seconds to start. Each test proposes a run of its own.
"""

import hashlib
import os
import signal
import socket
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load, save

from client.agent.loop import Agent
from client.agent.worker_process import Worker
from client.rules import approvals
from client.site import open_site
from client.trail.audit_trail import open_log
from common.config import RunConfig, parse, sha256_of
from common.config.rundocument import from_toml
from common.errors import ErrorCode
from common.learning.checkpoint import pack
from common.learning.network import build_model
from common.wire.messages import EvaluateReply, EvaluateRequest, Refusal, Reply, TrainReply, TrainRequest
from tests.client.coordinator import Authority, Coordinator
from tests.patience import PATIENCE_S, eventually
from tests.simulations.tiny import tiny_site

PATIENTS = 20
RUN_TOML = """
name = "NAME"
seed = 3
[model]
channels = [4, 8]
residual-units = 0
[data]
modality = "photo"
classes = ["disc"]
[training]
patch-size = [16, 16]
local-steps = STEPS
[federation]
rounds = 3
round-timeout-s = 300
[privacy]
target-epsilon = 8.0
sampling-rate = 0.5
crops-per-patient = 1
"""


@dataclass
class Site:
    """A hospital, and the coordinator that attacks it."""

    home: Path
    pictures: Path
    coordinator: Coordinator
    worker: Worker

    def approved(self, name: str, steps: int = 2) -> RunConfig:
        """A private run that the hospital said yes to."""
        toml = RUN_TOML.replace("NAME", name).replace("STEPS", str(steps))
        run = parse(RunConfig, toml)
        bundle = from_toml(toml).bundle
        digest = hashlib.sha256(bundle).hexdigest()
        self.coordinator.propose(sha256_of(run), bundle, digest)
        self.coordinator.run.run_id, self.coordinator.run.fab_hash = int(sha256_of(run)[:12], 16), digest
        eventually(lambda: any(one.run_hash == sha256_of(run) for one in approvals.load_all(self.home)))
        approvals.answer(self.home, sha256_of(run), approved=True, by="person")
        return run

    def train(self, run: RunConfig, round_: int, weights: bytes | None = None) -> Reply:
        self.coordinator.ask(
            TrainRequest(sha256_of(run), round_, {"weights": model(run) if weights is None else weights})
        )
        return self.coordinator.replies.get(timeout=PATIENCE_S)

    def charges(self, run: RunConfig) -> list[int]:
        """The rounds that were charged."""
        return [one.round for one in open_site(self.home).ledger.entries() if one.run_hash == sha256_of(run)]

    def begun(self, run: RunConfig) -> int:
        """Attempts that were begun."""
        with open_site(self.home).ledger._book() as book:
            return sum(key[1] == sha256_of(run) for key in book.begun)


def model(run: RunConfig) -> bytes:
    return pack(build_model(run).state_dict())


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    home, pictures = tmp_path_factory.mktemp("home"), tmp_path_factory.mktemp("pictures")
    source = tiny_site(pictures, "north", patients=PATIENTS).data[0]
    authority = Authority()
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    coordinator = Coordinator(authority, port).start()
    identity = authority.admit(home, "north", coordinator.address)
    (home / "site.toml").write_text(
        f'name = "north"\nthreads = 1\ncohort-size = 20\n[[data]]\npath = "{source.path}"\nkind = "images"\n'
    )
    (home / "policy.toml").write_text("lifetime-epsilon = 100.0\n")
    worker = Worker(home, threads=1)
    agent = Agent(home, identity, worker)
    thread = threading.Thread(target=agent.run)
    thread.start()
    yield Site(home, pictures, coordinator, worker)
    agent.stop()
    thread.join(timeout=PATIENCE_S)
    coordinator.stop()


def others(weights: bytes) -> dict[str, bytes]:
    """Models that a network would take, or nearly, and that are not the run's."""
    tensors = load(weights)
    name = sorted(tensors)[0]
    return {
        "float64": save({key: value.astype(np.float64) for key, value in tensors.items()}),
        "one of float64": save({**tensors, name: tensors[name].astype(np.float64)}),
        "float16": save({key: value.astype(np.float16) for key, value in tensors.items()}),
        "one too many": save({**tensors, "extra": np.zeros(3, np.float32)}),
        "one too few": save({key: value for key, value in tensors.items() if key != name}),
        "another name": save({("x" if key == name else key): value for key, value in tensors.items()}),
        "another shape": save({**tensors, name: tensors[name][None]}),
        "not finite": save({**tensors, name: np.full_like(tensors[name], np.nan)}),
        "no model": b"no model",
    }


def test_no_request_that_comes_to_nothing_costs_privacy(site: Site) -> None:
    run = site.approved("other-models")
    for what, weights in others(model(run)).items():
        reply = site.train(run, 1, weights)
        assert isinstance(reply, Refusal), what
        assert reply.code in (ErrorCode.WRONG_TENSORS, ErrorCode.NOT_FINITE), what
    assert site.charges(run) == []
    assert isinstance(site.train(run, 1), TrainReply)
    assert site.charges(run) == [1]


def test_run_spends_its_target_whatever_is_asked_and_however_often(site: Site) -> None:
    run = site.approved("often")
    assert run.privacy is not None
    for round_ in (1, 2, 3):
        first = site.train(run, round_)
        assert isinstance(first, TrainReply)
        assert site.train(run, round_) == first
        again = site.train(run, round_, pack({k: v * 1.5 for k, v in build_model(run).state_dict().items()}))
        assert again == Refusal(sha256_of(run), round_, ErrorCode.ROUND_REPEATED)
    assert site.charges(run) == [1, 2, 3]
    assert isinstance(first, TrainReply)
    assert first.metrics["epsilon"] <= run.privacy.target_epsilon


def test_worker_killed_while_it_trains_is_asked_once_more_under_the_same_charge(site: Site) -> None:
    run = site.approved("killed", steps=150)
    before = site.worker.crashes

    def kill() -> None:
        eventually(lambda: site.begun(run) == 1)
        assert site.worker.pid is not None
        os.kill(site.worker.pid, signal.SIGKILL)

    killer = threading.Thread(target=kill)
    killer.start()
    reply = site.train(run, 1)
    killer.join()
    assert isinstance(reply, TrainReply)
    assert site.worker.crashes == before + 1
    assert site.charges(run) == [1]
    assert site.begun(run) == 2
    kinds = [entry.kind for entry in open_log(site.home).entries() if entry.fields.get("run") == sha256_of(run)]
    assert (kinds.count("begun"), kinds.count("spend")) == (2, 1)


def test_weights_made_to_overflow_in_some_patients_image_bring_no_code_about(site: Site) -> None:
    run = site.approved("oracle")
    state = build_model(run).state_dict()
    steep = {name: tensor * 900 / tensor.abs().max().clamp(min=1e-9) for name, tensor in state.items()}
    reply = site.train(run, 1, pack({name: tensor.to(torch.float32) for name, tensor in steep.items()}))
    assert isinstance(reply, TrainReply) or reply == Refusal(sha256_of(run), 1, ErrorCode.WORKER_FAILED)


def test_run_that_has_ended_is_over_at_the_worker_too(site: Site) -> None:
    run = site.approved("ended")
    trained = site.train(run, 1)
    assert isinstance(trained, TrainReply)
    site.coordinator.ask(EvaluateRequest(sha256_of(run), 1, "validation", {"weights": trained.parts["weights"]}))
    assert isinstance(site.coordinator.replies.get(timeout=PATIENCE_S), EvaluateReply | Refusal)
    site.coordinator.close(sha256_of(run))
    eventually(lambda: not approvals.load(site.home, sha256_of(run)).open)
    charged = site.charges(run)
    assert site.train(run, 2) == Refusal(sha256_of(run), 0, ErrorCode.NOT_APPROVED)
    site.coordinator.ask(EvaluateRequest(sha256_of(run), 2, "validation", {"weights": trained.parts["weights"]}))
    assert site.coordinator.replies.get(timeout=PATIENCE_S) == Refusal(sha256_of(run), 0, ErrorCode.NOT_APPROVED)
    assert site.charges(run) == charged


def test_patients_that_are_gone_after_the_charge_show_in_no_code(site: Site) -> None:
    """The last test: it takes the images away, after they were counted for the run."""
    run = site.approved("gone")
    assert isinstance(site.train(run, 1), TrainReply)
    for path in site.pictures.rglob("*.png"):
        path.unlink()
    assert site.worker.pid is not None
    os.kill(site.worker.pid, signal.SIGKILL)  # the next one reads the folder anew
    assert site.train(run, 2) == Refusal(sha256_of(run), 2, ErrorCode.WORKER_FAILED)
    assert site.charges(run) == [1, 2]
    assert "no study" in (site.home / "logs" / "worker.log").read_text()
