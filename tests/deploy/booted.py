"""A second system on this machine: systemd as the first process of namespaces of its own, on a copy of the disk.

The copy is an overlay: what is written there lies in memory, and is gone at the end. Loopback is that of this process.
As root, on Linux with overlayfs and cgroups v2 (also beside v1).
"""

import os
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.patience import eventually

_BOOT = """
mount -t tmpfs tmpfs "$1"
mkdir "$1/changed" "$1/work" "$1/root"
mount -t overlay overlay -o "lowerdir=/,upperdir=$1/changed,workdir=$1/work" "$1/root"
cd "$1/root"
mount -t proc proc proc
mount -t sysfs sysfs sys
mount -t cgroup2 cgroup2 sys/fs/cgroup
mount -t tmpfs tmpfs run
mount --rbind /dev dev
mkdir -p srv/shared
mount --bind "$2" srv/shared
echo 0123456789abcdef0123456789abcdef > etc/machine-id
mkdir -p before
pivot_root . before
umount -l /before
exec env -i container=other PATH=/usr/sbin:/usr/bin:/sbin:/bin \\
    /lib/systemd/systemd --system --show-status=no --log-level=warning systemd.unit=basic.target
"""


class Booted:
    """The system, for as long as it runs."""

    def __init__(self, pid: int) -> None:
        self._pid = pid

    def start(self, command: str) -> "subprocess.Popen[str]":
        """A line of shell there, as root."""
        enter = ["nsenter", "--target", str(self._pid), "--mount", "--pid", "--ipc", "--uts", "--cgroup"]
        environment = {"PATH": "/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "LANG": "C.UTF-8", "COLUMNS": "200"}
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
        return subprocess.Popen([*enter, "/bin/sh", "-ec", command], env=environment, text=True, **pipes)  # type: ignore[call-overload,no-any-return]

    def run(self, command: str, *, code: int | None = 0) -> str:
        """What such a line says, both to stdout and stderr.

        Args:
            command: the line.
            code: that it ends with; None: any.
        """
        process = self.start(command)
        said, _ = process.communicate()
        assert code is None or process.returncode == code, f"{command}: {process.returncode}\n{said}"
        return said


@contextmanager
def booted(disk: Path, shared: Path) -> Iterator[Booted]:
    """Boot it.

    Args:
        disk: an empty folder, that its disk is mounted on.
        shared: a folder that is /srv/shared there.
    """
    (unified,) = [Path(words[1]) for line in _mounts() if (words := line.split())[2] == "cgroup2"][:1]
    group = unified / f"wardround-{os.getpid()}"
    group.mkdir()
    spaces = ("--pid", "--fork", "--mount", "--cgroup", "--ipc", "--uts", "--propagation", "private")
    command = f'echo $$ > "{group}/cgroup.procs"; exec unshare {" ".join(spaces)} sh -ec "$0" sh "$1" "$2"'
    outer = subprocess.Popen(["sh", "-ec", command, _BOOT, str(disk), str(shared)], start_new_session=True)
    first = 0

    def started() -> int:
        assert outer.poll() is None, "systemd did not start"
        children = Path(f"/proc/{outer.pid}/task/{outer.pid}/children").read_text().split()
        is_up = children and Path(f"/proc/{children[0]}/comm").read_text().strip() == "systemd"
        return int(children[0]) if is_up else 0

    def is_up() -> bool:
        assert outer.poll() is None, "systemd ended"
        said = Booted(first).run("systemctl is-system-running", code=None).strip()
        return said in ("running", "degraded")

    try:
        first = eventually(started, "the first process", every_s=0.3)
        eventually(is_up, "the system", every_s=0.3)
        yield Booted(first)
    finally:
        os.kill(first or outer.pid, signal.SIGKILL)  # the first process of a namespace takes all others along
        outer.wait()
        for path in sorted([group, *(path for path in group.rglob("*") if path.is_dir())], reverse=True):
            path.rmdir()


def _mounts() -> list[str]:
    return Path("/proc/mounts").read_text(encoding="utf-8").splitlines()
