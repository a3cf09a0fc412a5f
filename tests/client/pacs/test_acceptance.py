"""From the PACS and back: pulled with labels, checked, trained two rounds, an unseen study sent, its SEG there."""

import json
import socket
import ssl
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from pydicom import dcmread
from pydicom.dataset import Dataset
from typer.testing import CliRunner

from client.commands.main import app
from client.home.folder import POLICY_NAME
from client.pacs.sending import SENT
from client.site import open_site
from client.trail.audit_trail import open_log
from common.config import RunConfig, validate
from common.config.rundocument import issue
from server.federation.rounds import federate
from simulations.backends.in_process import InProcessGrid
from tests.client.coordinator import Authority
from tests.client.pacs.conftest import LABELLED, SLICES, STUDIES, Archive, by_dimse, by_web, written
from tests.client.pacs.senders import free_port, sent
from tests.client.predict.test_dicom_seg import errors
from tests.patience import eventually

pytestmark = pytest.mark.system

RUN = validate(
    RunConfig,
    {
        "name": "acceptance",
        "seed": 3,
        "deterministic": True,
        "model": {"dims": 2, "channels": [4, 8], "residual-units": 0},
        "data": {"modality": "CT", "classes": ["lesion"], "validation-fraction": 0.2, "test-fraction": 0.2},
        "preprocessing": {"intensity": "window", "window": [-100, 250]},
        "training": {"patch-size": [16, 16], "local-steps": 2, "batch-size": 2},
        "federation": {"rounds": 2},
    },
)


def typed(*words: object, code: int = 0) -> str:
    done = CliRunner().invoke(app, [*map(str, words)])
    assert done.exit_code == code, done.output
    return done.stdout


@pytest.fixture(scope="module")
def sites(filled: Archive, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Two hospitals, each with the studies that it pulled: one over DIMSE, one over DICOMweb."""
    folder, homes = tmp_path_factory.mktemp("sites"), dict[str, Path]()
    for site, way in (("north", by_dimse), ("south", by_web)):
        home = homes[site] = folder / site
        Authority().admit(home, site, "127.0.0.1:9")
        (home / POLICY_NAME).write_text("require-privacy = false\nmin-patients = 4\nmin-held-out = 1\n")
        for name, other in (("main", way), ("dimse", by_dimse), ("web", by_web)):
            typed("pacs", "add", name, *other(filled, "--timeout", 10), "--home", home)
        pulled = folder / f"{site}-pulled"
        typed("data", "pull", "main", "--query", "modality=CT", "--out", pulled, "--yes", "--home", home)
        typed("data", "add", pulled, "--kind", "dicom", "--home", home)
    checked = json.loads(typed("data", "check", "--json", "--home", homes["north"]))
    marked = [path for path in filled.stored if path.name == "lesion.dcm" and dcmread(path).pixel_array.any()]
    assert len(checked["studies"]) == STUDIES
    assert sum(study["usable"] is True for study in checked["studies"]) == len(marked) > LABELLED // 2
    return homes


@pytest.fixture(scope="module")
def model(sites: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Trained by both of them, two rounds."""
    out = tmp_path_factory.mktemp("model")
    federate(InProcessGrid([open_site(home) for home in sites.values()], issue(RUN)), issue(RUN), out)
    return out


def in_the_pacs(archive: Archive, study: str, modality: str = "SEG") -> Dataset | None:
    """The one object of a study of this modality that the PACS holds, read from it anew; None: there is none."""
    found = archive.server.found("Instance", StudyInstanceUID=study, Modality=modality)
    if not found:
        return None
    (one,) = found
    path = archive.login.with_name("back.dcm")
    path.write_bytes(archive.server.asked(f"instances/{one}/file"))
    return dcmread(path)


def assert_came_back(archive: Archive, images: list[Path], written_here: Path) -> None:
    """What the PACS holds is what was made here, of the images that were sent, and viewers find them."""
    heads = [dcmread(path, stop_before_pixels=True) for path in images]
    back, here = in_the_pacs(archive, heads[0].StudyInstanceUID), dcmread(written_here)
    assert back is not None
    assert np.array_equal(back.pixel_array, here.pixel_array)
    assert (back.SOPInstanceUID, back.PatientID) == (here.SOPInstanceUID, heads[0].PatientID)
    (series,) = back.ReferencedSeriesSequence
    assert series.SeriesInstanceUID == heads[0].SeriesInstanceUID
    named = {one.ReferencedSOPInstanceUID for one in series.ReferencedInstanceSequence}
    assert named <= {one.SOPInstanceUID for one in heads}
    assert errors(written_here, here) == []


def listening_while(monkeypatch: pytest.MonkeyPatch, happens: Callable[[], None], *words: object) -> None:
    """`predict` with these words, until what happens meanwhile, in a thread, is over."""
    over, failed = threading.Event(), list[BaseException]()

    def run() -> None:
        try:
            happens()
        except BaseException as error:  # noqa: BLE001 - told in the test's own thread
            failed.append(error)
        finally:
            over.set()

    monkeypatch.setattr("client.commands.models.predict.asked_to_stop", lambda: over.is_set)
    thread = threading.Thread(target=run)
    thread.start()
    try:
        typed("predict", *words)
    finally:
        over.set()
        thread.join()
    assert failed == []


def test_an_unseen_study_that_is_sent_comes_back_with_its_segmentation_though_the_pacs_was_away(
    tmp_path: Path, archive: Archive, sites: dict[str, Path], model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours, key, _ = archive.hospital.issue("listener")
    images, out, port = written(tmp_path / "new", range(50, 51)), tmp_path / "out", free_port()
    study = str(dcmread(images[0], stop_before_pixels=True).StudyInstanceUID)

    def scanner() -> None:
        eventually((out / ".received" / "coming").is_dir)
        archive.server.kill()
        eventually(lambda: _sends(port, images, archive))
        eventually(lambda: any(out.glob("*/result.json")))
        time.sleep(1.5)  # it is tried
        assert not any(out.glob(f"*/{SENT}"))
        archive.server.start()
        eventually(lambda: any(out.glob(f"*/{SENT}")))

    tls = ("--tls-certificate", ours, "--tls-key", key, "--tls-ca", archive.hospital.ca)
    listen = ("--listen", f"127.0.0.1:{port}", "--accept", "CT1", "--settle", 0.2, *tls, "--send-to", "dimse")
    listening_while(monkeypatch, scanner, model, "--out", out, "--report", *listen, "--home", sites["north"])
    (result,) = out.glob("*/segmentation.dcm")
    assert_came_back(archive, images, result)
    assert list((out / ".received").rglob("*.dcm")) == [], "what was received is not kept"
    told = json.loads((result.parent / SENT).read_bytes())
    assert (told["pacs"], told["objects"]) == ("dimse", 3)
    for modality, name in (("SR", "report.dcm"), ("OT", "capture.dcm")):
        back = in_the_pacs(archive, study, modality)
        assert back is not None
        assert back.to_json_dict() == dcmread(result.with_name(name)).to_json_dict()
    assert study not in str(list(out.rglob("*")))
    with open_log(sites["north"]).transaction() as log:
        assert len(log.latest("results-sent", count=5)) == 1


def test_a_study_of_a_query_is_segmented_and_nothing_else_is_kept(
    tmp_path: Path, archive: Archive, sites: dict[str, Path], model: Path
) -> None:
    images, out = written(tmp_path / "new", range(60, 61)), tmp_path / "out"
    archive.server.store(*images)
    one = dcmread(images[0], stop_before_pixels=True)
    asked = tmp_path / "asked.csv"
    asked.write_text(f"accession\n{one.AccessionNumber}\n")
    words = ("predict", model, "--from", "web", "--query", f"accessions={asked}", "--out", out, "--send-to", "web")
    told = json.loads(typed(*words, "--json", "--home", sites["south"]))
    assert [done["slices"] for done in told["studies"]] == [SLICES]
    assert {path.name for path in out.rglob("*")} == {"overlay.png", "segmentation.dcm", SENT}
    assert_came_back(archive, images, out / "segmentation.dcm")


def test_a_study_that_the_pacs_sends_by_dicomweb_is_segmented_and_its_segmentation_comes_back(
    tmp_path: Path, archive: Archive, sites: dict[str, Path], model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images, out, port = written(tmp_path / "new", range(70, 71)), tmp_path / "out", free_port()
    archive.server.store(*images)
    study = str(dcmread(images[0], stop_before_pixels=True).StudyInstanceUID)
    token = tmp_path / "token"
    token.write_text("0123456789abcdef0123456789abcdef\n")
    token.chmod(0o600)

    def pacs() -> None:
        eventually((out / ".received" / "coming").is_dir)
        shown = {"Authorization": f"Bearer {token.read_text().strip()}"}
        us = {"Url": f"http://127.0.0.1:{port}/dicom-web/", "HttpHeaders": shown}
        archive.server.asked("dicom-web/servers/us", json.dumps(us).encode(), "PUT")
        (number,) = archive.server.found("Study", StudyInstanceUID=study)
        what = json.dumps({"Resources": [number], "Synchronous": True}).encode()
        eventually(lambda: _listens(port))
        archive.server.asked("dicom-web/servers/us/stow", what)
        eventually(lambda: any(out.glob(f"*/{SENT}")))

    listen = ("--listen", f"127.0.0.1:{port}", "--stow", "--token", token, "--settle", 0, "--send-to", "web")
    listening_while(monkeypatch, pacs, model, "--out", out, *listen, "--home", sites["south"])
    (result,) = out.glob("*/segmentation.dcm")
    assert_came_back(archive, images, result)
    assert list((out / ".received").rglob("*.dcm")) == [], "what was received is not kept"


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def _sends(port: int, images: list[Path], archive: Archive) -> bool:
    context = ssl.create_default_context(cafile=str(archive.hospital.ca))
    context.load_cert_chain(*archive.ours)
    return sent(port, images, tls=context) == [0] * len(images)
