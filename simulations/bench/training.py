"""What simulating costs: our backends and the same training written as a bare loop, by turns.

Each way has a process of its own, with those that it starts, and they take turns, round by round, in an order that
turns too. Measured is a round in the middle of a run: the first, in which everything is loaded, does not count. Time is
that on the wall, as what a second core does is the question, so the machine should do nothing else; what the ways have
in common cancels out in the ratio of two of them within a turn. CPU time and memory are those of all processes of a
way; memory is the largest proportional set (a page that several share counts once), looked at ten times a second in one
more turn that is not timed.

The clients' patients, the network and its first weights, the batches and the number of steps are the same, so the
models must be too: each is scored on the held-out patients of all.
"""

import math
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import psutil
import safetensors.torch
from torch import Tensor

from client.site import Site
from client.train.training import evaluate
from common.audit.entries import bucketed
from common.config import RunConfig, SiteConfig, SourceConfig, validate
from common.config.rundocument import issue
from common.learning.network import build_model, load_model
from common.system.environment import PACKAGES, for_child
from common.system.files import write_atomically
from simulations.bench.bare_loop import RUN_NAME, write_client
from simulations.bench.training_ways import RAY, SITES, WAYS, first_model_of, model_of
from simulations.generators.phantoms import SCANNERS, write_hospital
from simulations.scenarios.homes import make_site

CLIENTS = 4
HEADLINE = "score"  # of the model, that of the task
# Of `Figure.apart`. Peers average in float32, some in the order in which updates come.
TOLERANCE = 1e-4
_LOOK_EVERY_S = 0.1


@dataclass(frozen=True)
class Child:
    """How the process of a way is started; variables: of its environment, beside ours."""

    command: tuple[str, ...]
    variables: Mapping[str, str]


@dataclass(frozen=True)
class Figure:
    """One way.

    seconds, cpu_s: of each round that counts.
    first_s: from the start of its process until its first round is done.
    memory: bytes.
    headline: the score of its model.
    apart: how far its model lies from that of the first way, as a share of how far that one has moved (L2). Of others,
        whose averages are rounded otherwise, that after the first round: what rounding leaves grows with every step.
    drifted: the same after the last round.
    outside_s: CPU time between two of its turns: what it works there is not measured, and slows the others.
    """

    way: str
    seconds: tuple[float, ...]
    cpu_s: tuple[float, ...]
    memory: int
    headline: float
    first_s: float = 0.0
    apart: float = 0.0
    drifted: float = 0.0
    outside_s: tuple[float, ...] = ()

    @property
    def is_the_same(self) -> bool:
        """Whether it has trained what the first way has."""
        return self.apart <= TOLERANCE

    def times(self, other: "Figure") -> tuple[float, float, float]:
        """Time, CPU time (medians of the ratios within the turns) and memory, as multiples of another way's."""
        pairs = ((self.seconds, other.seconds), (self.cpu_s, other.cpu_s))
        time_, cpu = (statistics.median(a / b for a, b in zip(*pair, strict=True)) for pair in pairs)
        return time_, cpu, self.memory / other.memory


def measure(
    folder: Path,
    *,
    rounds: int,
    clients: int = CLIENTS,
    patients: int = 20,
    steps: int = 10,
    channels: Sequence[int] = (16, 32, 64, 128, 256),
    rows: int = 128,
    batch: int = 8,
    ways: Sequence[str] = WAYS,
    others: Callable[[Path], Mapping[str, Child]] = lambda _folder: {},
    progress: Callable[[int, str], None] = lambda _done, _note: None,
) -> tuple[Figure, ...]:
    """Generate the patients of the clients, and train on them in every way, by turns.

    Args:
        folder: empty; receives images, homes and models.
        rounds: that count, one after another; two more are made.
        clients: how many.
        patients: of a client.
        steps: of a client in a round.
        channels: of the U-Net, level by level.
        rows: and columns of an image and of a crop.
        batch: crops of a step.
        ways: of training, which are measured; the others' models are held against the first one's.
        others: ways beside these, by name, and how each is started; given the folder.
        progress: called with (turns done, "turns").

    Returns:
        A figure for each way, in this order.
    """
    run = _run(rounds + 2, clients=clients, steps=steps, channels=channels, rows=rows, batch=batch)
    sites = _sites(folder, run, patients=patients, rows=rows)
    starts = {way: _ours(way, folder) for way in ways} | dict(others(folder))
    with ExitStack() as stack:
        children: dict[str, subprocess.Popen[bytes]] = {}
        first_s: dict[str, float] = {}
        ended: dict[str, float] = {}  # CPU time when it had ended its last turn
        for way, start in starts.items():  # one after another, or they would wait for each other
            started = time.perf_counter()
            children[way] = stack.enter_context(_child(start))
            _round(way, children[way])
            first_s[way] = time.perf_counter() - started
        progress(0, "turns")
        turns: dict[str, list[tuple[float, float]]] = {way: [] for way in starts}
        outside_s: dict[str, list[float]] = {way: [] for way in starts}
        for turn in range(1, rounds + 1):
            first = turn % len(starts)
            for way in (*list(starts)[first:], *list(starts)[:first]):
                if way in ended:
                    outside_s[way].append(_cpu_s(children[way].pid) - ended[way])
                turns[way].append(_timed(way, children[way]))
                ended[way] = _cpu_s(children[way].pid)
            progress(turn, "turns")
        memory = {way: _weighed(way, child) for way, child in children.items()}
        for way, child in children.items():
            _ends(way, child)
    apart = {way: _apart(run, folder, way, ways[0]) for way in starts}
    return tuple(
        Figure(
            way,
            seconds=tuple(seconds for seconds, _ in turns[way]),
            cpu_s=tuple(cpu_s for _, cpu_s in turns[way]),
            memory=memory[way],
            headline=_score(run, sites, model_of(folder, way)),
            first_s=first_s[way],
            apart=apart[way][0],
            drifted=apart[way][1],
            outside_s=tuple(outside_s[way]),
        )
        for way in starts
    )


def _run(rounds: int, *, clients: int, steps: int, channels: Sequence[int], rows: int, batch: int) -> RunConfig:
    return validate(
        RunConfig,
        {
            "name": "bench",
            "model": {"channels": list(channels)},
            "data": {"modality": "CT", "classes": ["lesion"], "validation-fraction": 0.1, "test-fraction": 0.2},
            "preprocessing": {"rows": rows, "intensity": "window", "window": [-100, 250]},
            "training": {"patch-size": [rows, rows], "batch-size": batch, "local-steps": steps},
            "federation": {"rounds": rounds, "quorum": clients, "evaluate-every": rounds},
        },
    )


def _sites(folder: Path, run: RunConfig, *, patients: int, rows: int) -> list[Site]:
    """Homes with their caches filled, and what the bare loop reads."""
    write_atomically(folder / RUN_NAME, issue(run).text.encode())
    sites = []
    for number in range(run.federation.quorum):
        name, images = f"client-{number}", folder / "images" / f"{number}"
        scanner = list(SCANNERS.values())[number % len(SCANNERS)]
        write_hospital(images, scanner=scanner, patients=patients, seed=number, slices=8, rows=rows)
        source = SourceConfig(path=str(images.absolute()), kind="dicom", empty_labels_are_negative=True)
        site = make_site(folder / SITES, SiteConfig(format=SiteConfig.LATEST, name=name, data=(source,), device="cpu"))
        cohort = site.cohort(run)
        training = cohort.patients("train")
        cases = [[(case.images, case.labels) for case in cohort.cases_of(patient)] for patient in training]
        write_client(folder, name, bucketed(len(training)), cases)
        sites.append(site)
    return sites


def _ours(way: str, folder: Path) -> Child:
    command = (sys.executable, "-P", "-m", "simulations.bench.training_ways", way, str(folder))
    return Child(command, {"PYTHONPATH": str(PACKAGES)})


@contextmanager
def _child(start: Child) -> Iterator["subprocess.Popen[bytes]"]:
    variables = {**start.variables, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    with subprocess.Popen(  # noqa: S603 - our own interpreter and module, or one that was named
        start.command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=for_child(**variables)
    ) as process:
        try:
            yield process
        finally:
            for one in _tree(process.pid):
                with suppress(psutil.NoSuchProcess):
                    one.kill()


def _timed(way: str, child: "subprocess.Popen[bytes]") -> tuple[float, float]:
    """Seconds on the wall and of the processors that a round took."""
    before, started = _cpu_s(child.pid), time.perf_counter()
    _round(way, child)
    return time.perf_counter() - started, _cpu_s(child.pid) - before


def _round(way: str, child: "subprocess.Popen[bytes]") -> None:
    assert child.stdin is not None  # noqa: S101 - both are pipes
    assert child.stdout is not None  # noqa: S101
    with suppress(BrokenPipeError):
        child.stdin.write(b"\n")
        child.stdin.flush()
    if not child.stdout.readline():
        raise RuntimeError(f"{way} has ended early; what it said stands above")


def _weighed(way: str, child: "subprocess.Popen[bytes]") -> int:
    """The most memory that a way's processes hold together during a round, bytes."""
    most, over = 0, threading.Event()

    def look() -> None:
        nonlocal most
        ended = False
        while not ended:
            most = max(most, _pss(child.pid))
            ended = over.wait(_LOOK_EVERY_S)

    thread = threading.Thread(target=look)
    thread.start()
    try:
        _round(way, child)
    finally:
        over.set()
        thread.join()
    return most


def _ends(way: str, child: "subprocess.Popen[bytes]") -> None:
    assert child.stdin is not None  # noqa: S101 - it is a pipe
    child.stdin.close()
    if child.wait() != 0:
        raise RuntimeError(f"{way} has failed; what it said stands above")


def _cpu_s(pid: int) -> float:
    """Of all its processes, those that have ended among them."""
    total = 0.0
    for one in _tree(pid):
        with suppress(psutil.NoSuchProcess):
            times = one.cpu_times()
            total += times.user + times.system + times.children_user + times.children_system
    return total


def _pss(pid: int) -> int:
    total = 0
    for one in _tree(pid):
        with suppress(psutil.NoSuchProcess):
            total += one.memory_full_info().pss
    return total


def _tree(pid: int) -> list[psutil.Process]:
    with suppress(psutil.NoSuchProcess):
        top = psutil.Process(pid)
        return [top, *top.children(recursive=True)]
    return []


def _apart(run: RunConfig, folder: Path, way: str, against: str) -> tuple[float, float]:
    """See `Figure.apart` and `Figure.drifted`."""
    start = build_model(run).state_dict()
    found = []
    for model_at in (first_model_of, model_of):
        if model_at(folder, way).exists():
            one, other = (safetensors.torch.load_file(model_at(folder, name)) for name in (way, against))
            found.append(_distance(one, other) / _distance(start, other))
    return found[0], found[-1]


def _distance(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> float:
    """L2."""
    if one.keys() != other.keys():
        return math.inf
    return math.sqrt(sum(float((one[name].double() - other[name].double()).square().sum()) for name in other))


def _score(run: RunConfig, sites: Sequence[Site], weights: Path) -> float:
    """Mean over the sites of the headline score on their test patients."""
    model = load_model(run, safetensors.torch.load_file(weights)).eval()
    scores: list[Mapping[str, float]] = [evaluate(model, site.cohort(run), run, "test", "cpu")[1] for site in sites]
    return statistics.fmean(one[run.task.headline] for one in scores if run.task.headline in one)


__all__ = ["CLIENTS", "HEADLINE", "RAY", "TOLERANCE", "WAYS", "Child", "Figure", "measure"]
