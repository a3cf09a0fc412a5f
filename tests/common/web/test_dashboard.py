"""How a dashboard is started and stopped: where the link goes, and where it does not."""

import json
import os
import pty
import re
import signal
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from tests import ROOT
from tests.client.views.recorded import hospital
from tests.common.web.served import CLIENT, SERVER, Visitor, serving
from tests.json_forms import conforms
from tests.patience import PATIENCE_S
from tests.server.coordinators import new_home

pytestmark = pytest.mark.system

LINK = re.compile(rb"http://127\.0\.0\.1:(\d+)(/[\w-]+)/login#([\w-]+)")


def home_of(module: str, folder: Path) -> Path:
    return new_home(folder / "server").path if module == SERVER else hospital(folder)


@pytest.mark.parametrize("module", [SERVER, CLIENT])
def test_link_lies_in_a_file_that_only_the_owner_reads_and_is_printed_nowhere(module: str, tmp_path: Path) -> None:
    home = home_of(module, tmp_path)
    with serving(module, home) as served:
        assert stat.S_IMODE(served.link_file.stat().st_mode) == 0o600
        assert served.link_file.parent == home.resolve()
        token = served.link.partition("#")[2]
        visitor = served.logged_in()
        assert "Overview" in visitor.get("/").text
        out, err = served.end()
    assert served.process.returncode == 0
    for secret in (token, visitor.base.strip("/"), visitor.cookie.partition("=")[2]):
        assert secret not in out + err
    assert not served.link_file.exists()


@pytest.mark.parametrize("module", [SERVER, CLIENT])
def test_another_link_is_given_to_whoever_owns_the_home_and_each_is_good_once(module: str, tmp_path: Path) -> None:
    home = home_of(module, tmp_path)
    program = f"wardround-{'server' if module == SERVER else 'client'}"
    assert "no dashboard of" in another(module, home).stderr
    with serving(module, home) as served:
        visitor = served.logged_in()
        used = served.link.partition("#")[2]
        refused = Visitor(visitor.port, visitor.base).log_in(used)
        assert refused.status == 403
        assert f"{program} dashboard --link --home {home.resolve()}" in refused.text
        (socket,) = home.glob("dashboard-*.sock")
        assert stat.S_IMODE(socket.stat().st_mode) == 0o600
        assert stat.S_IMODE(home.stat().st_mode) == 0o700
        links = [another(module, home).stdout.strip() for _ in range(2)]
        tokens = [link.partition("#")[2] for link in links]
        assert len({used, *tokens}) == 3
        assert {link.partition("#")[0] for link in links} == {f"http://127.0.0.1:{visitor.port}{visitor.base}/login"}
        other = Visitor(visitor.port, visitor.base)
        assert other.log_in(tokens[0]).status == 403  # the next one was shown
        assert other.log_in(tokens[1]).status == 303
        assert other.log_in(tokens[1]).status == 403
        assert "Overview" in visitor.get("/").text  # who is logged in stays so
        told = json.loads(another(module, home, "--json", "--port", str(visitor.port)).stdout)
        conforms(f"{program} dashboard", told)
        assert told["address"] == f"http://127.0.0.1:{visitor.port}"
        assert other.log_in(told["link"].partition("#")[2]).status == 303
        with serving(module, home) as second:
            assert "Name one with --port" in another(module, home).stderr
            link = another(module, home, "--port", str(second.visitor.port)).stdout.strip()
            assert second.visitor.log_in(link.partition("#")[2]).status == 303
        served.process.kill()
        served.process.wait()
        assert "no dashboard of" in another(module, home).stderr
    assert stat.S_ISSOCK(socket.stat().st_mode)  # a killed one's, which disturbs nobody


@pytest.mark.parametrize("module", [SERVER, CLIENT])
def test_dashboard_that_finds_its_port_taken_or_ends_leaves_the_link_of_another(module: str, tmp_path: Path) -> None:
    home = home_of(module, tmp_path)
    with serving(module, home) as first:
        link = first.link
        command = [sys.executable, "-P", "-m", module, "dashboard", "--home", str(home)]
        command += ["--port", str(first.visitor.port)]
        environment = os.environ | {"PYTHONPATH": str(ROOT)}
        again = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=environment, check=False)
        assert (again.returncode, "cannot be taken" in again.stderr) == (1, True), again
        assert first.link == link
        with serving(module, home) as second:
            latest = second.link
            assert latest != link
            first.end()
            assert second.link == latest
            second.end()
        assert not second.link_file.exists()


def another(module: str, home: Path, *options: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-P", "-m", module, "dashboard", "--link", "--home", str(home), *options]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=environment, check=False)


def test_terminal_shows_the_link_and_another_one_at_enter(tmp_path: Path) -> None:
    home = home_of(SERVER, tmp_path)
    ours, theirs = pty.openpty()
    command = [sys.executable, "-P", "-m", SERVER, "dashboard", "--home", str(home)]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "TERM": "dumb"}
    with subprocess.Popen(command, cwd=ROOT, stdin=theirs, stdout=theirs, stderr=theirs, env=environment) as process:
        os.close(theirs)
        try:
            first = _until(ours, 1)[-1]
            os.write(ours, b"\n")
            second = _until(ours, 1)[-1]
            assert first[:2] == second[:2]
            port, base = int(first[0]), first[1].decode()
            assert Visitor(port, base).log_in(first[2].decode()).status == 403
            assert Visitor(port, base).log_in(second[2].decode()).status == 303
            assert not (home / "dashboard.link").exists()
            process.send_signal(signal.SIGINT)
            assert process.wait(PATIENCE_S) == 0
        finally:
            process.kill()
            os.close(ours)


def _until(terminal: int, count: int) -> list[tuple[bytes, bytes, bytes]]:
    text = b""
    while len(found := LINK.findall(text)) < count or not text.endswith(b"\n"):
        text += os.read(terminal, 4096)
    return found
