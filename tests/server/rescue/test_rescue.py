"""wardround-server backup, restore and purge as a person types them; what is noticed after a restoration."""

import json
import shutil
from pathlib import Path

import pytest
from click.testing import Result
from typer.testing import CliRunner

from common.audit import notes, witness
from common.audit.log import AuditLog
from common.audit.witness import ConflictError
from common.config.rundocument import from_toml
from common.errors import ConfigError
from common.identity.operators import public_bytes
from common.rescue import restored
from common.rescue.backup import PASSPHRASE_VARIABLE
from common.rescue.migration import VERSION_NAME, version_of
from common.wire.wardround_pb2 import ExchangeCheckpointsReply, ExchangeCheckpointsRequest
from server.archive import folder as archive
from server.commands.main import app
from server.coordinator import supervisor
from server.coordinator.runs import Runs
from server.home import purged
from server.home.folder import ENVIRONMENT, Home, open_home
from server.home.version import VERSIONS
from server.registry.audit_trail import GatewayTrail, open_log
from server.registry.registry import Registry
from server.rescue.contents import SIDE
from tests.json_forms import conforms
from tests.server.commands.calls import HASH, add_result
from tests.server.coordinators import RUN_TOML, Member, enrol, new_home, signed

PASSPHRASE = "correct horse battery"  # noqa: S105 - of these tests alone


@pytest.fixture(autouse=True)
def _cheap(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("common.crypto.passphrase._N", 2**10)
    monkeypatch.setenv(PASSPHRASE_VARIABLE, PASSPHRASE)
    monkeypatch.delenv(ENVIRONMENT, raising=False)


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Member]:
    """A coordinator with a site and a run that is completed, with its results and its record."""
    home = new_home(tmp_path_factory.mktemp("template") / "home")
    registry = Registry(home.registry)
    member = enrol(home, registry, "north")
    run = from_toml(RUN_TOML)
    registry.propose(run, ())
    open_log(home).append("proposed", {"run": run.hash})
    registry.close(run.hash, "completed", rounds=2)
    open_log(home).append("closed", {"run": run.hash})
    results = add_result(home)
    (results / "checkpoint/round-00002").mkdir(parents=True)
    (results / "checkpoint/round-00002/model.json.sealed").write_bytes(b"sealed")
    archive.write(home.path / "models" / results.name, {"run.json": b"{}"}, {"run": run.hash}, home.log_key)
    return home.path, member


@pytest.fixture
def home(template: tuple[Path, Member], tmp_path: Path) -> Home:
    shutil.copytree(template[0], tmp_path / "home")
    return open_home(tmp_path / "home")


def call(*words: object) -> Result:
    return CliRunner().invoke(app, [str(word) for word in words])


def succeed(*words: object) -> Result:
    result = call(*words)
    assert result.exit_code == 0, result.output
    return result


def fail(*words: object) -> str:
    result = call(*words)
    assert result.exit_code == 1, result.output
    assert result.stderr.count("error: ") == 1
    return " ".join(result.stderr.split())


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_restored_coordinator_is_the_coordinator(home: Home, tmp_path: Path) -> None:
    file, new = tmp_path / "b", tmp_path / "new"
    made = json.loads(succeed("backup", file, "--home", home.path, "--json").stdout)
    conforms("wardround-server backup", made)
    assert json.loads(succeed("restore", file, "--list", "--json").stdout) == made
    succeed("restore", file, "--home", new)
    before, after = files(home.path), files(new)
    assert {one for one in before.keys() - after.keys() if not one.endswith(".lock")} == set()
    assert after.keys() - before.keys() == {restored.MARK_NAME}
    assert {name for name in after if after[name] != before.get(name)} <= {*SIDE.databases, restored.MARK_NAME}
    (record,) = (new / "models").iterdir()
    assert archive.read(record, home.log_key.public_key()).manifest["run"] == HASH
    assert record.stat().st_mode & 0o777 == 0o500
    assert "All is well" in succeed("audit", "verify", "--home", new).output
    assert [one.name for one in Registry(open_home(new).registry).sites()] == ["north"]
    assert [entry.kind for entry in open_log(open_home(new)).entries()][-1] == "backed-up"


def test_all_that_lies_in_a_home_is_kept_or_left_out_on_purpose(home: Home, tmp_path: Path) -> None:
    made = json.loads(succeed("backup", tmp_path / "b", "--home", home.path, "--json").stdout)
    assert {one["why"] for one in made["left-out"]} <= {*SIDE.left_out.values(), "made anew"}


class Site:
    """A hospital's side of the exchange of checkpoints."""

    def __init__(self, member: Member, home: Home, path: Path) -> None:
        self.key = public_bytes(home.log_key)
        self.log = AuditLog(path, f"site/{member.name}", member.receipt_key, coordinator_key=self.key)
        self._acknowledged = 0

    def exchange(self, home: Home) -> ExchangeCheckpointsReply:
        registry = Registry(home.registry)
        known, note = witness.last_seen(self.log, self.key), self.log.checkpoint()
        size = notes.peek(note).size
        request = ExchangeCheckpointsRequest(
            checkpoint=note.encode(),
            from_size=self._acknowledged,
            proof=self.log.prove(self._acknowledged, size),
            known_size=known.size if known else 0,
        )
        reply = GatewayTrail(home, registry).exchange(registry.site("north"), request)
        if not reply.checkpoint:  # it has seen more or less than we believe: from there, as an agent does
            self._acknowledged = reply.seen_size
            return self.exchange(home)
        self._acknowledged = reply.seen_size
        witness.observe(self.log, reply.checkpoint.decode(), list(reply.proof), self.key, origin="coordinator")
        return reply


def test_restored_coordinator_is_noticed_if_it_is_old_and_settled_if_it_is_not(
    home: Home, template: tuple[Path, Member], tmp_path: Path
) -> None:
    site = Site(template[1], home, tmp_path / "north.sqlite")
    site.exchange(home)
    succeed("backup", tmp_path / "b", "--home", home.path)
    succeed("restore", tmp_path / "b", "--home", tmp_path / "newest")
    shutil.copy(tmp_path / "north.sqlite", tmp_path / "beside.sqlite")
    beside = Site(template[1], home, tmp_path / "beside.sqlite")
    beside._acknowledged = site._acknowledged
    newest = open_home(tmp_path / "newest")
    restored.enter(newest.path, lambda: open_log(newest).append("restored"))
    restored.enter(newest.path, lambda: open_log(newest).append("restored"))
    assert [entry.kind for entry in open_log(newest).entries()][-2:] == ["backed-up", "restored"]
    assert restored.made(newest.path) is not None
    beside.exchange(newest)
    assert restored.made(newest.path) is None

    # The coordinator goes on after the backup, and the site sees it; then the backup is put in its place.
    open_log(home).append("crashed", {"program": "gateway"})
    site.exchange(home)
    succeed("restore", tmp_path / "b", "--home", tmp_path / "old")
    with pytest.raises(ConflictError, match="restored from a backup"):
        site.exchange(open_home(tmp_path / "old"))
    assert restored.made(tmp_path / "old") is not None


def test_restored_copy_of_a_site_and_the_site_itself_cannot_both_go_on(
    home: Home, template: tuple[Path, Member], tmp_path: Path
) -> None:
    site = Site(template[1], home, tmp_path / "north.sqlite")
    site.exchange(home)
    shutil.copy(tmp_path / "north.sqlite", tmp_path / "copy.sqlite")
    copy = Site(template[1], home, tmp_path / "copy.sqlite")
    copy._acknowledged = site._acknowledged
    copy.log.append("restored")
    copy.exchange(home)
    site.log.append("started", {"program": "agent", "version": "0.1.0"})
    site._acknowledged = copy._acknowledged
    site.log.append("policy-changed", {"policy": "ab" * 32})
    site.log.append("policy-changed", {"policy": "cd" * 32})
    with pytest.raises(ConflictError):
        site.exchange(home)
    assert [entry.kind for entry in open_log(home).entries()][-1] == "conflict"


def test_home_of_before_is_brought_up_and_one_of_later_is_refused(home: Home) -> None:
    (home.path / VERSION_NAME).unlink()
    succeed("runs", "--home", home.path)
    assert version_of(home.path) == VERSIONS.newest
    (home.path / VERSION_NAME).write_text('{"version": 99, "side": "coordinator", "program": "9.0.0"}')
    assert "Update wardround to 9.0.0" in fail("runs", "--home", home.path)


def test_purge_removes_the_results_and_leaves_record_and_entries(
    home: Home, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    results = home.run_folder(from_toml(RUN_TOML))
    asked = CliRunner().invoke(app, ["purge", "lesions", "--home", str(home.path)], input="n\n")
    assert (asked.exit_code, len(files(results))) == (1, 5)
    told = json.loads(succeed("purge", "lesions", "--home", home.path, "--yes", "--json").stdout)
    conforms("wardround-server purge", told)
    assert sum(one["files"] for one in told["removed"]) == 5
    assert [one["what"] for one in told["stays"]][:2] == [
        f"signed record in models/{results.name}, with the model",
        "audit log, with each update's receipt",
    ]
    assert list(files(results)) == [purged.NAME]
    act, entry = open_log(home).entries()[-2:]
    assert (act.kind, act.fields["action"], entry.kind, dict(entry.fields)) == (
        *("act", "purge", "purged"),
        {"run": HASH, "files": 5},
    )
    assert (home.path / "models" / results.name).exists()
    for command in ("report", "watch"):
        assert "were purged" in fail(command, "lesions", "--home", home.path)
    monkeypatch.setattr(supervisor, "is_running", lambda _: True)
    assert "were purged" in fail("resume", "lesions", "--home", home.path)
    succeed("runs", "--home", home.path)
    assert Runs(home, Registry(home.registry))._to_keep == {}
    again = json.loads(succeed("purge", HASH[:8], "--with-record", "--home", home.path, "--yes", "--json").stdout)
    assert [one["what"] for one in again["removed"]] == ["signed record, with the model"]
    assert not (home.path / "models" / results.name).exists()


def test_run_that_is_open_or_whose_model_would_be_lost_is_not_purged(home: Home) -> None:
    archive.remove(home.path / "models" / home.run_folder(from_toml(RUN_TOML)).name)
    assert "its model would be lost" in fail("purge", "lesions", "--home", home.path, "--yes")
    registry = Registry(home.registry)
    other = from_toml(RUN_TOML.replace("lesions", "open"))
    registry.propose(other, ())
    assert "is proposed" in fail("purge", "open", "--home", home.path, "--yes")
    registry.close(other.hash, "stopped", "", signed(home, registry, "stop", other.hash))
    succeed("purge", "open", "--home", home.path, "--yes")


def test_purged_results_are_said(tmp_path: Path) -> None:
    purged.check(tmp_path)
    purged.mark(tmp_path, 3)
    with pytest.raises(ConfigError, match="were purged"):
        purged.check(tmp_path)
