"""On two nodes of a Ray cluster the model and the ledgers are those of one process, also when a node dies."""

import importlib
import importlib.util
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest

from client.site import Site
from common.config import RunConfig
from common.config.rundocument import issue
from common.errors import ConfigError, FederationError
from common.wire.messages import TrainRequest
from server.federation.events import JOURNAL_NAME, Summary, read_events
from server.federation.rounds import federate
from simulations.backends import Backend, Resources, opened, started
from simulations.backends import ray as ray_backend
from simulations.backends.ray import RayWorker
from simulations.backends.ray_cluster import Need, gpus_of, most_threads
from simulations.backends.workers import Job
from simulations.scenarios.homes import make_site
from tests.patience import eventually
from tests.simulations.backends.ray_nodes import RayNode, cluster
from tests.simulations.tiny import tiny_run, tiny_run_of_format, tiny_site

# Not loaded here: the backend says before how Ray is to be loaded.
pytestmark = pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="the extra ray is not installed")

RUN = tiny_run()
PRIVATE = tiny_run(
    privacy={"target-epsilon": 50.0, "sampling-rate": 0.3, "crops-per-patient": 1}, training={"local-steps": 40}
)


@pytest.fixture(scope="module")
def nodes() -> Iterator[tuple[str, RayNode, RayNode]]:
    with cluster() as both:
        yield both


@pytest.fixture(scope="module")
def backend(nodes: tuple[str, RayNode, RayNode]) -> Iterator[Backend]:
    """Two sites at work, one on each node."""
    address, head, _ = nodes
    with started("ray", 3, Resources(threads=1, address=address)) as backend:
        yield backend
    assert head.is_alive()  # somebody else's cluster stays


@pytest.fixture(scope="module")
def sites(tmp_path_factory: pytest.TempPathFactory) -> list[Site]:
    folder, counts = tmp_path_factory.mktemp("ray"), {"north": 5, "south": 29, "east": 17}
    return [make_site(folder, tiny_site(folder / "images" / name, name, count)) for name, count in counts.items()]


def federated(backend: Backend, sites: list[Site], out: Path, run: RunConfig = RUN) -> Summary:
    with backend(sites, issue(run)) as grid:
        return federate(grid, issue(run), out)


def rounds_of(out: Path) -> list[dict[str, Any]]:
    return [event for event in read_events(out / JOURNAL_NAME) if event["event"] == "round"]


def killing(
    monkeypatch: pytest.MonkeyPatch, wanted: Callable[[Job, int], bool], kill: Callable[[int], None]
) -> list[threading.Thread]:
    """While a wanted site trains, somebody kills, once: the threads that do, which are given the process."""
    killers: list[threading.Thread] = []
    work = RayWorker.work

    def worked(self: RayWorker, job: Job, attempt: str) -> Any:
        pid = process_of(self)
        if isinstance(job.request, TrainRequest) and not killers and wanted(job, pid):
            killers.append(threading.Thread(target=kill, args=[pid]))
            killers[0].start()
        return work(self, job, attempt)

    monkeypatch.setattr(RayWorker, "work", worked)
    return killers


def process_of(worker: RayWorker) -> int:
    return int(worker._name.split()[0])


def test_two_nodes_make_the_model_of_one_process(
    nodes: tuple[str, RayNode, RayNode],
    backend: Backend,
    sites: list[Site],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import ray  # noqa: PLC0415 - it is loaded

    put, worked = ray.put, set[int]()
    stored: list[Any] = []
    work = RayWorker.work

    def noted_put(value: Any) -> Any:
        stored.append(value)
        return put(value)

    monkeypatch.setattr(ray, "put", noted_put)

    def noted(self: RayWorker, job: Job, attempt: str) -> Any:
        worked.add(process_of(self))
        eventually(lambda: len(worked) == 2)  # or the first that is there would do all
        return work(self, job, attempt)

    monkeypatch.setattr(RayWorker, "work", noted)
    usual = federated(opened, sites, tmp_path / "one")
    assert federated(backend, sites, tmp_path / "two").model_sha256 == usual.model_sha256
    _, head, second = nodes
    assert [len(worked & node.pids()) for node in (head, second)] == [1, 1]
    # For three sites, in training and in scoring of the two rounds: each model once.
    assert len(stored) == len({one["weights"] for one in stored}) == 3


def test_rounded_updates_are_the_same_wherever_a_site_works(
    backend: Backend, sites: list[Site], tmp_path: Path
) -> None:
    run = tiny_run_of_format(2, federation={"rounds": 3, "update-precision": "int8"})
    usual = federated(opened, sites, tmp_path / "one", run)
    assert federated(backend, sites, tmp_path / "two", run).model_sha256 == usual.model_sha256


def test_an_actor_that_is_killed_is_replaced_and_its_round_is_paid_once(
    backend: Backend, sites: list[Site], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed after the charge, before the update: as at a hospital, the charge pays for the next attempt."""
    south = sites[1]

    def kill(pid: int) -> None:
        eventually(lambda: bool(south.ledger.entries()))
        os.kill(pid, signal.SIGKILL)

    killers = killing(monkeypatch, lambda job, _: job.site.home == south.home, kill)
    assert federated(backend, sites, tmp_path / "out", PRIVATE).status == "completed"
    killers[0].join()
    assert [one["sites"] for one in rounds_of(tmp_path / "out")] == [["east", "north", "south"]] * 2
    for site in sites:
        assert sorted(one.round for one in site.ledger.entries()) == [1, 2]
    first = min(south.ledger.entries(), key=lambda one: one.round)
    assert first.attempt.endswith(".1")  # the second attempt


def test_a_node_without_the_sites_folder_is_named(backend: Backend, sites: list[Site], tmp_path: Path) -> None:
    away = [replace(site, home=tmp_path / site.config.name) for site in sites]
    with pytest.raises(FederationError, match=f"has no folder {tmp_path}.*file system that all nodes have"):
        federated(backend, away, tmp_path / "out")


def test_a_node_that_dies_in_mid_round_changes_nothing(
    nodes: tuple[str, RayNode, RayNode],
    backend: Backend,
    sites: list[Site],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The last of the tests with two nodes. Its site is trained on the other, which has room for one at a time."""
    run = tiny_run(training={"local-steps": 200}, federation={"rounds": 1})
    usual = federated(opened, sites, tmp_path / "one", run)
    second = nodes[2]

    def kill(pid: int) -> None:
        process = psutil.Process(pid)
        before = process.cpu_times().user
        eventually(lambda: process.cpu_times().user > before + 0.1)
        second.kill()

    def on_second(_job: Job, pid: int) -> bool:
        if pid in second.pids():
            return True
        eventually(lambda: bool(killers))  # or the first that is there would do all
        return False

    killers = killing(monkeypatch, on_second, kill)
    assert federated(backend, sites, tmp_path / "two", run).model_sha256 == usual.model_sha256
    killers[0].join()
    assert not second.is_alive()
    assert [one["sites"] for one in rounds_of(tmp_path / "two")] == [["east", "north", "south"]]


def test_sites_find_room_by_cores_and_by_their_share_of_a_gpu() -> None:
    nodes = [(16, 2), (4, 1), (8, 0)]
    assert Need(1, 0).places(nodes) == 28
    assert Need(3, 0).places(nodes) == 5 + 1 + 2
    assert Need(1, 1).places(nodes) == 3
    assert Need(2, 0.5).places(nodes) == 4 + 2
    assert Need(2, 0.3).places(nodes) == 6 + 2  # three on one GPU: no site has parts of two
    assert Need(2, 2).places(nodes) == 1
    assert Need(32, 0).places(nodes) == 0


def test_cores_are_shared_by_the_sites_at_work() -> None:
    assert most_threads([(16, 0), (16, 0)], 4, 0) == 8
    assert most_threads([(16, 0), (16, 0)], 3, 0) == 8  # not ten: then two of them alone would find room
    assert most_threads([(16, 0), (4, 0)], 2, 0) == 8
    assert most_threads([(16, 4)], 4, 1) == 4
    assert most_threads([(2, 0)], 10, 0) == 1


def test_a_gpu_for_each_site_where_there_are_any() -> None:
    nodes = [(4, 0), (4, 1)]
    assert gpus_of(Resources(), nodes) == 1
    assert gpus_of(Resources(device="cpu"), nodes) == 0
    assert gpus_of(Resources(), nodes[:1]) == 0
    assert gpus_of(Resources(gpus_per_site=0.25), nodes) == 0.25
    with pytest.raises(ConfigError, match=r"--gpus-per-site is 1.5"):
        gpus_of(Resources(gpus_per_site=1.5), nodes)


def test_without_room_for_one_site_nothing_begins(
    nodes: tuple[str, RayNode, RayNode], backend: Backend, sites: list[Site]
) -> None:
    cluster_ = ray_backend._Cluster(importlib.import_module("ray"))
    pool = ray_backend._Pool()
    for resources, wants in (
        (Resources(threads=5), "wants 5 CPUs; the nodes that live have: 1 CPU and 0 GPUs"),
        (Resources(threads=1, gpus_per_site=0.5), r"wants 1 CPU and 0.5 of a GPU;"),
    ):
        with pytest.raises(ConfigError, match=wants), ray_backend._over(cluster_, pool, resources)(sites, issue(RUN)):
            pass


def test_another_version_on_a_node_is_refused() -> None:
    about = ray_backend._versions() | {"node": "far", "pid": "1"}
    ray_backend._check_versions(about)
    with pytest.raises(FederationError, match=r"the node far has torch 1\.0, this machine 2"):
        ray_backend._check_versions(about | {"torch": "1.0"})


def test_what_is_missing_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="is an address of Ray's client"):
        start("ray", Resources(address="ray://127.0.0.1:10001"))
    for resources in (Resources(address="127.0.0.1:6379"), Resources(gpus_per_site=1)):
        with pytest.raises(ConfigError, match="Add --backend ray"):
            start("processes", resources)
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ConfigError, match=r"pip install 'wardround\[ray\]'"):
        start("ray", Resources())


def start(name: str, resources: Resources) -> None:
    with started(name, 2, resources):
        pass
