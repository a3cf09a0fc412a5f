"""A run in MLflow's file, read without MLflow: its tables by SQLite, its artifacts from the disk."""

import json
import os
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest

from common.errors import ConfigError
from server.federation.events import OVERALL, Journal, summarise, write_summary
from server.home.folder import Home
from server.monitoring.mlflow import check_address
from server.registry.audit_trail import open_log
from server.registry.registry import Registry
from tests.server.commands.calls import fails, succeeds
from tests.server.dashboard import recorded
from tests.server.dashboard.recorded import begin, document, play_round

RUN = document("lesions")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Home, Registry, Journal, Path]]:
    """A completed run, and the file that it was written to: MLflow's tables take seconds."""
    pytest.importorskip("mlflow", reason="the extra mlflow is not installed")
    folder = tmp_path_factory.mktemp("tracking")
    home, registry = recorded.coordinator(folder / "home")
    journal = begin(home, registry, RUN)
    play_round(journal, RUN, 1)
    play_round(journal, RUN, 2, missing="st-john")
    results = home.run_folder(RUN)
    for name in ("model.safetensors", "model.json"):
        (results / f"{name}.sealed").write_bytes(home.sealer_of(RUN.hash).seal(name.encode(), name))
    digest = sha256(b"model.safetensors").hexdigest()
    write_summary(results, summarise(RUN, journal.events, status="completed", model_sha256=digest, model_round=2))
    registry.close(RUN.hash, "completed")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WARDROUND_SERVER_HOME", str(home.path))
        patch.delenv("MLFLOW_DISABLE_TELEMETRY", raising=False)
        patch.delenv("DO_NOT_TRACK", raising=False)
        patch.chdir(folder)
        assert "MLflow run: " in succeeds("export", "lesions", "--mlflow", f"sqlite:///{folder / 'runs.sqlite'}")
        assert (os.environ["MLFLOW_DISABLE_TELEMETRY"], os.environ["DO_NOT_TRACK"]) == ("true", "true")
        yield home, registry, journal, folder


def rows(folder: Path, query: str) -> list[tuple[Any, ...]]:
    with closing(sqlite3.connect(folder / "runs.sqlite")) as database:
        return database.execute(query).fetchall()


def test_every_number_is_a_metric_of_its_site_and_round(made: tuple[Home, Registry, Journal, Path]) -> None:
    _, _, journal, folder = made
    found = {(key, step): value for key, step, value in rows(folder, "SELECT key, step, value FROM metrics")}
    for event in journal.events:
        site, number = event.get("site"), event.get("round")
        if event["event"] == "train":
            for key in ("train-loss", "epsilon", "delta", "seconds", "steps"):
                assert found.pop((f"train/{key}/{site}", number)) == event[key]
        if event["event"] == "evaluate":
            for key in ("dice", "dice-lesion"):
                assert found.pop((f"validation/{key}/{site}", number)) == event[key]
            if site == OVERALL:
                continue
    exchanges = {key for key, _ in found}
    assert exchanges == {
        f"round/{name}/overall" for name in ("sites", "refused", "missing", "seconds", "bytes-down", "bytes-up")
    }
    assert (found["round/missing/overall", 1], found["round/missing/overall", 2]) == (0, 1)
    times = [
        at
        for (at,) in rows(folder, "SELECT timestamp FROM metrics WHERE key = 'train/train-loss/st-anna' ORDER BY step")
    ]
    ended = [event["time"] for event in journal.events if event.get("site") == OVERALL]
    assert times == [round(1000 * at) for at in ended]


def test_settings_state_and_hashes_are_there(made: tuple[Home, Registry, Journal, Path]) -> None:
    _, _, _, folder = made
    params = dict(rows(folder, "SELECT key, value FROM params"))
    assert params["federation.rounds"] == "8"
    assert params["name"] == '"lesions"'
    assert params["privacy.target-epsilon"] == "8.0"
    tags = dict(rows(folder, "SELECT key, value FROM tags"))
    assert tags["wardround.run-hash"] == RUN.hash
    assert tags["wardround.model-sha256"] == sha256(b"model.safetensors").hexdigest()
    assert rows(folder, "SELECT name, status FROM runs") == [("lesions", "FINISHED")]
    assert ("wardround",) in rows(folder, "SELECT name FROM experiments")


def test_report_document_and_model_are_its_artifacts_and_the_log_says_that_the_model_left(
    made: tuple[Home, Registry, Journal, Path],
) -> None:
    home, _, _, folder = made
    ((place,),) = rows(folder, "SELECT artifact_uri FROM runs")
    assert place.startswith((folder / "mlflow-artifacts").as_uri())
    files = {path.name: path for path in Path(place.removeprefix("file://")).iterdir()}
    assert set(files) == {"run.json", "report.html", "model.safetensors", "model.json"}
    assert sha256(files["run.json"].read_bytes()).hexdigest() == RUN.hash
    assert files["model.safetensors"].read_bytes() == b"model.safetensors"
    assert files["report.html"].read_text().count("<svg") == 3
    exports = [entry.fields for entry in open_log(home).entries() if entry.kind == "export"]
    assert {"what": "model", "hash": sha256(b"model.safetensors").hexdigest()} in exports
    assert json.loads(files["run.json"].read_text())["name"] == "lesions"
    assert not list(folder.glob("mlruns*"))


@pytest.mark.parametrize(
    ("uri", "why"),
    [
        ("http://mlflow.example.org:5000", "in the clear"),
        ("file:///tmp/mlruns", "begins with file"),
        ("mlruns", "begins with nothing"),
        ("databricks", "begins with nothing"),
        ("postgresql://a:secret@b/c", "begins with postgresql"),
        ("sqlite://", "names no file"),
    ],
)
def test_address_that_would_not_do_is_refused_before_anything_is_opened(uri: str, why: str) -> None:
    with pytest.raises(ConfigError, match=why) as caught:
        check_address(uri)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("uri", ["https://mlflow.example.org", "http://127.0.0.1:5000", "http://[::1]:5000"])
def test_server_of_this_machine_or_behind_tls_is_taken(uri: str) -> None:
    check_address(uri)


def test_run_that_has_not_begun_and_a_call_for_nothing_are_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home, registry = recorded.coordinator(tmp_path / "home")
    monkeypatch.setenv("WARDROUND_SERVER_HOME", str(home.path))
    recorded.propose(home, registry, RUN)
    assert "has not begun" in fails("export", "lesions", "--mlflow", f"sqlite:///{tmp_path / 'a'}")
    assert "nothing is to be written" in fails("export", "lesions")
    assert not (tmp_path / "a").exists()
