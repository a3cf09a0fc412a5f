"""Studies pulled from a real Orthanc by the commands: over DIMSE and DICOMweb, in the clear and over TLS, interrupted.

What comes is compared with what was put in, pixel by pixel and reference by reference.
"""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from click.testing import Result
from pydicom import dcmread
from pydicom.uid import JPEG2000Lossless, generate_uid
from typer.testing import CliRunner

from client.commands.main import app
from client.trail.audit_trail import open_log
from simulations.generators.phantoms import SCANNERS, write_study
from tests.client.coordinator import Authority
from tests.client.pacs.certificates import Hospital
from tests.client.pacs.orthanc import LOGIN, OURS, TITLE, Orthanc, orthanc
from tests.client.pacs.tls_front import tls_front
from tests.json_forms import conforms

COMMAND = Path(sys.executable).with_name("wardround-client")
STUDIES, LABELLED, SLICES = 20, 16, 7

pytestmark = pytest.mark.system


def archive(folder: Path, studies: int = STUDIES, labelled: int = LABELLED) -> list[Path]:
    """What a PACS holds: CT series of as many patients, most with a DICOM SEG, and one MR that nobody asks for."""
    scanner = next(iter(SCANNERS.values()))
    files: list[Path] = []
    for patient in range(1, studies + 1):
        where = folder / str(patient)
        write_study(
            where, scanner=scanner, seed=0, patient=patient, slices=SLICES, rows=32, labelled=patient <= labelled
        )
        files += sorted(where.rglob("*.dcm"))
    other = dcmread(files[0])
    other.Modality, other.SeriesInstanceUID = "MR", generate_uid()
    other.SOPInstanceUID = other.file_meta.MediaStorageSOPInstanceUID = generate_uid()
    other.save_as(folder / "mr.dcm", enforce_file_format=True)
    return [*files, folder / "mr.dcm"]


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return archive(tmp_path_factory.mktemp("archive"))


@pytest.fixture(scope="module")
def pacs(tmp_path_factory: pytest.TempPathFactory, stored: list[Path]) -> Iterator[Orthanc]:
    with orthanc(tmp_path_factory.mktemp("orthanc")) as server:
        server.store(*stored)
        yield server


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    Authority().admit(tmp_path / "site", "north", "127.0.0.1:9")
    monkeypatch.setenv("WARDROUND_HOME", str(tmp_path / "site"))
    return tmp_path / "site"


def typed(*words: object, code: int = 0) -> Result:
    done = CliRunner().invoke(app, [*map(str, words)])
    assert done.exit_code == code, done.output
    return done


def by_dimse(server: Orthanc, *more: object) -> tuple[object, ...]:
    return ("--host", "127.0.0.1", "--port", server.dimse, "--called", TITLE, *more)


def by_web(server: Orthanc, *more: object) -> tuple[object, ...]:
    return ("--url", f"http://127.0.0.1:{server.http}/dicom-web", *more)


WAYS = [by_dimse, by_web]
Way = Callable[..., tuple[object, ...]]


def files_in(out: Path) -> dict[str, Path]:
    """The finished files of a folder by their objects' UIDs."""
    return {path.stem: path for path in out.glob("[!.]*/*/*.dcm")}


def assert_equal(pulled: Path, put_in: Path) -> None:
    """The same object: every element but the group of the file."""
    one, other = dcmread(pulled), dcmread(put_in)
    assert one.SOPInstanceUID == other.SOPInstanceUID
    assert one.PatientName == other.PatientName
    if "ReferencedSeriesSequence" in other:
        assert one.ReferencedSeriesSequence == other.ReferencedSeriesSequence
    assert np.array_equal(one.pixel_array, other.pixel_array)


def usable(home: Path) -> int:
    """How many studies can be trained on."""
    checked = json.loads(typed("data", "check", "--json", "--home", home).stdout)
    return sum(study["usable"] is True for study in checked["studies"])


@pytest.mark.parametrize("way", WAYS)
def test_studies_come_whole_with_their_labels_and_can_be_trained_on(
    tmp_path: Path, home: Path, pacs: Orthanc, stored: list[Path], way: Way
) -> None:
    typed("pacs", "add", "main", *way(pacs))
    tested = json.loads(typed("pacs", "test", "main", "--json").stdout)
    conforms("wardround-client pacs test", tested)
    assert {one["result"] for one in tested} == {"ok"}
    pull = ("data", "pull", "main", "--query", "modality=CT", "--out", tmp_path / "out")
    told = json.loads(typed(*pull, "--dry-run", "--json").stdout)
    conforms("wardround-client data pull", told)
    assert not (tmp_path / "out").exists()
    found = told["found"]
    assert (found["studies"], found["patients"], found["labelled"]) == (STUDIES, STUDIES, LABELLED)
    assert (found["image-series"], found["label-series"]) == (STUDIES, LABELLED)
    assert found["objects"] == STUDIES * SLICES + LABELLED
    assert STUDIES * SLICES * 32 * 32 * 2 <= found["bytes"] < 2 * STUDIES * SLICES * 32 * 32 * 2
    assert told["left-out"] == {"series that was not asked for (MR)": 1}
    assert told["pulled"]["studies"] == 0

    told = json.loads(typed(*pull, "--yes", "--json").stdout)
    conforms("wardround-client data pull", told)
    assert told["pulled"]["studies"] == STUDIES
    assert told["failed"] == {}
    put_in = {str(dcmread(path, stop_before_pixels=True).SOPInstanceUID): path for path in stored if path.stem != "mr"}
    came = files_in(tmp_path / "out")
    assert came.keys() == put_in.keys()
    assert told["pulled"]["files"] == len(came)
    for uid, path in came.items():
        assert_equal(path, put_in[uid])
        assert path.stat().st_mode & 0o077 == 0

    again = json.loads(typed(*pull, "--yes", "--json").stdout)
    assert (again["found"]["studies"], again["found"]["here"], again["pulled"]["files"]) == (0, STUDIES, 0)
    added = typed("data", "add", tmp_path / "out", "--kind", "dicom", "--home", home)
    assert f"{STUDIES} studies of {STUDIES} patients" in added.output
    before = tmp_path / "before"
    before.mkdir()
    typed("data", "add", stored[0].parents[2], "--kind", "dicom", "--home", before)
    assert usable(home) == usable(before) > LABELLED // 2


@pytest.mark.parametrize("way", WAYS)
def test_only_what_the_query_says_comes(
    tmp_path: Path, home: Path, pacs: Orthanc, stored: list[Path], way: Way
) -> None:
    typed("pacs", "add", "main", *way(pacs))
    one = dcmread(stored[0], stop_before_pixels=True)

    def studies(*query: str, code: int = 0) -> int:
        asked = [word for part in query for word in ("--query", part)]
        done = typed("data", "pull", "main", *asked, "--out", tmp_path / "out", "--dry-run", "--json", code=code)
        return int(json.loads(done.stdout)["found"]["studies"])

    day = f"{one.StudyDate[:4]}-{one.StudyDate[4:6]}-{one.StudyDate[6:]}"
    assert studies(f"dates={day}") >= 1
    assert studies(f"dates={day}.."), "open at its end"
    assert studies("dates=1900-01-01..1900-12-31", code=1) == 0
    assert studies("modality=MR") == 1
    assert studies("modality=PT", code=1) == 0
    assert studies("body-part=NOSE", code=1) == 0
    numbers = tmp_path / "list.csv"
    numbers.write_text("patient,Accession Number\nx,NONE-1\n")
    assert studies(f"accessions={numbers}", code=1) == 0


@pytest.mark.parametrize("way", WAYS)
def test_a_pull_goes_on_where_the_pacs_was_stopped_and_started(tmp_path: Path, home: Path, way: Way) -> None:
    put_in = archive(tmp_path / "archive", studies=5, labelled=5)
    out = tmp_path / "out"
    with orthanc(tmp_path / "orthanc") as server:
        server.store(*put_in)
        typed("pacs", "add", "main", *way(server), "--timeout", "5")
        pulling = subprocess.Popen(
            [COMMAND, "data", "pull", "main", "--query", "modality=CT", "--out", out, "--yes", "--rate", "0.02"],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=os.environ | {"WARDROUND_HOME": str(home)},
        )
        _await(lambda: len(list(out.glob("[!.]*"))) >= 1, pulling)
        _await(lambda: any(out.glob(".pulling/*/*/*.dcm")), pulling)
        server.kill()
        time.sleep(1.5)
        assert pulling.poll() is None
        server.start()
        said, _ = pulling.communicate(timeout=200)
    assert pulling.returncode == 0, said
    assert "Trying again" in said
    assert len(files_in(out)) == 5 * SLICES + 5
    assert [path.name for path in (out / ".pulling").iterdir()] == ["lock"]


def test_a_killed_pull_leaves_whole_studies_and_goes_on(tmp_path: Path, home: Path) -> None:
    put_in = archive(tmp_path / "archive", studies=4, labelled=4)
    out = tmp_path / "out"
    with orthanc(tmp_path / "orthanc") as server:
        server.store(*put_in)
        typed("pacs", "add", "main", *by_dimse(server))
        pull = ["data", "pull", "main", "--query", "modality=CT", "--out", str(out), "--yes"]
        pulling = subprocess.Popen([COMMAND, *pull, "--rate", "0.02"], env=os.environ | {"WARDROUND_HOME": str(home)})
        _await(lambda: len(list(out.glob("[!.]*"))) >= 1, pulling)
        _await(lambda: any(out.glob(".pulling/*/*/*.dcm")), pulling)
        pulling.send_signal(signal.SIGKILL)
        pulling.wait()
        finished = list(out.glob("[!.]*"))
        assert 1 <= len(finished) < 4
        assert all(len(list(path.glob("*/*.dcm"))) == SLICES + 1 for path in finished)
        before = {path: path.stat().st_mtime_ns for study in finished for path in study.glob("*/*.dcm")}
        told = json.loads(typed(*pull, "--json").stdout)
    assert told["found"]["here"] == len(finished)
    assert told["pulled"]["studies"] == 4 - len(finished)
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert len(files_in(out)) == 4 * (SLICES + 1)


def test_objects_come_as_they_are_stored_also_packed(tmp_path: Path, home: Path) -> None:
    put_in = archive(tmp_path / "archive", studies=1, labelled=0)[:-1]
    for path in put_in:
        packed = dcmread(path)
        packed.compress(JPEG2000Lossless, generate_instance_uid=False)
        packed.save_as(path, enforce_file_format=True)
    with orthanc(tmp_path / "orthanc") as server:
        server.store(*put_in)
        for name, way in (("d", by_dimse), ("w", by_web)):
            typed("pacs", "add", name, *way(server))
            typed("data", "pull", name, "--query", "modality=CT", "--out", tmp_path / name, "--yes")
            came = files_in(tmp_path / name)
            assert len(came) == SLICES
            for path in put_in:
                one = dcmread(path)
                assert_equal(came[one.SOPInstanceUID], path)
                assert dcmread(came[one.SOPInstanceUID]).file_meta.TransferSyntaxUID == JPEG2000Lossless


def test_dimse_over_tls_with_certificates_on_both_sides(tmp_path: Path, home: Path) -> None:
    hospital, stranger = Hospital(tmp_path / "ca"), Hospital(tmp_path / "other")
    certificate, key, _ = hospital.issue("pacs")
    ours, our_key, _ = hospital.issue("us")
    theirs, their_key, _ = stranger.issue("them")
    elsewhere, elsewhere_key, _ = hospital.issue("elsewhere", "127.0.0.9")
    put_in = archive(tmp_path / "archive", studies=2, labelled=2)

    def secured(certificate: Path, key: Path) -> dict[str, object]:
        return {
            "DicomTlsEnabled": True, "DicomTlsCertificate": str(certificate), "DicomTlsPrivateKey": str(key),
            "DicomTlsTrustedCertificates": str(hospital.ca), "DicomTlsRemoteCertificateRequired": True,
        }  # fmt: skip

    with orthanc(tmp_path / "orthanc", **secured(certificate, key)) as server:
        server.store(*put_in)
        good = by_dimse(server, "--ca", hospital.ca, "--certificate", ours, "--key", our_key, "--timeout", 5)
        typed("pacs", "add", "good", *good)
        assert "over TLS, its certificate checked" in typed("pacs", "test", "good").output
        typed("data", "pull", "good", "--query", "modality=CT", "--out", tmp_path / "out", "--yes")
        assert len(files_in(tmp_path / "out")) == 2 * SLICES + 2
        for name, more, said in (
            ("plain", (), "If it speaks TLS there, give --ca"),
            (
                "stranger",
                ("--ca", stranger.ca, "--certificate", ours, "--key", our_key),
                "certificate that does not fit",
            ),
            ("bare", ("--ca", hospital.ca), "asks for a certificate of ours"),
            ("forged", ("--ca", hospital.ca, "--certificate", theirs, "--key", their_key), "certificate of ours"),
        ):
            typed("pacs", "add", name, *by_dimse(server, "--timeout", 3, *more))
            assert said in " ".join(typed("pacs", "test", name, "--json", code=1).output.split()), name
    with orthanc(tmp_path / "elsewhere", **secured(elsewhere, elsewhere_key)) as server:
        typed("pacs", "add", "renamed", *by_dimse(server, *good[6:]))
        assert "must name 127.0.0.1" in typed("pacs", "test", "renamed", "--json", code=1).output
    with orthanc(tmp_path / "clear") as server:
        typed("pacs", "add", "clear", *by_dimse(server, *good[6:]))
        assert "not as TLS with us" in typed("pacs", "test", "clear", "--json", code=1).output


def test_dicomweb_over_tls_with_a_login_and_a_certificate(tmp_path: Path, home: Path) -> None:
    hospital, stranger = Hospital(tmp_path / "ca"), Hospital(tmp_path / "other")
    _, _, both = hospital.issue("pacs")
    ours, our_key, _ = hospital.issue("us")
    login, wrong = tmp_path / "login", tmp_path / "wrong"
    for path, text in ((login, LOGIN), (wrong, "reader:guess")):
        path.write_text(f"{text}\n")
        path.chmod(0o600)
    put_in = archive(tmp_path / "archive", studies=2, labelled=2)
    trusted = ("--ca", hospital.ca)
    with orthanc(tmp_path / "orthanc") as server:
        server.store(*put_in)
        server.stop()
        server.settings = {"AuthenticationEnabled": True, "RegisteredUsers": dict([LOGIN.split(":")])}
        server.start()
        with tls_front(server.http, both) as port:
            at = f"https://127.0.0.1:{port}"
            typed("pacs", "add", "good", "--url", f"{at}/dicom-web", *trusted, "--login-file", login)
            assert "over TLS, its certificate checked" in typed("pacs", "test", "good").output
            typed("data", "pull", "good", "--query", "modality=CT", "--out", tmp_path / "out", "--yes")
            assert len(files_in(tmp_path / "out")) == 2 * SLICES + 2
            for name, place, more, said in (
                ("guess", "dicom-web", (*trusted, "--login-file", wrong), "answers 401: it does not know us"),
                ("lost", "nowhere", (*trusted, "--login-file", login), "answers 404: there is no DICOMweb"),
                ("unknown", "dicom-web", (), "Give the hospital's CA with --ca"),
                ("strange", "dicom-web", ("--ca", stranger.ca), "Give the hospital's CA with --ca"),
            ):
                typed("pacs", "add", name, "--url", f"{at}/{place}", *more)
                assert said in typed("pacs", "test", name, "--json", code=1).output, name
        with tls_front(server.http, both, hospital.ca) as port:
            asked = ("--url", f"https://127.0.0.1:{port}/dicom-web", *trusted, "--login-file", login)
            typed("pacs", "add", "mutual", *asked, "--certificate", ours, "--key", our_key)
            typed("pacs", "test", "mutual")
            typed("pacs", "add", "bare", *asked)
            assert "certificate of ours" in typed("pacs", "test", "bare", "--json", code=1).output
        typed("pacs", "add", "clear", "--url", f"https://127.0.0.1:{server.http}/dicom-web", *trusted)
        assert "does not speak TLS with us" in typed("pacs", "test", "clear", "--json", code=1).output


def test_wrong_titles_are_told_apart(tmp_path: Path, home: Path, pacs: Orthanc) -> None:
    where = ("--host", "127.0.0.1", "--port", pacs.dimse)
    typed("pacs", "add", "their-title", *where, "--called", "NOBODY", "--calling", OURS)
    assert "it is not called NOBODY" in typed("pacs", "test", "their-title", "--json", code=1).output
    typed("pacs", "add", "our-title", *where, "--called", TITLE, "--calling", "STRANGER")
    tested = json.loads(typed("pacs", "test", "our-title", "--json", code=1).stdout)
    assert tested[-1]["result"] == "WRONG"
    assert "STRANGER" in tested[-1]["detail"]


def test_a_pull_has_a_row_in_the_audit_log_with_its_patients_in_fives(
    tmp_path: Path, home: Path, pacs: Orthanc
) -> None:
    typed("pacs", "add", "main", *by_web(pacs))
    typed("data", "pull", "main", "--query", "modality=CT", "--out", tmp_path / "out", "--yes")
    with open_log(home).transaction() as log:
        (entry,) = log.latest("data-pulled", count=5)
    assert entry.fields == {"patients": STUDIES}


def _await(is_so: Callable[[], bool], pulling: subprocess.Popen[str] | subprocess.Popen[bytes]) -> None:
    while not is_so():
        assert pulling.poll() is None, "it ended before it could be interrupted"
        time.sleep(0.02)
