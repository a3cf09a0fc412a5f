"""`audit verify` and `audit export` on both sides: keys from the home, exit code 0 only if all fits."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from client.commands import main as client_cli
from client.trail.audit_trail import AuditTrail
from common.audit import notes, witness
from server.commands import main as server_cli
from server.home.folder import Home
from server.registry.audit_trail import AUDIT_NAME, open_log
from server.registry.registry import Registry
from tests.client.coordinator import Authority
from tests.common.audit.federation import tamper
from tests.server.coordinators import enrol, new_home, signed


@pytest.fixture
def home(tmp_path: Path) -> Home:
    made = new_home(tmp_path / "coordinator")
    enrol(made, Registry(made.registry), "north")
    return made


@pytest.fixture
def site(tmp_path: Path, home: Home) -> Path:
    """A hospital of this coordinator whose checkpoint the coordinator has seen."""
    authority = Authority(log_key=home.log_key)
    identity = authority.admit(tmp_path / "south", "south", "127.0.0.1:1")
    trail = AuditTrail(tmp_path / "south", identity, b"k" * 32)
    trail.begin(identity)
    log, note = open_log(home), trail.log.checkpoint()
    proof = trail.log.prove(0, notes.peek(note).size)
    witness.observe(log, note, proof, trail.log.public_key, origin="site/south")
    return tmp_path / "south"


def server(home: Home, *words: str) -> tuple[int, str]:
    result = CliRunner().invoke(server_cli.app, ["audit", *words, "--home", str(home.path)])
    return result.exit_code, result.output


def client(home: Path, *words: str) -> tuple[int, str]:
    result = CliRunner().invoke(client_cli.app, ["audit", *words, "--home", str(home)])
    return result.exit_code, result.output


def test_each_side_verifies_its_own_log_with_the_keys_of_its_home(home: Home, site: Path) -> None:
    for code, output in (server(home, "verify"), client(site, "verify")):
        assert code == 0
        assert "All is well." in output


def test_logs_are_exported_and_verified_on_the_other_side(home: Home, site: Path, tmp_path: Path) -> None:
    assert server(home, "export", "--out", str(tmp_path / "c.jsonl"))[0] == 0
    assert client(site, "export", "--out", str(tmp_path / "s.jsonl"))[0] == 0
    assert client(site, "verify", str(tmp_path / "c.jsonl"))[0] == 0
    code, output = server(home, "verify", str(tmp_path / "s.jsonl"))
    assert (code, "no key of site/south was given" in output) == (1, True)  # it never enrolled here
    key = json.loads((tmp_path / "s.jsonl").read_text().splitlines()[0])["key"]
    assert server(home, "verify", str(tmp_path / "s.jsonl"), "--key", f"site/south={key}")[0] == 0
    assert server(home, "export", "--out", str(tmp_path / "c.jsonl"))[0] == 1  # it is there


def test_changed_log_is_named_with_exit_code_1_as_json_too(home: Home) -> None:
    tamper(home.path / AUDIT_NAME, ("DELETE FROM entries WHERE seq = 1",))
    code, output = server(home, "verify", "--json")
    assert code == 1
    assert "entries 1 to 1 are missing" in [row["finding"] for row in json.loads(output)]


def test_key_that_is_none_is_refused(home: Home) -> None:
    assert server(home, "verify", "--key", "north=12")[0] == 1


def test_keys_of_enrolled_sites_are_known(home: Home, site: Path, tmp_path: Path) -> None:
    client(site, "export", "--out", str(tmp_path / "s.jsonl"))
    log = open_log(home)
    key = json.loads((tmp_path / "s.jsonl").read_text().splitlines()[0])["key"]
    fields = {"site": "south", "certificate": "ab" * 32, "key": key, "coordinator-key": log.public_key.hex()}
    signed(home, Registry(home.registry), "approve", "south", fields["certificate"], key)
    log.append("enrolled", fields)
    assert server(home, "verify", str(tmp_path / "s.jsonl"))[0] == 0


def test_site_that_has_not_joined_has_no_log(tmp_path: Path) -> None:
    code, output = client(tmp_path, "verify")
    assert code == 1
    assert "Join first" in output
