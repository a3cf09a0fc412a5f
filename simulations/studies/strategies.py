"""Which strategy, with whom, against what? Each of several, without and with each fault, on the same sites.

A model of each strategy, fault and seed, all else being the run's: the same initial weights, patients, steps and rates.
Every model is scored on the test patients of all sites, those at fault included, whose patients are as ill as others.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from client.site import Site
from common.config import RunConfig, validate
from common.errors import FederationError
from common.strategies import Strategy, of_personal
from common.system.files import write_atomically
from common.tasks import Task
from common.text import counted
from server.federation.events import JOURNAL_NAME, OVERALL, SUSPICIOUS, read_events
from simulations.backends import Backend, opened
from simulations.faults import Fault
from simulations.studies import paired, tables
from simulations.studies.compare import Column, Tell, folder_of, patient_rows, plain, trained
from simulations.studies.comparison import Measure, Result, site_rows
from simulations.studies.tables import Score, spread

NO_FAULT = "none"


@dataclass(frozen=True)
class Row:
    """One strategy with one fault: the headline score of each seed's model."""

    strategy: str
    settings: dict[str, object]  # keys of [strategy] that are not the defaults
    fault: str  # its name, or NO_FAULT
    mean: tuple[float, ...]  # of the sites
    worst: tuple[float, ...]  # of the sites
    named: int  # updates of sites at fault that were refused or told as odd, over all seeds
    of: int  # updates that sites at fault sent
    # Of the models of the sites' own, each on its own site's patients; nothing where a strategy leaves none.
    own_mean: tuple[float, ...]
    own_worst: tuple[float, ...]
    failed: int  # seeds whose run ended without a model, as too few updates could enter a round


def strategies(
    run: RunConfig,
    candidates: Sequence[Strategy],
    faults: Sequence[Fault],
    sites: Sequence[Site],
    out: Path,
    *,
    seeds: Sequence[int],
    backend: Backend = opened,
    tell: Tell = lambda _: None,
    finished: Callable[[int, str], None] = lambda _done, _note: None,
) -> list[Row]:
    """Compare them all; write strategies.json, strategies.md and tables into `out`.

    Args:
        run: the scenario's run; its strategy is replaced, its [privacy] left out.
        candidates: the strategies.
        faults: each is tried with each strategy, and none besides.
        sites: the hospitals.
        out: results; what is finished there is not trained again.
        seeds: one model of each kind for each.
        backend: where the sites work.
        tell: told what is going on.
        finished: told how many models are done, and which was last.

    Raises:
        ConfigError: the run cannot have one of the strategies, with what would fit.
    """
    measure = Measure(run.task)
    # All are tried before the first is trained.
    runs = [_with(plain(run, seeds[0], None), strategy) for strategy in candidates]
    rows: list[Row] = []
    scores: list[Score] = []
    patients: list[Score] = []
    labels: dict[str, list[str]] = {}
    done = 0
    for number, one in enumerate(runs, start=1):
        name = one.strategy.kind
        for fault in (None, *faults):
            of = NO_FAULT if fault is None else fault.name
            label = f"{number:02}-{name}-{of}"
            labels.setdefault(of, []).append(label)
            results: list[Result] = []
            folders: list[Path] = []
            for seed in seeds:
                column = Column(label, one.model_copy(update={"seed": seed}), tuple(sites), fault)
                tell(f"{label}, seed {seed}")
                try:
                    results.append(trained(column, sites, out, tell=tell, backend=backend))
                    said = f"{measure.name} {measure.mean(results[-1]):.3f}"
                except FederationError as error:
                    said = f"failed. {error}"
                folders.append(folder_of(out, column))
                done += 1
                finished(done, f"{label}, seed {seed}: {said}")
            rows.append(_row(one, fault, results, folders))
            scores += site_rows(results)
            patients += patient_rows(out, results)
    columns, cells = summary_rows(rows, run.task)
    write_atomically(out / "strategies.json", f"{json.dumps(as_data(rows), indent=2)}\n".encode())
    write_atomically(out / "strategies.md", f"{tables.markdown(columns, cells)}\n".encode())
    tables.write(out, "strategies", f"{run.name}: strategies", (columns, cells), scores=scores, patients=patients)
    paired.write(out, f"{run.name}: strategies", paired.paired(patients, _pairs(labels), run.task))
    return rows


def summary_rows(rows: Sequence[Row], task: Task) -> tuple[list[str], list[list[object]]]:
    """A line for each strategy, two columns for each fault: the mean of the sites and the worst; with ranges."""
    faults = list(dict.fromkeys(row.fault for row in rows))
    score = task.headline.capitalize()
    columns = ["strategy"]
    for fault in faults:
        columns += [f"{score}, {'no fault' if fault == NO_FAULT else fault}", "worst site"]
        columns += [] if fault == NO_FAULT else ["named"]
    own = any(row.own_mean for row in rows)
    columns += ["own models, no fault", "worst site"] if own else []
    cells: list[list[object]] = []
    for one in (row for row in rows if row.fault == faults[0]):
        settings = ", ".join(f"{key} {value}" for key, value in one.settings.items())
        line: list[object] = [f"{one.strategy} ({settings})" if settings else one.strategy]
        for row in (other for other in rows if (other.strategy, other.settings) == (one.strategy, one.settings)):
            failed = f"{counted(row.failed, 'run')} failed" if row.failed else None
            line += [", ".join(filter(None, (spread(row.mean), failed))), spread(row.worst)]
            line += [] if row.fault == NO_FAULT else [f"{row.named} of {row.of}"]
        line += [spread(one.own_mean), spread(one.own_worst)] if one.own_mean else [None, None] if own else []
        cells.append(line)
    return columns, cells


def as_data(rows: Sequence[Row]) -> list[dict[str, object]]:
    """The strategies as numbers."""
    return [asdict(row) for row in rows]


def _pairs(labels: Mapping[str, Sequence[str]]) -> list[tuple[str, str]]:
    """Each strategy with the first one, without a fault and with each."""
    return [(other, several[0]) for several in labels.values() for other in several[1:]]


def _with(run: RunConfig, strategy: Strategy) -> RunConfig:
    """The run with another strategy, and as many sites in each round as it needs; checked again as a whole."""
    values = {**run.model_dump(by_alias=True), "strategy": strategy.model_dump(by_alias=True)}
    if strategy.BY_SCORES:
        values["federation"]["evaluate-every"] = 1
    values["federation"]["quorum"] = max(run.federation.quorum, strategy.fewest)
    return validate(RunConfig, values, f"the strategy {strategy.kind}")


def _row(run: RunConfig, fault: Fault | None, results: Sequence[Result], folders: Sequence[Path]) -> Row:
    measure = Measure(run.task)
    at_fault = frozenset() if fault is None else frozenset(fault.sites)
    rounds = [event for folder in folders for event in read_events(folder / JOURNAL_NAME) if event["event"] == "round"]
    tested = [_own_scores(run, folder) for folder in folders]
    own = [one for one in tested if one]
    settings = run.strategy.model_dump(by_alias=True, exclude_defaults=True, exclude={"kind"})
    return Row(
        strategy=run.strategy.kind,
        settings=settings,
        fault=NO_FAULT if fault is None else fault.name,
        mean=tuple(map(measure.mean, results)),
        worst=tuple(map(measure.worst, results)),
        named=sum(len(at_fault & {*event["refused"], *event.get(SUSPICIOUS, {})}) for event in rounds),
        of=len(rounds) * len(at_fault),
        own_mean=tuple(sum(one) / len(one) for one in own),
        own_worst=tuple(map(min, own)),
        failed=len(folders) - len(results),
    )


def _own_scores(run: RunConfig, folder: Path) -> list[float]:
    """What the sites' own models score on the test patients of their sites, as the run itself was told."""
    name = of_personal(run.task.headline)
    return [
        event[name]
        for event in read_events(folder / JOURNAL_NAME)
        if event["event"] == "evaluate" and event["phase"] == "test" and event["site"] != OVERALL and name in event
    ]


__all__ = ["NO_FAULT", "Row", "as_data", "strategies", "summary_rows"]
