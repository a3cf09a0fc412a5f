"""The other forms of a finished model: made by a process apart, sealed, and whole or left out."""

import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import onnxruntime
import psutil
import pytest
import torch
from monai.bundle.config_parser import ConfigParser
from typer.testing import CliRunner

from common.crypto.stream import SUFFIX
from common.learning.checkpoint import load_model as read_model
from common.learning.network import load_model
from server.archive import forms, record
from server.archive.forms import Maker
from server.commands.main import app
from server.coordinator.runs import Runs
from server.home.folder import open_home
from server.registry.registry import Registry
from tests import ROOT
from tests.patience import eventually
from tests.server.evidence.federation import Federation, founded, trained
from tests.server.fakes import a_run
from tests.server.search import found, pieces

# A process of its own, which is killed: it makes the forms of the run whose home it is given.
MAKES = """
import sys
from pathlib import Path
from server.archive.forms import Maker
from server.home.folder import open_home
from server.registry.registry import Registry
home = open_home(Path(sys.argv[1]))
Maker(home, Registry(home.registry).proposals()[0]).wait()
"""
WITHOUT = "import sys; sys.modules[{name!r}] = None; from simulations.exchange.apart import main; main()"


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Federation:
    made = trained(*founded(tmp_path_factory.mktemp("forms")), a_run(rounds=1, quorum=2))
    settings = made.home.path / "server.toml"
    assert "exchange-forms = false" in settings.read_text()
    settings.write_text(settings.read_text().replace("exchange-forms = false", "exchange-forms = true"))
    return made


@pytest.fixture
def finished(template: Federation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Federation]:
    """A completed run without its folder, in a home of this test's own."""
    shutil.copytree(template.home.path, tmp_path / "home")
    monkeypatch.setenv("WARDROUND_SERVER_HOME", str(tmp_path / "home"))
    home = open_home(tmp_path / "home")
    yield Federation(home, Registry(home.registry), template.document, template.folder)
    assert ours(home.path) == []


def ours(home: Path) -> list[int]:
    """Processes that work beneath the home's folder for what is being made."""
    here = []
    for one in psutil.process_iter():
        try:
            if one.environ().get("TMPDIR") == str(home / "forms"):
                here.append(one.pid)
        except psutil.Error:
            continue
    return here


def proposal_of(made: Federation) -> Any:
    return made.registry.proposal(made.document.hash)


def folder_of(made: Federation) -> Path:
    return made.home.path / "models" / f"tiny-{made.document.hash[:8]}"


def weights_of(made: Federation) -> bytes:
    sealed = (made.results / "model.safetensors.sealed").read_bytes()
    return made.home.sealer_of(made.document.hash).open(sealed, "model.safetensors")


def exported(out: Path) -> str:
    result = CliRunner().invoke(app, ["export", "tiny", "--out", str(out)])
    assert result.exit_code == 0, result.output
    return result.output


def test_a_finished_run_leaves_bundle_and_onnx_that_say_what_its_model_says(
    finished: Federation, tmp_path: Path
) -> None:
    """As the coordinator makes them, without anybody asking."""
    runs = Runs(finished.home, finished.registry)
    eventually(lambda: runs.step() or folder_of(finished).exists())
    manifest = json.loads((folder_of(finished) / "manifest.json").read_text())
    assert {"bundle/models/model.pt.sealed", "model.onnx.sealed"} <= manifest["files"].keys()
    assert found(finished.home.path, pieces(weights_of(finished))) == []
    assert not (finished.home.path / "forms").exists()
    told = json.loads((folder_of(finished) / "provenance.json").read_text())["forms"]
    assert all(one["largest-difference"]["outputs"] < 1e-4 for one in told.values())

    assert "Left out" not in exported(tmp_path / "out")
    run, state, _ = read_model(tmp_path / "out")
    network = load_model(run, state).eval()
    images = torch.randn(2, 1, 24, 16, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = network(images)
    session = onnxruntime.InferenceSession(tmp_path / "out" / "model.onnx", providers=["CPUExecutionProvider"])
    (onnx,) = session.run(None, {"image": images.numpy()})
    torch.testing.assert_close(torch.from_numpy(onnx), expected, rtol=1e-4, atol=1e-4)
    parser = ConfigParser()
    parser.read_config(tmp_path / "out" / "bundle" / "configs" / "inference.json")
    parser["bundle_root"], parser["device"] = str(tmp_path / "out" / "bundle"), "cpu"
    with torch.no_grad():
        torch.testing.assert_close(parser.get_parsed_content("network")(images), expected, rtol=1e-4, atol=1e-4)


def test_killed_in_the_middle_nothing_half_is_left_and_the_next_makes_all(finished: Federation) -> None:
    home = finished.home.path
    making = subprocess.Popen([sys.executable, "-c", MAKES, str(home)], cwd=ROOT)
    # The bundle is run by MONAI.
    eventually(lambda: len(ours(home)) > 1 and any((home / "forms").rglob("inference.json")))
    assert found(home, pieces(weights_of(finished))) == []
    making.send_signal(signal.SIGKILL)
    making.wait()
    eventually(lambda: not ours(home))
    assert not (home / "models").exists()
    assert found(home, pieces(weights_of(finished))) == []
    assert record.keep(finished.home, proposal_of(finished))
    assert not [
        one for one in record.forms_in(record.kept(finished.home, proposal_of(finished))).values() if "left-out" in one
    ]
    assert not (home / "forms").exists()


def test_a_coordinator_that_stops_ends_it_and_leaves_the_folder_to_the_next_start(finished: Federation) -> None:
    runs = Runs(finished.home, finished.registry)
    runs.step()
    eventually(lambda: ours(finished.home.path))
    runs.close()
    assert ours(finished.home.path) == []
    assert not (finished.home.path / "models").exists()
    assert not (finished.home.path / "forms").exists()


def test_a_form_whose_library_is_not_here_is_named_and_harms_nothing(
    finished: Federation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(forms, "_COMMAND", (sys.executable, "-P", "-c", WITHOUT.format(name="onnx")))
    assert record.keep(finished.home, proposal_of(finished))
    kept = record.kept(finished.home, proposal_of(finished))
    told = record.forms_in(kept)
    assert told["monai-bundle"]["path"] == "bundle"
    assert "pip install 'wardround[exchange]'" in told["onnx"]["left-out"]
    assert [name for name in kept.manifest["files"] if "onnx" in name] == []
    said = exported(tmp_path / "out")
    assert (tmp_path / "out" / "bundle" / "models" / "model.pt").exists()
    assert not (tmp_path / "out" / "model.onnx").exists()
    assert "Left out: onnx. ONNX needs packages that are not here" in said
    assert f"Made by: wardround-sim export {tmp_path / 'out'} --all FOLDER" in said
    result = CliRunner().invoke(app, ["doctor"])
    assert f"onnx of tiny {finished.document.hash[:8]}" in result.output


def test_without_the_extra_both_are_left_out(finished: Federation, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forms, "_COMMAND", (sys.executable, "-P", "-c", WITHOUT.format(name="nibabel")))
    made = Maker(finished.home, proposal_of(finished)).wait()
    assert made.files == {}
    assert {one["left-out"] for one in made.told.values()} == {
        "packages are not here (nibabel). Install them: pip install 'wardround[exchange]'."
    }


@pytest.mark.parametrize(
    ("code", "told"),
    [
        ("import os; os.kill(os.getpid(), 9)", "was ended by signal 9"),
        ("raise OSError(28, 'No space left on device')", "ended with exit code 1"),
        ("import sys; sys.stdin.buffer.read(1); sys.stdout.buffer.write(bytes(64))", "forms.log"),
        (
            "from common.wire.frames import *; import sys; receive_frame(0);"
            "send_frame(1, Frame({'forms': {'monai-bundle': {}, 'onnx': {}}}, {'bundle/../../x': b'x'}))",
            "files of other places",
        ),
        (
            "from common.wire.frames import *; import sys; receive_frame(0);"
            "send_frame(1, Frame({'forms': {'monai-bundle': {}}}, {}))",
            "answered with something else",
        ),
    ],
)
def test_a_process_that_fails_leaves_them_out_and_the_folder_is_made(
    finished: Federation, code: str, told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(forms, "_COMMAND", (sys.executable, "-P", "-c", code))
    assert record.keep(finished.home, proposal_of(finished))
    kept = record.kept(finished.home, proposal_of(finished))
    for one in record.forms_in(kept).values():
        assert told in one["left-out"]
    assert f"model.safetensors{SUFFIX}" in kept.manifest["files"]
    assert finished.home.logs.joinpath("forms.log").exists()


def test_a_process_that_does_not_read_is_not_waited_for_without_end(
    finished: Federation, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a model that is larger than what a pipe takes up."""
    monkeypatch.setattr(forms, "_COMMAND", (sys.executable, "-P", "-c", "import time; time.sleep(3600)"))
    monkeypatch.setattr(forms, "_LONGEST_S", 1.0)
    monkeypatch.setattr(forms, "_opened", lambda *_: {"model.safetensors": bytes(1 << 22)})
    made = Maker(finished.home, proposal_of(finished)).wait()
    assert {one["left-out"].partition(";")[0] for one in made.told.values()} == {
        "the other end of the pipe did not go on in time"
    }


def test_a_run_whose_folder_cannot_be_made_keeps_no_other_waiting(
    finished: Federation, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its records cannot be read once its forms are there."""

    def unreadable(*_: object) -> bool:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(forms, "_COMMAND", (sys.executable, "-P", "-c", "raise SystemExit(3)"))
    runs, run_hash, never = Runs(finished.home, finished.registry), finished.document.hash, float("inf")
    first = Registry(finished.home.registry).proposals()[0]
    runs._to_keep = {run_hash: never}
    with monkeypatch.context() as broken:
        broken.setattr(record, "has_all_receipts", unreadable)
        eventually(lambda: runs.step() or not runs._to_keep)
    other = dataclasses.replace(first, run_hash="ab" * 32)
    monkeypatch.setattr(finished.registry, "proposal", lambda _: other)
    begun: list[str] = []
    monkeypatch.setattr(forms.Maker, "_work", lambda self: begun.append(self._proposal.run_hash))
    runs._to_keep = {other.run_hash: never}
    runs.step()
    runs.close()
    assert begun == [other.run_hash]


def test_two_who_want_them_wait_for_each_other(finished: Federation, monkeypatch: pytest.MonkeyPatch) -> None:
    """A command and the coordinator: the folder in which one works is not taken from it."""
    first = subprocess.Popen([sys.executable, "-c", MAKES, str(finished.home.path)], cwd=ROOT)
    eventually(lambda: ours(finished.home.path))
    monkeypatch.setattr(forms, "_COMMAND", (sys.executable, "-P", "-c", "raise SystemExit(0)"))
    second = Maker(finished.home, proposal_of(finished))
    assert second.made is None
    second.stop()  # which does not wait for the first
    assert first.poll() is None
    os.kill(first.pid, signal.SIGKILL)
    first.wait()
    eventually(lambda: not ours(finished.home.path))


def test_a_home_may_do_without(finished: Federation, tmp_path: Path) -> None:
    settings = finished.home.path / "server.toml"
    settings.write_text(settings.read_text().replace("exchange-forms = true", "exchange-forms = false"))
    home = open_home(finished.home.path)
    assert record.keep(home, proposal_of(finished))
    assert "exchange-forms = false in server.toml" in exported(tmp_path / "out")
