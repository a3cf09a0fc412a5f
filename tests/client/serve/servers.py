"""A server as a person starts it: a real process, a real socket. And a client that can be as rude as an attacker."""

import http.client
import io
import json
import os
import signal
import subprocess
import sys
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from tests import ROOT
from tests.json_forms import conforms
from tests.patience import PATIENCE_S

START_S, END_S = 120.0, 60.0
PROGRAM = (sys.executable, "-P", "-m", "client.commands")


@dataclass
class Server:
    """A running one."""

    process: "subprocess.Popen[bytes]"
    port: int
    token_file: Path
    folder: Path  # in which its private folder lies

    @property
    def token(self) -> str:
        return self.token_file.read_text().strip()

    @property
    def place(self) -> Path:
        return self.token_file.parent

    def ask(
        self,
        method: str,
        path: str,
        body: Any = None,
        headers: Mapping[str, str] | None = None,
        *,
        chunked: bool = False,
    ) -> tuple[int, Mapping[str, str], bytes]:
        """A request with the token; status, headers, body."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE_S)
        given = {"Authorization": f"Bearer {self.token}"} | dict(headers or {})
        try:
            connection.request(method, path, body, given, encode_chunked=chunked)
            answer = connection.getresponse()
            return answer.status, {key.lower(): value for key, value in answer.getheaders()}, answer.read()
        finally:
            connection.close()

    def json(self, method: str, path: str, body: bytes | None = None, expected: int = 200) -> Any:
        status, _, data = self.ask(method, path, body)
        assert status == expected, (status, data)
        return json.loads(data) if data else None

    def end(self, number: signal.Signals = signal.SIGTERM) -> tuple[str, str]:
        """Stop it; stdout and stderr."""
        self.process.send_signal(number)
        out, err = self.process.communicate(timeout=PATIENCE_S)
        return out.decode(), err.decode()


@contextmanager
def serving(model: Path, folder: Path, *options: str, program: Iterable[str] = PROGRAM) -> Iterator[Server]:
    """Start a server, and end it if the test has not."""
    folder.mkdir(exist_ok=True)
    command = [*program, "serve", str(model), "--folder", str(folder), "--device", "cpu", "--json", *options]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment)
    try:
        assert process.stdout is not None
        text = b""
        while not text.endswith(b"}\n"):
            line = process.stdout.readline()
            assert line, process.communicate()
            text += line
        started = json.loads(text)
        conforms("wardround-client serve", started)
        port = int(started["addresses"][0].rpartition(":")[2])
        yield Server(process, port, Path(started["token"]), folder)
    finally:
        if process.poll() is None:
            process.kill()
            process.communicate()


def zipped(files: Iterable[Path]) -> bytes:
    """The files of a study, by names that a scanner might give."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for number, path in enumerate(files):
            archive.write(path, f"DICOM/ST0/IM{number:04}")
    return buffer.getvalue()


def children(pid: int) -> list[psutil.Process]:
    return list(psutil.Process(pid).children(recursive=True))
