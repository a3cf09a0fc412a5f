"""Are the regions of two classes told apart at all? Networks, classical features and a rule, on the same patients.

The table of a scenario that classifies regions: for each of its networks the first weights untrained, each site alone,
all patients pooled, and the federation; then classifiers of features (`baseline`), and the rule that always says the
larger class. Each row answers every region once, by models that never saw its patient, in the same folds; `decisions`
scores them with intervals by patient, so that two rows can be compared, and says what an interval does not tell.
"""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from client.site import Site
from common.config import RunConfig, validate
from common.errors import ConfigError, FederationError
from common.measures.intervals import Interval
from common.pages.html import render
from common.system.files import write_atomically
from common.tasks.classification import Classification
from simulations.backends import Backend, opened
from simulations.diagnosis import baseline
from simulations.diagnosis.decisions import Regions, as_data, described, difference, scores, summary_rows, told
from simulations.diagnosis.outoffold import Answered, answer_all
from simulations.scenarios.pretraining import PretrainingConfig, pretrain
from simulations.scenarios.scenario import CompareConfig
from simulations.studies import tables
from simulations.studies.compare import columns
from simulations.studies.comparison import FEDERATED

NAME = "diagnosis"
WITHOUT_COLUMNS = 1 + len(baseline.CLASSIFIERS)  # rows that train no network

Chances = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Diagnosis:
    """What was found. chances: (repeats, N) by row of the table; features: the names of the classical ones."""

    classes: tuple[str, ...]
    regions: Regions
    chances: Mapping[str, Chances]
    seeds: tuple[int, ...]
    folds: int

    def scores(self) -> dict[str, dict[str, Interval]]:
        """By row of the table."""
        return {name: scores(self.regions, one) for name, one in self.chances.items()}

    def differences(self) -> dict[str, Interval]:
        """AUROC of each federation minus that of each classifier of features, on the same patients."""
        ours = [name for name in self.chances if name.endswith(f", {FEDERATED}")]
        return {
            f"{name} minus {other}": difference(self.regions, self.chances[name], self.chances[other])
            for name in ours
            for other in baseline.CLASSIFIERS
        }

    def facts(self) -> str:
        """Who was answered, in one sentence."""
        return described(self.regions, self.classes, self.folds, self.seeds)


def diagnose(
    runs: Mapping[str, tuple[RunConfig, PretrainingConfig | None]],
    sites: Sequence[Site],
    out: Path,
    *,
    seeds: Sequence[int],
    backend: Backend = opened,
    tell: Callable[[str], None] = lambda _: None,
    finished: Callable[[int, str], None] = lambda _done, _note: None,
) -> Diagnosis:
    """Answer every region by every row, and write diagnosis.json, .md and report.html into `out`.

    Args:
        runs: of each scenario, by its name; all with the same folds on the same sites.
        sites: the hospitals.
        out: results; finished folds found here are not trained again.
        seeds: the whole is repeated for each, with other folds and other first weights.
        backend: where the sites work.
        tell: told what is going on.
        finished: told how many rows of a seed are done, and which was last.

    Raises:
        ConfigError: a run does not classify regions of two classes in folds.
    """
    for run, _ in runs.values():
        check(run)
    first = next(iter(runs.values()))[0]
    collected: dict[str, list[Chances]] = {}
    regions: Regions | None = None
    done = 0
    for seed in seeds:
        table = baseline.measure(_seeded(first, seed), sites)
        regions = regions or Regions(table.patients(), table.positives())
        found = {baseline.MAJORITY: baseline.majority(table)} | baseline.answer_all(table, seed)
        done += len(found)
        finished(done, f"seed {seed}: features")
        for name, (run, pretraining) in runs.items():
            for column, chances in _networks(
                run, pretraining, sites, out / name, table=table, seed=seed, backend=backend, tell=tell
            ):
                found[f"{run.model.architecture}, {column}"] = chances
                done += 1
                finished(done, f"seed {seed}: {name}, {column}")
        for name, chances in found.items():
            collected.setdefault(name, []).append(chances)
    if regions is None:
        raise ConfigError("no seed was given. Name one at least.")
    folds = first.data.folds or 0
    result = Diagnosis(
        first.data.classes, regions, {name: np.stack(one) for name, one in collected.items()}, tuple(seeds), folds
    )
    _write(out, result)
    return result


def rows_of(runs: Mapping[str, tuple[RunConfig, PretrainingConfig | None]], sites: int) -> int:
    """How many rows the table has."""
    return WITHOUT_COLUMNS + sum(sites + 2 + (pretraining is not None) for _, pretraining in runs.values())


def _networks(
    run: RunConfig,
    pretraining: PretrainingConfig | None,
    sites: Sequence[Site],
    out: Path,
    *,
    table: baseline.Features,
    seed: int,
    backend: Backend,
    tell: Callable[[str], None],
) -> Iterator[tuple[str, Chances]]:
    """Column and its chances, one by one."""
    weights, initial = b"", None
    if pretraining is not None:
        tell(f"seed {seed}, pretraining")
        weights, initial = pretrain(
            _seeded(run, seed), pretraining, out.parent / "pretraining", device=sites[0].config.device
        )
    for column in columns(run, sites, out, seed=seed, config=CompareConfig(), initial=initial):
        folder = out / "models" / f"{column.name.replace(': ', '-')}-{seed}"
        answered = answer_all(column, sites, folder, initial=weights, backend=backend, tell=tell)
        yield column.name, _chances(answered, run, table)


def _chances(answered: Sequence[Answered], run: RunConfig, table: baseline.Features) -> Chances:
    """Of the second class, for the rows of the table."""
    assert isinstance(run.task, Classification)  # noqa: S101 - `_check` saw to it
    keys, chances = [], []
    for one in answered:
        of_case = run.task.chances(one.counts[:, :-1])[:, -1].tolist()
        keys += [(one.patient, one.case, number, mark == 2) for number, mark in enumerate(one.counts[:, -1].tolist())]
        chances += of_case
    if keys != [(row.patient, row.case, row.number, row.positive) for row in table.rows]:
        raise FederationError(
            f"the network answered {len(keys)} regions, features were counted of {len(table.rows)}, and they must be "
            "the same in the same order. Remove the results and start again."
        )
    return np.array(chances)


def _seeded(run: RunConfig, seed: int) -> RunConfig:
    changes = {"seed": seed, "privacy": None}
    return validate(RunConfig, run.model_copy(update=changes).model_dump(by_alias=True), "the scenario")


def check(run: RunConfig) -> None:
    """Refuse a run that no diagnosis can be of.

    Raises:
        ConfigError: it does not classify regions of two classes in folds.
    """
    task = run.task
    if not isinstance(task, Classification) or not task.of_regions or len(run.data.classes) != 2:
        raise ConfigError(
            "a diagnosis is of regions of two classes. Set task.kind 'classification' with of 'region' below [run], "
            "and name two in data.classes, the one to be found last."
        )
    if run.data.folds is None:
        raise ConfigError("the run has no folds. Set folds in [run.data], or give --folds.")


def _write(out: Path, result: Diagnosis) -> None:
    found, apart = result.scores(), result.differences()
    lines = {
        "classes": result.classes,
        "seeds": result.seeds,
        "folds": result.folds,
        "facts": result.facts(),
        "rows": as_data(found),
        "differences": {name: {"value": one.value, "low": one.low, "high": one.high} for name, one in apart.items()},
        "regions": [
            {"patient": str(patient), "positive": bool(positive)}
            | {name: [round(float(one[place]), 6) for one in chances] for name, chances in result.chances.items()}
            for place, (patient, positive) in enumerate(
                zip(result.regions.patients, result.regions.positive, strict=True)
            )
        ],
    }
    write_atomically(out / f"{NAME}.json", f"{json.dumps(lines, indent=1)}\n".encode())
    below = [f"AUROC of {name}: {told(one)}" for name, one in apart.items()]
    listed = "\n".join(f"- {line}" for line in below)
    write_atomically(
        out / f"{NAME}.md", f"{result.facts()}\n\n{tables.markdown(*summary_rows(found))}\n\n{listed}\n".encode()
    )
    head, rows = summary_rows(found)
    page = render(
        "simulations/studies/study.html",
        title="Diagnosis",
        headline=f"{' or '.join(result.classes)}: out-of-fold answers",
        above=result.facts(),
        columns=head,
        rows=rows,
        further=(),
        below=below,
        plots=(),
    )
    write_atomically(out / "report.html", page.encode())


__all__ = ["Diagnosis", "check", "diagnose", "rows_of"]
