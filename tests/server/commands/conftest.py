"""A coordinator's home in an empty folder, in which the commands are typed."""

from pathlib import Path

import pytest

from server.coordinator import supervisor
from server.home.folder import ENVIRONMENT
from server.registry.registry import Registry
from tests.server.coordinators import RUN_TOML, new_home


@pytest.fixture(autouse=True)
def _elsewhere(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv(ENVIRONMENT, raising=False)


@pytest.fixture
def home(tmp_path):
    return new_home(tmp_path / "wardround-server")


@pytest.fixture
def registry(home):
    return Registry(home.registry)


@pytest.fixture
def document(tmp_path: Path) -> Path:
    path = tmp_path / "run.toml"
    path.write_text(RUN_TOML)
    return path


@pytest.fixture
def running(monkeypatch):
    monkeypatch.setattr(supervisor, "is_running", lambda _: True)
