"""Three functions: load a scenario, simulate it, compare what federating gains.

    from simulations import compare, load, simulate

    scenario = load("mine.toml")                           # or the name of a shipped one
    result = simulate(scenario, "out/mine")
    result.curves["dice"]["overall"]                       # (R,) float64
    table = compare(scenario, "out/compare", seeds=(0, 1))
    table.scores.mean(axis=(1, 2))                         # (M,), mean of seeds and sites

They do what `wardround-sim run` and `wardround-sim compare` do, by the same code, print nothing, and go on with what a
command has begun in the same folder. Faults are `common.errors.WardroundError`s that say what to do.
"""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from common.config import Device
from common.system.environment import flower_variables
from simulations.scenarios.scenario import Scenario, load_scenario

if TYPE_CHECKING:
    from simulations.api.results import Comparison, Simulation
    from simulations.backends import Backend


def load(scenario: str | Path) -> Scenario:
    """A shipped scenario by its name, or any by the path of its .toml file.

    Args:
        scenario: name, such as "phantoms", or path.

    Returns:
        Frozen: `name`, `path`, and `config` with all settings, `config.run` those of the run.

    Raises:
        ConfigError: there is no such scenario, or it is not valid; the message names the key.
    """
    return load_scenario(str(scenario))


def simulate(
    scenario: Scenario | str | Path,
    out: str | Path,
    *,
    data: str | Path | None = None,
    seed: int | None = None,
    rounds: int | None = None,
    private: bool = True,
    statistics: bool = False,
    deterministic: bool = False,
    device: Device | None = None,
    backend: str | None = None,
    workers: int | None = None,
    threads: int | None = None,
    address: str | None = None,
    gpus_per_site: float | None = None,
) -> "Simulation":
    """Train one model across the sites of a scenario, score and report it: `wardround-sim run`.

    Args:
        scenario: as `load` gives it, or what `load` takes.
        out: folder for results. A run found there goes on, and one that is finished is not trained again.
        data: folder that relative paths of the scenario start from; None: as for `wardround-sim run`.
        seed: instead of the scenario's.
        rounds: instead of the scenario's.
        private: False: without differential privacy, where the scenario has it.
        statistics: ask the sites for statistics of labels and intensities; not with privacy.
        deterministic: bit-equal results, slower.
        device: where every site trains, "auto", "cpu" or "cuda"; None: as the scenario says.
        backend: "processes", "in-process" or "ray"; None: processes where there are two cores.
        workers: sites at work at the same time; None: as many as there is room for.
        threads: of each site at work; None: the cores are shared. 1 for results that are equal elsewhere.
        address: of the cluster of "ray"; None: that of RAY_ADDRESS, or one of this machine alone.
        gpus_per_site: of each site at work on the cluster, such as 0.5; None: 1, where there are any.

    Returns:
        Curves by site, scores by site, and where the model lies.

    Raises:
        ConfigError: the scenario, an argument, or the folder of images is wrong, or `out` holds another run.
        DataError: a site has no study that can be used.
        FederationError: fewer sites than the quorum answered.
    """
    from simulations.api.results import simulation_of  # noqa: PLC0415 - torch
    from simulations.api.runs import changes_of, federate_scenario  # noqa: PLC0415

    chosen, folder = _chosen(scenario), Path(out)
    changes = changes_of(seed=seed, rounds=rounds, private=private, deterministic=deterministic, statistics=statistics)
    resources: dict[str, Any] = {"workers": workers, "threads": threads, "device": device}
    resources |= {"address": address, "gpus_per_site": gpus_per_site}
    with _working(chosen, backend, **resources) as working:
        done = federate_scenario(chosen, changes, folder, data=_path(data), device=device, backend=working)
    return simulation_of(folder, done.run, done.summary)


def compare(
    scenario: Scenario | str | Path,
    out: str | Path,
    *,
    seeds: Sequence[int] = (0,),
    data: str | Path | None = None,
    rounds: int | None = None,
    device: Device | None = None,
    backend: str | None = None,
    workers: int | None = None,
    threads: int | None = None,
    address: str | None = None,
    gpus_per_site: float | None = None,
) -> "Comparison":
    """Train each site alone, all pooled, federated, and federated with privacy: `wardround-sim compare`.

    Args:
        scenario: as `load` gives it, or what `load` takes; its [compare] says which models.
        out: folder for results; models that are finished there are not trained again.
        seeds: one model of each kind for each.
        data: see `simulate`.
        rounds: instead of the scenario's.
        device: see `simulate`.
        backend: see `simulate`.
        workers: see `simulate`.
        threads: see `simulate`.
        address: see `simulate`.
        gpus_per_site: see `simulate`.

    Returns:
        Headline scores by model, seed and site.

    Raises:
        ConfigError: as `simulate`; or there are fewer than two sites.
        DataError: a site has no study that can be used.
        FederationError: a site has no test patient.
    """
    from simulations.api.results import comparison_of  # noqa: PLC0415 - torch
    from simulations.api.runs import compare_scenario  # noqa: PLC0415

    chosen, folder = _chosen(scenario), Path(out)
    resources: dict[str, Any] = {"workers": workers, "threads": threads, "device": device}
    resources |= {"address": address, "gpus_per_site": gpus_per_site}
    with _working(chosen, backend, **resources) as working:
        done = compare_scenario(
            chosen, folder, seeds=seeds, rounds=rounds, data=_path(data), device=device, backend=working
        )
    return comparison_of(folder, done.run, done.results)


def _chosen(scenario: Scenario | str | Path) -> Scenario:
    return scenario if isinstance(scenario, Scenario) else load(scenario)


def _path(folder: str | Path | None) -> Path | None:
    return None if folder is None else Path(folder)


@contextmanager
def _working(scenario: Scenario, name: str | None, **resources: Any) -> Iterator["Backend"]:
    """A backend for the sites of a scenario, as the commands start it."""
    for key, value in flower_variables().items():  # read when Flower is imported, which is after this
        os.environ.setdefault(key, value)
    from simulations.api.preparation import backend_for, use_threads  # noqa: PLC0415 - torch

    use_threads(resources["threads"])
    with backend_for(name, len(scenario.config.site_names), **resources) as backend:
        yield backend


__all__ = ["compare", "load", "simulate"]
