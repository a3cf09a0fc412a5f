"""What every test stands on: one torch thread, no network beyond this machine, and where the real images are.

Unit tests run about one per core, so a test that used all cores would only slow its neighbours. A connection to another
host is refused at once and fails the test at its end, even where the code under test swallowed the refusal. Where the
kernel allows it the whole run has a network of its own (tests/loopback.py), which also holds for the processes that
tests start and for libraries that open sockets by themselves: one packet that wants out fails the run.
"""

import ipaddress
import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests import loopback

# Read by torch and Flower when they are imported, and inherited by every process that a test starts.
os.environ["OMP_NUM_THREADS"] = "1"
# Where a test wants several threads, those that wait leave the core to its neighbours.
os.environ["OMP_WAIT_POLICY"] = "passive"
# Where sites of a simulation work: a test that wants processes says so, others are spared their start.
os.environ["WARDROUND_BACKEND"] = "in-process"
os.environ["FLWR_TELEMETRY_ENABLED"] = "0"
os.environ["FLWR_DISABLE_UPDATE_CHECK"] = "1"

_SHARED_DATA = Path(__file__).resolve().parents[2] / "shared" / "data"
_GUARDED = ("connect", "connect_ex", "bind", "sendto")

_leaks: list[str] = []


class OutsideNetworkError(BaseException):
    """A test tried to leave this machine. Not an Exception, so that no `except Exception` hides it."""


def pytest_configure(config: pytest.Config) -> None:
    """Before any worker of pytest-xdist is started: they inherit the network."""
    if not hasattr(config, "workerinput"):
        loopback.enter()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The files that take long come first, so that no worker is left with one at the end while the others are done."""
    long = {item.path for item in items if item.get_closest_marker("system") or item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in long)


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Fail a run whose tests all passed if anything tried to leave this machine."""
    if not hasattr(session.config, "workerinput") and loopback.entered() and loopback.escapes():
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


@pytest.hookimpl(hookwrapper=True, tryfirst=True)  # around what makes a failure that is expected a skip
def pytest_runtest_makereport(item: pytest.Item) -> Iterator[None]:
    """Where CI has the real images nothing is skipped: what is lacking there is to be set up, not passed over."""
    outcome: Any = yield
    _is_no_skip(outcome.get_result(), item)


@pytest.hookimpl(hookwrapper=True)
def pytest_make_collect_report(collector: pytest.Collector) -> Iterator[None]:
    """The same of a file that skips itself as it is read, and of all its tests with it."""
    outcome: Any = yield
    _is_no_skip(outcome.get_result(), collector)


def _is_no_skip(report: pytest.TestReport | pytest.CollectReport, node: pytest.Item | pytest.Collector) -> None:
    if report.skipped and os.environ.get("CI") == "true" and os.environ.get("WARDROUND_DATA"):
        report.outcome, report.longrepr = "failed", f"{node.nodeid} is skipped in CI: {report.longrepr}"
        vars(report).pop("wasxfail", None)  # with it pytest shows the failure and yet ends well


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say which guard there was."""
    if not loopback.entered():
        terminalreporter.line("sockets: guarded in this process only; the kernel gave the run no network of its own")
        return
    count = loopback.escapes()
    markup = {"red": True} if count else {"green": True}
    terminalreporter.line(f"sockets: {count} packet(s) tried to leave this machine", **markup)


@pytest.fixture(scope="session", autouse=True)
def _loopback_only() -> Iterator[None]:
    """Refuse sockets to and on other hosts' addresses, within this process."""
    patch = pytest.MonkeyPatch()
    for name in _GUARDED:
        patch.setattr(socket.socket, name, _guarded(name))
    yield
    patch.undo()


@pytest.fixture(autouse=True)
def _no_leak(_loopback_only: None) -> Iterator[None]:
    _leaks.clear()
    before = loopback.escapes() if loopback.entered() else 0
    yield
    if loopback.entered():
        assert loopback.escapes() == before, "a process of this test, or of one beside it, tried to leave this machine"
    assert not _leaks, f"the test used addresses outside this machine: {_leaks}"


@pytest.fixture(scope="session")
def data() -> Path:
    """Folder of real images; see WARDROUND_DATA in docs/project/contributing.md."""
    folder = os.environ.get("WARDROUND_DATA")
    if folder:
        return Path(folder)
    if os.environ.get("CI") == "true" and _SHARED_DATA.is_dir():
        pytest.fail(f"the real images are at hand but WARDROUND_DATA does not name them: set it to {_SHARED_DATA}")
    pytest.skip("WARDROUND_DATA is not set")


@pytest.fixture
def free_port() -> int:
    """A port of 127.0.0.1 that nothing listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


def _guarded(name: str) -> Any:
    original = getattr(socket.socket, name)

    def method(self: socket.socket, *arguments: Any) -> Any:
        address = arguments[-1]
        if self.family in (socket.AF_INET, socket.AF_INET6) and not _is_loopback(address):
            _leaks.append(f"{name} {address}")
            raise OutsideNetworkError(f"{name} to {address}: tests stay on this machine")
        return original(self, *arguments)

    return method


def _is_loopback(address: Any) -> bool:
    host = str(address[0])
    if host == "localhost" or (loopback.entered() and host == loopback.OTHER_ADDRESS):
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
