"""What a private step costs: plain SGD, Opacus' three modes and ours on the same network and crops.

Each way has a process of its own, as at a hospital: what one leaves behind in the allocator moved another's time by
30 %. They take turns, step by step. Times are CPU seconds of all threads, and medians: on a shared machine the clock on
the wall tells about its neighbours. Memory is what the steps add at most to what program, network and crops occupy.
Each step has one crop of each patient, clips, adds its noise and changes the weights. Opacus draws its noise from a
seed, ours as it is drawn at a hospital.
"""

import json
import math
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from typing import Any
from unittest.mock import patch

import torch
from opacus import GradSampleModule
from opacus.grad_sample.grad_sample_module_fast_gradient_clipping import GradSampleModuleFastGradientClipping
from opacus.optimizers import DPOptimizer
from opacus.optimizers.optimizer_fast_gradient_clipping import DPOptimizerFastGradientClipping
from opacus.utils.fast_gradient_clipping_utils import DPLossFastGradientClipping
from torch import Tensor, nn

from common.config import RunConfig, validate
from common.learning.network import build_model
from common.losses.terms import dice_ce
from common.privacy import engine
from common.privacy.autotune import Plan, choose, crops_together
from common.privacy.engine import private_optimizer, private_step
from common.privacy.gradients import Strategy
from common.privacy.noise import noised
from common.privacy.patient import Patient
from common.system.environment import PACKAGES, for_child
from simulations.bench import peak

PLAIN = "plain SGD"
HOOKS, FUNCTORCH, GHOST = "Opacus, hooks", "Opacus, functorch", "Opacus, ghost clipping"
AUTOTUNED = "ours, autotuned"

_NORM, _NOISE, _RATE = 1.0, 1.0, 1e-3
_SMALL = 32  # rows

Step = Callable[[], object]


@dataclass(frozen=True)
class Case:
    """A network and its batch. edges: of a crop; one crop of each patient."""

    name: str
    edges: tuple[int, ...]
    patients: int
    channels: tuple[int, ...] = (16, 32, 64, 128)


CASES = (
    Case("2D U-Net, 8 crops of 256 x 256", (256, 256), 8),
    Case("3D U-Net, 2 crops of 64 x 64 x 64", (64, 64, 64), 2),
)


@dataclass(frozen=True)
class Figure:
    """One way of making a step. cpu_s: median, nan where it does not run. memory: bytes that its steps add."""

    way: str
    cpu_s: float
    memory: float
    noise_s: float = math.nan  # part of cpu_s; of ours alone


def ways() -> tuple[str, ...]:
    """Names of all that is measured, plain SGD first."""
    return (PLAIN, HOOKS, FUNCTORCH, GHOST, *(_ours(strategy) for strategy in Strategy), AUTOTUNED)


def measure(
    case: Case, *, repeats: int, progress: Callable[[int, str], None] = lambda _done, _note: None
) -> tuple[Figure, ...]:
    """Make steps in every way, by turns, each way in a process of its own.

    Args:
        case: what is trained.
        repeats: turns; a time is their median. One turn before them is not counted.
        progress: called with (turns done, "turns done").

    Returns:
        A figure for each of `ways()`, in this order.
    """
    with ExitStack() as stack:
        children = {way: stack.enter_context(_child(case, way)) for way in ways()}
        turns: dict[str, list[list[float]]] = {way: [] for way in ways()}
        for turn in range(repeats + 1):
            for way, child in children.items():
                turns[way].append(_ask(child))
            progress(turn, "turns done")
    return tuple(
        Figure(
            way,
            cpu_s=statistics.median(cpu_s for cpu_s, _, _ in answers[1:]),
            memory=answers[-1][2],
            noise_s=statistics.median(noise_s for _, noise_s, _ in answers[1:]) if "ours" in way else math.nan,
        )
        for way, answers in turns.items()
    )


class _NoiseClock:
    """Adds up the CPU seconds that our steps spend on noise, while it is open."""

    seconds = 0.0

    def __enter__(self) -> "_NoiseClock":
        def timed(sums: Sequence[Tensor], **settings: float) -> list[Tensor]:
            started = time.process_time()
            noisy = noised(sums, **settings)
            self.seconds += time.process_time() - started
            return noisy

        self._timed = patch.object(engine, "noised", timed)
        self._timed.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._timed.stop()


def _step(way: str, model: nn.Module, images: Tensor, labels: Tensor) -> Step:
    if way == PLAIN:
        return _plain(model, images, labels)
    if way == GHOST:
        return _ghost(model, images, labels)
    if way in (HOOKS, FUNCTORCH):
        return _opacus(model, images, labels, functorch=way == FUNCTORCH)
    return _private(model, images, labels, way)


def _plain(model: nn.Module, images: Tensor, labels: Tensor) -> Step:
    optimizer = torch.optim.SGD(model.parameters(), _RATE)

    def step() -> None:
        optimizer.zero_grad()
        dice_ce(model(images), labels).backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
        optimizer.step()

    return step


def _opacus(model: nn.Module, images: Tensor, labels: Tensor, *, functorch: bool) -> Step:
    wrapped = GradSampleModule(model, force_functorch=functorch)
    optimizer = DPOptimizer(
        torch.optim.SGD(model.parameters(), _RATE),
        noise_multiplier=_NOISE,
        max_grad_norm=_NORM,
        expected_batch_size=len(images),
    )

    def step() -> None:
        optimizer.zero_grad()
        dice_ce(wrapped(images), labels).backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
        optimizer.step()

    return step


class _PerSample:
    """The loss as ghost clipping asks for it."""

    reduction = "mean"

    def __call__(self, logits: Tensor, labels: Tensor) -> Tensor:
        each = torch.stack([dice_ce(*one) for one in zip(torch.split(logits, 1), torch.split(labels, 1), strict=True)])
        return each if self.reduction == "none" else each.mean()


def _ghost(model: nn.Module, images: Tensor, labels: Tensor) -> Step:
    wrapped = GradSampleModuleFastGradientClipping(model, max_grad_norm=_NORM, use_ghost_clipping=True)
    optimizer = DPOptimizerFastGradientClipping(
        torch.optim.SGD(model.parameters(), _RATE),
        noise_multiplier=_NOISE,
        max_grad_norm=_NORM,
        expected_batch_size=len(images),
    )
    loss = DPLossFastGradientClipping(wrapped, optimizer, _PerSample())

    def step() -> None:
        optimizer.zero_grad()
        loss(wrapped(images), labels).backward()
        optimizer.step()

    return step


def _private(model: nn.Module, images: Tensor, labels: Tensor, way: str) -> Step:
    optimizer = private_optimizer(
        model,
        torch.optim.SGD(model.parameters(), _RATE),
        noise_multiplier=_NOISE,
        clipping_norm=_NORM,
        expected_patients=len(images),
    )
    pairs = zip(torch.split(images, 1), torch.split(labels, 1), strict=True)
    patients = [Patient(crops, truth) for crops, truth in pairs]
    if way == AUTOTUNED:
        plan = choose(model, dice_ce, patients[0], len(patients))
    else:
        strategy = next(strategy for strategy in Strategy if _ours(strategy) == way)
        plan = Plan(strategy, min(crops_together(model, dice_ce, patients[0]), len(patients)))
    return lambda: private_step(model, optimizer, patients, dice_ce, plan=plan)


def _ours(strategy: Strategy) -> str:
    return f"ours, {strategy}"


def _model(case: Case) -> nn.Module:
    return build_model(
        validate(
            RunConfig,
            {
                "name": "bench",
                "model": {"dims": len(case.edges), "channels": case.channels},
                "data": {"modality": "CT", "classes": ["lesion"]},
                "training": {"patch-size": case.edges},
                "federation": {"rounds": 1},
            },
        )
    )


def _batch(case: Case) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    images = torch.randn((case.patients, 1, *case.edges), generator=generator)
    return images, torch.randint(2, (case.patients, *case.edges), generator=generator)


@contextmanager
def _child(case: Case, way: str) -> Iterator[subprocess.Popen[str]]:
    """A process that makes a step for each line it is sent, once it is ready to."""
    arguments = [way, json.dumps(asdict(case)), str(torch.get_num_threads())]
    with subprocess.Popen(  # noqa: S603 - our own interpreter and module
        [sys.executable, "-m", "simulations.bench.private_steps", *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=for_child(),
        cwd=PACKAGES,
    ) as child:
        try:
            yield child
        finally:
            child.kill()


def _ask(child: subprocess.Popen[str]) -> list[float]:
    """CPU seconds of a step, of its noise, and the memory in use at most so far; nan where the way does not run."""
    assert child.stdin is not None  # noqa: S101 - both are pipes
    assert child.stdout is not None  # noqa: S101
    child.stdin.write("\n")
    child.stdin.flush()
    answer: list[float] = json.loads(child.stdout.readline())
    return answer


def _answer(way: str, case: Case) -> None:
    small = replace(case, edges=(_SMALL,) * len(case.edges))
    with suppress(RuntimeError):
        _step(way, _model(small), *_batch(small))()  # what the libraries load at their first step is not the step's
    model, batch = _model(case), _batch(case)
    before = peak.from_here()
    step: Step | None = None
    for _ in sys.stdin:
        with _NoiseClock() as clock:
            started = time.process_time()
            try:
                step = step or _step(way, model, *batch)
                step()
                answer = [time.process_time() - started, clock.seconds, float(peak.most() - before)]
            except RuntimeError:
                answer = [math.nan] * 3
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()


def _main(way: str, case: dict[str, Any], threads: str) -> None:
    warnings.simplefilter("ignore")
    torch.set_num_threads(int(threads))
    _answer(way, Case(case["name"], tuple(case["edges"]), case["patients"], tuple(case["channels"])))


if __name__ == "__main__":
    _main(sys.argv[1], json.loads(sys.argv[2]), sys.argv[3])
