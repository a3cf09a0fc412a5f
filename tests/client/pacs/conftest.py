"""One Orthanc for all tests of a process, over TLS with certificates on both sides, and behind a login."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from pydicom import dcmread
from pydicom.uid import generate_uid

from simulations.generators.phantoms import SCANNERS, write_study
from tests.client.coordinator import Authority
from tests.client.pacs.certificates import Hospital
from tests.client.pacs.orthanc import LOGIN, TITLE, Orthanc, orthanc

STUDIES, LABELLED, SLICES = 20, 16, 4

Way = Callable[..., tuple[object, ...]]


@dataclass
class Archive:
    """A PACS, what was put into it, and who may ask."""

    server: Orthanc
    stored: list[Path]
    hospital: Hospital
    ours: tuple[Path, Path]
    login: Path

    @property
    def by_uid(self) -> dict[str, Path]:
        """The CT and their labels, by object."""
        wanted = [path for path in self.stored if path.stem != "mr"]
        return {str(dcmread(path, stop_before_pixels=True).SOPInstanceUID): path for path in wanted}

    def few(self, count: int, folder: Path) -> str:
        """A query for some of the studies alone, by a list of their accession numbers."""
        numbers = [str(dcmread(path, stop_before_pixels=True).AccessionNumber) for path in self.stored]
        path = folder / "list.csv"
        path.write_text("\n".join(["accession", *list(dict.fromkeys(numbers))[:count]]))
        return f"accessions={path}"


def by_dimse(archive: Archive, *more: object) -> tuple[object, ...]:
    where = ("--host", "127.0.0.1", "--port", archive.server.dimse, "--called", TITLE)
    return (*where, "--ca", archive.hospital.ca, "--certificate", archive.ours[0], "--key", archive.ours[1], *more)


def by_web(archive: Archive, *more: object) -> tuple[object, ...]:
    where = ("--url", f"http://127.0.0.1:{archive.server.http}/dicom-web")
    return (*where, "--login-file", archive.login, *more)


def written(folder: Path, patients: range, labelled: int = 0) -> list[Path]:
    """CT series of as many patients, the first of them with a DICOM SEG."""
    scanner = next(iter(SCANNERS.values()))
    files: list[Path] = []
    for patient in patients:
        where = folder / str(patient)
        write_study(
            where, scanner=scanner, seed=0, patient=patient, slices=SLICES, rows=32, labelled=patient <= labelled
        )
        files += sorted(where.rglob("*.dcm"))
    return files


def archive_in(folder: Path) -> list[Path]:
    """What a PACS holds: CT, most with a DICOM SEG, and one MR that nobody asks for."""
    files = written(folder, range(1, STUDIES + 1), LABELLED)
    other = dcmread(files[0])
    other.Modality, other.SeriesInstanceUID = "MR", generate_uid()
    other.SOPInstanceUID = other.file_meta.MediaStorageSOPInstanceUID = generate_uid()
    other.save_as(folder / "mr.dcm", enforce_file_format=True)
    return [*files, folder / "mr.dcm"]


@pytest.fixture
def archive(filled: Archive) -> Iterator[Archive]:
    """The session's, which afterwards holds what it held before."""
    before = set(filled.server.objects())
    yield filled
    for one in set(filled.server.objects()) - before:
        filled.server.delete(one)


@pytest.fixture(scope="session")
def filled(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Archive]:
    folder = tmp_path_factory.mktemp("pacs")
    hospital = Hospital(folder / "ca")
    certificate, key, _ = hospital.issue("pacs")
    ours, our_key, _ = hospital.issue("us")
    login = folder / "login"
    login.write_text(f"{LOGIN}\n")
    login.chmod(0o600)
    secured = {
        "DicomTlsEnabled": True, "DicomTlsCertificate": str(certificate), "DicomTlsPrivateKey": str(key),
        "DicomTlsTrustedCertificates": str(hospital.ca), "DicomTlsRemoteCertificateRequired": True,
        "AuthenticationEnabled": True, "RegisteredUsers": dict([LOGIN.split(":")]),
    }  # fmt: skip
    with orthanc(folder / "orthanc", **secured) as server:
        stored = archive_in(folder / "archive")
        server.store(*stored)
        yield Archive(server, stored, hospital, (ours, our_key), login)


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    Authority().admit(tmp_path / "site", "north", "127.0.0.1:9")
    monkeypatch.setenv("WARDROUND_HOME", str(tmp_path / "site"))
    return tmp_path / "site"
