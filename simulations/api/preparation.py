"""What all that trains begins with: threads, a backend, the run with a person's changes, its sites; and progress.

Who wants to know how far it is hands in a `Progress`. Heavy modules are imported inside the functions: see
common/console/cli.py.
"""

import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from common.config import Device, RunConfig, validate
from common.errors import ConfigError
from common.system.files import write_atomically
from common.text import counted

if TYPE_CHECKING:
    from client.site import Site
    from common.config import SourceConfig
    from common.console.cli import Advance
    from common.tasks import Task
    from simulations.backends import Backend
    from simulations.scenarios.pretraining import PretrainingConfig
    from simulations.scenarios.scenario import Scenario


class Progress(Protocol):
    """Told of work that begins, as `common.console.cli.progress` is."""

    def __call__(self, label: str, total: int, /) -> "AbstractContextManager[Advance]":
        """What is counted, and how many there are."""


class Tell(Protocol):
    """Called with what is going on."""

    def __call__(self, text: str, /, *, result: bool = False) -> None:
        """Show it; result: as for `Advance`."""


@contextmanager
def silent(_label: str, _total: int, /) -> "Iterator[Advance]":
    """Tells nobody."""
    yield lambda _done, _text, *, result=False: None  # noqa: ARG005 - the name is what it is called by


def use_threads(threads: int | None) -> None:
    """Compute with so many threads; None: as many as torch takes."""
    import torch  # noqa: PLC0415

    if threads is not None:
        torch.set_num_threads(threads)


def backend_for(
    name: str | None,
    sites: int,
    *,
    workers: int | None,
    threads: int | None,
    device: Device | None,
    address: str | None = None,
    gpus_per_site: float | None = None,
) -> "AbstractContextManager[Backend]":
    """A backend, for as long as it is used; to start early, while this process has one thread (see the nursery).

    Args:
        name: of the backend; None: processes where more than one site can work at the same time.
        sites: the most that work for one run.
        workers: sites at work at the same time; None: as many as there is room for.
        threads: of each site at work; None: the cores are shared.
        device: where all sites train; None: as each says.
        address: of a Ray cluster; None: that of RAY_ADDRESS, or one of this machine.
        gpus_per_site: on a cluster; None: one, where there are any.
    """
    from simulations.backends import Resources, started  # noqa: PLC0415 - torch

    return started(name, sites, Resources(workers, threads, device, address, gpus_per_site))


def changed(config: RunConfig, changes: dict[str, Any]) -> RunConfig:
    """The run with some values replaced, checked again as a whole."""
    values = config.model_dump(by_alias=True)
    for key, value in changes.items():
        values[key] = {**(values[key] or {}), **value} if isinstance(value, dict) else value
    return validate(RunConfig, values, "the command's options")


def with_patients(scenario: "Scenario", patients: int | None) -> "Scenario":
    """The scenario with so many generated patients at each hospital; None: as many as it says.

    Raises:
        ConfigError: it generates none.
    """
    if patients is None:
        return scenario
    if scenario.config.phantoms is None:
        raise ConfigError(f"--patients: scenario {scenario.name} has images of its own. Leave the option out.")
    phantoms = scenario.config.phantoms.model_copy(update={"patients": patients})
    return replace(scenario, config=scenario.config.model_copy(update={"phantoms": phantoms}))


def prepare_sites(
    scenario: "Scenario",
    config: RunConfig,
    out: Path,
    data: Path | None,
    device: Device | None,
    *,
    progress: Progress = silent,
) -> "list[Site]":
    """Site homes with their images read, so that a fault in the data shows before the first round.

    Raises:
        ConfigError: see `prepare` and `refuse_others`.
    """
    import torch  # noqa: PLC0415

    from client.data.isolate.isolation import Readers  # noqa: PLC0415
    from simulations.backends.open_sites import OpenSites, share_of_memory  # noqa: PLC0415
    from simulations.scenarios.scenario import prepare, refuse_others  # noqa: PLC0415

    if device == "cuda" and not torch.cuda.is_available():
        raise ConfigError("--device cuda: torch finds no CUDA device here. Leave --device out, or say --device cpu.")
    refuse_others(scenario, out, data=data)
    phantoms = scenario.config.phantoms
    patients = phantoms.patients * len(phantoms.scanners) if phantoms else 0
    with progress("phantom patients", patients) as advance:
        sites = prepare(scenario, out, data=data, device=device, progress=lambda done, _: advance(done, ""))
    # To start a process that parses takes as long as to read ten small studies: all sites share them.
    with progress("reading sites", len(sites)) as advance, Readers(os.cpu_count() or 1) as readers:
        opened = OpenSites(share_of_memory(1))
        for number, site in enumerate(sites, start=1):
            cohort = site.cohort(config, readers=readers)
            opened.used(site)
            left_out = (
                f", {counted(len(cohort.quarantined), 'study', 'studies')} left out" if cohort.quarantined else ""
            )
            told = f"{site.config.name}: {counted(cohort.size, 'patient')}{left_out}"
            advance(number, told, result=bool(cohort.quarantined))
    return sites


def pretrained(
    config: RunConfig,
    pretraining: "PretrainingConfig",
    out: Path,
    published: "SourceConfig | None",
    device: Device,
    *,
    progress: Progress = silent,
) -> RunConfig:
    """The run that starts from weights trained on generated images; they lie where `federate` looks for them."""
    from server.federation.events import INITIAL_NAME  # noqa: PLC0415
    from simulations.scenarios.pretraining import pretrain  # noqa: PLC0415

    with progress("pretraining round", pretraining.rounds) as advance:
        weights, initial = pretrain(
            config,
            pretraining,
            out / "pretraining",
            published=published,
            device=device,
            observe=teller(advance, config.task),
        )
    write_atomically(out / INITIAL_NAME, weights)
    return changed(config, {"initial": initial.model_dump(by_alias=True)})


def take_initial(config: RunConfig, model: Path, out: Path) -> None:
    """Put the weights that a run names where `federate` looks for them; it checks them."""
    from common.learning.checkpoint import WEIGHTS_NAME  # noqa: PLC0415
    from server.federation.events import INITIAL_NAME  # noqa: PLC0415

    if config.initial is None:
        raise ConfigError(
            "the scenario names no initial weights. Add [run.initial] with their sha256, or leave out --initial."
        )
    path = model / WEIGHTS_NAME
    if not path.is_file():
        raise ConfigError(f"{path} is not there. Give the folder of a model with --initial.")
    write_atomically(out / INITIAL_NAME, path.read_bytes())


def tells(advance: "Advance") -> tuple[Tell, Callable[[int, str], None]]:
    """What a study is given to tell: `tell`, what is going on, and `finished`, how many are done and the last one."""
    done = 0

    def tell(text: str, *, result: bool = False) -> None:
        advance(done, text, result=result)

    def finished(count: int, last: str) -> None:
        nonlocal done
        done = count
        advance(done, last, result=True)

    return tell, finished


def teller(advance: "Advance", task: "Task", *, before: int = 0, of: str = "") -> Callable[[dict[str, Any]], None]:
    """Turn the journal's events into progress; scores, who was left out of a round and an early stop are results.

    Args:
        advance: is called.
        task: of the run.
        before: rounds of earlier runs, which count too.
        of: what the text starts with.
    """
    from server.federation.events import STOPPED  # noqa: PLC0415
    from server.views.sentences import missing_of, not_asked_of, refused_of  # noqa: PLC0415

    done = 0

    def tell(text: str, *, result: bool = False) -> None:
        advance(before + done, f"{of}{text}", result=result)

    def observe(event: dict[str, Any]) -> None:
        nonlocal done
        match event:
            case {"event": "run-started", "resumed-from": number} if number > 0:
                done = number
                tell("done by an earlier start", result=True)
            case {"event": "round", "round": number, "seconds": seconds, "sites": sites}:
                done = number
                left_out = [*refused_of(event), *missing_of(event)]
                said = [f"{counted(len(sites), 'site')}, {seconds:.1f} s", *not_asked_of(event), *left_out]
                tell("; ".join(said), result=bool(left_out))
            case {"event": "train", "site": site}:
                tell(f"{site} has trained")
            case {"event": "evaluate", "site": "overall", "phase": phase}:
                score = f"{event[task.headline]:.3f}" if task.headline in event else _not_scored(phase, task)
                tell("; ".join((f"{phase} {task.headline} {score}", *refused_of(event))), result=True)
            case {"event": kind, "best-round": best} if kind == STOPPED:
                tell(f"stopped early, no better {task.headline} since round {best}", result=True)
            case _:
                pass

    return observe


def _not_scored(phase: str, task: "Task") -> str:
    return f"not scored: no site tells it{f', which wants {phase} patients of each class' if task.TELLS else ''}"
