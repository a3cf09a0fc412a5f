"""What a site, an operator, a file or a request from the network says is never obeyed by the coordinator's terminal.

One test a command; each is given all of tests/foreign.py at once, by the way on which it would really come.
"""

import json
import sys
from pathlib import Path

import pytest
from click.testing import Result
from typer.testing import CliRunner

from common.config import sha256_of
from common.config.rundocument import from_toml, issue
from server.commands.main import app
from server.coordinator import supervisor
from server.federation.rounds import federate
from server.home.folder import ENVIRONMENT, Home
from server.registry.registry import Registry
from server.views.report import write_report
from server.views.watch import watch
from tests.foreign import ALL, FOREIGN, MARK, QUOTED, Page, assert_plain, hidden
from tests.server.coordinators import RUN, RUN_TOML, new_home
from tests.server.fakes import FakeGrid, a_run, trains

HASH = sha256_of(RUN)


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Home:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv(ENVIRONMENT, raising=False)
    return new_home(tmp_path / "wardround-server")


def call(*words: object) -> Result:
    return CliRunner().invoke(app, list(map(str, words)))


def propose(home: Home, state: str = "failed", reason: str = ALL) -> Registry:
    registry = Registry(home.registry)
    registry.propose(from_toml(RUN_TOML), [])
    registry.close(HASH, state, reason)
    return registry


def write_journal(home: Home, site: str, code: str) -> Path:
    """What a run's folder would hold if a name and a code were not checked where they came in."""
    folder = home.run_folder(issue(RUN))
    folder.mkdir(parents=True)
    round_ = {"event": "round", "round": 1, "sites": [site], "refused": {site: code}, "missing": [site], "seconds": 1.0}
    events = [
        {"event": "train", "site": site, "round": 1, "train-loss": 0.5, "seconds": 1.0},
        {"event": "evaluate", "site": "overall", "phase": "validation", "round": 1, "dice": 0.5},
        round_ | {"bytes-down": 1, "bytes-up": 1},
        {"event": "run-failed", "reason": code},
    ]
    (folder / "metrics.jsonl").write_text("".join(f"{json.dumps(event)}\n" for event in events))
    return folder


def test_runs_and_status_show_a_reason_as_text(home: Home) -> None:
    propose(home)
    assert_plain(call("runs").output)
    assert json.loads(call("runs", "--json").stdout)[0]["reason"] == ALL
    assert hidden(call("status").output) == []


@pytest.mark.parametrize("text", FOREIGN.values(), ids=FOREIGN)
def test_a_watched_run_shows_sites_codes_and_reasons_as_text(
    home: Home, capsys: pytest.CaptureFixture[str], text: str
) -> None:
    registry = propose(home, reason=text.replace("\x00", "").encode(errors="replace").decode())
    write_journal(home, text, text)
    watch(home, registry, HASH, idle=lambda: None)
    assert_plain(capsys.readouterr().err)


def test_a_run_watched_on_a_terminal_shows_them_as_text(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    registry = propose(home)
    write_journal(home, ALL, ALL)
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    screen: list[str] = []
    monkeypatch.setattr(sys.stderr, "write", screen.append)
    watch(home, registry, HASH, idle=lambda: None)
    written = "".join(screen)
    assert "zebra" in written
    assert not any(part in written for part in ("\x1b]8", "\x1b[2J", "\x9b", "\u202e", "\u200b", "💀"))


@pytest.mark.parametrize("text", FOREIGN.values(), ids=FOREIGN)
def test_a_report_shows_site_names_and_reasons_as_text(tmp_path: Path, text: str) -> None:
    text = text.replace("\x00", "").encode(errors="replace").decode()
    sites = {
        text: trains(lambda request: request.parts["weights"]),
        "south": trains(lambda request: request.parts["weights"]),
    }
    federate(FakeGrid(sites), issue(a_run()), tmp_path, wake=lambda _: None)
    summary = json.loads((tmp_path / "summary.json").read_text())
    (tmp_path / "summary.json").write_text(json.dumps(summary | {"reason": text, "name": text, "model-sha256": text}))
    page = write_report(tmp_path).read_text(encoding="utf-8")
    assert hidden(page) == []
    assert MARK in page
    assert not Page(page).names & {"script", "onclick", "b"}


def test_report_and_its_table_show_site_names_as_text(home: Home) -> None:
    propose(home, "completed", "")
    folder = write_journal(home, ALL, ALL)
    dice = {"dice": 0.5}
    scores = {"test": {"round": 1, "sites": {ALL: dice}, "mean-of-sites": dice, "mean-of-patients": None}}
    summary = {
        "name": "lesions", "run-hash": HASH, "status": ALL, "reason": ALL, "seed": 0, "rounds": 1, "seconds": 1.0,
        "sites-by-round": [], "scores": scores, "guarantee": None, "bytes-down": 1, "bytes-up": 1, "model-sha256": None,
    }  # fmt: skip
    (folder / "summary.json").write_text(json.dumps(summary))
    result = call("report", "lesions")
    assert result.exit_code == 0, result.output
    assert_plain(result.output)


@pytest.mark.parametrize(
    "words",
    [("approve", ALL), ("revoke", ALL), ("stop", ALL), ("resume", ALL), ("invite", ALL), ("operator", "remove", ALL)],
    ids=lambda words: words[0],
)
def test_a_name_that_was_pasted_is_shown_as_text(home: Home, words: tuple[str, ...]) -> None:
    result = call(*words)
    assert result.exit_code == 1, result.output
    assert_plain(result.output)


def test_a_request_file_is_shown_as_text(home: Home, tmp_path: Path) -> None:
    values = {"site": ALL, "token": ALL, "csr_pem": ALL, "receipt_key": "ab", "proof": "cd"}
    (tmp_path / "request").write_text(json.dumps(values))
    result = call("enrol", tmp_path / "request")
    assert result.exit_code == 1, result.output
    assert hidden(result.output) == []


def test_a_run_document_is_refused_in_visible_signs(
    home: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervisor, "is_running", lambda _: True)
    (tmp_path / "run.toml").write_text(f"{QUOTED} = {QUOTED}\n")
    result = call("run", tmp_path / "run.toml")
    assert result.exit_code == 1
    assert_plain(result.output)


def test_an_audit_log_of_a_site_is_shown_as_text(home: Home, tmp_path: Path) -> None:
    other = tmp_path / ALL.replace("/", "")[:100]
    other.write_bytes(b'{"key":' + json.dumps(ALL).encode() + b"}\n" + ALL.encode())
    result = call("audit", "verify", other)
    assert result.exit_code == 1, result.output
    assert_plain(result.output)
