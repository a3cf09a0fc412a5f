"""Which network? Each of several, pooled, federated and with privacy, on the same patients: score, size and cost.

Each is a comparison of its own (`simulations.studies.compare`) in a folder of its own, so that what is finished stays.
All else is the run's: the same crops, steps and learning rate, which flatters those that it suits. The table says what
a network costs and that it learns, not which is best.
"""

import json
import statistics
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from client.site import Site
from common.config import RunConfig, validate
from common.errors import ConfigError
from common.learning.network import build_model
from common.models import Network
from common.system.files import write_atomically
from common.tasks import Task
from simulations.backends import Backend, opened
from simulations.scenarios.scenario import CompareConfig
from simulations.studies import paired, tables
from simulations.studies.compare import Tell, compare, patient_rows
from simulations.studies.comparison import FEDERATED, POOLED, Measure, Result, site_rows
from simulations.studies.tables import Score


@dataclass(frozen=True)
class Row:
    """One network; scores are the headline's, means of the sites over the seeds."""

    network: str
    weights: int  # how many it has
    pooled: float
    federated: float
    private: float | None  # None: the comparison has no private column
    epsilon: float | None  # the largest of the private models
    seconds: float  # of the federated model, with its evaluation
    private_seconds: float | None


def networks(
    run: RunConfig,
    candidates: Sequence[Network],
    sites: Sequence[Site],
    out: Path,
    *,
    seeds: Sequence[int],
    config: CompareConfig,
    backend: Backend = opened,
    tell: Tell = lambda _: None,
    finished: Callable[[int, str], None] = lambda _done, _note: None,
) -> list[Row]:
    """Compare every network; write networks.json, networks.md and tables into `out`.

    Args:
        run: the scenario's run; its network is replaced.
        candidates: the networks.
        sites: the hospitals.
        out: results; what is finished there is not trained again.
        seeds: one model of each kind for each.
        config: the private column, if any, is that of `compare`.
        backend: where the sites work.
        tell: told what is going on.
        finished: told how many networks are done, and which was last.

    Raises:
        ConfigError: a network cannot be the run's, with what would fit.
    """
    # All are tried before the first is trained, which may take an hour.
    runs = [_with(run, network) for network in candidates]
    wanted = config.model_copy(update={"alone": False, "private_pooled": False})
    rows: list[Row] = []
    scores: list[Score] = []
    patients: list[Score] = []
    labels: list[str] = []
    for number, one in enumerate(runs):
        name = one.model.architecture
        labels.append(f"{number + 1:02}-{name}")
        results = compare(
            one,
            sites,
            out / labels[-1],
            seeds=seeds,
            config=wanted,
            backend=backend,
            tell=lambda text, name=name: tell(f"{name}, {text}"),  # type: ignore[misc]  # mypy reads no default here
        )
        rows.append(_row(one, results))
        scores += _of(labels[-1], site_rows(results))
        patients += _of(labels[-1], patient_rows(out / labels[-1], results))
        finished(len(rows), f"{name}: federated {rows[-1].federated:.3f}")
    columns, cells = summary_rows(rows, run.task)
    write_atomically(out / "networks.json", f"{json.dumps(as_data(rows), indent=2)}\n".encode())
    write_atomically(out / "networks.md", f"{tables.markdown(columns, cells)}\n".encode())
    tables.write(out, "networks", f"{run.name}: networks", (columns, cells), scores=scores, patients=patients)
    first, *others = (f"{label}, {FEDERATED}" for label in labels)
    pairs = paired.paired(patients, [(other, first) for other in others], run.task)
    paired.write(out, f"{run.name}: networks", pairs)
    return rows


def summary_rows(rows: Sequence[Row], task: Task) -> tuple[list[str], list[list[object]]]:
    """The networks as a table: column names and rows."""
    score = task.headline.capitalize()
    columns = ["network", "weights", f"{score}, pooled", "federated", "with privacy", "epsilon"]
    columns += ["seconds, federated", "with privacy"]
    cells: list[list[object]] = [
        [
            *(row.network, row.weights, _three(row.pooled), _three(row.federated), _three(row.private)),
            None if row.epsilon is None else f"{row.epsilon:.2f}",
            round(row.seconds),
            None if row.private_seconds is None else round(row.private_seconds),
        ]
        for row in rows
    ]
    return columns, cells


def as_data(rows: Sequence[Row]) -> list[dict[str, object]]:
    """The networks as numbers."""
    return [{key.replace("_", "-"): value for key, value in asdict(row).items()} for row in rows]


def _of(network: str, rows: Sequence[Score]) -> list[Score]:
    """Rows of one network's comparison, told apart from those of others."""
    return [replace(row, model=f"{network}, {row.model}") for row in rows]


def _with(run: RunConfig, network: Network) -> RunConfig:
    """The run with another network, checked again as a whole."""
    values = {**run.model_dump(by_alias=True), "model": network.model_dump(by_alias=True)}
    changed = validate(RunConfig, values, f"the network {network.architecture}")
    if problem := network.refuse(run.training.patch_size):
        raise ConfigError(f"the network {network.architecture}: {problem}")
    return changed


def _row(run: RunConfig, results: Sequence[Result]) -> Row:
    measure = Measure(run.task)

    def mean(of: Callable[[Result], float], *names: str) -> float | None:
        found = [of(result) for result in results if result.column in names]
        return statistics.fmean(found) if found else None

    private = [name for name in dict.fromkeys(one.column for one in results) if name not in {POOLED, FEDERATED}]
    pooled, federated = mean(measure.mean, POOLED), mean(measure.mean, FEDERATED)
    seconds = mean(lambda result: result.seconds, FEDERATED)
    assert pooled is not None  # noqa: S101 - every comparison has both, for the type checker
    assert federated is not None  # noqa: S101
    assert seconds is not None  # noqa: S101
    return Row(
        network=run.model.architecture,
        weights=sum(weights.numel() for weights in build_model(run).parameters()),
        pooled=pooled,
        federated=federated,
        private=mean(measure.mean, *private),
        epsilon=max((one.epsilon for one in results if one.epsilon is not None), default=None),
        seconds=seconds,
        private_seconds=mean(lambda result: result.seconds, *private),
    )


def _three(score: float | None) -> str | None:
    return None if score is None else f"{score:.3f}"


__all__ = ["Row", "as_data", "networks", "summary_rows"]
