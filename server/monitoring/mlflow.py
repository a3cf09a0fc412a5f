"""A run in MLflow: settings, numbers by round and site, and files, as one MLflow run of the experiment wardround.

Written by MLflow's own client to a tracking server, or to an SQLite file with the artifacts beside it. The numbers are
the RunView's. MLflow tells its makers how it is used unless it is told not to: here it is.
"""

import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

from common.errors import ConfigError, FederationError
from common.system.files import write_private
from common.web.listening import LOOPBACK
from server.views.run import RunView

EXTRA = "pip install 'wardround[mlflow]'"
EXPERIMENT = "wardround"
ARTIFACTS = "mlflow-artifacts"

# What a call may carry, as MLflow's REST API says.
_MOST_METRICS, _MOST_PARAMS, _LONGEST_PARAM = 1000, 100, 6000
_STATUS = {"completed": "FINISHED", "failed": "FAILED", "stopped": "KILLED"}
_SCHEMES = ("https", "http", "sqlite")

Item = TypeVar("Item")


def check_address(uri: str) -> None:
    """Refuse what would send a run over a network in the clear, and stores that MLflow keeps no more.

    Raises:
        ConfigError: the address will not do.
    """
    parts = urlsplit(uri)
    if parts.scheme not in _SCHEMES:
        raise ConfigError(f"MLflow's address begins with {parts.scheme or 'nothing'}. Give https:// or sqlite:///FILE.")
    if parts.scheme == "http" and parts.hostname not in (*LOOPBACK, "localhost"):
        raise ConfigError(f"http:// to {parts.hostname} would be sent in the clear. Give https://, or use `ssh -L`.")
    if parts.scheme == "sqlite" and len(parts.path) < 2:
        raise ConfigError("MLflow's address names no file. Give sqlite:///FILE.")


def log_run(view: RunView, uri: str, *, tags: Mapping[str, str], files: Mapping[str, bytes]) -> str:
    """Write a run, as far as it has come.

    Args:
        view: of the run.
        uri: of the tracking server or file, see `check_address`.
        tags: of the MLflow run.
        files: its artifacts, by name.

    Returns:
        The MLflow run's id.

    Raises:
        ConfigError: the address will not do, or MLflow is not installed.
        FederationError: MLflow could not write it. What it has of the run by then is marked as failed.
    """
    check_address(uri)
    client, failures = _client(uri)
    try:
        return _written(client, failures, view, tags=tags, files=files, artifacts=_artifacts_beside(uri))
    except failures as error:
        said = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise FederationError(f"MLflow could not write the run: {said}") from error


def _client(uri: str) -> tuple[Any, tuple[type[Exception], ...]]:
    """MLflow's client, and what it raises."""
    os.environ.update(MLFLOW_DISABLE_TELEMETRY="true", DO_NOT_TRACK="true")  # before the import, which begins to tell
    try:
        from mlflow.exceptions import MlflowException  # noqa: PLC0415 - an extra
        from mlflow.tracking import MlflowClient  # noqa: PLC0415 - an extra
    except ImportError as error:
        raise ConfigError(f"MLflow's library is not installed. Install it: {EXTRA}") from error
    return MlflowClient(tracking_uri=uri), (MlflowException, OSError)


def _written(
    client: Any,
    failures: tuple[type[Exception], ...],
    view: RunView,
    *,
    tags: Mapping[str, str],
    files: Mapping[str, bytes],
    artifacts: str | None,
) -> str:
    times = [round(1000 * moment) for moment in view.moments.values()] or [0]
    found = client.get_experiment_by_name(EXPERIMENT)
    experiment = found.experiment_id if found else client.create_experiment(EXPERIMENT, artifact_location=artifacts)
    made = client.create_run(experiment, start_time=min(times), run_name=view.name, tags=dict(tags))
    run = str(made.info.run_id)
    try:
        for params in _batches(_params(view), _MOST_PARAMS):
            client.log_batch(run, params=params)
        for metrics in _batches(_metrics(view), _MOST_METRICS):
            client.log_batch(run, metrics=metrics)
        with tempfile.TemporaryDirectory(prefix="wardround-mlflow-") as folder:
            for name, data in files.items():
                write_private(Path(folder) / name, data)
                client.log_artifact(run, str(Path(folder) / name))
    except failures:
        client.set_terminated(run, status="FAILED")
        raise
    if view.status in _STATUS:
        client.set_terminated(run, status=_STATUS[view.status], end_time=max(times))
    return run


def _params(view: RunView) -> Iterator[Any]:
    from mlflow.entities import Param  # noqa: PLC0415 - an extra

    for key, value in view.settings:
        yield Param(key, value[:_LONGEST_PARAM])


def _metrics(view: RunView) -> Iterator[Any]:
    """Each number under PHASE/NAME/SITE."""
    from mlflow.entities import Metric  # noqa: PLC0415 - an extra

    latest = max(view.moments.values(), default=0.0)
    for measure in view.measures:
        for site, points in measure.series.items():
            for number, value in points:
                at = view.moments.get(int(number), latest)
                yield Metric(f"{measure.phase}/{measure.name}/{site}", value, round(1000 * at), int(number))


def _batches(items: Iterator[Item], most: int) -> Iterator[Sequence[Item]]:
    while batch := list(islice(items, most)):
        yield batch


def _artifacts_beside(uri: str) -> str | None:
    """Where the artifacts of an SQLite file go; a server knows that itself."""
    parts = urlsplit(uri)
    return (Path(parts.path[1:]).absolute().parent / ARTIFACTS).as_uri() if parts.scheme == "sqlite" else None


__all__ = ["ARTIFACTS", "EXPERIMENT", "EXTRA", "check_address", "log_run"]
