"""A scenario from its file to a finished run, or to a finished comparison: one way, for commands and programs.

What is going on is told through `Progress`, which a command shows and a program may leave out.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common.config import Device, RunConfig
from common.config.rundocument import issue
from server.federation.events import Summary
from server.federation.model import refuse_another
from server.federation.rounds import federate
from server.views.report import write_report
from simulations.api.preparation import (
    Progress,
    changed,
    prepare_sites,
    pretrained,
    silent,
    take_initial,
    teller,
    tells,
)
from simulations.backends import Backend
from simulations.scenarios.scenario import CompareConfig, Scenario, published
from simulations.studies.compare import compare
from simulations.studies.comparison import Result
from simulations.studies.overlays import draw_overlays


@dataclass(frozen=True)
class Federated:
    """A finished run: its settings as they were issued, what came of it, and the page."""

    run: RunConfig
    summary: Summary
    report: Path


@dataclass(frozen=True)
class Compared:
    """A finished comparison. wanted: which models there were."""

    run: RunConfig
    wanted: CompareConfig
    results: Sequence[Result]


def changes_of(
    *, seed: int | None, rounds: int | None, private: bool, deterministic: bool, statistics: bool
) -> dict[str, Any]:
    """Values of a run to replace, as `changed` takes them; None and the defaults replace nothing."""
    federation = ({} if rounds is None else {"rounds": rounds}) | ({"statistics": True} if statistics else {})
    return {
        **({"format": RunConfig.LATEST} if statistics else {}),
        **({} if seed is None else {"seed": seed}),
        **({"deterministic": True} if deterministic else {}),
        **({"federation": federation} if federation else {}),
        **({} if private else {"privacy": None}),
    }


def federate_scenario(
    scenario: Scenario,
    changes: Mapping[str, Any],
    out: Path,
    *,
    backend: Backend,
    data: Path | None = None,
    device: Device | None = None,
    initial: Path | None = None,
    progress: Progress = silent,
) -> Federated:
    """Train one model across the sites of a scenario, score it, draw and report it.

    Args:
        scenario: what to train.
        changes: in its run; see `changed`.
        out: of the run; one found there goes on.
        backend: where the sites work.
        data: folder that relative paths start from; None: see `prepare`.
        device: where all sites train; None: as each says.
        initial: folder of the model that the run names; None: none.
        progress: told what is going on.

    Raises:
        ConfigError: see `prepare_sites`; or `out` holds another run, whose sites stay as they are.
    """
    run = changed(scenario.config.run, dict(changes))
    if scenario.config.pretraining is None:  # which decides where the run begins, and so which it is
        refuse_another(issue(run), out)
    sites = prepare_sites(scenario, run, out, data, device, progress=progress)
    if scenario.config.pretraining is not None:
        public = published(scenario, data=data)
        run = pretrained(run, scenario.config.pretraining, out, public, device or "auto", progress=progress)
    if initial is not None:
        take_initial(run, initial, out)
    document = issue(run)
    with progress("round", run.federation.rounds) as advance, backend(sites, document) as grid:
        summary = federate(grid, document, out, observe=teller(advance, run.task))
    draw_overlays(out, sites)
    return Federated(run, summary, write_report(out))


def wanted_of(scenario: Scenario, rounds: int | None) -> tuple[RunConfig, CompareConfig]:
    """The run to compare and which models of it, with other rounds where they are given."""
    base, wanted = scenario.config.run, scenario.config.compare
    if wanted.privacy is None and base.privacy is not None:
        wanted = wanted.model_copy(update={"privacy": base.privacy})
    if rounds:
        wanted = wanted.model_copy(update={"rounds": rounds})
    return changed(base, {"federation": {"rounds": rounds}} if rounds else {}), wanted


def compare_scenario(
    scenario: Scenario,
    out: Path,
    *,
    seeds: Sequence[int],
    backend: Backend,
    rounds: int | None = None,
    data: Path | None = None,
    device: Device | None = None,
    progress: Progress = silent,
) -> Compared:
    """Train and score the models of a comparison; see `simulations.studies.compare`, and `federate_scenario`."""
    run, wanted = wanted_of(scenario, rounds)
    sites = prepare_sites(scenario, run, out, data, device, progress=progress)
    pretraining = scenario.config.pretraining
    private = len(wanted.private_runs(run)) * (1 + wanted.private_pooled)
    of_one = wanted.alone + wanted.leave_one_out
    total = len(seeds) * (len(sites) * of_one + 2 + private + (pretraining is not None))
    with progress("models", total) as advance:
        tell, finished = tells(advance)
        results = compare(
            run,
            sites,
            out,
            seeds=seeds,
            config=wanted,
            pretraining=pretraining,
            published=published(scenario, data=data),
            backend=backend,
            tell=tell,
            finished=finished,
        )
    return Compared(run, wanted, results)


__all__ = ["Compared", "Federated", "changes_of", "compare_scenario", "federate_scenario", "wanted_of"]
