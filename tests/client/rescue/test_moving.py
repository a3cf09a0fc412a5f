"""A site goes to another machine in the middle of a run, and an old backup is noticed: agents against one coordinator.

The commands are those of docs/operations.md, 'Backup, restore and moving'; the coordinator is a double that keeps its
log as the real one does.
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from typer.testing import CliRunner

from client.agent import spending
from client.agent.loop import Agent
from client.agent.status import read_status
from client.commands.main import app
from client.home.identity import load_identity
from client.rules import approvals
from client.site import open_site
from client.trail.audit_trail import open_log
from common.errors import ErrorCode
from common.rescue import restored
from common.rescue.backup import PASSPHRASE_VARIABLE
from common.wire.messages import Refusal, TrainReply, TrainRequest
from tests.client.agent.test_loop import (
    OFFER,
    OPEN_POLICY,
    PRIVATE_TOML,
    UPDATED,
    WEIGHTS,
    FakeWorker,
    Stage,
    good,
)
from tests.client.coordinator import Authority, Coordinator
from tests.patience import PATIENCE_S, eventually

PASSPHRASE = "correct horse battery"  # noqa: S105 - of these tests alone


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("common.crypto.passphrase._N", 2**10)
    monkeypatch.setattr("client.agent.loop.UPKEEP_S", 0.05)
    monkeypatch.setenv(PASSPHRASE_VARIABLE, PASSPHRASE)


@pytest.fixture
def coordinator(tmp_path: Path, free_port: int) -> Iterator[Coordinator]:
    authority = Authority()
    coordinator = Coordinator(authority, free_port).start()
    home = tmp_path / "old"
    authority.admit(home, "north", coordinator.address)
    (home / "policy.toml").write_text(OPEN_POLICY)
    yield coordinator
    coordinator.stop()


@contextmanager
def agent(home: Path, coordinator: Coordinator) -> Iterator[Stage]:
    """An agent at work on a home, as long as the body."""
    worker = FakeWorker(good)
    one = Agent(home, load_identity(home), worker)
    thread = threading.Thread(target=one.run)
    thread.start()
    try:
        yield Stage(home, coordinator, worker, one)
    finally:
        one.stop()
        thread.join(timeout=PATIENCE_S)
    assert not thread.is_alive()


def typed(*words: object) -> str:
    result = CliRunner().invoke(app, [str(word) for word in words])
    assert result.exit_code == 0, result.output
    return result.output


def train(stage: Stage, run_hash: str, round_: int) -> TrainReply | Refusal:
    stage.coordinator.ask(TrainRequest(run_hash, round_, {"weights": WEIGHTS}))
    reply = stage.reply()
    assert isinstance(reply, TrainReply | Refusal)
    return reply


def begin(stage: Stage) -> str:
    """A private run, approved and trained for a round, whose receipt is countersigned."""
    run_hash = stage.propose(PRIVATE_TOML)
    stage.approve(run_hash)
    assert isinstance(train(stage, run_hash, 1), TrainReply)
    eventually(lambda: "countersigned" in kinds(stage.home))
    eventually(lambda: stage.coordinator.log.entries()[-1].kind == "checkpoint-received")
    return run_hash


def kinds(home: Path) -> list[str]:
    return [entry.kind for entry in open_log(home).entries()]


def charged(home: Path) -> list[int]:
    return [one.round for one in open_site(home).ledger.entries()]


def test_site_moves_to_another_machine_and_the_run_goes_on(tmp_path: Path, coordinator: Coordinator) -> None:
    old, new, file = tmp_path / "old", tmp_path / "new", tmp_path / "north.backup"
    with agent(old, coordinator) as stage:
        run_hash = begin(stage)
    typed("backup", file, "--home", old)
    typed("restore", file, "--home", new)
    with agent(new, coordinator) as stage:
        # Asked again for what the old machine had done, it sends the same bytes under the same receipt, at no new cost.
        assert train(stage, run_hash, 1) == TrainReply(run_hash, 1, {"weights": UPDATED}, 0, {})
        assert stage.worker.worked == []
        assert isinstance(train(stage, run_hash, 2), TrainReply)
        assert restored.made(new) is None
        eventually(lambda: kinds(new).count("countersigned") == 2)
    assert charged(new) == [1, 2]
    assert [kind for kind in kinds(new) if kind in ("backed-up", "restored", "stopped")] == [
        *("stopped", "backed-up", "restored", "stopped")
    ]
    # The old machine is started again: the coordinator has seen a longer log.
    with agent(old, coordinator) as stage:
        assert train(stage, run_hash, 3) == Refusal(run_hash, 0, ErrorCode.AUDIT_CONFLICT)
        assert stage.worker.worked == []
        eventually(lambda: str(read_status(old).get("audit")).startswith("CONFLICT"))
    assert charged(old) == [1]


def test_old_backup_is_noticed_before_anything_is_spent(tmp_path: Path, coordinator: Coordinator) -> None:
    old, new, file = tmp_path / "old", tmp_path / "new", tmp_path / "north.backup"
    with agent(old, coordinator) as stage:
        run_hash = begin(stage)
        typed("backup", file, "--home", old)  # while the agent works
        assert isinstance(train(stage, run_hash, 2), TrainReply)
        eventually(lambda: kinds(old).count("countersigned") == 2)
    typed("restore", file, "--home", new)
    spending.check_home(open_site(new))  # ledger and audit log agree: by themselves they cannot know
    coordinator.ask(TrainRequest(run_hash, 3, {"weights": WEIGHTS}))  # waits for the agent before it is there
    with agent(new, coordinator) as stage:
        assert stage.reply() == Refusal(run_hash, 0, ErrorCode.AUDIT_CONFLICT)
        assert stage.worker.worked == []
        assert "restored from an old copy" in (new / "audit-conflict.txt").read_text()
    assert (charged(new), charged(old)) == ([1], [1, 2])


def test_restored_home_does_no_work_while_the_logs_cannot_be_compared(
    tmp_path: Path, coordinator: Coordinator, monkeypatch: pytest.MonkeyPatch
) -> None:
    old, new, file = tmp_path / "old", tmp_path / "new", tmp_path / "north.backup"
    with agent(old, coordinator) as stage:
        run_hash = begin(stage)
    typed("backup", file, "--home", old)
    typed("restore", file, "--home", new)
    monkeypatch.setattr("client.trail.log_exchange.LogExchange._exchange", lambda *_: None)
    with agent(new, coordinator) as stage:
        assert train(stage, run_hash, 2) == Refusal(run_hash, 0, ErrorCode.AUDIT_CONFLICT)
        assert restored.made(new) is not None
    assert (charged(new), OFFER.cohort_id) == ([1], "cohort")


def test_ledger_of_a_backup_is_never_older_than_its_audit_log(tmp_path: Path, coordinator: Coordinator) -> None:
    """Rounds are trained while files are taken, each after the audit log and before the ledger."""
    from client.home.version import VERSIONS  # noqa: PLC0415 - of this test alone
    from client.rescue.contents import SIDE  # noqa: PLC0415 - likewise
    from common.rescue import backup  # noqa: PLC0415 - likewise

    old, file = tmp_path / "old", tmp_path / "north.backup"
    with agent(old, coordinator) as stage:
        run_hash, trained = begin(stage), [1]

        def meanwhile(name: str, _size: int) -> None:
            if name == SIDE.databases[0] or (name == SIDE.databases[1] and trained == [1]):
                assert isinstance(train(stage, run_hash, trained[-1] + 1), TrainReply)
                trained.append(trained[-1] + 1)

        backup.make(old, file, SIDE, "north", PASSPHRASE, tell=meanwhile)
        assert len(trained) > 1
    new = tmp_path / "new"
    backup.restore(file, new, VERSIONS, SIDE, PASSPHRASE)
    spending.check_home(open_site(new))
    assert approvals.load(new, run_hash).approved
