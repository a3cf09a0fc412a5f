"""The process that speaks with a PACS has no key, one port and one folder; a pull waits for its hours and its rate."""

import datetime
import json
import socket
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from typer.testing import CliRunner

from client.commands.main import app
from client.data.keep.forgotten import Forgotten
from client.home.folder import FORGOTTEN_NAME
from client.home.sitekey import site_key
from client.pacs import pulling
from client.pacs.caller import Caller
from client.pacs.problems import AwayError, StoreError
from client.pacs.pulling import Estimate, Hours, estimate, pull, staging_of
from client.pacs.query import query_of
from client.pacs.receiving import Meter
from client.pacs.settings import Dimse
from common.errors import ConfigError
from common.system import sandbox
from common.system.locks import locked
from tests import ROOT
from tests.client.pacs.bad_dimse import bad_pacs, gets
from tests.client.pacs.objects import COUNT, object_of

DOOR = """
import json, socket, sys
from pathlib import Path
from common.system import sandbox
home, staging, port, other = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
sandbox.shed()
keys, disk = sandbox.hide([home / name for name in sandbox.SECRETS]), sandbox.lock([staging], [port])
def tried(deed):
    try:
        return repr(deed())
    except OSError as error:
        return type(error).__name__
print(json.dumps({"keys": keys, "disk": disk} | {name: tried(deed) for name, deed in {
    "site key": lambda: (home / "site.key").read_bytes(),
    "staging": lambda: (staging / "x").write_text("x"),
    "beside": lambda: (staging.parent / "x").write_text("x"),
    "home": lambda: (home / "x").write_text("x"),
    "pacs": lambda: socket.create_connection(("127.0.0.1", port), 5).close(),
    "coordinator": lambda: socket.create_connection(("127.0.0.1", other), 5).close(),
    "a port of its own": lambda: socket.create_server(("127.0.0.1", 45678)).close(),
}.items()}))
"""


def peer_at(port: int) -> Dimse:
    return Dimse(name="it", host="127.0.0.1", port=port, called="HOSPITAL", timeout=3)


# A program that may make no namespaces but in a user's: without CAP_SYS_ADMIN, from the next program on.
WITHOUT_RIGHTS = """
import ctypes, os, sys
ctypes.CDLL(None).prctl(24, 21, 0, 0, 0)
os.execv(sys.executable, [sys.executable, *sys.argv[1:]])
"""


@pytest.mark.parametrize("before", [[], ["-c", WITHOUT_RIGHTS]], ids=["as we are", "without rights"])
def test_it_reaches_the_pacs_and_its_folder_and_nothing_else(tmp_path: Path, before: list[str]) -> None:
    home, staging = tmp_path / "site", tmp_path / "staging"
    home.mkdir()
    staging.mkdir()
    (home / "site.key").write_bytes(b"key")
    with socket.create_server(("127.0.0.1", 0)) as pacs, socket.create_server(("127.0.0.1", 0)) as other:
        ports = (str(pacs.getsockname()[1]), str(other.getsockname()[1]))
        command = [sys.executable, *before, "-c", DOOR, str(home), str(staging), *ports]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    said: dict[str, Any] = json.loads(done.stdout)
    if (said["keys"], said["disk"]) != (sandbox.HIDDEN, sandbox.LOCKED):
        pytest.skip(f"the kernel: {said['keys']}, {said['disk']}")
    assert said["site key"] in ("b''", "PermissionError")
    assert said["staging"] == "1"
    assert said["beside"] == said["home"] == "PermissionError"
    assert said["pacs"] == "None"
    assert said["coordinator"] == said["a port of its own"] == "PermissionError"
    assert (home / "site.key").read_bytes() == b"key"


def test_a_process_that_is_killed_is_started_anew(tmp_path: Path) -> None:
    with bad_pacs() as port, Caller(tmp_path, peer_at(port)) as caller:
        caller.ask("check")
        assert caller._process is not None
        caller._process.kill()
        caller._process.wait()
        with pytest.raises(AwayError, match="ended over what the PACS sent"):
            caller.ask("check")
        caller.ask("check")


def test_its_environment_and_its_arguments_hold_no_secret(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WARDROUND_SITE_PASSPHRASE", "open sesame")
    monkeypatch.setenv("HTTPS_PROXY", "http://user:secret@proxy")
    with bad_pacs() as port, Caller(tmp_path, peer_at(port)) as caller:
        caller.ask("check")
        assert caller._process is not None
        place = Path(f"/proc/{caller._process.pid}")
        held = (place / "environ").read_bytes() + (place / "cmdline").read_bytes()
    assert b"sesame" not in held
    assert b"secret" not in held


def test_a_full_disk_ends_the_pull_and_says_so(tmp_path: Path) -> None:
    out = tmp_path / "out"
    with bad_pacs(get=gets([object_of(number) for number in range(COUNT)])) as port:
        with Caller(tmp_path, peer_at(port)) as caller:
            wanted = estimate(caller, query_of({"modality": "CT"}), out)
        staging_of(out)
        # It may write to another folder only: the same refusal of the system as by a disk.
        with Caller(tmp_path, peer_at(port), tmp_path) as caller:
            (tmp_path / "elsewhere").mkdir()
            caller._arguments[-1] = str(tmp_path / "elsewhere")
            with pytest.raises(StoreError, match="cannot be written here"):
                pull(caller, wanted, out, patience_s=0)


def test_a_place_that_cannot_be_given_to_a_study_ends_the_pull_and_says_so(tmp_path: Path) -> None:
    out = tmp_path / "out"
    sent = gets([object_of(number) for number in range(COUNT)])
    with bad_pacs(get=sent) as port, Caller(tmp_path, peer_at(port), staging_of(out)) as caller:
        wanted = estimate(caller, query_of({"modality": "CT"}), out)
        (out / wanted.studies[0].uid / "of another").mkdir(parents=True)
        with pytest.raises(StoreError, match=r"cannot be written here .*not empty"):
            pull(caller, wanted, out, patience_s=0)


def test_a_patient_who_was_forgotten_is_not_pulled_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WARDROUND_HOME", str(tmp_path / "site"))
    (tmp_path / "site").mkdir()
    pull = ["data", "pull", "main", "--query", "modality=CT", "--out", str(tmp_path / "out"), "--dry-run", "--json"]
    with bad_pacs() as port:
        where = ["--host", "127.0.0.1", "--port", str(port), "--called", "HOSPITAL"]
        assert CliRunner().invoke(app, ["pacs", "add", "main", *where]).exit_code == 0
        assert json.loads(CliRunner().invoke(app, pull).stdout)["found"]["studies"] == 1
        Forgotten(tmp_path / "site" / FORGOTTEN_NAME, site_key(tmp_path / "site")).add(
            tmp_path / "site" / FORGOTTEN_NAME, "4711"
        )
        told = json.loads(CliRunner().invoke(app, pull).stdout)
    assert (told["found"]["studies"], told["left-out"]) == (0, {"study of a patient who was forgotten": 1})


def test_two_pulls_do_not_share_a_folder(tmp_path: Path) -> None:
    out = tmp_path / "out"
    busy = pytest.raises(ConfigError, match="another pull is at work")
    with Caller(tmp_path, peer_at(1), staging_of(out)) as caller, locked(out / pulling.STAGING / "lock"), busy:
        pull(caller, Estimate((), 0, 0, None, {}), out)


def test_a_study_is_begun_in_its_hours_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [datetime.datetime(2026, 1, 1, 18, 58)]

    def sleep(seconds: float) -> None:
        clock[0] += datetime.timedelta(seconds=seconds)

    out, told, begun = tmp_path / "out", list[str](), list[int]()
    sent = gets([object_of(number) for number in range(COUNT)])
    with bad_pacs(get=sent) as port, Caller(tmp_path, peer_at(port), staging_of(out)) as caller:
        wanted = estimate(caller, query_of({"modality": "CT"}), out)
        monkeypatch.setattr(pulling, "_now", lambda: clock[0].time())  # noqa: PLW0108 - the clock goes on
        # Its own alone: the peer, in this process, sleeps too.
        monkeypatch.setattr(pulling, "time", SimpleNamespace(monotonic=time.monotonic, time=time.time, sleep=sleep))
        done = pull(
            caller,
            wanted,
            out,
            hours=Hours.read("19-06"),
            tell=told.append,
            advance=lambda _number: begun.append(clock[0].hour),
        )
    assert done.studies == 1
    assert told == ["It is outside of the hours. Going on at 19:00."]
    assert begun == [19]


def test_a_meter_waits_for_its_rate_and_tells_of_each_piece(monkeypatch: pytest.MonkeyPatch) -> None:
    now, told = [100.0], list[int]()
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    monkeypatch.setattr(time, "sleep", lambda seconds: now.__setitem__(0, now[0] + seconds))
    meter = Meter(2.0, told.append)
    for _ in range(10):
        meter.take(1 << 20)
    assert now[0] == pytest.approx(105.0)
    assert told[-1] == 10 << 20
    Meter(None, told.append).take(1 << 30)
    assert now[0] == pytest.approx(105.0)
