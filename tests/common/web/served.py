"""A dashboard as a person starts it, and a visitor to it who may be as rude as an attacker."""

import http.client
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlencode

from common.web.door import Door
from common.web.listening import answering, hosts_of, listening
from common.web.login import Sessions
from common.web.pages import Dashboard, Pages
from tests import ROOT
from tests.json_forms import conforms
from tests.patience import PATIENCE_S

SERVER = "server.commands.main"
CLIENT = "client.commands"


@dataclass(frozen=True)
class Answer:
    """What came back."""

    status: int
    headers: Mapping[str, str]
    text: str

    @property
    def csrf(self) -> str:
        return self.hidden("csrf")

    def hidden(self, name: str) -> str:
        """A field of the page's first form that has it."""
        found = re.search(rf'name="{name}" value="([^"]+)"', self.text)
        assert found is not None, self.text
        return found[1]

    @property
    def shown(self) -> str:
        """The text of the page, without its signs."""
        return re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", self.text))

    @property
    def links(self) -> Sequence[str]:
        """All that the page loads or leads to."""
        return re.findall(r'(?:src|href|action)="([^"]*)"', self.text)


@dataclass
class Visitor:
    """A browser's part of the talk, without its virtues."""

    port: int
    base: str  # of every path: the place that nobody else knows
    cookie: str = ""

    def ask(
        self, method: str, path: str, body: str | bytes | None = None, headers: Mapping[str, str] | None = None
    ) -> Answer:
        """A request as written, with the cookie."""
        given = ({"Cookie": self.cookie} if self.cookie else {}) | dict(headers or {})
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE_S)
        try:
            connection.request(method, path, body, given)
            answer = connection.getresponse()
            told = {key.lower(): value for key, value in answer.getheaders()}
            return Answer(answer.status, told, answer.read().decode())
        finally:
            connection.close()

    def get(self, path: str, headers: Mapping[str, str] | None = None) -> Answer:
        return self.ask("GET", self.base + path, None, headers)

    def post(self, path: str, fields: Mapping[str, str], headers: Mapping[str, str] | None = None) -> Answer:
        """A form as the page's own browser would send it."""
        usual = {"Origin": f"http://127.0.0.1:{self.port}", "Content-Type": "application/x-www-form-urlencoded"}
        return self.ask("POST", self.base + path, urlencode(fields), usual | dict(headers or {}))

    def log_in(self, token: str) -> Answer:
        answer = self.post("/login", {"token": token})
        if answer.status == 303:
            self.cookie = answer.headers["set-cookie"].partition(";")[0]
        return answer


@dataclass
class Served:
    """A running dashboard."""

    process: "subprocess.Popen[bytes]"
    link_file: Path
    visitor: Visitor = field(init=False)

    def __post_init__(self) -> None:
        port, _, rest = self.link.removeprefix("http://127.0.0.1:").partition("/")
        self.visitor = Visitor(int(port), f"/{rest.partition('/')[0]}")

    @property
    def link(self) -> str:
        return self.link_file.read_text().strip()

    def logged_in(self) -> Visitor:
        assert self.visitor.log_in(self.link.partition("#")[2]).status == 303
        return self.visitor

    def end(self, number: signal.Signals = signal.SIGTERM) -> tuple[str, str]:
        """Stop it; stdout and stderr."""
        self.process.send_signal(number)
        out, err = self.process.communicate(timeout=PATIENCE_S)
        return out.decode(), err.decode()


@dataclass
class Open:
    """A dashboard that is served by this process, for as many logins as a test wants."""

    port: int
    sessions: Sessions

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/{self.sessions.place}"

    @property
    def link(self) -> str:
        return f"{self.url}/login#{self.sessions.token()}"

    def logged_in(self) -> Visitor:
        visitor = Visitor(self.port, f"/{self.sessions.place}")
        assert visitor.log_in(self.sessions.token()).status == 303
        return visitor


def assert_box_is_asked_for(dashboard: Dashboard, folder: str) -> None:
    """What has a box to tick on its page is done only with it, and only what has none without it."""
    text = "".join(path.read_text() for path in sorted((ROOT / folder).glob("*.html")))
    forms = re.findall(r'<form [^>]*action="\{\{ base \}\}(/[^"]*)">(.*?)</form>', text, re.DOTALL)
    boxes = {re.sub(r"\{\{[^}]*\}\}", "{run}", path): 'name="sure" required' in body for path, body in forms}
    assert boxes == dict.fromkeys(dashboard.acts, True) | dict.fromkeys(dashboard.at_once, False)


@contextmanager
def opened(dashboard: Dashboard, clock: Callable[[], float] = time.monotonic) -> Iterator[Open]:
    """Serve a dashboard from a thread."""
    sessions, stopped = Sessions(clock), threading.Event()
    with listening(0) as sockets:
        port = sockets[0].getsockname()[1]
        app = Door(Pages(dashboard, sessions, stopped.is_set), sessions, hosts_of(port))
        with answering(app, sockets):
            yield Open(port, sessions)
            stopped.set()


@contextmanager
def serving(module: str, home: Path, *options: str) -> Iterator[Served]:
    """Start a dashboard, and end it if the test has not."""
    command = [sys.executable, "-P", "-m", module, "dashboard", "--home", str(home), "--json", *options]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment)
    try:
        yield Served(process, _started(process, module))
    finally:
        if process.poll() is None:
            process.kill()
            process.communicate()


def _started(process: "subprocess.Popen[bytes]", module: str) -> Path:
    """Wait for what it prints at its start; the file with the link."""
    assert process.stdout is not None
    text = b""
    while not text.endswith(b"}\n"):
        line = process.stdout.readline()
        assert line, process.communicate()
        text += line
    told = json.loads(text)
    conforms(f"wardround-{'server' if module == SERVER else 'client'} dashboard", told)
    return Path(told["link"])
