"""What Prometheus is told: the text, by its own reader; the port, against strangers; the file, for another account."""

import http.client
import json
import os
import signal
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from common.errors import ConfigError
from common.web.guard import Guard
from common.web.listening import answering, hosts_of, listening
from common.web.measures import Family, _Scraped, exposition, one, states, tell
from common.web.token import Token
from tests import ROOT
from tests.json_forms import conforms
from tests.patience import PATIENCE_S, eventually
from tests.server.coordinators import new_home

parser = pytest.importorskip("prometheus_client.parser", reason="the extra prometheus is not installed")

FAMILIES = [
    one("wardround_disk_free_bytes", "Free", 12.5),
    Family("wardround_sites", "Sites", [({"state": "active"}, 2), ({"state": 'a "quoted\\\nname'}, 1)]),
    Family("wardround_run_refusals_total", "Refusals", [({"code": "no-data"}, 3)], "counter"),
    Family("wardround_run_state", "State", list(states("state", ("running", "failed"), "failed", run="r"))),
    one("wardround_nothing", "Nothing is known", None),
]
OPEN_METRICS = "application/openmetrics-text;version=1.0.0,text/plain;version=0.0.4;q=0.5"


@pytest.mark.parametrize("accepted", ["", "text/plain;version=0.0.4", OPEN_METRICS])
def test_text_is_read_back_by_prometheus_own_library(accepted: str) -> None:
    from prometheus_client.openmetrics import parser as open_parser  # noqa: PLC0415 - the extra

    text, media_type = exposition(FAMILIES, accepted)
    is_open = media_type.startswith("application/openmetrics-text")
    assert is_open == (accepted == OPEN_METRICS)
    read = list((open_parser if is_open else parser).text_string_to_metric_families(text.decode()))
    assert {one.name.removesuffix("_total") for one in read if one.type == "counter"} == {"wardround_run_refusals"}
    samples = {(one.name, tuple(sorted(one.labels.items()))): one.value for family in read for one in family.samples}
    assert samples == {
        ("wardround_disk_free_bytes", ()): 12.5,
        ("wardround_sites", (("state", "active"),)): 2,
        ("wardround_sites", (("state", 'a "quoted\\\nname'),)): 1,
        ("wardround_run_refusals_total", (("code", "no-data"),)): 3,
        ("wardround_run_state", (("run", "r"), ("state", "running"))): 0,
        ("wardround_run_state", (("run", "r"), ("state", "failed"))): 1,
    }


@contextmanager
def scraped(folder: Path) -> Iterator[tuple[int, str]]:
    """A port, and the token."""
    with listening(0) as sockets:
        port = sockets[0].getsockname()[1]
        token = Token.kept(folder / "metrics.token")
        with answering(Guard(_Scraped(lambda: FAMILIES), token, hosts_of(port), 0), sockets):
            yield port, (folder / "metrics.token").read_text().strip()


def ask(port: int, path: str = "/metrics", method: str = "GET", **headers: str) -> tuple[int, str]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE_S)
    try:
        connection.request(method, path, headers=headers)
        answer = connection.getresponse()
        return answer.status, answer.read().decode()
    finally:
        connection.close()


def test_only_who_shows_the_token_is_told_and_nothing_can_be_done(tmp_path: Path) -> None:
    with scraped(tmp_path) as (port, token):
        bearer = {"Authorization": f"Bearer {token}"}
        status, text = ask(port, **bearer)
        assert (status, "wardround_disk_free_bytes 12.5" in text) == (200, True)
        for wrong in ({}, {"Authorization": "Bearer nonsense"}, {"Authorization": f"Basic {token}"}):
            status, text = ask(port, **wrong)
            assert status == 401
            assert "wardround_" not in text
        assert ask(port, "/health")[0] == 401
        assert ask(port, "/", **bearer)[0] == 404
        assert ask(port, method="POST", **bearer)[0] == 405
        assert ask(port, Host="evil.example:80", **bearer)[0] == 421


def test_token_lasts_and_one_that_others_could_read_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "metrics.token"
    first = Token.kept(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    text = path.read_bytes().strip()
    again = Token.kept(path)
    assert first.fits(text)
    assert again.fits(text)
    assert not again.fits(text[:-1])
    path.chmod(0o644)
    with pytest.raises(ConfigError, match="can be read by others"):
        Token.kept(path)
    path.chmod(0o600)
    path.write_bytes(b"short\n")
    with pytest.raises(ConfigError, match="holds no token"):
        Token.kept(path)


def test_fault_of_a_page_tells_nothing_of_itself(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    def broken() -> list[Family]:
        raise RuntimeError("st-anna lies in /srv/secret")

    with listening(0) as sockets:
        port = sockets[0].getsockname()[1]
        token = Token.kept(tmp_path / "metrics.token")
        bearer = {"Authorization": f"Bearer {(tmp_path / 'metrics.token').read_text().strip()}"}
        with answering(Guard(_Scraped(broken), token, hosts_of(port), 0), sockets):
            status, text = ask(port, **bearer)
    assert status == 500
    assert "secret" not in text + caplog.text


def test_file_is_for_other_accounts_and_goes_with_the_stop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Written anew while it runs; what was true once is not told for ever."""
    stopped, written = threading.Event(), iter(range(1, 1_000_000))
    monkeypatch.setattr("common.web.measures.asked_to_stop", lambda: stopped.is_set)
    monkeypatch.setattr("common.web.measures.configure_logging", lambda: None)
    file = tmp_path / "collector" / "wardround.prom"

    def write() -> None:
        def families() -> list[Family]:
            (tmp_path / "made-by-collecting").touch()
            return [one("wardround_count", "Written", next(written))]

        tell(families, tmp_path, port=None, file=file, every_s=0.0, as_json=False)

    before = os.umask(0o022)
    told = threading.Thread(target=write)
    told.start()
    try:

        def is_written() -> bool:
            assert told.is_alive()
            return file.exists() and "wardround_count 3.0" in file.read_text()

        eventually(is_written, "the third", every_s=0.0)
        mode = stat.S_IMODE(file.stat().st_mode)
    finally:
        stopped.set()
        told.join(PATIENCE_S)
        os.umask(before)
    assert mode == 0o644
    assert stat.S_IMODE((tmp_path / "made-by-collecting").stat().st_mode) == 0o600
    assert list(file.parent.iterdir()) == []


def test_what_is_printed_once_is_what_a_port_would_tell(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tell(lambda: FAMILIES, tmp_path, port=None, file=None, every_s=1, as_json=False)
    assert capsys.readouterr().out.encode() == exposition(FAMILIES)[0]


def test_name_that_node_exporter_does_not_read_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"does not end in \.prom"):
        tell(lambda: FAMILIES, tmp_path, port=None, file=tmp_path / "w.txt", every_s=1, as_json=False)
    with pytest.raises(ConfigError, match="exclude each other"):
        tell(lambda: FAMILIES, tmp_path, port=0, file=tmp_path / "w.prom", every_s=1, as_json=False)


def test_without_the_library_it_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "prometheus_client", None)
    with pytest.raises(ConfigError, match=r"pip install 'wardround\[prometheus\]'"):
        tell(lambda: FAMILIES, tmp_path, port=None, file=None, every_s=1, as_json=False)


def test_command_serves_until_it_is_told_to_stop(tmp_path: Path) -> None:
    home = new_home(tmp_path / "home")
    command = [
        sys.executable,
        "-m",
        "server.commands.main",
        "metrics",
        "--home",
        str(home.path),
        "--port",
        "0",
        "--json",
    ]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        text = ""
        while not text.endswith("}\n"):
            line = process.stdout.readline()
            assert line, process.communicate()
            text += line
        told = json.loads(text)
        conforms("wardround-server metrics", told)
        port = int(told["address"].split(":")[2].split("/")[0])
        token = Path(told["token"]).read_text().strip()
        status, metrics = ask(port, Authorization=f"Bearer {token}")
        assert (status, "wardround_coordinator_running 0.0" in metrics) == (200, True)
        assert ask(port)[0] == 401
    finally:
        process.send_signal(signal.SIGTERM)
        out, err = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 0
    assert token not in out + err
