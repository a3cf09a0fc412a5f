"""The service on a drop folder: each study once, whatever comes, across restarts; and it stops when it is told to."""

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
import torch
from PIL import Image

import client.predict.files
import client.predict.prediction
import client.predict.service
from client.data.isolate.isolation import Readers
from client.data.study.study import Reference, Study
from client.predict.dropfolder import Find
from client.predict.prediction import Read, reading
from client.predict.service import FAILED, RESULT_NAME, STATUS_NAME, watch
from common.config import RunConfig
from common.errors import ConfigError
from common.learning.network import build_model
from simulations.generators.phantoms import SCANNERS, write_study
from tests import ROOT
from tests.client.thresholds import WINDOW, run_for, save, threshold_network
from tests.patience import PATIENCE_S, eventually


class Site:
    """A drop folder, its results, and a model that finds what is brighter than 60."""

    def __init__(self, folder: Path) -> None:
        self.drop, self.out = folder / "drop", folder / "out"
        self.drop.mkdir()
        self.model = save(folder / "model", run_for(), threshold_network(run_for(), (60.25,), WINDOW))

    def picture(self, name: str, grey: int = 90) -> Path:
        """Drop a picture, all of one grey with a brighter corner."""
        pixels = np.full((20, 24), grey, np.uint8)
        pixels[:5, :5] = 250
        Image.fromarray(pixels).save(self.drop / name)
        return self.drop / name

    def results(self) -> dict[str, Any]:
        """What is done, by stamp."""
        return {path.parent.name: json.loads(path.read_bytes()) for path in self.out.glob(f"*/{RESULT_NAME}")}

    def set_aside(self) -> dict[str, Any]:
        """What was set aside, by stamp."""
        return {path.stem: json.loads(path.read_bytes()) for path in (self.out / FAILED).glob("*.json")}

    def status(self) -> dict[str, Any]:
        """The status file."""
        return dict(json.loads((self.out / STATUS_NAME).read_bytes()))

    def work(self, until: Callable[[], bool] = lambda: False, looks: int = 200) -> None:
        """Run the service in this process until something is true, or for so many questions whether to stop."""
        asked = iter(range(looks))
        watch(
            self.model,
            self.drop,
            self.out,
            settle_s=0.0,
            poll_s=0.0,
            stopped=lambda: until() or next(asked, None) is None,
        )


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Site:
    monkeypatch.setattr(client.predict.prediction, "build_model", lambda run: threshold_network(run, (60.25,), WINDOW))
    monkeypatch.setattr(
        client.predict.prediction, "Readers", lambda _count: Readers(0)
    )  # no process: it takes a second to start
    return Site(tmp_path)


def test_studies_are_done_once_also_after_a_restart(site: Site) -> None:
    first = site.picture("Doe^Jane.png")
    site.picture("other.pgm", grey=80)
    shutil.copy(first, site.drop / "twin.png")
    site.work()
    results = site.results()
    assert set(results) == {sha256(path.read_bytes()).hexdigest()[:16] for path in site.drop.iterdir()}
    assert {tuple(result["voxels"].items()) for result in results.values()} == {(("lesion", 480),)}
    names = {path.name for path in site.out.rglob("*") if path.is_file()}
    assert names == {
        "labels.png", "labels.pgm", "overlay.png", "result.json", "status.json", "watch.json", "watch.lock"
    }  # fmt: skip
    assert site.status()["done"] == 2
    site.work()
    assert (site.results(), site.status()["done"]) == (results, 0)
    first.unlink()
    shutil.copy(site.drop / "other.pgm", site.drop / "again.pgm")
    site.work()
    assert (site.results(), site.status()["done"]) == (results, 0), "the same bytes under another name"


def test_broken_study_is_set_aside_and_tried_again_only_when_it_changes(
    site: Site, caplog: pytest.LogCaptureFixture
) -> None:
    broken = site.drop / "Doe^Jane.png"
    broken.write_bytes(b"\x89PNG\r\n\x1a\n no picture of Doe^Jane")
    site.picture("good.png")
    site.work()
    (record,) = site.set_aside().values()
    assert record["code"] == "unreadable"
    assert len(site.results()) == 1
    os.utime(broken, ns=(1, 1))
    site.work()
    assert site.status() | {"done": 0, "set-aside": 0} == site.status(), "another time, the same bytes"
    site.picture("Doe^Jane.png", grey=70)
    site.work()
    assert len(site.results()) == 2
    assert "Doe" not in caplog.text + "".join(str(path.relative_to(site.out)) for path in site.out.rglob("*"))
    assert not any(b"Doe" in path.read_bytes() for path in site.out.rglob("*") if path.is_file())


def test_study_of_another_modality_is_set_aside(site: Site) -> None:
    write_study(site.drop, scanner=SCANNERS["a"], seed=1, slices=2, rows=16, labelled=False)
    for path in site.drop.rglob("*.dcm"):
        image = pydicom.dcmread(path)
        image.Modality = "MR"
        image.save_as(path)
    site.work()
    assert [record["code"] for record in site.set_aside().values()] == ["unsupported"]


def test_unexpected_error_sets_the_study_aside_and_the_service_goes_on(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    def explode(*_: object, **__: object) -> None:
        raise ZeroDivisionError("Doe^Jane")

    with monkeypatch.context() as patch:
        patch.setattr(client.predict.prediction, "encode", explode)
        site.picture("a.png")
        site.work()
    (record,) = site.set_aside().values()
    assert record["code"] == "internal"
    assert "Doe" not in record["reason"]
    site.picture("b.png", grey=70)
    site.work()
    assert len(site.results()) == 1


def test_study_waits_when_the_disk_is_full_and_is_not_lost(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(path: Path, data: bytes) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    site.picture("a.png")
    monkeypatch.setattr(client.predict.service, "_TROUBLE_PAUSE_S", 0.0)
    with monkeypatch.context() as patch:
        patch.setattr(client.predict.files, "write_atomically", full)
        site.work(looks=20)
    assert (site.results(), site.set_aside()) == ({}, {})
    site.work()
    assert len(site.results()) == 1


def test_study_that_changes_while_it_is_read_is_left_for_later(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    path = site.picture("a.png")
    real = reading

    @contextmanager
    def changing(run: RunConfig) -> Iterator[tuple[Find, Read]]:
        with real(run) as (find, read):

            def slow(reference: Reference) -> Study:
                study = read(reference)
                if path.stat().st_mtime_ns != 1:
                    site.picture("a.png", grey=70)
                    os.utime(path, ns=(1, 1))
                return study

            yield find, slow

    monkeypatch.setattr(client.predict.service, "reading", changing)
    site.work()
    assert set(site.results()) == {sha256(path.read_bytes()).hexdigest()[:16]}
    assert site.set_aside() == {}


def test_out_belongs_to_one_model_and_one_service(site: Site) -> None:
    site.picture("a.png")
    site.work()
    other = run_for(patch=8)
    save(site.model, other, threshold_network(other, (99.0,), WINDOW))
    with pytest.raises(ConfigError, match="another model"):
        site.work()
    with client.predict.service.only_one(site.out), pytest.raises(ConfigError, match="another --watch"):
        site.work()


def test_folder_must_be_there_and_apart_from_the_results(site: Site) -> None:
    site.out = site.drop / "out"
    with pytest.raises(ConfigError, match="outside"):
        site.work()
    site.drop = site.drop / "nowhere"
    with pytest.raises(ConfigError, match="folder that is there"):
        site.work()


@pytest.mark.system
def test_service_takes_what_a_pacs_sends_and_stops_on_sigterm(tmp_path: Path) -> None:
    site = Site(tmp_path)
    run = run_for()
    network = build_model(run)
    torch.nn.init.normal_(next(network.parameters()), generator=torch.Generator().manual_seed(3))
    save(site.model, run, network)
    series = [
        write_study(tmp_path / f"pacs-{n}", scanner=SCANNERS["a"], seed=1, patient=n, slices=4, rows=32, labelled=False)
        for n in (1, 2)
    ]
    command = (
        sys.executable,
        "-m",
        "client.commands.main",
        "predict",
        str(site.model),
        str(site.drop),
        "--out",
        str(site.out),
    )
    with (tmp_path / "log").open("w") as log:
        service = subprocess.Popen([*command, "--watch", "--settle", "5"], cwd=ROOT, stderr=log, stdout=log)
    try:
        _wait_for((site.out / STATUS_NAME).exists, service)
        for path in series[0].images:
            shutil.copy(path, site.drop / path.name)
            time.sleep(0.3)
        (site.drop / "broken.dcm").write_bytes(bytes(128) + b"DICM" + b"PHANTOM^A0003" + bytes(range(200)))
        # It may be the last slice of the series beside it, which waits until that is clear.
        _wait_for(lambda: len(site.set_aside()) == 2, service)
        assert not site.results()
        (site.drop / "broken.dcm").unlink()
        _wait_for(lambda: len(site.results()) == 1, service)
        for path in series[1].images:
            (site.drop / "second").mkdir(exist_ok=True)
            shutil.copy(path, site.drop / "second" / path.name)
        _wait_for(lambda: len(site.results()) == 2, service)
        service.send_signal(signal.SIGTERM)
        assert service.wait(PATIENCE_S) == 0
    finally:
        service.kill()
        service.wait()
    assert [result["slices"] for result in site.results().values()] == [4, 4]
    told = {pydicom.dcmread(site.out / stamp / "segmentation.dcm").StudyInstanceUID for stamp in site.results()}
    assert told == {pydicom.dcmread(one.images[0]).StudyInstanceUID for one in series}
    assert site.status()["state"] == "stopped"
    text = (tmp_path / "log").read_text()
    assert text.count("4 slices") == 2
    assert text.count("set aside: unreadable") == 2
    assert not any(canary in text for canary in ("PHANTOM", "A0001", "A0002", "Traceback", *told, str(site.drop)))


def _wait_for(condition: Callable[[], bool], service: subprocess.Popen[bytes]) -> None:
    def came() -> bool:
        assert service.poll() is None, "the service ended"
        return condition()

    eventually(came, "the service does it")
