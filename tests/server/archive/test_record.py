"""A finished run leaves one folder that holds all of it, is checked when it is read, and is never written again."""

import hashlib
import json
import math
import shutil
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from typer.testing import CliRunner

from common.errors import ConfigError
from server.archive.record import has_all_receipts, keep, kept
from server.commands.main import app
from server.coordinator.runs import Runs
from server.home.folder import open_home
from server.registry.registry import Registry
from tests.common.audit.federation import lines_of
from tests.json_forms import FORMS, conforms
from tests.server.evidence.federation import PRIVATE, Federation, founded, trained
from tests.server.fakes import a_run


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> list[Federation]:
    """Three runs: two that are alike but for their seed and rounds, and one that failed."""
    made = founded(tmp_path_factory.mktemp("archive"))
    first = trained(*made)
    second = trained(*made, a_run(rounds=2, quorum=2, **PRIVATE, training={"learning-rate": 0.002}))
    third = trained(*made, a_run(rounds=1, quorum=2), quorum_fails=True)
    return [first, second, third]


@pytest.fixture
def runs(template: list[Federation], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Federation]:
    """The same, in a folder of this test's own."""
    shutil.copytree(template[0].home.path, tmp_path / "home")
    monkeypatch.setenv("WARDROUND_SERVER_HOME", str(tmp_path / "home"))
    home = open_home(tmp_path / "home")
    return [Federation(home, Registry(home.registry), one.document, one.folder) for one in template]


def folder_of(made: Federation) -> Path:
    return made.home.path / "models" / f"tiny-{made.document.hash[:8]}"


def proposal_of(made: Federation) -> Any:
    return made.registry.proposal(made.document.hash)


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def typed(*words: str) -> Any:
    result = CliRunner().invoke(app, list(words))
    assert result.exit_code == 0, result.output
    value = json.loads(result.stdout)
    if (command := f"wardround-server {' '.join(words[:2])}") in FORMS:
        conforms(command, value)
    return value


def test_folder_holds_the_run_and_its_manifest_names_each_file(runs: list[Federation]) -> None:
    made = runs[0]
    assert keep(made.home, proposal_of(made))
    folder = folder_of(made)
    manifest = json.loads((folder / "manifest.json").read_text())
    files = {path.name: digest(path) for path in folder.iterdir() if not path.name.startswith("manifest.")}
    assert files == {name: about["sha256"] for name, about in manifest["files"].items()}
    assert files.keys() == {
        *("run.json", "model.safetensors.sealed", "model.json.sealed", "metrics.jsonl", "summary.json", "report.html"),
        *("receipts.jsonl", "provenance.json", "card.json", "card.html"),
    }
    assert files["run.json"] == made.document.hash == manifest["run"]
    for name in ("metrics.jsonl", "summary.json", "model.safetensors.sealed"):
        assert files[name] == digest(made.results / name)
    opened = made.home.sealer_of(made.document.hash).open(
        (folder / "model.safetensors.sealed").read_bytes(), "model.safetensors"
    )
    assert hashlib.sha256(opened).hexdigest() == manifest["model-sha256"]
    signature = bytes.fromhex((folder / "manifest.sig").read_text())
    log = json.loads(lines_of(made.home.path / "audit.sqlite")[0])
    key = Ed25519PublicKey.from_public_bytes(bytes.fromhex(log["key"]))
    key.verify(signature, b"wardround archive 1\n" + (folder / "manifest.json").read_bytes())


def test_receipts_and_provenance_are_those_of_the_audit_log(runs: list[Federation]) -> None:
    made = runs[0]
    keep(made.home, proposal_of(made))
    log = [json.loads(line) for line in lines_of(made.home.path / "audit.sqlite")]
    own = [entry for entry in log if entry["kind"] == "round" and entry["receipt"]["run"] == made.document.hash]
    written = [json.loads(line) for line in (folder_of(made) / "receipts.jsonl").read_text().splitlines()]
    assert [one["receipt"] for one in written] == [entry["receipt"] for entry in own]
    assert [one["countersignature"] for one in written] == [entry["countersignature"] for entry in own]
    provenance = json.loads((folder_of(made) / "provenance.json").read_text())
    models = [entry for entry in log if entry["kind"] == "aggregated" and entry["run"] == made.document.hash]
    assert [one["model"] for one in provenance["rounds"]] == [entry["model"] for entry in models]
    assert provenance["rounds"][-1]["model"] == provenance["model"]
    for one in provenance["rounds"]:
        entered = {
            entry["site"]: entry["update"]
            for entry in log
            if entry["kind"] == "entered" and (entry["run"], entry["round"]) == (made.document.hash, one["round"])
        }
        assert one["updates"] == entered


def test_files_are_read_only_and_the_owners_alone(runs: list[Federation]) -> None:
    keep(runs[0].home, proposal_of(runs[0]))
    folder = folder_of(runs[0])
    assert stat.S_IMODE(folder.stat().st_mode) == 0o500
    assert {stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()} == {0o400}


def test_folder_that_is_there_is_never_written_again(runs: list[Federation]) -> None:
    made = runs[0]
    keep(made.home, proposal_of(made))
    before = {path: (path.stat().st_mtime_ns, path.stat().st_ino) for path in folder_of(made).iterdir()}
    (made.results / "summary.json").write_text(
        (made.results / "summary.json").read_text().replace('"rounds": 3', '"rounds": 4')
    )
    assert not keep(made.home, proposal_of(made))
    assert {path: (path.stat().st_mtime_ns, path.stat().st_ino) for path in folder_of(made).iterdir()} == before


def _flip(path: Path) -> None:
    data = path.read_bytes()
    path.chmod(0o600)
    path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda folder: _flip(folder / "metrics.jsonl"), "metrics.jsonl is not as it was written"),
        (lambda folder: _flip(folder / "model.safetensors.sealed"), "model.safetensors.sealed is not as it was"),
        (lambda folder: (folder / "receipts.jsonl").unlink(), "receipts.jsonl is missing"),
        (lambda folder: (folder / "more").write_text("x"), "1 files were added"),
        (lambda folder: _flip(folder / "manifest.json"), "not signed by this coordinator"),
        (lambda folder: _flip(folder / "manifest.sig"), "not signed by this coordinator"),
        (lambda folder: _linked(folder / "card.json"), "card.json is missing"),
    ],
)
def test_folder_that_was_changed_is_not_used(
    runs: list[Federation], change: Callable[[Path], object], told: str
) -> None:
    made = runs[0]
    keep(made.home, proposal_of(made))
    folder_of(made).chmod(0o700)
    change(folder_of(made))
    with pytest.raises(ConfigError, match=told):
        kept(made.home, proposal_of(made))


def _linked(path: Path) -> None:
    """The same content behind a link, which may lead elsewhere tomorrow."""
    other = path.parents[1] / "elsewhere"
    path.rename(other)
    path.symlink_to(other)


def test_manifest_signed_for_another_run_does_not_stand_in(runs: list[Federation]) -> None:
    first, second = runs[:2]
    keep(first.home, proposal_of(first))
    shutil.copytree(folder_of(first), folder_of(second))
    with pytest.raises(ConfigError, match="another run than its name says"):
        kept(second.home, proposal_of(second))


def test_run_that_failed_has_no_folder(runs: list[Federation]) -> None:
    failed = runs[2]
    with pytest.raises(ConfigError, match="only a completed run"):
        keep(failed.home, proposal_of(failed))
    assert not (failed.home.path / "models").exists()


def test_disk_that_is_full_leaves_no_half_folder(runs: list[Federation], monkeypatch: pytest.MonkeyPatch) -> None:
    made = runs[0]
    written: list[Path] = []

    def full(path: Path, content: bytes, **_: object) -> None:
        if len(written) == 4:
            raise OSError(28, "No space left on device")
        written.append(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)

    monkeypatch.setattr("server.archive.folder.write_private", full)
    with pytest.raises(OSError, match="No space"):
        keep(made.home, proposal_of(made))
    assert list((made.home.path / "models").iterdir()) == []
    monkeypatch.undo()
    assert keep(made.home, proposal_of(made))


def test_coordinator_makes_the_folders_of_completed_runs_when_it_starts(
    runs: list[Federation], monkeypatch: pytest.MonkeyPatch
) -> None:
    home, registry = runs[0].home, runs[0].registry
    monkeypatch.setattr("server.coordinator.runs.calls.run_is_live", lambda *_: False)
    Runs(home, registry).step()
    names = sorted(path.name for path in (home.path / "models").iterdir())
    assert names == sorted(folder_of(one).name for one in runs[:2])
    for one in runs[:2]:
        assert has_all_receipts(home, proposal_of(one))
        assert kept(home, proposal_of(one)).manifest["run"] == one.document.hash


def test_run_whose_files_are_gone_stops_neither_the_coordinator_nor_the_others(
    runs: list[Federation], caplog: pytest.LogCaptureFixture
) -> None:
    (runs[0].results / "model.json.sealed").unlink()
    watched = Runs(runs[0].home, runs[0].registry)
    watched.step()
    watched.step()
    assert [path.name for path in (runs[0].home.path / "models").iterdir()] == [folder_of(runs[1]).name]
    told = [record.message for record in caplog.records if "no folder among the models" in record.message]
    assert len(told) == 1
    assert "lack model.json.sealed" in told[0]


def test_compare_tells_what_the_summaries_say(runs: list[Federation]) -> None:
    first, second = runs[:2]
    found = typed("runs", "compare", first.document.hash[:8], second.document.hash[:8], "--json")
    summaries = [json.loads((one.results / "summary.json").read_text()) for one in (first, second)]
    rows = {(row["what"], row["site"]): row for row in found}
    assert (rows["rounds", None]["a"], rows["rounds", None]["b"]) == (3, 2)
    told = CliRunner().invoke(app, ["runs", "compare", first.document.hash[:8], second.document.hash[:8]]).stderr
    assert "low and high: 95 %" in told
    assert (rows["rounds with its update", "north"]["a"], rows["rounds with its update", "north"]["b"]) == (3, 2)
    for site in ("north", "south"):
        values = [one["guarantee"]["sites"][site]["epsilon"] for one in summaries]
        assert [rows["epsilon", site]["a"], rows["epsilon", site]["b"]] == values
        scores = [one["scores"]["test"]["sites"][site] for one in summaries]
        row = rows["test dice", site]
        assert (row["a"], row["b"]) == (scores[0]["dice"], scores[1]["dice"])
        assert row["b-less-a"] == scores[1]["dice"] - scores[0]["dice"]
        # Two independent normal noises: the deviation of the difference is the root of the sum of their squares.
        half = 1.96 * math.sqrt(scores[0]["score-noise"] ** 2 + scores[1]["score-noise"] ** 2)
        assert row["low"] == pytest.approx(row["b-less-a"] - half, abs=1e-4)
        assert row["high"] == pytest.approx(row["b-less-a"] + half, abs=1e-4)


@pytest.fixture(scope="module")
def unlike(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Federation]:
    """One run, and others of which each differs from it in one thing."""
    made = founded(tmp_path_factory.mktemp("unlike"))

    def run(name: str, seed: int = 0, **tables: Any) -> Any:
        return a_run(rounds=1, quorum=1, **tables).model_copy(update={"name": name, "seed": seed})

    def steps(kind: str) -> dict[str, Any]:
        return {"format_": 2, "preprocessing": {"steps": [{"kind": kind}]}}

    return {
        "first": trained(*made, run("first")),
        "alike": trained(*made, run("alike", training={"learning-rate": 0.002})),
        "hospitals": trained(*made, run("hospitals"), quorum_fails=True),
        "classes": trained(*made, run("classes", data={"classes": ["liver"]})),
        "seed": trained(*made, run("seed", seed=7)),
        "private": trained(*made, run("private", **PRIVATE)),
        "patients": trained(*made, run("patients"), patients=20),
        "rows": trained(*made, run("rows", preprocessing={"rows": 48})),
        "cropped": trained(*made, run("cropped", **steps("crop-to-foreground"))),
        "filtered": trained(*made, run("filtered", **steps("median"))),
    }


@pytest.mark.parametrize(
    ("name", "what", "said"),
    [
        ("hospitals", "hospitals", "The models learned from other hospitals; only in A: south."),
        ("classes", "data.classes", "other images or classes: data.classes differs"),
        ("seed", "seed", "other held-out patients: seed differs"),
        ("private", "data.split", "other held-out patients: data.split differs"),
        ("rows", "preprocessing.rows", "scored its images as it prepared them: preprocessing.rows differs"),
        ("cropped", "preprocessing.steps", "scored its images as it prepared them: preprocessing.steps differs"),
        ("patients", "patients", "The patients of north are others: it told 15 in A and 20 in B."),
    ],
)
def test_compare_warns_where_what_is_compared_is_not_of_the_same(
    name: str, what: str, said: str, unlike: dict[str, Federation], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WARDROUND_SERVER_HOME", str(unlike["first"].home.path))
    rows = typed("runs", "compare", "first", name, "--json")
    warned = {row["what"] for row in rows if row["warning"]}
    assert what in warned
    assert any(row["what"] == what and said in (row["warning"] or "") for row in rows)
    assert rows[0]["warning"] is not None  # before what they forbid to compare
    told = CliRunner().invoke(app, ["runs", "compare", "first", name]).stderr
    assert "Warning: " in told
    assert said in told
    keys = {row["key"]: (row["a"], row["b"]) for row in typed("runs", "diff", "first", name, "--json")}
    for row in rows:
        if row["warning"] and (row["what"] == "seed" or row["what"].startswith(("data.", "preprocessing."))):
            assert keys[row["what"]] == (row["a"], row["b"])


@pytest.mark.parametrize("other", ["alike", "filtered"])
def test_compare_warns_of_nothing_where_a_setting_of_the_training_or_a_filter_differs(
    other: str, unlike: dict[str, Federation], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WARDROUND_SERVER_HOME", str(unlike["first"].home.path))
    assert {row["warning"] for row in typed("runs", "compare", "first", other, "--json")} == {None}
    told = CliRunner().invoke(app, ["runs", "compare", "first", other]).stderr
    assert "Warning" not in told
    assert "low and high" not in told  # exact scores: both columns are empty
    assert "B less A is of the exact numbers" in told


def test_diff_names_the_keys_that_differ_and_no_other(runs: list[Federation]) -> None:
    first, second, third = (one.document.hash[:8] for one in runs)
    found = {row["key"]: (row["a"], row["b"]) for row in typed("runs", "diff", first, second, "--json")}
    assert found == {"federation.rounds": (3, 2), "training.learning-rate": (0.001, 0.002)}
    assert typed("runs", "diff", first, first, "--json") == []
    assert "are one run: no key can differ" in CliRunner().invoke(app, ["runs", "diff", first, first]).stderr
    assert "are one run" not in CliRunner().invoke(app, ["runs", "diff", first, second]).stderr
    assert "federation.rounds" in {row["key"] for row in typed("runs", "diff", first, third, "--json")}


def test_compare_refuses_a_run_that_is_not_completed(runs: list[Federation]) -> None:
    result = CliRunner().invoke(app, ["runs", "compare", runs[0].document.hash[:8], runs[2].document.hash[:8]])
    assert result.exit_code == 1
    assert "only a completed run" in result.stderr


def test_the_end_of_a_run_names_the_command_that_gives_its_model_in_all_forms(runs: list[Federation]) -> None:
    result = CliRunner().invoke(app, ["watch", runs[0].document.hash[:8]])
    assert result.exit_code == 0, result.output
    command = f"`wardround-server export {runs[0].document.hash[:8]} --out MODEL`"
    assert f"ONNX when they are made: {command}" in result.output


def test_runs_alone_still_lists_all(runs: list[Federation]) -> None:
    assert {row["state"] for row in typed("runs", "--json")} == {"completed", "failed"}
