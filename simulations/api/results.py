"""What a simulation and a comparison give: frozen, in numpy arrays and plain values.

Scores are ratios in [0, 1], higher is better, as docs/run.md has them under [task]; NaN stands where a site has none.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from common.config import RunConfig
from common.learning.checkpoint import WEIGHTS_NAME
from server.federation.events import JOURNAL_NAME, Summary, read_events
from server.views.report import REPORT_NAME
from simulations.studies.comparison import Result, verdict

# In the curves, what the sites have together: their mean.
OVERALL = "overall"

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Simulation:
    """A scenario that has been trained.

    Attributes:
        name: of the run.
        run_hash: SHA-256 (hex) of its canonical settings.
        headline: the score that stands for all, such as "dice".
        rounds: (R,) int64, the rounds after which the model was scored on validation patients, rising.
        curves: score -> site, or "overall" for the mean of the sites -> (R,) float64 over `rounds`.
        losses: site -> (T,) float64, the mean training loss of each round that it trained in, in their order.
        scores: site -> score -> value, of the kept model on the site's test patients.
        mean: score -> mean of the sites.
        epsilon: site -> what its patients' privacy has cost; None: the run has no differential privacy.
        folder: of all that was written.
        model: the weights, safetensors; beside it model.json says of which run.
        report: a page for a browser.
        seconds: from the first round to the last score; of a run that was resumed of all its parts.
    """

    name: str
    run_hash: str
    headline: str
    rounds: npt.NDArray[np.int64] = field(repr=False)
    curves: Mapping[str, Mapping[str, Floats]] = field(repr=False)
    losses: Mapping[str, Floats] = field(repr=False)
    scores: Mapping[str, Mapping[str, float]]
    mean: Mapping[str, float]
    epsilon: Mapping[str, float] | None
    folder: Path
    model: Path
    report: Path
    seconds: float


@dataclass(frozen=True, eq=False)
class Comparison:
    """Models of one scenario, each site alone, pooled, federated and so on, on the same test patients.

    Attributes:
        headline: the score that is compared.
        models: M names, such as "federated".
        seeds: N seeds.
        sites: S sites, on whose test patients each model is scored.
        scores: (M, N, S) float64, the headline score.
        epsilon: (M, N) float64, the largest of the sites; NaN for a model without differential privacy.
        ratios: such as "federated / pooled", of means over sites and seeds.
        folder: of all that was written; compare.json there has every score.
        report: a page for a browser.
    """

    headline: str
    models: tuple[str, ...]
    seeds: tuple[int, ...]
    sites: tuple[str, ...]
    scores: Floats = field(repr=False)
    epsilon: Floats = field(repr=False)
    ratios: Mapping[str, float]
    folder: Path
    report: Path


def simulation_of(out: Path, run: RunConfig, summary: Summary) -> Simulation:
    """What a finished run's folder and summary say."""
    events = read_events(out / JOURNAL_NAME)
    validated = [one for one in events if (one["event"], one.get("phase")) == ("evaluate", "validation")]
    rounds = sorted({int(one["round"]) for one in validated})
    sites = list(dict.fromkeys([*summary.scores["test"]["sites"], *(str(one["site"]) for one in validated)]))
    names = [name for name in run.task.SCORES if any(name in one for one in validated)]
    at = {(str(one["site"]), int(one["round"])): one for one in validated}
    curves = {
        name: {site: np.array([_score(at.get((site, number), {}), name) for number in rounds]) for site in sites}
        for name in names
    }
    trained = [one for one in events if one["event"] == "train" and "train-loss" in one]
    losses = {
        site: np.array([float(one["train-loss"]) for one in trained if one["site"] == site])
        for site in dict.fromkeys(str(one["site"]) for one in trained)
    }
    test = summary.scores["test"]
    stated = None if summary.guarantee is None else summary.guarantee["sites"]
    return Simulation(
        name=run.name,
        run_hash=summary.run_hash,
        headline=run.task.headline,
        rounds=np.array(rounds, np.int64),
        curves=curves,
        losses=losses,
        scores={site: _floats(values) for site, values in test["sites"].items()},
        mean=_floats(test["mean-of-sites"]),
        epsilon=None if stated is None else {site: float(one["epsilon"]) for site, one in stated.items()},
        folder=out,
        model=out / WEIGHTS_NAME,
        report=out / REPORT_NAME,
        seconds=summary.seconds,
    )


def comparison_of(out: Path, run: RunConfig, results: Sequence[Result]) -> Comparison:
    """What the results of a comparison say."""
    models = tuple(dict.fromkeys(one.column for one in results))
    seeds = tuple(dict.fromkeys(one.seed for one in results))
    sites = tuple(results[0].scores)
    by_place = {(one.column, one.seed): one for one in results}
    headline = run.task.headline
    scores = [
        [[_score(by_place[model, seed].scores[site], headline) for site in sites] for seed in seeds] for model in models
    ]
    epsilon = [[by_place[model, seed].epsilon for seed in seeds] for model in models]
    return Comparison(
        headline=headline,
        models=models,
        seeds=seeds,
        sites=sites,
        scores=np.array(scores, np.float64),
        epsilon=np.array(epsilon, np.float64),
        ratios=verdict(results, run.task),
        folder=out,
        report=out / REPORT_NAME,
    )


def _score(values: Mapping[str, Any], name: str) -> float:
    return float(values.get(name, np.nan))


def _floats(values: Mapping[str, Any]) -> dict[str, float]:
    return {name: float(value) for name, value in values.items()}


__all__ = ["OVERALL", "Comparison", "Simulation", "comparison_of", "simulation_of"]
