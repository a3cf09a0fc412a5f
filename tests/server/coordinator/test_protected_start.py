"""A coordinator whose key is under a passphrase, started in earnest: one run, killed once, and what is left on disk."""

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import grpc
import pytest
from flwr.app import Message

from client.agent.fleet import Fleet
from common.config import RunConfig, parse, sha256_of
from common.config.rundocument import from_toml, issue
from common.learning.checkpoint import pack, sha256
from common.learning.network import build_model
from common.wire.channels import MAX_MESSAGE_BYTES
from common.wire.messages import EvaluateReply, TrainReply, TrainRequest
from common.wire.records import reply_to_record, request_from_record
from server.federation.events import read_events, read_summary
from server.home.folder import KEY_PASSPHRASE, Home
from server.registry.registry import Registry
from tests import ROOT
from tests.patience import eventually
from tests.server.coordinator.test_supervisor import alive, family, started
from tests.server.coordinators import Member, enrol, new_home
from tests.server.search import found, pieces, private_keys

pytestmark = pytest.mark.system

PASSPHRASE = "five random words would do"  # noqa: S105 - of these tests alone
OTHERS = ("WARDROUND_ROOT_PASSPHRASE", "WARDROUND_OPERATOR_PASSPHRASE", "WARDROUND_SITE_PASSPHRASE")
OTHER_PASSPHRASE = "of another key altogether"  # noqa: S105 - of these tests alone
SITES = ("north", "south")
RUN_TOML = """
name = "tiny"
model = { channels = [4, 8], residual-units = 0 }
data = { modality = "photo", classes = ["lesion"] }
training = { patch-size = [8, 8], local-steps = 1 }
federation = { rounds = 4, quorum = 2, join-timeout-s = 300, round-timeout-s = 300 }
"""
RUN = parse(RunConfig, RUN_TOML)


@pytest.fixture
def home(tmp_path: Path) -> Home:
    made = new_home(tmp_path / "home")
    made.key_file.write(made.key, PASSPHRASE)
    return made


@pytest.fixture
def _passphrase_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    path = tmp_path / "passphrase"
    path.write_text(f"{PASSPHRASE}\n")
    monkeypatch.setenv(f"{KEY_PASSPHRASE}_FILE", str(path))
    for name in OTHERS:  # of keys that a child has no business with
        monkeypatch.setenv(name, OTHER_PASSPHRASE)
    yield
    monkeypatch.delenv(f"{KEY_PASSPHRASE}_FILE")


class Hospital(threading.Thread):
    """Returns each model as it came, and takes its time from the second round on."""

    def __init__(self, member: Member, home: Home) -> None:
        super().__init__()
        self.member, self.home, self.stop = member, home, threading.Event()

    def run(self) -> None:
        with self.member.channel(self.home) as channel:
            fleet = Fleet(channel, self.stop)
            try:
                fleet.activate()
                while not self.stop.is_set():
                    if (delivery := fleet.pull()) is not None:
                        self._answer(fleet, fleet.fetch(*delivery, MAX_MESSAGE_BYTES))
            except grpc.RpcError:
                pass  # the coordinator was killed
            finally:
                fleet.close()

    def _answer(self, fleet: Fleet, message: Message) -> None:
        request = request_from_record(message.content)
        reply: TrainReply | EvaluateReply
        if isinstance(request, TrainRequest):
            self.stop.wait(1.0 if request.round > 1 else 0.0)
            reply = TrainReply(
                request.run_hash, request.round, {"weights": request.parts["weights"]}, 5, {"train-loss": 1.0}
            )
        else:
            reply = EvaluateReply(request.run_hash, request.round, request.phase, 5, {"dice": 0.5})
        fleet.push(Message(reply_to_record(reply), reply_to=message))


@contextmanager
def playing(home: Home, members: list[Member]) -> Iterator[subprocess.Popen[str]]:
    with started(home) as process:
        hospitals = [Hospital(member, home) for member in members]
        for hospital in hospitals:
            hospital.start()
        try:
            yield process
        finally:
            for hospital in hospitals:
                hospital.stop.set()
    for hospital in hospitals:
        hospital.join()


def command(home: Home, *words: str) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith(KEY_PASSPHRASE)}
    return subprocess.run(
        [sys.executable, "-m", "server.commands.main", *words, "--home", str(home.path)],
        cwd=ROOT,
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )


def propose(home: Home) -> None:
    registry = Registry(home.registry)
    proposal = registry.propose(from_toml(RUN_TOML), ())
    for site in SITES:
        registry.answer(proposal.run_hash, site, approved=True)


@pytest.mark.usefixtures("_passphrase_file")
def test_run_that_is_killed_and_resumed_leaves_no_weights_and_no_key_in_the_clear_nor_with_a_child(
    home: Home, tmp_path: Path
) -> None:
    registry = Registry(home.registry)
    members = [enrol(home, registry, site) for site in SITES]
    folder = home.run_folder(issue(RUN))
    with playing(home, members) as process:
        propose(home)
        eventually((folder / "checkpoint" / "round-00001").exists)
        children = alive(family(process))
        told = [f"{child.cmdline()} {sorted(child.environ().items())}" for child in children]
        process.kill()
        eventually(lambda: not alive(children))
    with playing(home, members):
        eventually(lambda: registry.proposal("tiny").state == "completed")
        exported = command(home, "export", "tiny", "--out", str(tmp_path / "model"))  # without the passphrase
    assert exported.returncode == 0, exported.stderr
    weights = (tmp_path / "model" / "model.safetensors").read_bytes()
    summary = read_summary(folder)
    assert summary is not None
    assert (summary["status"], summary["model-sha256"]) == ("completed", sha256(weights))

    assert len(told) >= 4  # SuperLink, SuperExec, ServerApp, gateway
    starts = [one["resumed-from"] for one in read_events(folder / "metrics.jsonl") if one["event"] == "run-started"]
    assert starts[0] == 0 < starts[1]
    for secret in (PASSPHRASE, KEY_PASSPHRASE, home.key.hex(), OTHER_PASSPHRASE, *OTHERS):
        assert not [one for one in told if secret in one]

    secrets = pieces(weights) | pieces(pack(build_model(RUN).state_dict())) | private_keys(home)
    assert found(home.path, secrets | {home.key, home.key.hex().encode(), PASSPHRASE.encode()}) == []
    kept = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    assert {"model.safetensors.sealed", "checkpoint/round-00004/model.safetensors.sealed"} <= kept
    assert sha256_of(RUN).encode() in (folder / "summary.json").read_bytes()  # what is no secret stays to be read


def test_without_its_passphrase_nothing_starts(home: Home) -> None:
    result = command(home, "start")
    assert result.returncode == 1
    assert f"Set {KEY_PASSPHRASE}" in result.stderr
    assert result.stderr.count("error: ") == 1
    assert not list(home.logs.iterdir())
    assert command(home, "invite", "north").returncode == 1


def test_wrong_passphrase_starts_nothing_and_says_so(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(KEY_PASSPHRASE, "another passphrase altogether")
    result = subprocess.run(
        [sys.executable, "-m", "server.commands.main", "start", "--home", str(home.path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 1
    assert "the coordinator key does not open: the passphrase is another" in result.stderr
    assert not list(home.logs.iterdir())
