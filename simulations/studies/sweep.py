"""A seeded search for settings: many runs of a scenario, of which the best on the validation patients is chosen.

Trials are drawn by Optuna (https://optuna.org): its tree-structured Parzen estimator, at random, or all of a grid.
Trial n is drawn from the sweep's seed, n and the trials before it, so that a sweep which is interrupted and goes on
draws the same. One whose validation score after a round lies below the median of the others' there is given up.

No trial looks at a test patient. With `test` the best is trained once more as an ordinary run, and that one is scored
on them, once. The best of many validation scores is too good: what the test says is what to report, with how many were
tried. A trial that fails is kept with its reason, and the sweep goes on.
"""

import dataclasses
import itertools
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from client.site import Site
from common.config import RunConfig, canonical
from common.config.rundocument import issue
from common.errors import ConfigError, WardroundError
from common.system.files import write_atomically
from server.federation.events import JOURNAL_NAME, OVERALL, read_events
from server.federation.rounds import federate
from server.views.report import write_report
from simulations.backends import Backend, opened
from simulations.studies import tables
from simulations.studies.axes import Axis, in_grid, run_with
from simulations.studies.tables import Score

if TYPE_CHECKING:
    from optuna import Study, Trial

Sampler: TypeAlias = Literal["tpe", "random", "grid"]

STUDY_NAME, JSON_NAME, CSV_NAME, BEST_NAME = "study.log", "sweep.json", "sweep.csv", "best"
# Trials before the first is given up, and rounds of each: fewer say nothing of a median.
_FIRST_TRIALS, _FIRST_ROUNDS = 4, 1
# What a run may meet that is no fault of this program: settings that do not go together, and too little memory.
_FAILURES = (WardroundError, RuntimeError, MemoryError, ValueError)


@dataclass(frozen=True)
class Row:
    """One trial. state: complete, pruned or failed. score: of the validation patients, mean of sites."""

    trial: int
    state: str
    score: float | None
    rounds: int
    values: Mapping[str, Any]
    reason: str | None = None


@dataclass(frozen=True)
class Sweep:
    """What came of it. best: None where no trial was completed. test: scores of the best, where asked for."""

    rows: tuple[Row, ...]
    best: Row | None
    test: Mapping[str, Any] | None


def sweep(
    run: RunConfig,
    sites: Sequence[Site],
    out: Path,
    axes: Sequence[Axis],
    *,
    trials: int,
    sampler: Sampler = "tpe",
    seed: int = 0,
    test: bool = False,
    backend: Backend = opened,
    observe: Callable[[dict[str, Any]], None] = lambda _event: None,
    finished: Callable[[int, str], None] = lambda _done, _note: None,
) -> Sweep:
    """Try settings, and say which did best; write sweep.json, sweep.csv, tables and trials/ into `out`.

    Args:
        run: the scenario's run, which the axes change.
        sites: the hospitals.
        out: results; a sweep found here goes on.
        axes: what is varied; `simulations.studies.axes.check` has looked at them.
        trials: how many in all; with a grid at most.
        sampler: how they are drawn.
        seed: of the drawing; the runs keep theirs.
        test: score the best on the test patients, once, in `out`/best.
        backend: where the sites work.
        observe: called with the events of each trial's journal.
        finished: told how many trials are done, and how the last ended.

    Raises:
        ConfigError: `out` holds another sweep, or a range stands in a grid.
    """
    study = _study(run, out, axes, sampler, seed)
    if sampler == "grid":
        trials = min(trials, _enqueue_grid(study, axes))
    while (done := _done(study)) < trials:
        trial = _ask(study, axes, sampler, seed)
        _try(study, trial, run, sites, out=out, axes=axes, backend=backend, observe=observe)
        row = _rows(study, axes)[-1]
        score = "" if row.score is None else f" {run.task.headline} {row.score:.3f}"
        finished(done + 1, f"trial {row.trial}: {row.state}{score}")
    rows = tuple(_rows(study, axes))
    best = max((row for row in rows if row.state == "complete"), key=lambda row: row.score or 0.0, default=None)
    scores = _tested(run_with(run, best.values), sites, out / BEST_NAME, backend) if test and best is not None else None
    found = Sweep(rows, best, scores)
    _write(out, run, axes, found, seed=seed, sampler=sampler)
    return found


def counts(rows: Sequence[Row]) -> dict[str, int]:
    """How many trials ended how."""
    return {state: sum(row.state == state for row in rows) for state in ("complete", "pruned", "failed")}


def table(found: Sweep, axes: Sequence[Axis], headline: str) -> tuple[list[str], list[list[object]]]:
    """Columns and a row for each trial, the best first."""
    ranked = sorted(found.rows, key=lambda row: (row.state != "complete", -(row.score or 0.0), row.trial))
    keys = [axis.key for axis in axes]
    rows: list[list[object]] = [
        [row.trial, row.state, row.score, row.rounds, *(row.values.get(key) for key in keys), row.reason]
        for row in ranked
    ]
    return ["trial", "state", f"validation {headline}", "rounds", *keys, "reason"], rows


def _study(run: RunConfig, out: Path, axes: Sequence[Axis], sampler: Sampler, seed: int) -> "Study":
    import optuna  # noqa: PLC0415 - heavy
    from optuna.storages import JournalStorage  # noqa: PLC0415 - heavy
    from optuna.storages.journal import JournalFileBackend  # noqa: PLC0415 - heavy

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    out.mkdir(parents=True, exist_ok=True)
    study = optuna.create_study(
        study_name=run.name,
        storage=JournalStorage(JournalFileBackend(str(out / STUDY_NAME))),
        direction="maximize",
        pruner=optuna.pruners.MedianPruner(n_startup_trials=_FIRST_TRIALS, n_warmup_steps=_FIRST_ROUNDS),
        load_if_exists=True,
    )
    asked = json.dumps([canonical(run), [dataclasses.asdict(axis) for axis in axes], sampler, seed])
    if study.user_attrs.get("asked", asked) != asked:
        raise ConfigError(
            f"{out} holds another sweep: of another run, other --set, sampler or seed. Give another --out."
        )
    study.set_user_attr("asked", asked)
    for left in study.get_trials(deepcopy=False, states=(optuna.trial.TrialState.RUNNING,)):
        # Of a process that ended: its values are tried again.
        study.tell(left.number, state=optuna.trial.TrialState.FAIL)
        study.enqueue_trial(left.params, user_attrs={"again": True})
    return study


def _enqueue_grid(study: "Study", axes: Sequence[Axis]) -> int:
    points = list(itertools.product(*(axis.choices for axis in in_grid(axes))))
    for point in points:
        study.enqueue_trial(dict(zip((axis.key for axis in axes), point, strict=True)), skip_if_exists=True)
    return len(points)


def _done(study: "Study") -> int:
    """Trials that ended, without those that a crash left behind."""
    return len(_ended(study))


def _ended(study: "Study") -> list[Any]:
    import optuna  # noqa: PLC0415 - heavy

    states = optuna.trial.TrialState
    ended = study.get_trials(deepcopy=False, states=(states.COMPLETE, states.PRUNED, states.FAIL))
    return [one for one in ended if one.state is not states.FAIL or "reason" in one.user_attrs]


def _ask(study: "Study", axes: Sequence[Axis], sampler: Sampler, seed: int) -> "Trial":
    import optuna  # noqa: PLC0415 - heavy

    number = 1000 * seed + _done(study)
    if sampler == "tpe":
        study.sampler = optuna.samplers.TPESampler(seed=number, n_startup_trials=min(10, 2 + 2 * len(axes)))
    else:
        study.sampler = optuna.samplers.RandomSampler(seed=number)
    return study.ask({axis.key: axis.distribution() for axis in axes})


def _try(
    study: "Study",
    trial: "Trial",
    run: RunConfig,
    sites: Sequence[Site],
    *,
    out: Path,
    axes: Sequence[Axis],
    backend: Backend,
    observe: Callable[[dict[str, Any]], None],
) -> None:
    """Train one trial, and tell the study how it ended."""
    import optuna  # noqa: PLC0415 - heavy

    scores: dict[int, float] = {}

    def watch(event: dict[str, Any]) -> None:
        observe(event)
        match event:
            case {"event": "evaluate", "site": "overall", "phase": "validation", "round": number} if headline in event:
                scores[number] = float(event[headline])
                trial.set_user_attr("rounds", number)
                trial.report(scores[number], number)
                if number < rounds and trial.should_prune():
                    raise optuna.TrialPruned

    try:
        config = run_with(run, {axis.key: axis.value(trial.params[axis.key]) for axis in axes})
        headline, rounds = config.task.headline, config.federation.rounds
        document = issue(config)
        with backend(sites, document) as grid:
            federate(grid, document, out / "trials" / f"{trial.number:03}", observe=watch, test=False)
        if not scores:
            raise ConfigError("no site scored its validation patients. Raise data.validation-fraction.")
    except optuna.TrialPruned:
        study.tell(trial, state=optuna.trial.TrialState.PRUNED)
    except _FAILURES as error:
        trial.set_user_attr("reason", str(error).partition("\n")[0] or type(error).__name__)
        study.tell(trial, state=optuna.trial.TrialState.FAIL)
    else:
        kept_best = config.federation.keep == "best"
        study.tell(trial, max(scores.values()) if kept_best else scores[max(scores)])


def _tested(config: RunConfig, sites: Sequence[Site], out: Path, backend: Backend) -> Mapping[str, Any]:
    """The best as an ordinary run of its own, with the test patients' scores."""
    document = issue(config)
    with backend(sites, document) as grid:
        summary = federate(grid, document, out)
    write_report(out)
    scores: Mapping[str, Any] = summary.scores.get("test", {})
    return scores


def _rows(study: "Study", axes: Sequence[Axis]) -> list[Row]:
    names = {"COMPLETE": "complete", "PRUNED": "pruned", "FAIL": "failed"}
    rows = []
    for one in _ended(study):
        values = {axis.key: axis.value(one.params[axis.key]) for axis in axes if axis.key in one.params}
        reached = list(one.intermediate_values.values())
        score = one.value if one.value is not None else (reached[-1] if reached else None)
        rounds, reason = int(one.user_attrs.get("rounds", 0)), one.user_attrs.get("reason")
        rows.append(Row(one.number, names[one.state.name], score, rounds, values, reason))
    return rows


def _validated(run: RunConfig, out: Path, row: Row) -> list[Score]:
    """The validation scores of a trial by site, of the round whose score is the trial's; from its journal."""
    journal = out / "trials" / f"{row.trial:03}" / JOURNAL_NAME
    events = [one for one in read_events(journal) if (one["event"], one.get("phase")) == ("evaluate", "validation")]
    rounds = {one["round"]: one.get(run.task.headline) for one in events if one["site"] == OVERALL}
    chosen = max((number for number, score in rounds.items() if score == row.score), default=None)
    scores = {
        one["site"]: {name: float(one[name]) for name in run.task.SCORES if name in one}
        for one in events
        if one["round"] == chosen and one["site"] != OVERALL
    }
    return tables.of_sites(f"trial {row.trial}", int(row.values.get("seed", run.seed)), "validation", scores)


def _write(out: Path, run: RunConfig, axes: Sequence[Axis], found: Sweep, *, seed: int, sampler: Sampler) -> None:
    columns, rows = table(found, axes, run.task.headline)
    tables.write_csv(out / CSV_NAME, (columns, rows))
    scores = [one for row in found.rows for one in _validated(run, out, row)]
    tables.write(
        out, "sweep", f"{run.name}: {len(rows)} trials, by validation patients", (columns, rows), scores=scores
    )
    values = {
        "name": run.name,
        "headline": run.task.headline,
        "sampler": sampler,
        "seed": seed,
        "tried": counts(found.rows),
        "best": None if found.best is None else dataclasses.asdict(found.best),
        "test": found.test,
        "trials": [dataclasses.asdict(row) for row in found.rows],
    }
    write_atomically(out / JSON_NAME, f"{json.dumps(values, indent=2)}\n".encode())


__all__ = ["Row", "Sampler", "Sweep", "counts", "sweep", "table"]
