"""A whole federation on this machine, by the commands that people type.

A coordinator and some hospitals, each with a folder of its own, real certificates, the strict default policy, and
mutual TLS on loopback. Nothing of the client or the server is imported. One core for each hospital's training.
"""

import json
import socket
import subprocess
import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from common.system.namespaces import PrivateNetwork, private_network
from deploy.processes import COMMAND_TIMEOUT_S, Processes, StepError, shown

BIN = Path(sys.executable).parent
SERVER, CLIENT = BIN / "wardround-server", BIN / "wardround-client"

POLL_EVERY_S = 0.5
RUN_TIMEOUT_S = 1200.0


@dataclass(frozen=True)
class Hospital:
    """One site: its name, its folders, and how it offers its images."""

    name: str
    home: Path
    images: Path
    offer: tuple[str, ...] = ()  # further arguments of `data add`


@dataclass(frozen=True)
class Coordinator:
    """The coordinator: its folder, and the address where sites work."""

    home: Path
    gateway: str

    def run_folder(self, run: str) -> Path:
        """Where the results of a run lie."""
        (folder,) = (self.home / "runs").glob(f"{run}-*")
        return folder


def start_coordinator(processes: Processes, home: Path) -> Coordinator:
    """Initialise a coordinator on free ports and start it."""
    gateway, enrolment, superlink = _free_ports(3)
    ports = ("--gateway-port", gateway, "--enrolment-port", enrolment, "--superlink-port", superlink)
    processes.run("init", SERVER, "init", "--home", home, *map(str, ports), *_network_option())
    process = processes.start("coordinator", SERVER, "start", "--home", home)
    processes.until(lambda: "ready:" in processes.printed("coordinator", process), "coordinator")
    return Coordinator(home, f"127.0.0.1:{gateway}")


def enrol(processes: Processes, coordinator: Coordinator, hospitals: Sequence[Hospital]) -> dict[str, str]:
    """Invite, join, compare the phrases of both sides, approve.

    Returns:
        The phrase of each site.
    """
    at_coordinator = ("--home", coordinator.home)
    joining = {}
    for hospital in hospitals:
        hospital.home.mkdir(mode=0o700)
        # They share this machine's cores.
        (hospital.home / "site.toml").write_text(f'name = "{hospital.name}"\nthreads = 1\n', encoding="utf-8")
        invitation = processes.run("invite", SERVER, "invite", hospital.name, *at_coordinator).strip()
        joining[hospital.name] = processes.start(
            f"join-{hospital.name}", CLIENT, "join", invitation, "--home", hospital.home
        )
    phrases: dict[str, str] = {}
    deadline = time.monotonic() + COMMAND_TIMEOUT_S
    while set(phrases) != set(joining):
        processes.rest(POLL_EVERY_S)
        rows = json.loads(processes.run("requests", SERVER, "requests", "--json", *at_coordinator))
        phrases = {row["site"]: row["phrase"] for row in rows}
        if time.monotonic() > deadline:
            raise StepError(f"only {sorted(phrases)} asked to join. See the logs of the others beside this one's.")
    for site, process in joining.items():
        if phrases[site] not in processes.printed(f"join-{site}", process):
            raise StepError(f"{site} and the coordinator show different phrases: the request is not that hospital's.")
        processes.run("approve", SERVER, "approve", site, *at_coordinator)
        processes.finish(f"join-{site}", process)
    return phrases


def start_agents(processes: Processes, hospitals: Iterable[Hospital]) -> dict[str, str]:
    """Offer each hospital's images and start its agent.

    Returns:
        What `data add` found, by site.
    """
    adding = {
        hospital: processes.start(
            f"data-{hospital.name}", CLIENT, "data", "add", hospital.images, *hospital.offer, "--home", hospital.home
        )
        for hospital in hospitals
    }
    found = {}
    for hospital, process in adding.items():
        processes.finish(f"data-{hospital.name}", process)
        lines = processes.printed(f"data-{hospital.name}", process).splitlines()
        found[hospital.name] = next(line for line in lines if line.startswith("Added"))
        processes.start(hospital.name, CLIENT, "start", "--home", hospital.home)
    return found


def federate(
    processes: Processes,
    coordinator: Coordinator,
    hospitals: Sequence[Hospital],
    document: Path,
    name: str,
    *,
    visible: bool = True,
) -> Path:
    """Propose a run, approve it at each hospital, and watch it to its end.

    Returns:
        The folder of its results.
    """
    watching = processes.start("run", SERVER, "run", document, "--watch", "--home", coordinator.home, visible=visible)
    _approve(processes, hospitals, name, watching)
    processes.finish("run", watching, RUN_TIMEOUT_S)
    return coordinator.run_folder(name)


def _network_option() -> tuple[str, ...]:
    """What `init` has to be told where the kernel has no network namespaces for us.

    That is for these minutes only, and only made-up or published patients are here.
    """
    made = private_network()
    if isinstance(made, PrivateNetwork):
        made.close()
        return ()
    return ("--no-private-network",)


def _approve(processes: Processes, hospitals: Sequence[Hospital], run: str, watching: subprocess.Popen[bytes]) -> None:
    """Approve at each hospital once its agent has counted what the run would train on."""
    waiting = list(hospitals)
    deadline = time.monotonic() + COMMAND_TIMEOUT_S
    while waiting:
        processes.rest(POLL_EVERY_S)
        if watching.poll() is not None:
            return  # it has said why, and its exit code decides
        if time.monotonic() > deadline:
            raise StepError(f"the run did not reach {waiting[0].name}. See {shown(waiting[0].home / 'logs')}.")
        for hospital in list(waiting):
            home = ("--home", hospital.home)
            proposed = json.loads(processes.run(f"runs-{hospital.name}", CLIENT, "runs", "--json", *home))
            if any(row["run"] == run and row["policy"] is not None for row in proposed):
                processes.run(f"approve-{hospital.name}", CLIENT, "approve", run, "--yes", *home)
                waiting.remove(hospital)


def _free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    try:
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]
    finally:
        for one in sockets:
            one.close()
