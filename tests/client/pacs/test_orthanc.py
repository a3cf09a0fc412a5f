"""Studies pulled from a real Orthanc by the commands: over DIMSE and DICOMweb, in the clear and over TLS, interrupted.

What comes is compared with what was put in, pixel by pixel and reference by reference.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from click.testing import Result
from pydicom import dcmread
from pydicom.uid import JPEG2000Lossless
from typer.testing import CliRunner

from client.commands.main import app
from client.pacs.caller import Caller
from client.pacs.pulling import estimate
from client.pacs.query import query_of
from client.pacs.settings import peer_of
from client.trail.audit_trail import open_log
from tests.client.pacs.certificates import Hospital
from tests.client.pacs.conftest import LABELLED, SLICES, STUDIES, Archive, Way, by_dimse, by_web, written
from tests.client.pacs.orthanc import OURS
from tests.client.pacs.senders import free_port
from tests.client.pacs.tls_front import tls_front
from tests.json_forms import conforms

COMMAND = Path(sys.executable).with_name("wardround-client")

pytestmark = pytest.mark.system


def typed(*words: object, code: int = 0) -> Result:
    done = CliRunner().invoke(app, [*map(str, words)])
    assert done.exit_code == code, done.output
    return done


WAYS = [by_dimse, by_web]


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


@pytest.mark.parametrize("way", WAYS)
def test_studies_come_whole_with_their_labels_and_once(tmp_path: Path, home: Path, archive: Archive, way: Way) -> None:
    typed("pacs", "add", "main", *way(archive))
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
    put_in, came = archive.by_uid, files_in(tmp_path / "out")
    assert came.keys() == put_in.keys()
    assert told["pulled"]["files"] == len(came)
    for uid, path in came.items():
        assert_equal(path, put_in[uid])
        assert path.stat().st_mode & 0o077 == 0

    again = json.loads(typed(*pull, "--yes", "--json").stdout)
    assert (again["found"]["studies"], again["found"]["here"], again["pulled"]["files"]) == (0, STUDIES, 0)
    with open_log(home).transaction() as log:
        (entry,) = log.latest("data-pulled", count=5)
    assert entry.fields == {"patients": STUDIES}, "in fives"
    added = typed("data", "add", tmp_path / "out", "--kind", "dicom", "--home", home)
    assert f"{STUDIES} studies of {STUDIES} patients" in added.output


@pytest.mark.parametrize("way", WAYS)
def test_only_what_the_query_says_comes(tmp_path: Path, home: Path, archive: Archive, way: Way) -> None:
    typed("pacs", "add", "main", *way(archive))
    one = dcmread(archive.stored[0], stop_before_pixels=True)
    numbers = tmp_path / "none.csv"
    numbers.write_text("patient,Accession Number\nx,NONE-1\n")
    day = f"{one.StudyDate[:4]}-{one.StudyDate[4:6]}-{one.StudyDate[6:]}"
    with Caller(home, peer_of(home, "main")) as caller:

        def studies(**query: str) -> int:
            return len(estimate(caller, query_of(query), tmp_path / "out").studies)

        assert studies(dates=day) >= 1
        assert studies(dates=f"{day}.."), "open at its end"
        assert studies(dates="1900-01-01..1900-12-31") == 0
        assert studies(modality="MR") == 1
        assert studies(modality="PT") == 0
        assert studies(**{"body-part": "NOSE"}) == 0
        assert studies(accessions=str(numbers)) == 0
        assert studies(accessions=archive.few(2, tmp_path).partition("=")[2]) == 2
    nothing = ("data", "pull", "main", "--query", "modality=PT", "--out", tmp_path / "out", "--dry-run", "--json")
    assert json.loads(typed(*nothing, code=1).stdout)["found"]["studies"] == 0


@pytest.mark.parametrize("way", WAYS)
def test_a_pull_goes_on_where_the_pacs_was_stopped_and_started(
    tmp_path: Path, home: Path, archive: Archive, way: Way
) -> None:
    out, few, done = tmp_path / "out", archive.few(3, tmp_path), threading.Event()

    def interrupt() -> None:
        while not (any(out.glob("[!.]*")) and any(out.glob(".pulling/*/*/*.dcm"))) and not done.is_set():
            time.sleep(0.01)
        archive.server.kill()
        time.sleep(1.5)
        archive.server.start()

    typed("pacs", "add", "main", *way(archive, "--timeout", "5"))
    interrupting = threading.Thread(target=interrupt)
    interrupting.start()
    pull = ("data", "pull", "main", "--query", few, "--query", "modality=CT", "--out", out, "--yes", "--rate", "0.02")
    try:
        said = typed(*pull).output
    finally:
        done.set()
        interrupting.join()
    assert "Trying again" in said
    assert len(files_in(out)) == 3 * (SLICES + 1)
    assert [path.name for path in (out / ".pulling").iterdir()] == ["lock"]


def test_a_killed_pull_leaves_whole_studies_and_goes_on(tmp_path: Path, home: Path, archive: Archive) -> None:
    out, few = tmp_path / "out", archive.few(3, tmp_path)
    typed("pacs", "add", "main", *by_dimse(archive))
    pull = ["data", "pull", "main", "--query", few, "--query", "modality=CT", "--out", str(out), "--yes"]
    pulling = subprocess.Popen([COMMAND, *pull, "--rate", "0.02"], env=os.environ | {"WARDROUND_HOME": str(home)})
    _await(lambda: len(list(out.glob("[!.]*"))) >= 1, pulling)
    _await(lambda: any(out.glob(".pulling/*/*/*.dcm")), pulling)
    pulling.send_signal(signal.SIGKILL)
    pulling.wait()
    finished = list(out.glob("[!.]*"))
    assert 1 <= len(finished) < 3
    assert all(len(list(path.glob("*/*.dcm"))) == SLICES + 1 for path in finished)
    before = {path: path.stat().st_mtime_ns for study in finished for path in study.glob("*/*.dcm")}
    told = json.loads(typed(*pull, "--json").stdout)
    assert told["found"]["here"] == len(finished)
    assert told["pulled"]["studies"] == 3 - len(finished)
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert len(files_in(out)) == 3 * (SLICES + 1)


def test_objects_come_as_they_are_stored_also_packed(tmp_path: Path, home: Path, archive: Archive) -> None:
    put_in = written(tmp_path / "archive", range(90, 91))
    for path in put_in:
        packed = dcmread(path)
        packed.compress(JPEG2000Lossless, generate_instance_uid=False)
        packed.Modality = "NM"  # so that no other test finds it
        packed.save_as(path, enforce_file_format=True)
    archive.server.store(*put_in)
    for name, way in (("d", by_dimse), ("w", by_web)):
        typed("pacs", "add", name, *way(archive))
        typed("data", "pull", name, "--query", "modality=NM", "--out", tmp_path / name, "--yes")
        came = files_in(tmp_path / name)
        assert len(came) == SLICES
        for path in put_in:
            one = dcmread(path)
            assert_equal(came[one.SOPInstanceUID], path)
            assert dcmread(came[one.SOPInstanceUID]).file_meta.TransferSyntaxUID == JPEG2000Lossless


def test_dimse_over_tls_with_certificates_on_both_sides(tmp_path: Path, home: Path, archive: Archive) -> None:
    hospital, stranger = archive.hospital, Hospital(tmp_path / "other")
    theirs, their_key, _ = stranger.issue("them")
    _, _, elsewhere = hospital.issue("elsewhere", "127.0.0.9")
    good = by_dimse(archive, "--timeout", 5)
    typed("pacs", "add", "good", *good)
    assert "over TLS, its certificate checked" in typed("pacs", "test", "good").output
    where = (*good[:6], "--timeout", 3)
    known = ("--certificate", archive.ours[0], "--key", archive.ours[1])
    with tls_front(archive.server.http, elsewhere) as renamed:
        for name, more, said in (
            ("plain", (), "If it speaks TLS there, give --ca"),
            ("stranger", ("--ca", stranger.ca, *known), "certificate that does not fit"),
            ("bare", ("--ca", hospital.ca), "asks for a certificate of ours"),
            ("forged", ("--ca", hospital.ca, "--certificate", theirs, "--key", their_key), "certificate of ours"),
            ("renamed", ("--ca", hospital.ca, *known, "--port", renamed), "must name 127.0.0.1"),
            ("clear", ("--ca", hospital.ca, *known, "--port", archive.server.http), "not as TLS with us"),
        ):
            typed("pacs", "add", name, *where, *more)
            assert said in " ".join(typed("pacs", "test", name, "--json", code=1).output.split()), name


def test_dicomweb_over_tls_with_a_login_and_a_certificate(tmp_path: Path, home: Path, archive: Archive) -> None:
    hospital, stranger, server = archive.hospital, Hospital(tmp_path / "other"), archive.server
    _, _, both = hospital.issue("proxy")
    wrong = tmp_path / "wrong"
    wrong.write_text("reader:guess\n")
    wrong.chmod(0o600)
    trusted, login = ("--ca", hospital.ca), ("--login-file", archive.login)
    with tls_front(server.http, both) as port:
        at = f"https://127.0.0.1:{port}"
        typed("pacs", "add", "good", "--url", f"{at}/dicom-web", *trusted, *login)
        assert "over TLS, its certificate checked" in typed("pacs", "test", "good").output
        few = archive.few(1, tmp_path)
        pull = ("--query", few, "--query", "modality=CT", "--out", tmp_path / "out", "--yes")
        typed("data", "pull", "good", *pull)
        assert len(files_in(tmp_path / "out")) == SLICES + 1
        for name, place, more, said in (
            ("guess", "dicom-web", (*trusted, "--login-file", wrong), "answers 401: it does not know us"),
            ("lost", "nowhere", (*trusted, *login), "answers 404: there is no DICOMweb"),
            ("unknown", "dicom-web", (), "Give the hospital's CA with --ca"),
            ("strange", "dicom-web", ("--ca", stranger.ca), "Give the hospital's CA with --ca"),
        ):
            typed("pacs", "add", name, "--url", f"{at}/{place}", *more)
            assert said in typed("pacs", "test", name, "--json", code=1).output, name
    with tls_front(server.http, both, hospital.ca) as port:
        asked = ("--url", f"https://127.0.0.1:{port}/dicom-web", *trusted, *login)
        typed("pacs", "add", "mutual", *asked, "--certificate", archive.ours[0], "--key", archive.ours[1])
        typed("pacs", "test", "mutual")
        typed("pacs", "add", "bare", *asked)
        assert "certificate of ours" in typed("pacs", "test", "bare", "--json", code=1).output
    typed("pacs", "add", "clear", "--url", f"https://127.0.0.1:{server.http}/dicom-web", *trusted)
    assert "does not speak TLS with us" in typed("pacs", "test", "clear", "--json", code=1).output


def test_wrong_titles_are_told_apart(tmp_path: Path, home: Path, archive: Archive) -> None:
    typed("pacs", "add", "their-title", *by_dimse(archive, "--called", "NOBODY", "--calling", OURS))
    assert "it is not called NOBODY" in typed("pacs", "test", "their-title", "--json", code=1).output
    typed("pacs", "add", "our-title", *by_dimse(archive, "--calling", "STRANGER"))
    tested = json.loads(typed("pacs", "test", "our-title", "--json", code=1).stdout)
    assert tested[-1]["result"] == "WRONG"
    assert "STRANGER" in tested[-1]["detail"]


def test_by_c_move_over_tls_a_pacs_sends_to_where_it_knows_us(tmp_path: Path, home: Path, archive: Archive) -> None:
    ours, query, out = free_port(), archive.few(2, tmp_path), tmp_path / "out"
    pull = ("data", "pull", "moved", "--query", query, "--query", "modality=CT", "--out", out, "--yes", "--patience", 0)
    where = ("--move-address", "127.0.0.1", "--move-port", ours, "--retrieve", "c-move", "--timeout", 10)
    typed("pacs", "add", "moved", *by_dimse(archive, *where))
    tested = json.loads(typed("pacs", "test", "moved", "--json", code=1).stdout)
    assert (tested[-1]["check"], tested[-1]["result"]) == ("C-MOVE", "WRONG")
    assert f"registered there as 127.0.0.1, port {ours}, TLS" in tested[-1]["detail"]
    with known_at(archive, ours):
        assert json.loads(typed("pacs", "test", "moved", "--json").stdout)[-1]["check"] == "C-MOVE"
        told = json.loads(typed(*pull, "--json").stdout)
        assert (told["pulled"]["studies"], told["pulled"]["files"]) == (2, 2 * (SLICES + 1))
        came = files_in(out)
        for uid, path in came.items():
            assert_equal(path, archive.by_uid[uid])
    with known_at(archive, free_port()):  # nobody is there
        shutil.rmtree(out)
        failed = json.loads(typed(*pull, "--json", code=1).stdout)["failed"]
    assert sum(failed.values()) == 2
    assert files_in(out) == {}


@contextmanager
def known_at(archive: Archive, port: int) -> Iterator[None]:
    """Have the PACS know us at a port of this machine, and send there, while the body runs."""
    before = {"AET": OURS, "Host": "127.0.0.1", "Port": 104, "AllowFind": True, "AllowGet": True, "AllowMove": False}
    now = before | {"Port": port, "AllowMove": True, "UseDicomTls": True}
    archive.server.asked("modalities/us", json.dumps(now).encode(), "PUT")
    try:
        yield
    finally:
        archive.server.asked("modalities/us", json.dumps(before).encode(), "PUT")


def _await(is_so: Callable[[], bool], pulling: subprocess.Popen[bytes]) -> None:
    while not is_so():
        assert pulling.poll() is None, "it ended before it could be interrupted"
        time.sleep(0.02)
