"""What does federating gain, and what does it cost? Each site alone, pooled, federated, federated with privacy.

Every column is the same run with other sites behind it, through the same `federate`: the same network and initial
weights, the same number of sequential optimiser steps, the same learning rate schedule. A federated model sees as
many images per step as it has sites, the others one batch; the table says so. Private columns may have steps of their
own. Where the scenario pretrains on generated images, every model starts from those weights, and a column "zero-shot"
shows what they can do untrained. Every final model is scored on the same
held-out patients of every site: the split depends on the seed and the patient alone, and the pooled site splits each
source as its hospital does.

A column that is finished is kept in its folder, so that an interrupted comparison goes on.
"""

import dataclasses
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

from client.site import Site
from common.config import InitialConfig, RunConfig, SiteConfig, SourceConfig, validate
from common.config.rundocument import issue
from common.errors import ConfigError, FederationError
from common.learning.checkpoint import WEIGHTS_NAME, sha256
from common.strategies import STRATEGY_CHOICE
from common.system.files import write_atomically
from common.wire.messages import EvaluateReply, EvaluateRequest
from server.federation.broadcast import ask
from server.federation.events import INITIAL_NAME, JOURNAL_NAME, read_events, read_summary
from server.federation.members import GridMembers
from server.federation.rounds import federate
from server.views.heterogeneity import heterogeneity_of
from simulations.backends import Backend, opened
from simulations.faults import Fault
from simulations.faults.faulty_grid import FaultyGrid
from simulations.scenarios.homes import make_site
from simulations.scenarios.pretraining import PretrainingConfig, pretrain
from simulations.scenarios.scenario import CompareConfig
from simulations.studies import tables
from simulations.studies.comparison import (
    ALONE,
    FEDERATED,
    MEAN,
    POOLED,
    PRIVATE,
    PRIVATE_POOLED,
    WITHOUT,
    ZERO_SHOT,
    Measure,
    Result,
    write,
)
from simulations.studies.patients import kept_scores, score_patients
from simulations.studies.tables import Score

Tell: TypeAlias = Callable[[str], None]

_FAULT = "fault"  # of a kept result, beside what `Result` holds


@dataclass(frozen=True)
class Column:
    """One model: a name, the run, and the sites that train it; none for the initial weights as they are."""

    name: str
    run: RunConfig
    sites: tuple[Site, ...]
    fault: Fault | None = None  # what some of the sites do wrong


def compare(
    run: RunConfig,
    sites: Sequence[Site],
    out: Path,
    *,
    seeds: Sequence[int],
    config: CompareConfig | None = None,
    pretraining: PretrainingConfig | None = None,
    published: SourceConfig | None = None,
    backend: Backend = opened,
    tell: Tell = lambda _: None,
    finished: Callable[[int, str], None] = lambda _done, _note: None,
) -> list[Result]:
    """Train and score every column for every seed; write compare.json, report.html and tables into `out`.

    Args:
        run: the scenario's run; its privacy table is left out except in the private columns.
        sites: the hospitals.
        out: results; finished columns found here are not trained again.
        seeds: one model of each column for each.
        config: which columns; None: no private one.
        pretraining: what all models start from; None: random weights.
        published: images of patients at no site, for pretraining.
        backend: where the sites work.
        tell: told what is going on.
        finished: told how many models are done, and which was last.
    """
    if len(sites) < 2:
        raise ConfigError(f"a comparison needs at least two sites, got {len(sites)}. Add sites to the scenario.")
    results: list[Result] = []
    for seed in seeds:
        weights, initial = b"", None
        if pretraining is not None:
            tell(f"seed {seed}, pretraining")
            weights, initial = pretrain(
                plain(run, seed, None),
                pretraining,
                out / "pretraining",
                published=published,
                device=sites[0].config.device,
            )
        for column in columns(run, sites, out, seed=seed, config=config, initial=initial):
            tell(f"seed {seed}, {column.name}")
            results.append(trained(column, sites, out, tell=tell, initial_weights=weights, backend=backend))
            finished(len(results), f"{column.name}: {MEAN} {Measure(run.task).mean(results[-1]):.3f}")
    write(out, run, results, unlike_rows(_place(out, FEDERATED, seeds[0])), patient_rows(out, results))
    return results


def unlike_rows(folder: Path) -> list[list[object]]:
    """How unlike the sites of a run are, by what left them; from its folder."""
    summary = read_summary(folder) or {}
    return [one.row for one in heterogeneity_of(summary, read_events(folder / JOURNAL_NAME))]


def patient_rows(out: Path, results: Sequence[Result]) -> list[Score]:
    """The scores of single test patients of trained models, in the long form; from their folders."""
    return [
        row
        for one in results
        for row in tables.of_patients(one.column, one.seed, kept_scores(_place(out, one.column, one.seed)))
    ]


def columns(
    run: RunConfig,
    sites: Sequence[Site],
    out: Path,
    *,
    seed: int,
    config: CompareConfig | None = None,
    initial: InitialConfig | None = None,
) -> list[Column]:
    """The models to compare, in the order of the table."""
    config = config or CompareConfig()
    sources = tuple(source for site in sites for source in site.config.data)
    pooled = make_site(
        out / "pooled", SiteConfig(format=SiteConfig.LATEST, name=POOLED, data=sources, device=sites[0].config.device)
    )
    together, one = tuple(sites), (pooled,)
    base = plain(run, seed, initial)
    if columns_with_privacy := config.private_runs(base):
        # All models are scored on the same patients, and private runs split patients in one way only.
        data = base.data.model_copy(update={"split": columns_with_privacy[0].split})
        base = base.model_copy(update={"data": data})
    found = [] if initial is None else [Column(ZERO_SHOT, base, ())]
    if config.alone:
        found += [Column(ALONE.format(site.config.name), _with_quorum(base, 1), (site,)) for site in sites]
    found += [Column(POOLED, _with_quorum(base, 1), one), Column(FEDERATED, _with_quorum(base, len(sites)), together)]
    if config.leave_one_out:
        for site in sites:
            others = tuple(one for one in sites if one is not site)
            found.append(Column(WITHOUT.format(site.config.name), _with_quorum(base, len(others)), others))
    for private in config.private_runs(base):
        assert private.privacy is not None  # noqa: S101 - for the type checker
        epsilon = private.privacy.target_epsilon
        found.append(Column(PRIVATE.format(epsilon), _with_quorum(private, len(sites)), together))
        if config.private_pooled:
            found.append(Column(PRIVATE_POOLED.format(epsilon), _with_quorum(private, 1), one))
    return found


def plain(run: RunConfig, seed: int, initial: InitialConfig | None) -> RunConfig:
    """The scenario's run without privacy, for a seed; scored at its end only."""
    # Only the end counts here; scoring every round would cost more than it tells.
    ends = {"evaluate_every": run.federation.rounds, "keep": "last", "patience": None, "cross_site": False}
    federation = run.federation.model_copy(update=ends)
    changes = {"seed": seed, "privacy": None, "initial": initial, "federation": federation}
    return validate(RunConfig, run.model_copy(update=changes).model_dump(by_alias=True), "the scenario")


def _with_quorum(run: RunConfig, sites: int) -> RunConfig:
    """All that a round asks must be in it. Of one site no strategy makes more than its own model."""
    quorum = min(sites, run.federation.sites_per_round or sites)
    federation = run.federation.model_copy(update={"quorum": quorum})
    strategy = STRATEGY_CHOICE.default() if sites == 1 else run.strategy
    return run.model_copy(update={"federation": federation, "strategy": strategy})


def folder_of(out: Path, column: Column) -> Path:
    """Where the model lies in the comparison's folder."""
    return _place(out, column.name, column.run.seed)


def _place(out: Path, name: str, seed: int) -> Path:
    return out / "models" / f"{name.replace(': ', '-').replace(', ', '-')}-{seed}"


def trained(
    column: Column,
    sites: Sequence[Site],
    out: Path,
    *,
    tell: Tell = lambda _: None,
    initial_weights: bytes = b"",
    backend: Backend = opened,
) -> Result:
    """Train a column's model and score it; what is kept of it in `out` is not trained again.

    Args:
        column: the model.
        sites: on whose test patients it is scored.
        out: of the comparison; the model lies under models/.
        tell: told what is going on.
        initial_weights: what it starts from, where its run names some.
        backend: where the sites work.

    Raises:
        ConfigError: the folder holds another run, or one with another fault; or its sites stop by time.
    """
    if column.run.training.local_seconds is not None:
        raise ConfigError(
            "models are compared after as many steps each, and training.local-seconds leaves their number to a clock. "
            "Take it out of the run; local-steps stays."
        )
    folder = folder_of(out, column)
    kept = folder / "result.json"
    document = issue(column.run)
    fault = None if column.fault is None else column.fault.model_dump(mode="json", exclude_unset=True)
    if kept.exists():
        told = json.loads(kept.read_text(encoding="utf-8"))
        wrong = told.pop(_FAULT, fault)  # an earlier version did not say
        result = Result(**told)
        if result.run_hash != document.hash or wrong != fault:
            raise ConfigError(f"{folder} holds another run. Give another --out, or remove that folder.")
        # One that an earlier version trained has none of single patients yet.
        score_patients(column.run, sites, folder, _weights(folder, column))
        return result
    if column.run.initial is not None:
        write_atomically(folder / INITIAL_NAME, initial_weights)
    for site in column.sites:
        site.cohort(column.run)  # reading images is not training
    start = time.monotonic()
    epsilon, weights = _train(column, folder, tell, backend) if column.sites else (None, initial_weights)
    result = Result(
        column=column.name,
        seed=column.run.seed,
        run_hash=document.hash,
        scores=_test_scores(column.run, sites, weights, backend),
        steps=column.run.federation.rounds * column.run.training.local_steps if column.sites else 0,
        images=_images_seen(column),
        seconds=time.monotonic() - start,
        epsilon=epsilon,
        model_sha256=sha256(weights),
    )
    score_patients(column.run, sites, folder, weights)
    write_atomically(kept, json.dumps(dataclasses.asdict(result) | {_FAULT: fault}, indent=2).encode())
    return result


def _train(column: Column, folder: Path, tell: Tell, backend: Backend) -> tuple[float | None, bytes]:
    """Epsilon, largest over the sites, and the weights."""
    rounds = column.run.federation.rounds

    def observe(event: dict[str, Any]) -> None:
        if event["event"] == "round":
            tell(f"seed {column.run.seed}, {column.name}: round {event['round']}/{rounds}")

    document = issue(column.run)
    with backend(column.sites, document) as grid:
        faulty = grid if column.fault is None else FaultyGrid(grid, column.fault, column.run)
        summary = federate(faulty, document, folder, observe=observe)
    stated = (summary.guarantee or {}).get("sites", {}).values()
    epsilon = max((float(one["epsilon"]) for one in stated), default=None)
    return epsilon, _weights(folder, column)


def _weights(folder: Path, column: Column) -> bytes:
    """The model in its folder: trained, or as it was given where nobody trains it."""
    return (folder / (WEIGHTS_NAME if column.sites else INITIAL_NAME)).read_bytes()


def _test_scores(
    run: RunConfig, sites: Sequence[Site], weights: bytes, backend: Backend
) -> dict[str, dict[str, float]]:
    """Scores of a model on the test patients of every site, asked for as in a deployed run.

    A private model too is scored by the rules of a plain run: the columns must not differ by how they are measured.
    """
    document = issue(run.model_copy(update={"privacy": None}))
    request = EvaluateRequest(document.hash, run.federation.rounds, "test", {run.strategy.MODEL: weights})
    scores: dict[str, dict[str, float]] = {}
    with backend(sites, document) as grid:
        answers = list(ask(grid, GridMembers(grid), request, timeout_s=run.federation.round_timeout_s))
    for answer in answers:
        if not isinstance(answer.reply, EvaluateReply):
            raise FederationError(
                f"site {answer.site} has no test scores ({answer.reply}). Every site needs at least one test patient; "
                "with private columns each patient is placed by itself, so few may leave none. Give another seed."
            )
        scores[answer.site] = answer.reply.metrics
    if not any(run.task.headline in one for one in scores.values()):
        raise FederationError("no test patient of any site has a class of this run. Add patients who have one.")
    return {site.config.name: scores[site.config.name] for site in sites}


def _images_seen(column: Column) -> int:
    run, steps = column.run, column.run.federation.rounds * column.run.training.local_steps
    asked = min(len(column.sites), run.federation.sites_per_round or len(column.sites))
    if run.privacy is None:
        return steps * run.training.batch_size * asked
    patients = sum(len(site.cohort(run).patients("train")) for site in column.sites)
    share = asked / max(1, len(column.sites))  # of the sites, in a round
    return round(steps * run.privacy.sampling_rate * patients * run.privacy.crops_per_patient * share)


__all__ = ["Column", "Tell", "columns", "compare", "folder_of", "patient_rows", "plain", "trained"]
