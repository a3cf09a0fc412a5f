"""Install, upgrade, rollback, uninstall, with real folders beneath one of ours."""

import fcntl
import os
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from deploy.installation import commands, steps
from deploy.installation.manifest import check_wheelhouse, write_manifest
from deploy.installation.places import InstallError
from tests.deploy.tiny import quick, write_wheelhouse

__all__ = ["quick"]  # a fixture


class Hospital:
    """A machine below a folder, and the wheelhouses that come to it."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        self.root, self.prefix, self._folder = folder / "root", folder / "opt", folder
        self._monkeypatch, self._capsys = monkeypatch, capsys
        (self.root / "etc").mkdir(parents=True)
        (self.root / "etc/resolv.conf").write_text("nameserver 127.0.0.53\nnameserver 192.0.2.53\noptions edns0\n")
        self.home = self.root / "var/lib/wardround-site"
        self.unit = self.root / "etc/systemd/system/wardround-site.service"

    def bring(self, version: str) -> Path:
        """The next commands come out of a wheelhouse of this version."""
        source = self._folder / f"wheelhouse-{version}"
        if not source.exists():
            write_wheelhouse(source, version)
        self._monkeypatch.setattr(commands, "_SOURCE", source)
        return source

    def call(self, *arguments: str, code: int = 0) -> str:
        """What install.py says."""
        found = commands.main(["--root", str(self.root), "--prefix", str(self.prefix), *arguments])
        said = "".join(self._capsys.readouterr())
        assert found == code, said
        return said

    @property
    def links(self) -> list[str]:
        """Where current and previous lead."""
        found = (self.prefix / name for name in ("current", "previous"))
        return [str(link.readlink()) for link in found if link.is_symlink()]


@pytest.fixture
def hospital(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Hospital:
    return Hospital(tmp_path, monkeypatch, capsys)


def test_installed_from_wheels_alone_it_starts_and_a_wheel_that_is_not_pinned_stays_out(hospital: Hospital) -> None:
    """With a real environment and a real pip, whatever pip's settings say."""
    hospital.bring("1.0.0")
    os.environ["PIP_INDEX_URL"] = "http://127.0.0.1:9/"
    try:
        said = hospital.call("install", "site")
    finally:
        del os.environ["PIP_INDEX_URL"]
    assert "sudo systemctl enable --now wardround-site" in said
    program = hospital.prefix / "current/bin/wardround-client"
    assert (
        subprocess.run([program, "--version"], capture_output=True, text=True, check=True).stdout == "wardround 1.0.0\n"
    )
    source = hospital.bring("1.0.1")
    pins = (source / "requirements.txt").read_text().splitlines()
    (source / "requirements.txt").write_text("\n".join(line for line in pins if not line.startswith("tiny")))
    with pytest.raises(InstallError, match="tiny"):
        steps.install_wheels(hospital.prefix / "1.0.1", source)


@pytest.mark.usefixtures("quick")
def test_a_site_gets_its_unit_its_command_a_home_of_its_own_and_the_addresses_that_were_named(
    hospital: Hospital,
) -> None:
    hospital.bring("1.0.0")
    hospital.call("install", "site", "--allow", "192.0.2.10", "--allow", "2001:db8::/32")
    assert hospital.links == ["1.0.0"]
    assert stat.S_IMODE(hospital.home.stat().st_mode) == 0o700
    assert f"ExecStart={hospital.prefix}/current/bin/wardround-client start" in hospital.unit.read_text()
    assert "/opt/wardround" not in hospital.unit.read_text()
    allowed = (hospital.unit.with_name("wardround-site.service.d") / "addresses.conf").read_text()
    assert allowed.split() == [
        "[Service]",
        *(f"IPAddressAllow={one}" for one in ("192.0.2.10", "2001:db8::/32", "192.0.2.53")),
    ]
    command = hospital.root / "usr/local/bin/wardround-client"
    assert os.access(command, os.X_OK)
    assert subprocess.run(["sh", "-n", command], check=False).returncode == 0
    assert not (hospital.root / "usr/local/bin/wardround-server").exists()
    assert (hospital.prefix / "current/install.py").exists()


@pytest.mark.usefixtures("quick")
def test_upgrade_keeps_the_version_before_and_rollback_goes_back_to_it(hospital: Hospital) -> None:
    for version in ("1.0.0", "1.1.0", "1.2.0"):
        source = hospital.bring(version)
        with (source / "deploy/systemd/wardround-site.service").open("a") as unit:
            unit.write(f"# of {version}\n")
        write_manifest(source)
        hospital.call(*(("install", "site") if version == "1.0.0" else ("upgrade",)))
        (hospital.home / "ledger").write_text("spent")
    assert hospital.links == ["1.2.0", "1.1.0"]
    assert not (hospital.prefix / "1.0.0").exists()
    assert hospital.unit.read_text().endswith("# of 1.2.0\n")
    hospital.call("rollback")
    assert hospital.links == ["1.1.0", "1.2.0"]
    assert hospital.unit.read_text().endswith("# of 1.1.0\n")
    hospital.call("rollback")
    assert hospital.links == ["1.2.0", "1.1.0"]
    assert (hospital.home / "ledger").read_text() == "spent"


@pytest.mark.usefixtures("quick")
def test_uninstall_leaves_homes_and_settings_and_purge_asks_before_it_removes_them(hospital: Hospital) -> None:
    hospital.bring("1.0.0")
    hospital.call("install", "site", "--allow", "any")
    (hospital.home / "ledger").write_text("spent")
    said = hospital.call("uninstall", "--purge", code=1)
    assert str(hospital.home) in said
    assert "nothing was removed" in said
    assert hospital.links == ["1.0.0"]
    said = hospital.call("uninstall")
    assert f"left as they are: {hospital.home}" in said
    assert not hospital.prefix.exists()
    assert not hospital.unit.exists()
    assert not (hospital.root / "usr/local/bin/wardround-client").exists()
    assert (hospital.home / "ledger").read_text() == "spent"
    assert (hospital.root / "etc/wardround/site.env").exists()
    hospital.call("install", "site")
    hospital.call("uninstall", "--purge", "--yes")
    assert not hospital.home.exists()
    assert not (hospital.root / "etc/wardround").exists()
    assert list((hospital.root / "etc/systemd/system").iterdir()) == []


@pytest.mark.usefixtures("quick")
def test_an_interrupted_upgrade_changes_nothing_and_the_next_one_begins_anew(
    hospital: Hospital, monkeypatch: pytest.MonkeyPatch
) -> None:
    hospital.bring("1.0.0")
    hospital.call("install", "site")
    hospital.bring("1.1.0")
    whole = steps.install_wheels

    def half(folder: Path, source: Path) -> None:
        whole(folder, source)
        raise KeyboardInterrupt

    monkeypatch.setattr(steps, "install_wheels", half)
    assert "interrupted" in hospital.call("upgrade", code=130)
    assert hospital.links == ["1.0.0"]
    monkeypatch.setattr(steps, "install_wheels", whole)
    hospital.call("upgrade")
    assert hospital.links == ["1.1.0", "1.0.0"]


def _twice(hospital: Hospital) -> None:
    source = hospital.bring("1.0.0")
    (source / "install.md").write_text("other words")
    write_manifest(source)


def _changed(hospital: Hospital) -> None:
    (hospital.bring("1.1.0") / "wheels/tiny-2.0-py3-none-any.whl").write_bytes(b"")


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize(
    ("before", "arguments", "said"),
    [
        (lambda hospital: hospital.bring("1.1.0"), ("install", "site"), "To go over to 1.1.0: install.py upgrade"),
        (lambda hospital: hospital.bring("1.0.0"), ("upgrade",), "1.0.0 is installed already"),
        (_twice, ("install", "site"), "another wheelhouse of the same version"),
        (_changed, ("upgrade",), "changed: wheels/tiny"),
        (lambda hospital: hospital.bring("1.1.0"), ("upgrade", "--sha256", "0" * 64), "not the one given"),
        (lambda _hospital: None, ("rollback",), "no other version to go back to"),
        (lambda _hospital: None, ("install", "site", "--allow", "fl.example.org"), "getent ahosts fl.example.org"),
    ],
)
def test_what_cannot_be_done_is_said_and_all_stays_as_it_is(
    hospital: Hospital, before: Callable[[Hospital], object], arguments: tuple[str, ...], said: str
) -> None:
    hospital.bring("1.0.0")
    hospital.call("install", "site")
    before(hospital)
    assert said in hospital.call(*arguments, code=1)
    assert hospital.links == ["1.0.0"]
    assert hospital.unit.exists()


def test_without_an_installation_there_is_nothing_to_upgrade(hospital: Hospital) -> None:
    hospital.bring("1.0.0")
    assert "nothing is installed here" in hospital.call("upgrade", code=1)


def test_two_at_the_same_time_are_one_too_many(hospital: Hospital) -> None:
    hospital.prefix.mkdir()
    with (hospital.prefix / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert "another install.py is at work" in hospital.call("rollback", code=1)


def test_the_system_itself_is_changed_by_root_alone(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert commands.main(["--prefix", str(tmp_path / "opt"), "rollback"]) == 1
    assert "sudo" in capsys.readouterr().err
    assert not (tmp_path / "opt").exists()


def test_install_py_runs_out_of_its_folder_and_leaves_nothing_there(tmp_path: Path) -> None:
    source = write_wheelhouse(tmp_path / "wheelhouse")
    command = [sys.executable, "install.py", "--root", str(tmp_path), "--prefix", str(tmp_path / "opt"), "rollback"]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    done = subprocess.run(command, cwd=source, env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (1, "wardround: there is no other version to go back to.\n")
    assert check_wheelhouse(source) == "1.0.0"
