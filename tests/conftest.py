"""What every test stands on: one torch thread, no network beyond this machine, and where the real images are.

Unit tests run one per core, so a test that used all cores would only slow its neighbours. A connection to another
host is refused at once and fails the test at its end, even where the code under test swallowed the refusal.
"""

import ipaddress
import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

# Read by torch and Flower when they are imported, and inherited by every process that a test starts.
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["FLWR_TELEMETRY_ENABLED"] = "0"
os.environ["FLWR_DISABLE_UPDATE_CHECK"] = "1"

_SHARED_DATA = Path(__file__).resolve().parents[2] / "shared" / "data"
_GUARDED = ("connect", "connect_ex", "bind", "sendto")

_leaks: list[str] = []


class OutsideNetworkError(BaseException):
    """A test tried to leave this machine. Not an Exception, so that no `except Exception` hides it."""


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
    yield
    assert not _leaks, f"the test used addresses outside this machine: {_leaks}"


@pytest.fixture(scope="session")
def data() -> Path:
    """Folder of real images; see WARDROUND_DATA in the README."""
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
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
