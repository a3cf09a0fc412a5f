"""The federation that the faults strike: two hospitals, each behind a line of its own, their folders on small disks.

Whatever ends of what a person has started is started again after a second, as a service manager does. What those start
themselves is theirs to look after.
"""

import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil

from common.config import RunConfig, parse
from common.system.locks import is_locked
from tests.faults.line import Line
from tests.patience import eventually
from tests.system.play import LONG_S, SITES, Play, Run, playing, run_text

# Process -> who has started it, and a word of its command; none: it was started by a person.
PROCESSES = {
    "launcher": ("coordinator", ""),
    "gateway": ("coordinator", "server.coordinator.serve"),
    "SuperLink": ("coordinator", "server.coordinator.superlink"),
    "SuperExec": ("coordinator", "flower-superexec"),
    "ServerApp": ("coordinator", "flwr-serverapp"),
    **{f"agent of {site}": (site, "") for site in SITES},
    **{f"worker of {site}": (site, "client.worker.main") for site in SITES},
}
POLICY = (
    "auto-approve = true\nrequire-privacy = false\nmin-patients = 4\nmin-held-out = 1\nlifetime-epsilon = 100000.0\n"
    "max-rounds = 100000\nmax-rounds-per-day = 100000\nmax-evaluations-per-day = 100000\n"
    "lifetime-scores-epsilon = 100000.0\n"
)
RESTART_AFTER_S = 1.0
_LOOK_S = 0.1
_DISK_MB = 96


class Stage(Play):
    """The processes, each of which can be found by its name in `PROCESSES`."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.lines: dict[str, Line] = {}
        self.disks: set[str] = set()  # homes that are on a disk of their own
        self.away: set[str] = set()  # not to be started again
        self._over = threading.Event()
        self._manager = threading.Thread(target=self._manage, daemon=True, name="service manager")
        self._manager.start()

    def line(self, site: str, gateway: int) -> int:
        """Lay the line of a site; its port."""
        self.lines[site] = Line(gateway)
        return self.lines[site].port

    def find(self, process: str) -> int | None:
        """Its process id, if it lives."""
        owner, word = PROCESSES[process]
        started = self.processes.get(owner)
        if started is None or started.poll() is not None:
            return None
        if not word:
            return started.pid
        with suppress(psutil.NoSuchProcess):
            for one in psutil.Process(started.pid).children(recursive=True):
                with suppress(psutil.NoSuchProcess):
                    if one.status() != psutil.STATUS_ZOMBIE and any(word in part for part in one.cmdline()):
                        return int(one.pid)
        return None

    def wait_for(self, process: str, other_than: int | None = None, timeout_s: float = 60.0) -> int | None:
        """Its process id once there is one that is another; None when there is none in time."""
        until = time.monotonic() + timeout_s
        while (pid := self.find(process)) in (None, other_than):
            if time.monotonic() > until:
                return None
            time.sleep(_LOOK_S)
        return pid

    def power_off(self, owner: str) -> None:
        """Kill everything of a machine at once."""
        with suppress(psutil.NoSuchProcess):
            root = psutil.Process(self.processes[owner].pid)
            for one in [root, *root.children(recursive=True)]:
                with suppress(psutil.NoSuchProcess):
                    one.kill()

    @contextmanager
    def down(self, owner: str) -> Iterator[None]:
        """Stopped in order for the body, and started again."""
        self.away.add(owner)
        self.stop(owner)
        try:
            yield
        finally:
            self.start(owner)
            self.away.discard(owner)

    def home(self, owner: str) -> Path:
        """Its folder."""
        return self.folder / owner

    def propose(self, name: str, *, rounds: int = 2, steps: int = 3, timeout_s: float = LONG_S) -> Run:
        """See `Play`; every policy approves by itself."""
        return self.begin(name, run_text(name, rounds, steps, timeout_s))

    def begin(self, name: str, text: str) -> Run:
        """Propose a run by its document."""
        (self.folder / f"{name}.toml").write_text(text)
        eventually(lambda: is_locked(self.coordinator / "launcher.lock"), "the coordinator is started again")
        self.server("run", f"{name}.toml")
        return Run(self, name, parse(RunConfig, text))

    def end(self) -> None:
        """See `Play`."""
        self._over.set()
        self._manager.join()
        super().end()
        for name in self.disks:
            subprocess.run(["umount", "--lazy", str(self.home(name))], check=False)

    def _manage(self) -> None:
        while not self._over.wait(_LOOK_S):
            for name, process in list(self.processes.items()):
                if process.poll() is not None and name not in self.away:
                    self._over.wait(RESTART_AFTER_S)
                    if not self._over.is_set() and name not in self.away:
                        self.start(name)


@contextmanager
def staged(folder: Path) -> Iterator[Stage]:
    """From nothing to two hospitals that wait for a run."""
    stage = Stage(folder)
    for name in ("coordinator", *SITES):
        stage.home(name).mkdir(mode=0o700)
        options = ["-t", "tmpfs", "-o", f"size={_DISK_MB}m,mode=0700", "tmpfs"]
        done = subprocess.run(["mount", *options, str(stage.home(name))], check=False, capture_output=True)
        if done.returncode == 0:
            stage.disks.add(name)
    with playing(folder, stage, stage.line):
        for site in SITES:
            (stage.home(site) / "policy.toml").write_text(POLICY)
        yield stage
