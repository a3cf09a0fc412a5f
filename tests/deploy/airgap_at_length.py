"""What `make airgap` asks: from a wheelhouse, without any route, to a round between two services.

The machine is a second system in namespaces (tests/deploy/booted.py); its network is that of the tests: loopback, and
nothing else. The units are those that are shipped, and so are the commands of docs/install.md. Minutes, so it is not
among the tests that run by themselves.
"""

import json
import shutil
import socket
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from deploy.installation.manifest import ABOUT, write_manifest
from simulations.generators.phantoms import SCANNERS, write_hospital
from tests import ROOT, loopback
from tests.deploy.booted import Booted, booted
from tests.patience import eventually

WHEELHOUSE = ROOT / "dist/wheelhouse"
PYTHON = f"python{sys.version_info.major}.{sys.version_info.minor}"  # the system's, which the wheels fit
NEXT = "9.9.9"
RUN = """
name = "tiny"
[model]
channels = [4, 8]
[data]
modality = "CT"
classes = ["lesion"]
[preprocessing]
spacing-mm = [4.0, 4.0]
intensity = "window"
window = [-100, 250]
[training]
local-steps = 2
patch-size = [16, 16]
[federation]
rounds = 1
quorum = 1
[privacy]
target-epsilon = 8.0
sampling-rate = 0.2
clipping-norm = 0.1
"""
# The site's unit, but for what it starts.
PROBE = r"""
cat > /srv/probe.py <<'END'
{code}
END
sed -e 's/^AssertPathExists.*//' -e 's/^Type=.*/Type=oneshot/' -e 's/^Restart=.*/Restart=no/' \
    -e 's#^ExecStart=.*#ExecStart=/usr/bin/{python} /srv/probe.py#' \
    -e 's/^IPAddressAllow=.*/IPAddressAllow={allowed}/' \
    /etc/systemd/system/wardround-site.service > /etc/systemd/system/probe.service
systemctl daemon-reload
systemctl start probe || true
journalctl --sync
journalctl -q -o cat -u probe --since -60s _COMM={python}
"""

pytestmark = pytest.mark.system


@pytest.fixture(scope="module")
def system(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Booted]:
    """Both sides installed, joined, and one round done."""
    assert loopback.entered()
    assert (WHEELHOUSE / ABOUT).exists(), "make one first: python -m deploy.wheelhouse"
    folder, disk = tmp_path_factory.mktemp("shared"), tmp_path_factory.mktemp("disk")
    write_hospital(folder / "images", scanner=SCANNERS["a"], patients=20, seed=1, slices=4, rows=64)
    (folder / "run.toml").write_text(RUN)
    again(WHEELHOUSE, folder / "next")
    with booted(disk, folder) as machine:
        machine.run("cp -r /srv/shared/images /srv/images && chmod -R a+rX /srv/images")
        for role in ("coordinator", "site"):
            machine.run(f"{PYTHON} {WHEELHOUSE}/install.py install {role}")
        machine.run("wardround-server init --host localhost")
        machine.run("systemctl enable --now wardround-coordinator")
        until(lambda: machine.start("wardround-server status").wait() == 0, machine)
        machine.run("wardround-server invite north")
        machine.run(
            "install -o wardround-site -m 400 /var/lib/wardround-coordinator/invitations/north.json /etc/wardround/"
        )
        joining = machine.start("wardround-client join /etc/wardround/north.json")
        machine.run("wardround-server approve north --wait")
        assert joining.wait() == 0
        machine.run("wardround-client data add /srv/images")
        machine.run("systemctl enable --now wardround-site")
        machine.run("install -m 444 /srv/shared/run.toml /etc/wardround/")
        machine.run("wardround-server run /etc/wardround/run.toml")
        machine.run("wardround-client approve tiny --yes")
        until(lambda: '"completed"' in machine.run("wardround-server runs --json"), machine)
        yield machine


def again(wheelhouse: Path, folder: Path) -> None:
    """The same wheels as those of another version."""
    folder.mkdir()
    for path in sorted(wheelhouse.rglob("*")):
        place = folder / path.relative_to(wheelhouse)
        place.mkdir() if path.is_dir() else shutil.copy(path, place)
    about = json.loads((folder / ABOUT).read_text()) | {"version": NEXT}
    (folder / ABOUT).write_text(json.dumps(about))
    write_manifest(folder)


def until(check: Callable[[], object], machine: Booted) -> None:
    eventually(check, lambda: machine.run("journalctl -n 100 --no-pager", code=None), every_s=1.0)


def probe(machine: Booted, code: str, allowed: str = "localhost") -> str:
    """The last that a few lines of Python say in the sandbox of the site's unit."""
    return machine.run(PROBE.format(python=PYTHON, code=code, allowed=allowed)).strip().rpartition("\n")[2]


def test_the_machine_has_no_route(system: Booted) -> None:
    assert len(system.run("cat /proc/net/route").splitlines()) == 1


def test_the_worker_is_confined_within_the_sandbox_of_its_unit(system: Booted) -> None:
    log = system.run("cat /var/lib/wardround-site/logs/worker.log")
    assert "network removed, keys hidden, disk locked" in log
    assert "not " not in log.partition("network removed")[0].rpartition("\n")[2]


def test_the_superlink_has_a_network_of_its_own(system: Booted) -> None:
    found = {one["what"]: one for one in json.loads(system.run("wardround-server doctor --json", code=None))}
    assert found["superlink network"]["ok"], found["superlink network"]
    assert "its own" in found["superlink network"]["detail"]


def test_the_logs_are_in_the_journal(system: Booted) -> None:
    assert "worker ready, network removed" in system.run("journalctl -u wardround-site --no-pager")
    assert "ready: gateway localhost:9443" in system.run("journalctl -u wardround-coordinator --no-pager")


def test_the_unit_reaches_the_addresses_that_are_allowed_and_no_other(system: Booted) -> None:
    with socket.create_server((loopback.OTHER_ADDRESS, 0)) as server:
        port = server.getsockname()[1]
        code = f"import socket\nprint(socket.create_connection(('{loopback.OTHER_ADDRESS}', {port}), 3) and 1)"
        assert probe(system, code, loopback.OTHER_ADDRESS) == "1"
        assert probe(system, code) == "TimeoutError: timed out"


def test_the_unit_writes_to_its_home_alone_and_sees_no_home_of_people(system: Booted) -> None:
    assert "Read-only file system" in probe(system, "open('/etc/written', 'w')")
    assert "Permission denied" in probe(system, "import os; open(os.path.expanduser('~root') + '/.bashrc')")


def test_upgrade_restarts_the_services_and_rollback_too(system: Booted) -> None:
    before = system.run("readlink /opt/wardround/current").strip()
    system.run(f"{PYTHON} /srv/shared/next/install.py upgrade")
    assert system.run("readlink /opt/wardround/current").strip() == NEXT
    serving = "readlink -f /proc/$(systemctl show -P MainPID wardround-site)/cwd; systemctl is-active wardround-site"
    assert "active" in system.run(serving)
    system.run(f"{PYTHON} /opt/wardround/current/install.py rollback")
    assert system.run("readlink /opt/wardround/current").strip() == before
    until(lambda: "connected" in system.run("wardround-client status --json", code=None), system)


def test_uninstall_leaves_the_homes_and_purge_does_not(system: Booted) -> None:
    kept = system.run("cp -r /opt/wardround/current /srv/kept; ls /var/lib/wardround-site")
    assert "policy.toml" in kept
    system.run(f"{PYTHON} /opt/wardround/current/install.py uninstall")
    assert "policy.toml" in system.run("ls /var/lib/wardround-site")
    assert "not-found" in system.run("systemctl show -P LoadState wardround-site")
    system.run(f"{PYTHON} /srv/kept/install.py uninstall --purge", code=1)
    system.run(f"{PYTHON} /srv/kept/install.py uninstall --purge --yes")
    system.run("test ! -e /var/lib/wardround-site && test ! -e /etc/wardround && ! id wardround-site")
