"""What the registry answers from memory is never older than the last write, and held calls hear of each one.

The other writer is a process of its own, with SQLite alone.
"""

import datetime
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from common.config.rundocument import from_toml
from common.identity import certificates
from server.gateway.change_notifier import NOTICE_S, ChangeNotifier
from server.home.folder import Home
from server.registry.registry import Registry
from server.registry.sites import Presence
from server.registry.store import StoreError
from tests.patience import PATIENCE_S
from tests.server.coordinators import RUN_TOML, enrol, invite, new_home

OTHER_PROCESS = """
import sqlite3, sys
with sqlite3.connect(sys.argv[1]) as database:
    database.execute(sys.argv[2])
"""
# A held call waits at least so long by itself.


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return new_home(tmp_path / "home")


@pytest.fixture
def registry(home: Home) -> Registry:
    return Registry(home.registry)


@pytest.fixture
def notifier(registry: Registry) -> Iterator[ChangeNotifier]:
    made = ChangeNotifier(registry)
    yield made
    made.close()


class Context:
    """A call, as far as the notifier knows it."""

    def __init__(self) -> None:
        self.callbacks: list[Callable[[], None]] = []
        self.active = True

    def add_callback(self, callback: Callable[[], None]) -> bool:
        self.callbacks.append(callback)
        return self.active


def write_elsewhere(home: Home, statement: str) -> None:
    subprocess.run([sys.executable, "-c", OTHER_PROCESS, str(home.registry), statement], check=True)


def fingerprint_of(certificate: bytes) -> str:
    return certificates.fingerprint(certificates.load_certificate(certificate))


def statements(registry: Registry) -> list[str]:
    """All that this thread's connection is asked from now on."""
    asked: list[str] = []
    registry._threads.database.set_trace_callback(asked.append)
    return asked


# Memory


def test_revocation_by_another_process_holds_for_the_next_question(home, registry):
    member = enrol(home, registry, "a")
    name = fingerprint_of(member.certificate)
    assert registry.active_site(name) is not None
    write_elsewhere(home, "UPDATE sites SET state = 'revoked' WHERE name = 'a'")
    assert registry.active_site(name) is None
    assert [site.state for site in registry.sites()] == ["revoked"]


def test_no_answer_is_older_than_the_write_before_it(home, registry):
    name = fingerprint_of(enrol(home, registry, "a").certificate)
    with closing(sqlite3.connect(home.registry, isolation_level=None)) as other:
        for number in range(200):
            state = ("revoked", "active")[number % 2]
            other.execute("UPDATE sites SET state = ?", (state,))
            assert (registry.active_site(name) is not None) == (state == "active")


def test_no_thread_gets_an_answer_older_than_a_write_that_has_returned(home, registry):
    enrol(home, registry, "a")
    written, stop = [0], threading.Event()

    def ask() -> int:
        """The number of answers, each at least as new as what was written before the question."""
        asked = 0
        while not stop.is_set():
            before = written[0]
            (site,) = registry.sites()
            assert int((site.csr or b"0").decode()) >= before
            asked += 1
        return asked

    with closing(sqlite3.connect(home.registry, isolation_level=None, timeout=PATIENCE_S)) as other:
        other.execute("PRAGMA synchronous = OFF")
        other.execute("UPDATE sites SET csr = ?", (b"0",))
        with ThreadPoolExecutor(4) as pool:
            answers = [pool.submit(ask) for _ in range(4)]
            try:
                for number in range(1, 300):
                    other.execute("UPDATE sites SET csr = ?", (str(number).encode(),))
                    written[0] = number
            finally:
                stop.set()
            assert all(answer.result() for answer in answers)


def test_nothing_is_read_again_while_nobody_writes(home, registry):
    name = fingerprint_of(enrol(home, registry, "a").certificate)
    questions: list[Callable[[], Any]] = [
        lambda: registry.active_site(name),
        registry.sites,
        registry.revision,
        registry.unfinished,
        registry.is_expecting,
    ]
    first = [question() for question in questions]
    asked = statements(registry)
    assert [question() for question in questions] == first
    assert asked == []
    write_elsewhere(home, "UPDATE sites SET connected = 1")
    for question in questions:
        question()
    assert len(asked) == len(questions)


def test_certificate_and_invitation_run_out_without_a_write(home, registry, monkeypatch):
    name = fingerprint_of(enrol(home, registry, "a").certificate)
    registry.collected("a")
    invite(home, registry, "b", "token", certificates.now() + datetime.timedelta(hours=24))
    assert registry.active_site(name) is not None
    assert registry.is_expecting()
    later = certificates.now() + datetime.timedelta(hours=25)
    monkeypatch.setattr(certificates, "now", lambda: later)
    assert not registry.is_expecting()
    much_later = later + certificates.SITE_LIFETIME
    monkeypatch.setattr(certificates, "now", lambda: much_later)
    assert registry.active_site(name) is None


def test_version_changes_with_writes_alone(home, registry):
    enrol(home, registry, "a")
    version = registry.version()
    registry.sites()
    registry.set_presence("a", Presence.AWAY)  # as it was
    assert registry.version() == version
    registry.set_presence("a", Presence.HERE)
    assert registry.version() != version


# The notifier


def test_a_held_call_wakes_when_another_process_writes(home, registry, notifier):
    with notifier.held(Context(), "a") as news, notifier.held(Context(), "b") as others:
        enrol(home, registry, "a")
        assert news.wait(PATIENCE_S)
        while news.wait(4 * NOTICE_S):  # for each of its writes, and then no more
            news.clear()
        others.clear()
        write_elsewhere(home, "UPDATE sites SET state = 'revoked'")
        assert news.wait(PATIENCE_S)
        assert others.wait(PATIENCE_S)


def test_one_sites_news_wakes_that_site_alone(notifier):
    with notifier.held(Context(), "a") as mine, notifier.held(Context(), "b") as others:
        notifier.notify("a")
        assert mine.is_set()
        assert not others.is_set()
        notifier.notify()
        assert others.is_set()


def test_news_that_comes_while_a_call_looks_is_not_lost(notifier):
    with notifier.held(Context(), "a") as news:
        news.clear()
        notifier.notify()
        assert news.wait(0.0)


def test_caller_who_leaves_is_noticed(notifier):
    context, gone = Context(), Context()
    gone.active = False
    with notifier.held(context, "a") as news:
        assert not news.is_set()
        context.callbacks[0]()
        assert news.is_set()
    with notifier.held(gone, "a") as news:
        assert news.is_set()
    assert notifier._held == {}


def test_registry_that_cannot_be_read_wakes_everybody(registry, notifier, monkeypatch):
    def broken() -> int:
        raise StoreError("the registry cannot be used: disk I/O error")

    with notifier.held(Context(), "a") as news:
        monkeypatch.setattr(registry, "version", broken)
        assert news.wait(PATIENCE_S)


def test_proposal_changes_what_the_registry_answers(registry):
    assert (registry.revision(), registry.unfinished()) == (0, [])
    proposal = registry.propose(from_toml(RUN_TOML), ())
    assert registry.revision() == 1
    assert [one.run_hash for one in registry.unfinished()] == [proposal.run_hash]
    registry.close(proposal.run_hash, "stopped")
    assert registry.unfinished() == []
