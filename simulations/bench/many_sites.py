"""What many sites cost their coordinator: seconds and CPU a round, CPU at rest, and what a long run leaves behind.

The coordinator is started as in earnest: SuperLink, gateway and ServerApp, mutual TLS, receipts, checks, checkpoints.
The sites are stubs in one process (stub_sites.py), which shares the machine's cores: its CPU is told apart. A round is
measured from its first request to its checkpoint. The first one is left out, in which things are loaded.
"""

import contextlib
import json
import signal
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from common.errors import FederationError
from common.flower.processes import SERVER_APP
from common.identity import certificates
from common.identity.operators import key_to_bytes, public_bytes
from common.identity.receipt_keys import prove_receipt_key
from common.system.environment import PACKAGES, for_child
from common.system.files import write_atomically, write_private
from common.system.namespaces import PrivateNetwork, private_network
from server.coordinator.doors import read_processes
from server.gateway import enrolment
from server.home.folder import Home, ServerConfig
from server.home.root import create
from server.registry import operators
from server.registry.audit_trail import open_log
from server.registry.registry import Registry
from simulations.bench.stub_sites import REPORT_NAME, Membership

# Widths of the network's levels: 2 MB of weights.
CHANNELS = (25, 50, 100, 200)
SMALL = (4, 8)  # 20 kB
PROCESSES = ("superlink", "gateway", "server-app", "sites")

_START_S, _CONNECT_S, _ROUND_S, _END_S = 90.0, 300.0, 600.0, 60.0
_LOOK_S = 0.1
_WHEN = ("after a fifth", "at the end")
_SETTLE_S = 5.0
_SAMPLE_S = 5.0
_RUN = """
format = 2
name = "many-sites"
[model]
channels = {channels}
[data]
modality = "CT"
classes = ["lesion"]
[training]
local-steps = 1
batch-size = 1
patch-size = [16, 16]
optimizer = "sgd"
[federation]
rounds = {rounds}
quorum = {sites}
evaluate-every = {rounds}
round-timeout-s = {timeout}
"""


@dataclass(frozen=True)
class Sample:
    """What one process holds at a moment."""

    seconds: float  # since the first round ended
    memory: int  # bytes, resident
    descriptors: int


@dataclass(frozen=True)
class Figures:
    """What was measured."""

    sites: int
    rounds: int  # measured; one more was made before
    seconds: tuple[float, ...]  # of each round
    wall_s: float  # from the end of the first round to the end of the last, by round
    cpu_s: Mapping[str, float]  # of each process, by round
    idle: Mapping[str, float]  # share of a core while no run is there
    evaluation_s: float  # of the evaluation after the last round
    lost: int  # updates that no round entered, and messages that were sent again
    met: Mapping[str, int]  # what the sites did, and failures of their calls by code
    growth: Mapping[str, tuple[Sample, Sample]] = field(default_factory=dict)  # first after a fifth of it, and last
    disk: tuple[int, int] = (0, 0)  # bytes in the coordinator's folder at those moments

    @property
    def median_s(self) -> float:
        """Of a round."""
        return statistics.median(self.seconds)

    def rows(self) -> list[tuple[str, float, str]]:
        """Each figure: its name, the number, its unit."""
        rows: list[tuple[str, float, str]] = [
            ("round, median", self.median_s, "s"),
            ("round, lowest", min(self.seconds), "s"),
            ("round, highest", max(self.seconds), "s"),
            ("evaluation", self.evaluation_s, "s"),
            *((f"CPU of {name}", one, "s a round") for name, one in self.cpu_s.items()),
            *((f"CPU of {name} at rest", 100 * one, "% of a core") for name, one in self.idle.items()),
            ("messages lost or sent again", self.lost, "messages"),
        ]
        for name, (early, late) in self.growth.items():
            rows += [
                (f"memory of {name}, after a fifth", early.memory / 2**20, "MiB"),
                (f"memory of {name}, at the end", late.memory / 2**20, "MiB"),
                (f"descriptors of {name}, after a fifth", early.descriptors, "descriptors"),
                (f"descriptors of {name}, at the end", late.descriptors, "descriptors"),
            ]
        rows += [(f"disk, {when}", size / 2**20, "MiB") for when, size in zip(_WHEN, self.disk, strict=True)]
        return rows


def measure(
    folder: Path,
    *,
    sites: int,
    rounds: int,
    idle_s: float = 30.0,
    channels: Sequence[int] = CHANNELS,
    progress: Callable[[int, str], None] = lambda _done, _text: None,
) -> Figures:
    """Start a federation of stubs in an empty folder, let it rest, and let it make so many rounds and one.

    Raises:
        FederationError: something did not come up, or the run failed.
    """
    progress(0, f"{sites} sites join")
    home = _new_home(folder / "coordinator")
    members = _enrol(home, sites)
    (folder / "sites").mkdir()
    path = folder / "sites" / "sites.json"
    write_private(path, json.dumps([one.to_dict() for one in members]).encode())
    with _started(folder, "coordinator", "-m", "server.commands.main", "start", "--home", str(home.path)) as started:
        log = folder / "coordinator.log"
        _until(lambda: "ready:" in log.read_text(), "the coordinator is not ready", _START_S, started)
        with _started(folder, "sites", "-m", "simulations.bench.stub_sites", str(path)) as stubs:
            registry = Registry(home.registry)
            _until(lambda: _here(registry) == sites, "not all sites connected", _CONNECT_S, stubs)
            progress(0, "they rest")
            time.sleep(_SETTLE_S)
            before, since = _cpu(home, stubs), time.monotonic()
            time.sleep(idle_s)
            rest = time.monotonic() - since
            idle = {name: (one - before[name]) / rest for name, one in _cpu(home, stubs).items() if name in before}
            document = folder / "run.toml"
            text = _RUN.format(channels=list(channels), rounds=rounds + 1, sites=sites, timeout=_ROUND_S)
            write_atomically(document, text.encode())
            _command("run", str(document), "--home", str(home.path))
            followed = _follow(home, stubs, rounds + 1, progress)
            # A site signs for the last round after it, and the coordinator again.
            _until(lambda: _signed(home) >= sites * (rounds + 1), "not all receipts came", _CONNECT_S, stubs)
        met = json.loads((folder / "sites" / REPORT_NAME).read_bytes())
    return _figures(home, followed, sites, idle, met)


@dataclass
class _Followed:
    """A run, as it went."""

    events: list[dict[str, Any]]
    first: dict[str, float]  # CPU seconds when the first round had ended
    last: dict[str, float]
    wall_s: float
    samples: dict[str, list[Sample]]
    disk: list[int]


def _follow(home: Home, stubs: subprocess.Popen[bytes], rounds: int, progress: Callable[[int, str], None]) -> _Followed:
    """Look at a run until it ends."""
    first: dict[str, float] = {}
    last: dict[str, float] = {}
    samples: dict[str, list[Sample]] = {}
    disk: list[int] = []
    done, began, ended, sampled = 0, time.monotonic(), 0.0, 0.0
    changed = began
    while True:
        time.sleep(_LOOK_S)
        now = time.monotonic()
        events = _events(home)
        made = sum(event["event"] == "round" for event in events)
        if made > done:
            done, changed = made, now
            progress(max(0, done - 1), f"round {done}")
            last, ended = _cpu(home, stubs), now
            if not first:
                first, began = last, now
        if first and now - sampled >= _SAMPLE_S:
            sampled = now
            disk.append(_size(home.path))
            for name, process in _processes(home, stubs).items():
                samples.setdefault(name, []).append(_sample(process, now - began))
        if any(event["event"] == "run-finished" for event in events):
            return _Followed(events, first, last, ended - began, samples, disk)
        failed = next((event for event in events if event["event"] == "run-failed"), None)
        if failed is not None or now - changed > _START_S + _ROUND_S:
            why = failed["reason"] if failed else f"no round for {now - changed:.0f} s"
            raise FederationError(f"the run of {rounds} rounds stopped after {done}: {why}. See {home.logs}.")


def _figures(home: Home, run: _Followed, sites: int, idle: Mapping[str, float], met: Mapping[str, int]) -> Figures:
    made = [event for event in run.events if event["event"] == "round"]
    again = sum("got lost" in line for line in (home.logs / "superexec.log").read_text(errors="replace").splitlines())
    rounds = len(made) - 1
    start = len(run.disk) // 5
    return Figures(
        sites=sites,
        rounds=rounds,
        seconds=tuple(round(event["seconds"], 3) for event in made[1:]),
        wall_s=run.wall_s / max(1, rounds),
        cpu_s={name: (one - run.first.get(name, 0.0)) / max(1, rounds) for name, one in run.last.items()},
        idle=idle,
        evaluation_s=next(
            (event["seconds"] for event in reversed(run.events) if event["event"] == "evaluate" and "seconds" in event),
            0.0,
        ),
        lost=again + sum(sites - len(event["sites"]) for event in made),
        met=met,
        growth={name: (some[min(start, len(some) - 1)], some[-1]) for name, some in run.samples.items()},
        disk=(run.disk[start], run.disk[-1]) if run.disk else (0, 0),
    )


def _new_home(folder: Path) -> Home:
    made = private_network()
    if isinstance(made, PrivateNetwork):
        made.close()
    gateway, enrolment_port, superlink = _free_ports(3)
    config = ServerConfig(
        hosts=("127.0.0.1",),
        gateway_port=gateway,
        enrolment_port=enrolment_port,
        superlink_port=superlink,
        private_network=isinstance(made, PrivateNetwork),
    )
    home = create(folder, config)
    operators.add(home, Registry(home.registry), operators.FIRST, "admin")
    return home


def _enrol(home: Home, sites: int) -> list[Membership]:
    """By the functions of the commands `invite` and `approve`, and what a site's `join` sends."""
    registry = Registry(home.registry)
    members = []
    for number in range(sites):
        name = f"site-{number:03d}"
        key, signing = certificates.new_key(), Ed25519PrivateKey.generate()
        csr = certificates.csr_for(name, key)
        invitation = enrolment.invite(home, registry, name)
        proof = prove_receipt_key(csr, name, signing)
        registry.redeem(name, invitation.token, certificates.to_pem(csr), public_bytes(signing), proof)
        enrolment.approve(home, registry, name)
        registry.collected(name)
        certificate = registry.site(name).certificate or b""
        log_key = public_bytes(home.log_key)
        key_pem, receipt_key = certificates.key_to_pem(key), key_to_bytes(signing)
        members.append(
            Membership(home.gateway_address, home.root_pem, log_key, name, key_pem, certificate, receipt_key)
        )
    return members


def _here(registry: Registry) -> int:
    return sum(site.connected for site in registry.sites())


def _events(home: Home) -> list[dict[str, Any]]:
    """Of the one run; a line that is just being written is left out."""
    for path in (home.path / "runs").glob("*/metrics.jsonl"):
        return [json.loads(line) for line in path.read_text().splitlines(keepends=True) if line.endswith("\n")]
    return []


def _processes(home: Home, stubs: subprocess.Popen[bytes]) -> dict[str, psutil.Process]:
    """Those that are there, by name."""
    noted = read_processes(home)
    found = {name: psutil.Process(pid) for name, pid in noted.items() if name in PROCESSES}
    if "superexec" in noted:
        for child in psutil.Process(noted["superexec"]).children():
            if child.status() != psutil.STATUS_ZOMBIE and any(SERVER_APP in word for word in child.cmdline()):
                found["server-app"] = child
    return found | {"sites": psutil.Process(stubs.pid)}


def _cpu(home: Home, stubs: subprocess.Popen[bytes]) -> dict[str, float]:
    """CPU seconds of each process so far."""
    return {name: sum(one.cpu_times()[:2]) for name, one in _processes(home, stubs).items()}


def _sample(process: psutil.Process, seconds: float) -> Sample:
    return Sample(round(seconds, 1), process.memory_info().rss, process.num_fds())


def _size(folder: Path) -> int:
    total = 0
    for path in folder.rglob("*"):
        with contextlib.suppress(FileNotFoundError):  # replaced meanwhile
            total += path.stat().st_size if path.is_file() else 0
    return total


@contextmanager
def _started(folder: Path, name: str, *arguments: str) -> Iterator[subprocess.Popen[bytes]]:
    """A process of ours whose words go to NAME.log; asked to end at the end."""
    with (folder / f"{name}.log").open("ab") as log:
        process = subprocess.Popen(  # noqa: S603 - our own interpreter and modules
            [sys.executable, "-P", *arguments],
            cwd=folder,
            env=for_child(PYTHONPATH=str(PACKAGES)),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        yield process
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(_END_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _command(*arguments: str) -> None:
    done = subprocess.run(  # noqa: S603 - likewise
        [sys.executable, "-P", "-m", "server.commands.main", *arguments],
        check=False,
        capture_output=True,
        text=True,
        env=for_child(PYTHONPATH=str(PACKAGES)),
    )
    if done.returncode:
        raise FederationError(f"`wardround-server {arguments[0]}` failed: {done.stderr.strip()}")


def _signed(home: Home) -> int:
    return sum(one.kind == "round" for one in open_log(home).entries())


def _until(ready: Callable[[], bool], what: str, timeout_s: float, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + timeout_s
    while not ready():
        time.sleep(_LOOK_S)
        if process.poll() is not None or time.monotonic() > deadline:
            raise FederationError(f"{what} within {timeout_s:g} s. See the logs in the folder of the measurement.")


def _free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    try:
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]
    finally:
        for one in sockets:
            one.close()
