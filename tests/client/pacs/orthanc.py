"""A real Orthanc on loopback, as Debian packages it, started and stopped by a test. Each has a folder of its own.

It knows the AE title WARDROUND, answers C-ECHO, C-FIND and C-GET, and has the DICOMweb plug-in.
"""

import base64
import json
import socket
import subprocess
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tests.patience import PATIENCE_S, eventually

TITLE, OURS = "HOSPITAL", "WARDROUND"
LOGIN = "reader:s3cret"

_PROGRAM = Path("/usr/sbin/Orthanc")
_PLUGIN = Path("/usr/share/orthanc/plugins/libOrthancDicomWeb.so")


@dataclass
class Orthanc:
    """One server, which may be stopped and started again with what it holds."""

    folder: Path
    dimse: int
    http: int
    settings: Mapping[str, Any] = field(default_factory=dict)
    process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it and wait until both ports answer."""
        path = self.folder / "orthanc.json"
        path.write_text(json.dumps(_common(self) | dict(self.settings)))
        with (self.folder / "log").open("ab") as log:
            self.process = subprocess.Popen([_PROGRAM, path], stdout=log, stderr=log, cwd=self.folder)
        process, told = self.process, (self.folder / "log").read_text

        def is_ready() -> bool:
            assert process.poll() is None, told()
            return all(map(_listens, (self.dimse, self.http)))

        eventually(is_ready, told)

    def stop(self) -> None:
        """End it, as its service does."""
        if self.process is not None:
            self.process.terminate()
            try:
                self.process.wait(PATIENCE_S)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
            self.process = None

    def kill(self) -> None:
        """End it at once, in the middle of what it does."""
        assert self.process is not None
        self.process.kill()
        self.process.wait()
        self.process = None

    def store(self, *paths: Path) -> None:
        """Put files into it, over its own REST interface in the clear."""
        for path in paths:
            assert json.loads(self.asked("instances", path.read_bytes()))["Status"] == "Success"

    def found(self, level: str, **query: str) -> list[str]:
        """Its own numbers of what fits."""
        return list(json.loads(self.asked("tools/find", json.dumps({"Level": level, "Query": query}).encode())))

    def objects(self) -> list[str]:
        """Its own numbers of all that it holds."""
        return list(json.loads(self.asked("instances")))

    def delete(self, number: str) -> None:
        """Forget an object, by its own number."""
        self.asked(f"instances/{number}", method="DELETE")

    def asked(self, place: str, body: bytes | None = None, method: str | None = None) -> bytes:
        """What its REST interface answers."""
        who = base64.b64encode(LOGIN.encode()).decode()
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.http}/{place}",
            data=body,
            headers={"Authorization": f"Basic {who}"},
            method=method,
        )
        with urllib.request.urlopen(request, timeout=PATIENCE_S) as answer:  # noqa: S310
            return bytes(answer.read())


@contextmanager
def orthanc(folder: Path, **settings: Any) -> Iterator[Orthanc]:
    """A server while the body runs. `settings` are those of its configuration, over ours."""
    if not (_PROGRAM.exists() and _PLUGIN.exists()):
        pytest.skip("no Orthanc with DICOMweb: apt-get install orthanc orthanc-dicomweb")
    folder.mkdir(parents=True, exist_ok=True)
    dimse, http = _free_ports(2)
    server = Orthanc(folder, dimse, http, settings)
    server.start()
    try:
        yield server
    finally:
        server.stop()


def _common(server: Orthanc) -> dict[str, Any]:
    return {
        "Name": "Hospital",
        "StorageDirectory": str(server.folder / "db"),
        "IndexDirectory": str(server.folder / "db"),
        "Plugins": [str(_PLUGIN)],
        "DicomWeb": {"Enable": True, "Root": "/dicom-web/", "EnableWado": False},
        "HttpPort": server.http,
        "HttpBindAddresses": ["127.0.0.1"],
        "RemoteAccessAllowed": True,
        "AuthenticationEnabled": False,
        "DicomAet": TITLE,
        "DicomPort": server.dimse,
        "DicomCheckCalledAet": True,
        "DicomAlwaysAllowEcho": True,
        "DicomModalities": {
            "us": {
                "AET": OURS, "Host": "127.0.0.1", "Port": 104, "AllowFind": True, "AllowGet": True, "AllowMove": False,
            }
        },
        "ConcurrentJobs": 1,
        "HttpThreadsCount": 4,
        "SaveJobs": False,
    }  # fmt: skip


def _free_ports(count: int) -> list[int]:
    probes = [socket.socket() for _ in range(count)]
    try:
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [probe.getsockname()[1] for probe in probes]
    finally:
        for probe in probes:
            probe.close()


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


__all__ = ["LOGIN", "OURS", "TITLE", "Orthanc", "orthanc"]
