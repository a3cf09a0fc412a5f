"""On a Ray cluster: each site at work is an actor, placed where its cores and its share of a GPU are free.

An actor is asked as a worker of `processes` is. The parts of a request go into Ray's object store once for all sites,
and from there once to each node. A site's key goes with each question and is kept nowhere; its home and its images are
read at the same path on each node. An actor that dies, alone or with its node, is placed anew. Ray itself repeats
nothing, as only `Workers` knows what a ledger may be charged.
"""

import importlib.metadata
import logging
import os
import platform
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from logging.handlers import QueueHandler
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import torch
from flwr.serverapp import Grid

from client.agent.pulse import STALLED_S, Pulse
from client.site import Site
from client.worker import protocol
from client.worker.protocol import Work
from common.config.rundocument import RunDocument
from common.errors import ConfigError, FederationError, WardroundError
from common.system.environment import flower_variables
from common.wire.frames import Buffer, Frame
from common.wire.messages import EvaluateReply, Refusal, Reply, Request, TrainReply
from simulations.backends.backend import Backend, Resources
from simulations.backends.memory import keep_and_enlarge
from simulations.backends.open_sites import OpenSites
from simulations.backends.ray_cluster import Need, Nodes, connected, gpus_of, most_threads
from simulations.backends.worker import answered, place_of, question_to_frame
from simulations.backends.workers import ATTEMPTS, DiedError, Job, Workers
from simulations.backends.workers_grid import Read, opened_over

_LOOK_EVERY_S = 5.0
# After so long without a place: is there a node that could have one; and so long before one says that a site waits.
_PLACED_S, _WAITS_S = 1.0, 60.0
_STALLED_CODE = 75
# Of a core: Ray's own threads of an actor use 0.6 % of one.
_LEAST_SHARE = 0.03

_log = logging.getLogger(__name__)


@contextmanager
def started(resources: Resources) -> Iterator[Backend]:
    """The cluster, until the end of the command.

    Raises:
        ConfigError: Ray is not installed, or there is no such cluster.
    """
    with connected(resources) as ray:
        cluster, pool = _Cluster(ray), _Pool()
        try:
            yield _over(cluster, pool, resources)
        finally:
            pool.close()


def _over(cluster: "_Cluster", pool: "_Pool", resources: Resources) -> Backend:
    read: set[Read] = set()

    @contextmanager
    def opened(sites: Sequence[Site], document: RunDocument) -> Iterator[Grid]:
        nodes = cluster.nodes()
        gpus = gpus_of(resources, nodes)
        at_once = min(len(sites), resources.workers or len(sites))
        need = Need(resources.threads or most_threads(nodes, at_once, gpus), gpus)
        if not (places := need.places(nodes)):
            raise ConfigError(need.refused_by(nodes))
        workers = pool.of(min(at_once, places), need, cluster)
        with opened_over(workers, sites, document, need.cpus, read) as grid:
            yield grid

    return opened


class _Pool:
    """The workers of the run before, if the next one wants such; others take their place."""

    def __init__(self) -> None:
        self._workers: Workers | None = None
        self._kind: tuple[int, Need] | None = None

    def of(self, count: int, need: Need, cluster: "_Cluster") -> Workers:
        if self._workers is None or self._kind != (count, need):
            self.close()
            self._workers, self._kind = Workers(count, partial(RayWorker, cluster, need)), (count, need)
        return self._workers

    def close(self) -> None:
        if self._workers is not None:
            self._workers.stop()
            self._workers.join()
            self._workers = None


class _Cluster:
    """Ray, once it is connected. For any thread."""

    def __init__(self, ray: Any) -> None:
        self.ray = ray
        self._lock = threading.Lock()
        self._put: tuple[str, Any] = ("", None)  # hash of a request's parts, and where these are

    def nodes(self) -> Nodes:
        """Those that live."""
        found = [node["Resources"] for node in self.ray.nodes() if node["Alive"]]
        return [(int(one.get("CPU", 0)), int(one.get("GPU", 0))) for one in found]

    def put(self, request: Request) -> Any:
        """Where the parts of a request are in the object store."""
        with self._lock:
            digest, where = self._put
            if digest != request.sha256:
                where = self.ray.put(_own(request.parts))
                self._put = (request.sha256, where)
            return where

    def place(self, need: Need) -> Any:
        """A new actor, as soon as there is room."""
        variables = flower_variables() | ({} if need.gpus else {"CUDA_VISIBLE_DEVICES": ""})
        kind = self.ray.remote(SiteActor).options(
            num_cpus=need.cpus,
            num_gpus=need.gpus,
            max_restarts=0,
            max_task_retries=0,
            scheduling_strategy="SPREAD",
            runtime_env={"env_vars": variables},
        )
        return kind.remote(logging.getLogger().getEffectiveLevel())


class RayWorker:
    """One actor at a time; see `simulations.backends.workers.Worker`."""

    def __init__(self, cluster: _Cluster, need: Need) -> None:
        self._cluster, self._ray, self._need = cluster, cluster.ray, need
        self._actor: Any = None
        self._about: Any = None  # where what it says of itself will be, until it is there
        self._name = ""  # once it is there
        self._asked_s, self._failed = 0.0, 0
        self.sites: dict[Path, None] = {}

    def is_there(self) -> bool:
        """Place it; False while the cluster has no room for it."""
        if self._actor is None:
            self._actor = self._cluster.place(self._need)
            self._asked_s = time.monotonic()
        # One that is there is asked too: it may be gone with its node, and then nothing should be asked of it.
        self._about = self._about or self._actor.about.remote()
        if not self._ray.wait([self._about], timeout=_PLACED_S)[0]:
            self._waits()
            return False
        try:
            about: Mapping[str, str] = self._ray.get(self._about)
        except self._ray.exceptions.RayError as error:
            self._is_gone(error)
            return False
        _check_versions(about)
        self._about, self._failed, self._name = None, 0, f"{about['pid']} on {about['node']}"
        return True

    def work(self, job: Job, attempt: str) -> Reply:
        """The site's reply."""
        asked = question_to_frame(Work(job.run, job.request, attempt), job.place, job.site.key, with_parts=False)
        self.sites[job.site.home] = None
        try:
            answer, said = self._ray.get(self._actor.answer.remote(asked, self._cluster.put(job.request)))
        except self._ray.exceptions.RayTaskError as error:
            if isinstance(error.cause, WardroundError):
                raise error.cause from error
            raise DiedError(self._bury(f"failed with {type(error.cause).__name__}")) from error
        except self._ray.exceptions.RayError as error:
            raise DiedError(self._bury("is gone")) from error
        for record in said:
            logging.getLogger(record.name).handle(record)
        reply = protocol.answer_from_frame(answer)
        assert isinstance(reply, TrainReply | EvaluateReply | Refusal)  # noqa: S101 - for the type checker
        return reply

    def give_up(self) -> None:
        """End what is under way. For any thread."""
        if (actor := self._actor) is not None:
            self._ray.kill(actor)

    def close(self) -> None:
        """End the actor."""
        self._bury("")

    def _waits(self) -> None:
        if not self._need.places(nodes := self._cluster.nodes()):
            self._bury("")
            raise FederationError(self._need.refused_by(nodes))
        if not self._name and time.monotonic() - self._asked_s > _WAITS_S:
            self._asked_s = float("inf")
            _log.warning("the cluster is busy: a site waits for %s", self._need)

    def _is_gone(self, error: Exception) -> None:
        was_there = bool(self._name)
        self._bury("")
        self._failed += not was_there
        if self._failed == ATTEMPTS:  # not a node that has gone just then
            self._failed = 0
            said = str(error).strip().rpartition("\n")[2]
            raise FederationError(
                "no worker starts on the cluster. Wardround must be installed on each node, in the Python that Ray has "
                f"there. Ray says: {said}"
            )

    def _bury(self, how: str) -> str:
        """End the actor, if it has not ended; how it did, in words."""
        words = f"(process {self._name}) {how}"
        if self._actor is not None:
            self._ray.kill(self._actor)
        self._actor, self._about, self._name, self.sites = None, None, "", {}
        return words


class SiteActor:
    """What is placed on a node: answers for the site that each question names.

    What it logs goes back with its answers, so that the command tells it.
    """

    def __init__(self, level: int) -> None:
        self._said: SimpleQueue[logging.LogRecord] = SimpleQueue()
        root = logging.getLogger()
        root.handlers[:] = [QueueHandler(self._said)]
        root.setLevel(level)
        self._opened: OpenSites | None = None
        keep_and_enlarge()

    def about(self) -> dict[str, str]:
        """Where it is, and what it runs."""
        return {"node": platform.node(), "pid": str(os.getpid()), **_versions()}

    def answer(self, asked: Frame, parts: Mapping[str, bytes]) -> tuple[Frame, list[logging.LogRecord]]:
        """Answer a question; parts: of its request."""
        home = Path(place_of(asked).home)
        if not home.is_dir():
            raise FederationError(
                f"the node {platform.node()} has no folder {home}. Give --out, and the images, on a file system that "
                "all nodes have at the same path."
            )
        with ended_if_still(STALLED_S):
            self._opened = self._opened or OpenSites(place_of(asked).most_bytes)
            answer = answered(Frame(asked.header, {**asked.parts, **parts}), self._opened)
        return Frame(answer.header, _own(answer.parts)), [self._said.get() for _ in range(self._said.qsize())]


@contextmanager
def ended_if_still(seconds: float, *, look_every_s: float = _LOOK_EVERY_S) -> Iterator[None]:
    """End this process where it uses no processor for so long: it hangs, and another can do its work."""
    over = threading.Event()

    def look() -> None:
        pulse = Pulse(os.getpid(), _LEAST_SHARE)
        while not over.wait(look_every_s):
            if pulse.still_s() > seconds:
                os._exit(_STALLED_CODE)

    threading.Thread(target=look, daemon=True).start()
    try:
        yield
    finally:
        over.set()


def _own(parts: Mapping[str, Buffer]) -> dict[str, bytes]:
    """Parts that can be sent by Ray: not views of what they came in."""
    return {name: bytes(part) for name, part in parts.items()}


def _versions() -> dict[str, str]:
    """What must be the same everywhere for equal results."""
    return {"wardround": importlib.metadata.version("wardround"), "torch": torch.__version__.partition("+")[0]}


def _check_versions(about: Mapping[str, str]) -> None:
    for name, ours in _versions().items():
        if about[name] != ours:
            raise FederationError(
                f"the node {about['node']} has {name} {about[name]}, this machine {ours}. Install the same on each."
            )


__all__ = ["RayWorker", "SiteActor", "ended_if_still", "started"]
