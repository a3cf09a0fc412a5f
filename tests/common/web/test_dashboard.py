"""How a dashboard is started and stopped: where the link goes, and where it does not."""

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
from tests.common.web.served import CLIENT, END_S, SERVER, Visitor, serving
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
            assert process.wait(END_S) == 0
        finally:
            process.kill()
            os.close(ours)


def _until(terminal: int, count: int) -> list[tuple[bytes, bytes, bytes]]:
    text = b""
    while len(found := LINK.findall(text)) < count or not text.endswith(b"\n"):
        text += os.read(terminal, 4096)
    return found
