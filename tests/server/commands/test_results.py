"""What a run has made is shown and exported, or it is said why there is nothing."""

import json

from common.config.rundocument import from_toml
from server.archive.record import kept
from tests.server.commands.calls import HASH, add_result, fails, invoke, succeeds
from tests.server.coordinators import RUN_TOML


def doctor() -> dict[str, str]:
    """What it says of each thing."""
    return {row["check"]: row["detail"] for row in json.loads(invoke("doctor", "--json").stdout)}


def test_export_copies_the_model_of_a_completed_run_only(home, registry, tmp_path):
    registry.propose(from_toml(RUN_TOML), ())
    assert "only a completed run" in fails("export", "lesions", "--out", "model")
    add_result(home)
    registry.close(HASH, "completed")
    succeeds("export", "lesions", "--out", "model")
    exported = {path.name: path.read_bytes() for path in (tmp_path / "model").iterdir()}
    assert exported == {name: name.encode() for name in ("model.json", "model.safetensors")}


def test_export_writes_no_second_model_into_a_folder(home, registry, tmp_path):
    registry.propose(from_toml(RUN_TOML), ())
    add_result(home)
    registry.close(HASH, "completed")
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "model.onnx").write_bytes(b"of another run")
    assert "Give a new or empty one with --out" in fails("export", "lesions", "--out", "model")
    assert [one.name for one in (tmp_path / "model").iterdir()] == ["model.onnx"]


def test_model_whose_folder_was_changed_is_not_exported(home, registry):
    registry.propose(from_toml(RUN_TOML), ())
    add_result(home)
    registry.close(HASH, "completed")
    assert "are one run" in fails("runs", "compare", "lesions", HASH[:8])
    kept(home, registry.proposal(HASH))  # makes the folder of a run that has none yet
    assert doctor()["models"] == "1 folder of completed runs as signed"
    (folder,) = (home.path / "models").iterdir()
    sealed = folder / "model.safetensors.sealed"
    sealed.chmod(0o600)
    sealed.write_bytes(home.sealer_of(HASH).seal(b"another model", "model.safetensors"))
    assert "model.safetensors.sealed is not as it was written" in fails("export", "lesions", "--out", "again")
    assert "model.safetensors.sealed is not as it was written" in doctor()[f"model of lesions {HASH[:8]}"]


def test_run_that_no_hospital_scored_ends_with_the_epsilon_of_each_and_says_why_there_is_no_dice(home, registry):
    registry.propose(from_toml(RUN_TOML), ())
    folder = add_result(home)
    summary = json.loads((folder / "summary.json").read_text())
    summary["scores"]["test"] |= {"sites": {}, "mean-of-sites": {}}
    (folder / "summary.json").write_text(json.dumps(summary))
    registry.close(HASH, "completed")
    result = invoke("watch", "lesions")
    assert result.exit_code == 0, result.output
    row = next(line for line in result.stdout.splitlines() if "1.500" in line)
    assert row.replace("│", " ").split() == ["a", "-", "-", "1.500", "0.001"]
    assert "min-held-out" in result.stderr


def test_noised_score_is_shown_beside_its_noise(home, registry):
    registry.propose(from_toml(RUN_TOML), ())
    folder = add_result(home)
    summary = json.loads((folder / "summary.json").read_text())
    summary["scores"]["test"]["sites"]["a"] |= {"dice": 0.812, "score-noise": 0.045}
    (folder / "summary.json").write_text(json.dumps(summary))
    registry.close(HASH, "completed")
    row = next(line for line in invoke("watch", "lesions").stdout.splitlines() if "0.812" in line)
    assert row.replace("│", " ").split()[:3] == ["a", "0.812", "0.045"]


def test_report_without_a_result_is_explained(home, registry):
    registry.propose(from_toml(RUN_TOML), ())
    assert "has not begun" in fails("report", "lesions")
