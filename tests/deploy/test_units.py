"""The shipped units are what systemd takes without a word, confine their service, and let it confine itself."""

import re
import subprocess
from pathlib import Path

import pytest

from deploy.installation import commands
from deploy.installation.places import ROLES
from tests import ROOT
from tests.deploy.tiny import quick, write_wheelhouse

__all__ = ["quick"]  # a fixture

THRESHOLD = 30  # tenths of what `systemd-analyze security` scores: 0 is the least exposed, 100 the most
UNITS = sorted((ROOT / "deploy/systemd").glob("*.service"))
PAGE = (ROOT / "docs/install.md").read_text(encoding="utf-8")
DROP_INS = re.findall(r"^```ini\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)
# What common/system/sandbox.py and common/system/namespaces.py call, as the kernel names it.
NEEDED = {
    "unshare",
    "setns",
    "mount",
    "prctl",
    "landlock_create_ruleset",
    "landlock_add_rule",
    "landlock_restrict_self",
}
FORBIDDEN = {"umount2", "pivot_root", "chroot", "ptrace", "bpf", "init_module", "reboot", "setuid", "swapon"}


def verified(unit: Path) -> str:
    """What systemd says of a unit; an unknown key is a warning, with exit code 0."""
    done = subprocess.run(["systemd-analyze", "verify", unit], capture_output=True, text=True, check=False)
    return done.stdout + done.stderr + ("" if done.returncode == 0 else f"exit code {done.returncode}")


def is_confined(unit: Path) -> bool:
    options = ("--offline=true", f"--threshold={THRESHOLD}", "--no-pager")
    done = subprocess.run(["systemd-analyze", "security", *options, unit], capture_output=True, text=True, check=False)
    assert "Overall exposure level" in done.stdout, done.stderr
    return done.returncode == 0


@pytest.fixture
def installed(tmp_path: Path, quick: None, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of both units, as they are installed."""
    monkeypatch.setattr(commands, "_SOURCE", write_wheelhouse(tmp_path / "wheelhouse"))
    for role in ROLES:
        options = ["--root", str(tmp_path), "--prefix", str(tmp_path / "opt"), "install", role, "--allow", "any"]
        assert commands.main(options) == 0
    return tmp_path / "etc/systemd/system"


@pytest.mark.parametrize("role", ROLES)
def test_a_unit_is_verified_without_a_word_and_scores_as_confined(installed: Path, role: str) -> None:
    unit = installed / ROLES[role].unit
    assert verified(unit) == ""
    assert is_confined(unit)
    # With addresses allowed too, and with each drop-in of the page: as one file, for the score does not look beside it.
    allowed = (installed / f"{unit.name}.d/addresses.conf").read_text()
    unit.write_text(unit.read_text() + "\n" + allowed + "\n".join(DROP_INS))
    assert DROP_INS
    assert verified(unit) == ""
    assert is_confined(unit)


def test_the_checks_see_a_key_that_is_unknown_and_a_unit_that_is_open(installed: Path) -> None:
    unit = installed / "wardround-site.service"
    text = unit.read_text()
    unit.write_text(text.replace("MemoryMax=", "MemoryMaximum="))
    assert "Unknown key" in verified(unit)
    closed = ("PrivateUsers", "ProtectSystem", "NoNewPrivileges", "CapabilityBoundingSet", "SystemCallFilter")
    unit.write_text("\n".join(line for line in text.splitlines() if not line.startswith(closed)))
    assert not is_confined(unit)


@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.stem)
def test_calls_of_the_confinement_are_allowed_and_those_that_would_undo_it_are_not(unit: Path) -> None:
    allowed: set[str] = set()
    text = unit.read_text(encoding="utf-8")
    for line in re.findall(r"^SystemCallFilter=(.*)$", text, re.MULTILINE):
        names = {call for word in line.lstrip("~").split() for call in _calls(word)}
        allowed = allowed - names if line.startswith("~") else allowed | names
    assert NEEDED - allowed == set()
    assert allowed & FORBIDDEN == set()
    assert "RestrictNamespaces=user net mnt" in text.splitlines()


def _calls(word: str) -> set[str]:
    if not word.startswith("@"):
        return {word}
    listed = subprocess.run(["systemd-analyze", "syscall-filter", word], capture_output=True, text=True, check=True)
    found = [line.strip() for line in listed.stdout.splitlines()[1:]]
    return {call for one in found if not one.startswith("#") for call in _calls(one)} - {""}
