import importlib.metadata
import subprocess
import sys

import pytest

from common.errors import ConfigError
from common.flower.version import VERSION, check_version


def test_the_installed_flower_is_the_one_this_room_was_written_for():
    assert importlib.metadata.version("flwr") == VERSION
    check_version()


def test_another_flower_is_refused(monkeypatch):
    monkeypatch.setattr(importlib.metadata, "version", lambda _: "1.42.0")
    with pytest.raises(ConfigError, match=r"1\.42\.0 is installed, 1\.41\.0 is needed"):
        check_version()


def test_importing_the_room_does_not_load_torch() -> None:
    ours = "common.flower.calls, common.flower.inbox, common.flower.packing, common.flower.processes"
    modules = f"{ours}, common.wire.channels, common.identity.certificates"
    code = f"import sys, {modules}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
