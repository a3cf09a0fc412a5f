"""A file that another program holds is a sentence for whoever asks and a pause for the processes: never a traceback."""

import sqlite3
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import grpc
import pytest
from flwr.proto import fleet_pb2
from flwr.proto.fleet_pb2_grpc import FleetStub
from typer.testing import CliRunner

from common.system import database
from common.wire.wardround_pb2 import ListProposalsRequest
from common.wire.wardround_pb2_grpc import CoordinationStub
from server.commands.main import app
from server.coordinator import serve
from server.coordinator.runs import Runs
from server.home.folder import Home
from server.registry import acts, store
from server.registry.audit_trail import AUDIT_NAME
from server.registry.registry import Registry
from tests.patience import PATIENCE_S, eventually
from tests.server.coordinators import enrol, new_home, status_of


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Home:
    monkeypatch.setattr(database, "_LOCK_TIMEOUT_S", 0.3)
    monkeypatch.setattr(store, "PATIENCE_S", 0.3)
    monkeypatch.setattr(acts, "PATIENCE_S", 0.3)
    home = new_home(tmp_path / "home")
    enrol(home, Registry(home.registry), "north")
    return home


@contextmanager
def held(path: Path) -> Iterator[None]:
    """As a backup program, or a person with `sqlite3`, may hold a file."""
    holder = sqlite3.connect(path, isolation_level=None)
    holder.execute("BEGIN EXCLUSIVE")
    try:
        yield
    finally:
        holder.execute("ROLLBACK")
        holder.close()


COMMANDS = (
    "status",
    "doctor",
    "sites",
    "runs",
    "requests",
    "invite west",
    "revoke north",
    "operator list",
    "operator add maria",
    "audit verify",
    "audit export --out log.jsonl",
)
# These have no need of the audit log, as long as nothing was proposed.
DO_WITHOUT = {"runs", "operator list"}


@pytest.mark.parametrize("words", COMMANDS)
@pytest.mark.parametrize("name", ["registry.sqlite", AUDIT_NAME])
def test_command_on_a_locked_file_says_so_in_one_sentence(
    home: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: str, name: str
) -> None:
    monkeypatch.chdir(tmp_path)
    with held(home.path / name):
        result = CliRunner().invoke(app, [*words.split(), "--home", str(home.path)])
    assert "Traceback" not in result.output
    if name == AUDIT_NAME and words in DO_WITHOUT:
        assert result.exit_code == 0
        return
    assert isinstance(result.exception, SystemExit), result.exception
    assert result.exit_code == 1
    assert result.stderr.count("error: ") == 1
    if (words, name) not in {("status", AUDIT_NAME), ("doctor", AUDIT_NAME)}:  # what is wrong there is the coordinator
        assert "database is locked" in " ".join(result.output.split())


def test_gateway_waits_for_a_locked_registry_and_goes_on(
    home: Home, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    member = enrol(home, Registry(home.registry), "south")
    stop = threading.Event()
    failures: list[BaseException] = []

    def run() -> None:
        try:
            serve.serve(home, stop)
        except BaseException as error:
            failures.append(error)
            raise

    steps, step = [], Runs.step

    def counted(runs: Runs) -> set[int]:
        steps.append(1)
        return step(runs)

    monkeypatch.setattr(Runs, "step", counted)
    thread = threading.Thread(target=run)
    thread.start()
    try:
        with member.channel(home) as channel:
            grpc.channel_ready_future(channel).result(PATIENCE_S)
            list_proposals = CoordinationStub(channel).ListProposals
            assert status_of(list_proposals, ListProposalsRequest(revision=99)) == grpc.StatusCode.OK
            for name in ("registry.sqlite", AUDIT_NAME):
                with held(home.path / name):
                    begun = len(steps)
                    eventually(lambda: len(steps) >= begun + 3, "it goes on")  # noqa: B023 - asked here and now
                    if name == "registry.sqlite":
                        request = fleet_pb2.ActivateNodeRequest()
                        assert status_of(FleetStub(channel).ActivateNode, request) == grpc.StatusCode.UNAVAILABLE
                    assert thread.is_alive()
                assert status_of(list_proposals, ListProposalsRequest(revision=99)) == grpc.StatusCode.OK
    finally:
        stop.set()
        thread.join()
    assert failures == []
    told = [record.getMessage() for record in caplog.records if "database is locked" in record.getMessage()]
    assert any("the registry registry.sqlite cannot be used" in one for one in told)
    assert "Traceback" not in caplog.text
