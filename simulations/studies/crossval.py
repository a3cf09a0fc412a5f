"""How far does a score depend on who was held out? One federation per fold, so that every patient is tested once.

Fold k is the scenario's run with `folds` and `fold` set in its [run.data], and nothing else: `wardround-sim run` of
that run gives the same model. Each site deals its own patients into folds (client/data/keep/split.py).

The spread is the sample standard deviation over the folds. It tells how scores scatter; it is no standard error of
their mean, because any two folds share training patients (Bengio and Grandvalet, JMLR 2004).

A fold that is finished is kept in its folder, so that an interrupted cross-validation goes on.
"""

import dataclasses
import json
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from client.site import Site
from common.config import RunConfig
from common.config.rundocument import issue
from common.errors import ConfigError, FederationError
from common.learning.checkpoint import WEIGHTS_NAME
from common.pages.html import render
from common.system.files import write_atomically
from common.tasks import Task
from server.federation.events import INITIAL_NAME, SUMMARY_NAME, Observe, mean_of_sites, not_scored
from server.federation.rounds import federate
from server.views.report import write_report
from simulations.backends import Backend, opened
from simulations.studies import tables
from simulations.studies.patients import kept_scores, score_patients

MEAN_OF_SITES = "mean of sites"

Scores: TypeAlias = dict[str, float]


@dataclass(frozen=True)
class Fold:
    """One trained model and its scores on each site's patients of that fold."""

    number: int
    run_hash: str
    model_sha256: str
    scores: dict[str, Scores]  # site -> metrics


def fold_runs(run: RunConfig) -> list[RunConfig]:
    """The run under each of its fold numbers.

    Raises:
        ConfigError: the run has no folds.
    """
    if run.data.folds is None:
        raise ConfigError("the run has no folds. Set folds in [run.data], or give --folds.")
    data = [run.data.model_copy(update={"fold": fold}) for fold in range(run.data.folds)]
    return [run.model_copy(update={"data": one}) for one in data]


def cross_validate(
    run: RunConfig,
    sites: Sequence[Site],
    out: Path,
    *,
    backend: Backend = opened,
    observe: Callable[[int], Observe] = lambda _fold: lambda _event: None,
    finished: Callable[[int, str], None] = lambda _done, _note: None,
) -> list[Fold]:
    """Train and score every fold; write fold-<number>/, crossval.json, report.html and tables into `out`.

    Args:
        run: the scenario's run, with folds.
        sites: the hospitals.
        out: results; finished folds found here are not trained again. Where the run names its first weights, they lie
            here too: the same for every fold, and of no patient.
        backend: where the sites work.
        observe: given a fold number, what to call with each event of its journal.
        finished: told how many folds are done, and the score of the last.

    Raises:
        ConfigError: a site has fewer patients than folds, or `out` holds another run.
        FederationError: a round failed, or a site did not score its patients.
    """
    runs = fold_runs(run)
    for site in sites:
        patients = site.cohort(runs[0]).size
        if patients < len(runs):
            raise ConfigError(
                f"site {site.config.name} has {patients} usable patients, too few for {len(runs)} folds. Set --folds "
                "to at most the patients of the smallest site, or add patients there."
            )
    results: list[Fold] = []
    for number, one in enumerate(runs):
        results.append(_fold(number, one, sites, out / f"fold-{number}", observe(number), backend=backend))
        headline = run.task.headline
        score = mean_of_sites(results[-1].scores, run.task).get(headline)
        finished(len(results), f"fold {number}: test {headline} {'not scored' if score is None else f'{score:.3f}'}")
    _write(out, run, results)
    return results


def by_site(results: Sequence[Fold], task: Task) -> dict[str, list[Scores]]:
    """Scores in the order of the folds: of each site, then the mean of the sites."""
    sites = {site: [fold.scores[site] for fold in results] for site in results[0].scores}
    return sites | {MEAN_OF_SITES: [mean_of_sites(fold.scores, task) for fold in results]}


def mean(scores: Sequence[Scores]) -> Scores:
    """Mean of each score over the folds that have it: no fold scores a class that none of its patients has."""
    return {name: statistics.fmean(values) for name, values in _by_name(scores).items()}


def standard_deviation(scores: Sequence[Scores]) -> Scores:
    """Sample standard deviation of each score over the folds that have it, two or more (n - 1 in the denominator)."""
    return {name: statistics.stdev(values) for name, values in _by_name(scores).items() if len(values) > 1}


def summary_rows(results: Sequence[Fold], task: Task) -> tuple[list[str], list[list[object]]]:
    """The scores as a table: for each site one line per fold, then mean and standard deviation.

    Returns:
        Column names and rows.
    """
    found = {name for fold in results for scores in fold.scores.values() for name in scores}
    names = [name for name in task.SCORES if name in found]
    rows: list[list[object]] = []
    for site, scores in by_site(results, task).items():
        lines: list[tuple[object, Scores]] = [(fold.number, one) for fold, one in zip(results, scores, strict=True)]
        lines += [("mean", mean(scores)), ("standard deviation", standard_deviation(scores))]
        rows += [[site, label, *(values.get(name) for name in names)] for label, values in lines]
    return ["site", "fold", *names], rows


def _by_name(scores: Sequence[Scores]) -> dict[str, list[float]]:
    names = dict.fromkeys(name for one in scores for name in one)
    return {name: [one[name] for one in scores if name in one] for name in names}


def _fold(
    number: int, run: RunConfig, sites: Sequence[Site], folder: Path, observe: Observe, *, backend: Backend
) -> Fold:
    summary = folder / SUMMARY_NAME
    document = issue(run)
    kept = json.loads(summary.read_text(encoding="utf-8")) if summary.exists() else None
    if kept is not None and kept["run-hash"] != document.hash:
        raise ConfigError(f"{folder} holds another run. Give another --out, or remove that folder.")
    if kept is None or kept["status"] != "completed":
        _check_test_patients(number, run, sites)
        if run.initial is not None:
            write_atomically(folder / INITIAL_NAME, (folder.parent / INITIAL_NAME).read_bytes())
        with backend(sites, document) as grid:
            federate(grid, document, folder, observe=observe)
        kept = json.loads(summary.read_text(encoding="utf-8"))
    write_report(folder)
    scores = kept["scores"].get("test", {}).get("sites", {})
    absent = [site.config.name for site in sites if site.config.name not in scores]
    if absent:
        raise FederationError(
            f"fold {number} has no test scores of {', '.join(absent)}, expected those of every site. Its journal in "
            f"{folder} says why; remove that folder to train the fold again."
        )
    score_patients(run, sites, folder, (folder / WEIGHTS_NAME).read_bytes())
    return Fold(
        number, document.hash, kept["model-sha256"], {site.config.name: scores[site.config.name] for site in sites}
    )


def _check_test_patients(number: int, run: RunConfig, sites: Sequence[Site]) -> None:
    # A site deals each of its sources on its own: several small ones may leave a fold empty.
    empty = [site.config.name for site in sites if not site.cohort(run).patients("test")]
    if empty:
        raise ConfigError(
            f"fold {number} has no test patient at {', '.join(empty)}: each source of a site is dealt on its own, and "
            "all of them have fewer patients than there are folds. Lower --folds, or join the sources."
        )


def _write(out: Path, run: RunConfig, results: Sequence[Fold]) -> None:
    scores = by_site(results, run.task)
    values = {
        "name": run.name,
        "seed": run.seed,
        "folds": [dataclasses.asdict(fold) for fold in results],
        "mean": {site: mean(several) for site, several in scores.items()},
        "standard-deviation": {site: standard_deviation(several) for site, several in scores.items()},
    }
    write_atomically(out / "crossval.json", f"{json.dumps(values, indent=2, allow_nan=False)}\n".encode())
    facts = f"{len(results)} folds, seed {run.seed}. Every patient is tested once, by a model that never saw them."
    lacking = [f"Fold {fold.number}. {sentence}" for fold in results if (sentence := not_scored(fold.scores, run.task))]
    columns, rows = summary_rows(results, run.task)
    page = render(
        "simulations/studies/study.html",
        title=f"Cross-validation {run.name}",
        headline=f"{run.name}: cross-validation",
        above=facts,
        columns=columns,
        rows=rows,
        further=(),
        below=lacking,
        plots=(),
    )
    write_atomically(out / "report.html", page.encode())
    models = {fold.number: f"fold {fold.number}" for fold in results}
    tables.write(
        out,
        "crossval",
        f"{run.name}: cross-validation, {facts}",
        (columns, rows),
        scores=[row for fold in results for row in tables.of_sites(models[fold.number], run.seed, "test", fold.scores)],
        patients=[
            row
            for fold in results
            for row in tables.of_patients(models[fold.number], run.seed, kept_scores(out / f"fold-{fold.number}"))
        ],
    )


__all__ = ["Fold", "by_site", "cross_validate", "fold_runs", "mean", "standard_deviation", "summary_rows"]
