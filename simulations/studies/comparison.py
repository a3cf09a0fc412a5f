"""What a comparison found: its table, the ratios that matter, a page and a plot.

A row is a test site, then means over the sites and what the models cost; a column is a model. Written into the
comparison's folder as compare.json, .md, .png, .svg and report.html, and as tables.py and paired.py say.
"""

import dataclasses
import json
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common.config import RunConfig
from common.pages.html import picture, render
from common.system.files import write_atomically
from common.tasks import Task
from server.federation.events import mean_of_sites, not_scored
from server.views.heterogeneity import COLUMNS
from simulations.studies import paired, tables
from simulations.studies.tables import Score, signed, spread

ALONE = "alone: {}"
POOLED = "pooled"
FEDERATED = "federated"
WITHOUT = "federated without {}"
ZERO_SHOT = "zero-shot"
PRIVATE = "federated, epsilon {:g}"
PRIVATE_POOLED = "pooled, epsilon {:g}"
MEAN, WORST = "mean of sites", "worst site"


@dataclass(frozen=True)
class Result:
    """One trained model and its scores on every site's test patients."""

    column: str
    seed: int
    run_hash: str
    scores: dict[str, dict[str, float]]  # test site -> metrics
    steps: int  # sequential optimiser steps behind the model
    images: int  # training crops seen, over all sites; with privacy, as expected from the sampling
    seconds: float  # training and its evaluation
    epsilon: float | None  # largest over the sites
    model_sha256: str


@dataclass(frozen=True)
class Measure:
    """How models of a task are compared: by the headline score, mean of the sites."""

    task: Task

    @property
    def name(self) -> str:
        """As it is read at the start of a line."""
        return self.task.headline.capitalize()

    def on(self, site: str, results: Iterable[Result]) -> list[float]:
        """Of each result; empty for a site none of whose test patients has any class."""
        headline = self.task.headline
        return [result.scores[site][headline] for result in results if headline in result.scores[site]]

    def mean(self, result: Result) -> float:
        """Mean of the sites that have it."""
        return mean_of_sites(result.scores, self.task)[self.task.headline]

    def worst(self, result: Result) -> float:
        """The lowest of the sites that have it."""
        return min(value for site in result.scores for value in self.on(site, [result]))

    def merged(self, result: Result) -> float | None:
        """Of all classes taken as one; None where the task has no such score."""
        return None if self.task.MERGED is None else mean_of_sites(result.scores, self.task)[self.task.MERGED]


def summary_rows(results: Sequence[Result], task: Task) -> tuple[list[str], list[list[object]]]:
    """The comparison as a table: one line per test site, then means and costs; one column per model.

    Returns:
        Column names and rows; a cell is the mean over the seeds, with its range where there are several.
    """
    names, measure = list(dict.fromkeys(result.column for result in results)), Measure(task)
    by_name = {name: [result for result in results if result.column == name] for name in names}
    rows: list[list[object]] = [
        [f"{measure.name} on {site}", *(spread(measure.on(site, by_name[name])) for name in names)]
        for site in results[0].scores
    ]
    for kind, value in ((MEAN, measure.mean), (WORST, measure.worst)):
        rows.append([f"{measure.name}, {kind}", *(spread(map(value, by_name[name])) for name in names)])
    merged = [[one for r in by_name[name] if (one := measure.merged(r)) is not None] for name in names]
    if any(merged) and any(measure.merged(result) != measure.mean(result) for result in results):
        rows.append([f"{measure.name} of all classes as one, {MEAN}", *map(spread, merged)])
    rows.append(["epsilon", *(_epsilon(by_name[name]) for name in names)])
    rows.append(["optimiser steps in sequence", *(by_name[name][0].steps for name in names)])
    rows.append(["images seen", *(by_name[name][0].images for name in names)])
    rows.append(["seconds", *(f"{statistics.fmean(r.seconds for r in by_name[name]):.0f}" for name in names)])
    return ["", *names], rows


def benefit_rows(results: Sequence[Result], task: Task) -> tuple[list[str], list[list[object]]]:
    """What each site has of taking part, and what the others have of it: differences of the headline score.

    Returns:
        Column names and rows, one for each test site; a cell is the mean over the seeds, with its range. Columns whose
        models were not trained are left out, and without any there is no row.
    """
    measure = Measure(task)
    by_name = {(result.column, result.seed): result for result in results}
    seeds = sorted({result.seed for result in results})

    def gain(site: str, other: str, on: Iterable[str]) -> list[float]:
        """Federated less the other model, for each seed, mean of those test sites."""
        found = []
        for seed in seeds:
            pair = by_name.get((FEDERATED, seed)), by_name.get((other.format(site), seed))
            scores = [(measure.on(one, filter(None, pair))) for one in on]
            differences = [both[0] - both[1] for both in scores if len(both) == 2]
            found += [statistics.fmean(differences)] if differences else []
        return found

    sites = list(results[0].scores)
    about = {
        "federated less alone": {site: gain(site, ALONE, [site]) for site in sites},
        "federated less without it, at the site": {site: gain(site, WITHOUT, [site]) for site in sites},
        "the same, mean of the others": {site: gain(site, WITHOUT, [s for s in sites if s != site]) for site in sites},
    }
    known = {name: values for name, values in about.items() if any(values.values())}
    rows: list[list[object]] = [[site, *(signed(values[site]) for values in known.values())] for site in sites]
    return [f"what {measure.name} gains", *known], rows if known else []


def site_rows(results: Sequence[Result]) -> list[Score]:
    """Every score of every model and site, in the long form."""
    return [row for one in results for row in tables.of_sites(one.column, one.seed, "test", one.scores)]


def as_data(results: Sequence[Result], task: Task) -> dict[str, Any]:
    """The comparison as numbers: each model with its scores, and the ratios that matter."""
    models = [{key.replace("_", "-"): value for key, value in dataclasses.asdict(one).items()} for one in results]
    return {"models": models, "ratios": verdict(results, task)}


def verdict(results: Sequence[Result], task: Task) -> dict[str, float]:
    """The ratios that matter: federated to pooled and to the best single site, private to plain; means over seeds.

    One to a model that finds nothing, whose score is 0, is left out.
    """

    def mean(name: str) -> float:
        return statistics.fmean(Measure(task).mean(result) for result in results if result.column == name)

    names = list(dict.fromkeys(result.column for result in results))
    alone = [name for name in names if name.startswith(ALONE.format(""))]
    pairs = {"federated / pooled": (mean(FEDERATED), mean(POOLED))}
    if alone:
        pairs["federated / best alone"] = mean(FEDERATED), max(map(mean, alone))
    for name in names:
        plain = name.partition(", ")[0]
        if name != plain:
            pairs[f"{name} / {plain}"] = mean(name), mean(plain)
    return {name: over / under for name, (over, under) in pairs.items() if under}


def write(
    out: Path,
    run: RunConfig,
    results: Sequence[Result],
    unlike: Sequence[Sequence[object]] = (),
    patients: Sequence[Score] = (),
) -> None:
    """Write all files; see the module.

    Args:
        out: the comparison's folder.
        run: the scenario's.
        results: of all columns and seeds.
        unlike: how unlike the sites are by the federated run of the first seed (server/views/heterogeneity.py).
        patients: scores of single test patients; every model is compared with the federated one on them.
    """
    head, rows = summary_rows(results, run.task)
    ratios = verdict(results, run.task)
    seeds = sorted({result.seed for result in results})
    values = {"name": run.name, "seeds": seeds, "ratios": ratios, "results": [dataclasses.asdict(r) for r in results]}
    write_atomically(out / "compare.json", f"{json.dumps(values, indent=2)}\n".encode())
    told = [f"{name}: {value:.3f}" for name, value in ratios.items()]
    lacking = not_scored(results[0].scores, run.task)
    gains = benefit_rows(results, run.task)
    differ = [*COLUMNS], [[*row] for row in unlike]
    facts = f"Seeds {', '.join(map(str, seeds))}. {'; '.join(told)}.{f' {lacking}' if lacking else ''}"
    write_atomically(
        out / "compare.md",
        f"# {run.name}\n\n{facts}\n\n{tables.markdown(head, rows)}\n{_below(gains)}{_below(differ)}".encode(),
    )
    names = dict.fromkeys(result.column for result in results)
    pairs = paired.paired(patients, [(name, FEDERATED) for name in names if name != FEDERATED], run.task)
    paired.write(out, run.name, pairs)
    tables.write(out, "compare", f"{run.name}: {facts}", (head, rows), scores=site_rows(results), patients=patients)
    _plot(out, run, results)
    further = [one for one in (gains, differ, paired.summary(pairs)) if one[1]]
    page = render(
        "simulations/studies/study.html",
        title=f"Comparison {run.name}",
        headline=f"{run.name}: what federating gains",
        above=facts,
        columns=head,
        rows=rows,
        below=(),
        further=[{"columns": columns, "rows": cells} for columns, cells in further],
        plots=[picture(out / "compare.png")],
    )
    write_atomically(out / "report.html", page.encode())


def _plot(out: Path, run: RunConfig, results: Sequence[Result]) -> None:
    """One group per model: a bar for the mean of the sites, a mark per test site and seed."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # noqa: PLC0415 - 0.5 s, needed once
    from matplotlib.figure import Figure  # noqa: PLC0415

    names, measure = list(dict.fromkeys(result.column for result in results)), Measure(run.task)
    figure = Figure(figsize=(1.6 * len(names) + 2, 4), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    means = [statistics.fmean(measure.mean(result) for result in results if result.column == name) for name in names]
    bars = axes.bar(range(len(names)), means, color="#d8dee6", width=0.7, label=MEAN)
    axes.bar_label(bars, fmt="%.3f", label_type="center", fontsize=9)  # clear of the marks
    for number, site in enumerate(results[0].scores):
        scored = [result for result in results if run.task.headline in result.scores[site]]
        places = [names.index(result.column) + 0.12 * (number - 1) for result in scored]
        axes.plot(places, measure.on(site, scored), "o", markersize=5, label=site)
    axes.set_xticks(range(len(names)), [name.replace(", ", ",\n").replace(": ", ":\n") for name in names])
    axes.set_ylabel(f"{measure.name} on test patients")
    axes.set_title(f"{run.name}: each model on every site's test patients", loc="left")
    axes.set_ylim(0, 1)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(loc="upper left", bbox_to_anchor=(1, 1), frameon=False)
    figure.savefig(out / "compare.png", dpi=130)
    figure.savefig(out / "compare.svg")


def _below(table: tuple[list[str], list[list[object]]]) -> str:
    return f"\n{tables.markdown(*table)}\n" if table[1] else ""


def _epsilon(results: Sequence[Result]) -> str | None:
    spent = [result.epsilon for result in results if result.epsilon is not None]
    return f"{max(spent):.2f}" if spent else None


__all__ = ["Measure", "Result", "as_data", "benefit_rows", "site_rows", "summary_rows", "verdict", "write"]
