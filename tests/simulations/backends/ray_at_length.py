"""What `make ray` asks of Ray beside test_ray.py: a cluster of one command, GPUs, what a killed command leaves.

Minutes, and as many processes as a small cluster has; so it is not among the tests that run by themselves.
"""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from client.site import Site
from simulations.backends import Resources, opened, started
from simulations.backends.ray import RayWorker
from simulations.backends.workers import Job
from tests.patience import PATIENCE_S
from tests.simulations.backends.ray_nodes import cluster
from tests.simulations.backends.test_ray import federated, pytestmark, sites
from tests.simulations.tiny import tiny_scenario

__all__ = ["pytestmark", "sites"]  # fixtures

COMMAND = [sys.executable, "-m", "simulations.commands.main", "run"]
_SHARED, _TEMPORARY = Path("/dev/shm"), Path("/tmp")  # noqa: S108 - looked at
_HUNG = """
import time
from simulations.backends.ray import ended_if_still
with ended_if_still(1.5, look_every_s=0.5):
    time.sleep(600)
"""


def test_the_command_makes_the_model_of_one_process_on_a_cluster_of_its_own(tmp_path: Path) -> None:
    scenario = tiny_scenario(tmp_path)
    told = [json.loads(run(scenario, tmp_path / name, "--backend", name)) for name in ("in-process", "ray")]
    assert told[0] == told[1]
    models = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("in-process", "ray")]
    assert models[0] == models[1]


def test_sites_that_share_a_gpu_are_placed_where_it_is(
    sites: list[Site], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is one in name only, which Ray believes."""
    usual = federated(opened, sites, tmp_path / "one")
    worked = set[int]()
    work = RayWorker.work

    def noted(self: RayWorker, job: Job, attempt: str) -> Any:
        worked.add(int(self._name.split()[0]))
        return work(self, job, attempt)

    monkeypatch.setattr(RayWorker, "work", noted)
    with cluster("--num-gpus=1", cpus=2) as (address, _, second):
        for share, at_once in ((0.5, 2), (None, 1)):
            worked.clear()
            resources = Resources(threads=1, address=address, gpus_per_site=share)
            with started("ray", 3, resources) as backend:
                assert federated(backend, sites, tmp_path / f"{share}").model_sha256 == usual.model_sha256
                assert len(worked) == at_once
                assert worked <= second.pids()
                seen = {Path(f"/proc/{pid}/environ").read_text() for pid in worked}
                assert all("CUDA_VISIBLE_DEVICES" not in one for one in seen)


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_command_that_is_ended_leaves_nothing(tmp_path: Path, how: signal.Signals) -> None:
    scenario = tiny_scenario(tmp_path)
    scenario.write_text(scenario.read_text().replace("local-steps = 2", "local-steps = 1000000"))
    shared, temporary = set(_SHARED.iterdir()), set(_TEMPORARY.iterdir())
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    command = [*COMMAND, str(scenario), "--out", str(tmp_path / "out"), "--backend", "ray", "--workers", "2"]
    with subprocess.Popen(command, start_new_session=True) as process:
        try:
            born = at_work(process, 2)
            os.kill(process.pid, how)
            process.wait(PATIENCE_S)
        finally:
            process.kill()
            signal.signal(signal.SIGINT, before)
    # After a SIGKILL two processes of Ray's look every now and then whether their parent is there.
    _, alive = psutil.wait_procs(born, timeout=PATIENCE_S)
    assert not alive
    assert set(_SHARED.iterdir()) <= shared
    if how != signal.SIGKILL:
        assert not [one for one in set(_TEMPORARY.iterdir()) - temporary if one.name.startswith("wardround-")]


def test_a_command_that_is_killed_leaves_no_actor_on_a_cluster_that_stays(tmp_path: Path) -> None:
    scenario = tiny_scenario(tmp_path)
    scenario.write_text(scenario.read_text().replace("local-steps = 2", "local-steps = 1000000"))
    with cluster() as (address, head, second):
        command = [*COMMAND, str(scenario), "--out", str(tmp_path / "out"), "--backend", "ray", "--threads", "1"]
        with subprocess.Popen(command, env=os.environ | {"RAY_ADDRESS": address}) as process:
            try:
                while len(working := training(head.pids() | second.pids())) < 2:
                    assert process.poll() is None
                    time.sleep(0.1)
            finally:
                process.kill()
        gone, _ = psutil.wait_procs(working, timeout=PATIENCE_S)
        assert len(gone) == 2
        assert head.is_alive()
        assert second.is_alive()


def test_an_actor_that_hangs_ends() -> None:
    done = subprocess.run([sys.executable, "-c", _HUNG], check=False, timeout=PATIENCE_S)
    assert done.returncode == 75


def run(scenario: Path, out: Path, *arguments: str) -> str:
    command = [*COMMAND, str(scenario), "--out", str(out), "--threads", "1", "--json", *arguments]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout


def at_work(process: "subprocess.Popen[bytes]", count: int) -> list[psutil.Process]:
    """All processes below one, once so many have trained for a while."""
    while True:
        born: list[psutil.Process] = psutil.Process(process.pid).children(recursive=True)
        if len(training({one.pid for one in born})) >= count:
            return born
        assert process.poll() is None
        time.sleep(0.1)


def training(pids: set[int]) -> list[psutil.Process]:
    """The actors that have used the processor for a while, after they have loaded what they need."""
    found = []
    for pid in pids:
        try:
            process = psutil.Process(pid)
            if "SiteActor.answer" in " ".join(process.cmdline()):
                found.append(process)
        except psutil.NoSuchProcess:
            continue
    return found
