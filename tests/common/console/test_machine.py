"""Each bad state of a machine, made for real, is found and told with what to do; a machine without it is well."""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from client.commands import diagnosis
from client.trail.audit_trail import open_log
from common.audit.log import AuditLog
from common.console import machine
from common.console.doctor import Finding
from common.errors import ConfigError
from server.commands import doctor
from server.home.folder import Home
from server.registry import audit_trail
from tests import ROOT
from tests.client.coordinator import Authority
from tests.patience import PATIENCE_S
from tests.server.coordinators import new_home

DAY_S = 24 * 3600.0


def python(code: str, *, before: str = "", path: Sequence[Path] = (), own: bool = False) -> str:
    """What a line of Python prints, after a shell has changed its world: its own mounts and limits, or its path.

    Args:
        code: which prints.
        before: a shell's line.
        path: comes first where Python looks.
        own: with namespaces of its own, in which it is root.
    """
    command = ["sh", "-c", f'{before or ":"} && exec "$@"', "sh", sys.executable, "-P", "-c", code]
    if own:
        command = ["unshare", "--user", "--map-root-user", "--mount", *command]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(map(str, (*path, ROOT)))}
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, timeout=PATIENCE_S, env=environment, cwd="/"
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def told(call: str) -> str:
    """A line that prints what a check says, or why it fails."""
    return (
        "from common.console import machine\nfrom common.errors import ConfigError\n"
        f"try: said = machine.{call}\nexcept ConfigError as error: said = f'WRONG {{error}}'\n"
        "print(said if isinstance(said, str) else '\\n'.join(f'{one.ok} {one.detail}' for one in said))"
    )


def distribution(folder: Path, name: str, version: str, *packages: str) -> Path:
    """A folder on Python's path into which something was installed."""
    info = folder / f"{name}-{version}.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    (info / "top_level.txt").write_text("".join(f"{package}\n" for package in packages))
    return folder


def test_machine_that_is_well_is_told_so() -> None:
    assert "may still be taken" in machine.memory(1)
    assert [one.ok for one in machine.shadows()] == [True]
    assert machine.clock(None) == machine.clock(time.time())
    wrong = [one.detail for one in machine.versions(("client", "server")) if not one.ok]
    assert all("is missing" in one for one in wrong)  # of an environment that was made before a new requirement


def test_bound_on_memory_is_found() -> None:
    said = python(told("memory(3 << 30)"), before="ulimit -v 2000000")
    assert said.startswith("WRONG")
    assert "this account's ulimit -v" in said
    assert "Close other programs" in said
    with pytest.raises(ConfigError, match="are needed"):
        machine.memory(1 << 60)


def test_shared_memory_that_is_too_small_is_found() -> None:
    mount = "mount -t tmpfs -o size=8m none /dev/shm"
    said = python(told("shared_memory()"), before=mount, own=True)
    assert "/dev/shm has 8.39 MB free" in said  # noqa: S108 - said
    assert "--shm-size" in said
    assert python(told("shared_memory()"), before=mount.replace("8m", "80m"), own=True) == "83.9 MB free in /dev/shm"


def test_shared_memory_that_is_full_or_gone_is_found(tmp_path: Path) -> None:
    fill = "mount -t tmpfs -o size=80m none /dev/shm && head -c 70000000 /dev/zero > /dev/shm/left"
    assert python(told("shared_memory()"), before=fill, own=True).startswith("WRONG")
    with pytest.raises(ConfigError, match="Mount a tmpfs"):
        machine.shared_memory(tmp_path / "none")


def test_clock_that_went_back_is_found_at_both_sides(tmp_path: Path) -> None:
    site, home = tmp_path / "site", new_home(tmp_path / "server")
    Authority().admit(site, "north", "127.0.0.1:9")
    for log in (open_log(site), audit_trail.open_log(home)):
        ahead = AuditLog(log._path, log.origin, log._key, clock=lambda: time.time() + 2 * DAY_S)
        ahead.append("export", {"what": "audit", "hash": "0" * 64})
    for look in (lambda: diagnosis._clock(site), lambda: doctor._clock(home)):
        with pytest.raises(ConfigError, match="2880 minutes before the last entry of the audit log"):
            look()


def test_version_of_a_library_that_this_one_was_not_made_for_is_found(tmp_path: Path) -> None:
    folder = distribution(tmp_path / "site", "opacus", "0.1.0", "opacus")
    said = python(told("versions(('client',))"), path=[folder])
    assert said.startswith("False")
    assert "opacus 0.1.0 is installed, ==1.6.0 is needed" in said
    assert "Install Wardround again" in said


def test_distribution_that_brings_a_package_of_our_name_is_found(tmp_path: Path) -> None:
    folder = distribution(tmp_path / "site", "evil", "1.0", "common", "evil")
    said = python(told("shadows()"), path=[folder])
    assert said.startswith("False")
    assert "evil also brings a package named 'common': uninstall it" in said


def test_folder_of_our_name_that_python_finds_first_is_found(tmp_path: Path) -> None:
    """Of a package that is not loaded yet: with `common` itself there would be nobody to ask."""
    (tmp_path / "simulations").mkdir()
    (tmp_path / "simulations" / "__init__.py").touch()
    said = python(told("shadows()"), path=[ROOT, tmp_path])
    assert said.startswith("True")
    code = f"import common\nimport sys\nsys.path.insert(0, {str(tmp_path)!r})\n{told('shadows()')}"
    said = python(code)
    assert said.startswith("False")
    assert "'simulations' is another package than ours" in said


@pytest.mark.parametrize(
    ("device", "sees", "driver", "expected"),
    [
        ("auto", False, False, "none: training runs on the processor"),
        ("auto", True, True, "CUDA"),
        ("cpu", False, True, "not to be used"),
        ("auto", False, True, "torch does not see it"),
        ("cuda", False, False, "torch sees no GPU"),
    ],
)
def test_gpu_that_is_there_and_not_used_is_found(
    tmp_path: Path, device: str, sees: bool, driver: bool, expected: str
) -> None:
    if driver:
        (tmp_path / "nvidia0").touch()
    wrong = not sees and device != "cpu" and (driver or device == "cuda")
    try:
        said = machine.graphics(device, sees=sees, devices=tmp_path)
        assert not wrong
    except ConfigError as error:
        said = str(error)
        assert wrong
    assert expected in said


def findings(home: Home, check: str) -> dict[str, Finding]:
    return {one.what: one for one in doctor.examine(home) if one.what.startswith(check)}


def test_port_that_another_program_holds_is_found_with_its_holder(tmp_path: Path) -> None:
    home = new_home(tmp_path / "server")
    port = home.config.gateway_port
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", port))
        holder.listen()
        (finding,) = [one for one in doctor._ports(home) if one.what == f"gateway port {port}"]
    assert not finding.ok
    assert f"(process {os.getpid()}): end that, or set gateway-port in server.toml" in finding.detail
    assert all(one.ok for one in doctor._ports(home))


def test_kernel_that_gives_no_network_namespace_is_found_before_the_start(tmp_path: Path) -> None:
    home = new_home(tmp_path / "server")
    code = (
        "import pathlib\nfrom server.commands import doctor\nfrom server.home.folder import open_home\n"
        f"home = open_home(pathlib.Path({str(home.path)!r}))\n"
        "try: print(doctor._private_network(home))\nexcept doctor.ConfigError as error: print('WRONG', error)"
    )
    assert python(code) == "the kernel gives Flower one"
    said = python(code, before="echo 0 > /proc/sys/user/max_net_namespaces", own=True)
    assert said.startswith("WRONG the kernel gives Flower no network of its own (No space left on device)")
    assert "user.max_net_namespaces" in said


def test_disk_that_is_nearly_full_is_found_at_both_sides(tmp_path: Path) -> None:
    (tmp_path / "home").mkdir()
    code = (
        "import pathlib\nfrom client.commands import diagnosis\nfrom common.errors import ConfigError\n"
        f"home = pathlib.Path({str(tmp_path / 'home')!r})\n"
        "try: print(diagnosis._disk(home))\nexcept ConfigError as error: print('WRONG', error)\n"
        "from server.commands import doctor\nfrom server.home.folder import Home, ServerConfig\n"
        "print(*[one.ok for one in doctor._disk(Home(home, ServerConfig(hosts=('a',))))])"
    )
    said = python(code, before=f"mount -t tmpfs -o size=20m none {tmp_path / 'home'}", own=True)
    assert said.splitlines()[0].startswith("WRONG 21 MB are free")
    assert "Free" in said.splitlines()[0]
    assert said.splitlines()[1] == "False"


def test_both_doctors_look_at_all_of_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(diagnosis, "REACH_S", 0.1)
    monkeypatch.setattr(diagnosis, "_python", lambda *_: "True")  # torch, which takes its time
    Authority().admit(tmp_path / "site", "north", "127.0.0.1:9")
    common = {"versions", "foreign packages", "clock", "disk", "memory", "shared memory"}
    at_site = {one.what for one in diagnosis.examine(tmp_path / "site")}
    assert at_site >= common | {"proxy", "gpu", "certificate", "coordinator", "worker's network", "worker's files"}
    home = new_home(tmp_path / "server")
    at_coordinator = {one.what for one in doctor.examine(home)}
    ports = {f"gateway port {home.config.gateway_port}", f"enrolment port {home.config.enrolment_port}"}
    assert at_coordinator >= common | ports | {"private network", "server certificate", "root certificate", "superlink"}
