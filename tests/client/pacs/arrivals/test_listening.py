"""What waits for studies takes them of those it knows, each whole or set aside by name, and reaches nothing else."""

import json
import socket
import ssl
import subprocess
import sys
import time
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from dicomweb_client.web import DICOMwebClient
from pydicom import dcmread
from requests import HTTPError, Session

from client.pacs.arrivals.arriving import NOT_AS_BEFORE
from client.pacs.arrivals.listener import COMING, QUARANTINE, WHOLE, Listener
from client.pacs.arrivals.settings import Listening, listening_at
from common.errors import ConfigError
from common.system import sandbox
from tests import ROOT
from tests.client.pacs.certificates import Hospital
from tests.client.pacs.objects import COUNT, encoded, object_of, uid_of
from tests.client.pacs.senders import free_port, sent

ALL = [object_of(number) for number in range(COUNT)]


@pytest.fixture
def site(tmp_path: Path) -> Path:
    (tmp_path / "site").mkdir()
    return tmp_path / "site"


@pytest.fixture(scope="module")
def hospital(tmp_path_factory: pytest.TempPathFactory) -> Hospital:
    return Hospital(tmp_path_factory.mktemp("ca"))


def await_study(listener: Listener, folder: Path) -> tuple[int, list[str]]:
    """How many studies are whole, and why others are set aside, when the next has come to its end."""
    before = len(list((folder / WHOLE).iterdir())) + len(list((folder / QUARANTINE).glob("*.json")))
    while True:
        whole = listener.whole(0.2)
        aside = [json.loads(path.read_bytes())["why"] for path in (folder / QUARANTINE).glob("*.json")]
        if len(whole) + len(aside) > before:
            return len(whole), aside


@pytest.mark.system
def test_studies_of_those_who_may_are_taken_whole_and_others_are_set_aside(site: Path, tmp_path: Path) -> None:
    folder, port = tmp_path / "received", free_port()
    settings = Listening(address="127.0.0.1", port=port, accept=("CT1", "PACS"), quiet=0.2)
    with Listener(site, settings, folder) as listener:
        assert sent(port, ALL, calling="STRANGER") is None
        assert sent(port, ALL, called="NOBODY") is None
        assert sent(port, ALL) == [0] * COUNT
        assert await_study(listener, folder) == (1, [])
        (whole,) = listener.whole(0)
        assert whole.stat().st_mode & 0o077 == 0
        assert sorted(path.stem for path in whole.glob("*/*.dcm")) == [uid_of(number) for number in range(COUNT)]
        listener.done(whole)
        assert sent(port, ALL[:2], abort=True) == [0, 0]
        assert await_study(listener, folder) == (0, ["its association broke off"])
        assert sent(port, [ALL[0], object_of(0, value=9)], calling="PACS") == [0, NOT_AS_BEFORE]
        assert "one object came twice with two contents" in await_study(listener, folder)[1]
        # It is lost in the middle of a study.
        assert sent(port, [object_of(3)]) == [0]
        assert listener._process is not None
        listener._process.kill()
        listener._process.wait()
        assert "what receives ended before it was whole" in await_study(listener, folder)[1]
        assert sent(port, ALL) == [0] * COUNT
        assert await_study(listener, folder)[0] == 1
    assert list((folder / COMING).iterdir()) == []
    assert len([path for path in (folder / QUARANTINE).iterdir() if path.is_dir()]) == 3


@pytest.mark.system
def test_over_tls_a_silent_peer_stops_nobody_and_a_stranger_is_refused(
    site: Path, tmp_path: Path, hospital: Hospital
) -> None:
    ours, our_key, _ = hospital.issue("us")
    theirs, their_key, _ = hospital.issue("scanner")
    folder, port = tmp_path / "received", free_port()
    given: dict[str, Any] = {"certificate": str(ours), "key": str(our_key), "ca": str(hospital.ca)}
    settings = listening_at(f"127.0.0.1:{port}", accept=("CT1",), quiet=0.2, **given)
    known = ssl.create_default_context(cafile=str(hospital.ca))
    known.load_cert_chain(theirs, their_key)
    with Listener(site, settings, folder) as listener, socket.create_connection(("127.0.0.1", port)):
        began = time.monotonic()
        assert sent(port, ALL, tls=known) == [0] * COUNT
        assert time.monotonic() - began < 9, "it waited for the silent one"
        assert await_study(listener, folder) == (1, [])
        assert sent(port, ALL) is None, "in the clear"
        assert not sent(port, ALL, tls=ssl.create_default_context(cafile=str(hospital.ca))), "without a certificate"
    assert len(list((folder / WHOLE).iterdir())) == 1


DOOR = """
import json, socket, sys
from pathlib import Path
from common.system import sandbox
staging, port, other = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
sandbox.shed()
disk = sandbox.lock([staging], listening=[port])
def tried(deed):
    try:
        return repr(deed())
    except OSError as error:
        return type(error).__name__
print(json.dumps({"disk": disk} | {name: tried(deed) for name, deed in {
    "its port": lambda: socket.create_server(("127.0.0.1", port)).close(),
    "another": lambda: socket.create_server(("127.0.0.1", port + 1)).close(),
    "a connection": lambda: socket.create_connection(("127.0.0.1", other), 5).close(),
    "staging": lambda: (staging / "x").write_text("x"),
    "beside": lambda: (staging.parent / "x").write_text("x"),
}.items()}))
"""


def test_it_waits_at_its_port_and_connects_to_nothing(tmp_path: Path) -> None:
    staging, port = tmp_path / "staging", free_port()
    staging.mkdir()
    with socket.create_server(("127.0.0.1", 0)) as other:
        ports = (str(port), str(other.getsockname()[1]))
        command = [sys.executable, "-c", DOOR, str(staging), *ports]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    if said["disk"] != sandbox.LOCKED:
        pytest.skip(f"the kernel: {said['disk']}")
    assert (said["its port"], said["staging"]) == ("None", "1")
    assert said["another"] == said["a connection"] == said["beside"] == "PermissionError"


def test_a_port_that_is_taken_is_told(site: Path, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        settings = Listening(address="127.0.0.1", port=other.getsockname()[1], accept=("CT1",))
        with pytest.raises(ConfigError, match=r"is not to be had .*--listen"):
            Listener(site, settings, tmp_path / "received").__enter__()


@pytest.mark.parametrize(
    ("text", "more", "said"),
    [
        ("11112", {"accept": ("CT1",)}, "ADDRESS:PORT"),
        ("pacs.example:11112", {"accept": ("CT1",)}, "in numbers"),
        ("127.0.0.1:11112", {}, "accept"),
        ("127.0.0.1:11112", {"accept": ("a\\b",)}, "AE title"),
        ("127.0.0.1:11112", {"accept": ("CT1",), "token": "x"}, "of --stow only"),
        ("127.0.0.1:11112", {"accept": ("CT1",), "certificate": "x.pem"}, "--tls-key"),
        ("127.0.0.1:11112", {"accept": ("CT1",), "certificate": "x.pem", "key": "x.key"}, "is not there"),
    ],
)
def test_where_to_listen_is_checked(text: str, more: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        listening_at(text, **more)


def test_a_settling_time_of_nothing_is_taken_as_it_is() -> None:
    assert listening_at("127.0.0.1:11112", accept=("CT1",), quiet=0.0).quiet == 0


@pytest.mark.parametrize(
    ("text", "more", "said"),
    [
        ("192.0.2.7:8443", {}, "needs TLS and something that a sender proves itself with"),
        ("192.0.2.7:8443", {"token": "t.token"}, "needs TLS and something"),
        ("0.0.0.0:8443", {"certificate": "c.pem", "key": "k.pem"}, "needs TLS and something"),
        ("127.0.0.1:8443", {"ca": "c.pem"}, "--tls-certificate"),
        ("127.0.0.1:8443", {"accept": ("CT1",), "title": "US"}, "--accept and --title: of C-STORE only"),
        ("127.0.0.1:8443", {"token": "nowhere"}, "is not there"),
        ("127.0.0.1:8443", {"token": "open.token"}, "other users of this computer may read"),
    ],
)
def test_stow_is_not_started_where_anybody_could_send(
    text: str, more: dict[str, Any], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name, mode in (("t.token", 0o600), ("open.token", 0o644), ("c.pem", 0o600), ("k.pem", 0o600)):
        Path(name).write_text("x")
        Path(name).chmod(mode)
    with pytest.raises(ConfigError, match=said):
        listening_at(text, stow=True, **more)
    given: dict[str, Any] = {"certificate": "c.pem", "key": "k.pem"}
    for proof in ({"token": "t.token"}, {"ca": "c.pem"}):
        assert not listening_at("192.0.2.7:8443", stow=True, **given, **proof).is_local
    assert listening_at("127.0.0.1:8443", stow=True).senders == "whoever is on this machine"


@pytest.mark.system
def test_stow_is_served_by_the_same_process_and_nothing_of_a_patient_is_logged(
    site: Path, tmp_path: Path, hospital: Hospital, caplog: pytest.LogCaptureFixture
) -> None:
    ours, our_key, _ = hospital.issue("us")
    folder, port, token = tmp_path / "received", free_port(), tmp_path / "token"
    token.write_text("0123456789abcdef0123456789abcdef")
    token.chmod(0o600)
    given: dict[str, Any] = {"certificate": str(ours), "key": str(our_key), "token": str(token)}
    settings = listening_at(f"127.0.0.1:{port}", stow=True, quiet=0.2, **given)
    session = Session()
    session.trust_env, session.verify = False, str(hospital.ca)
    client = DICOMwebClient(settings.where, session)
    client.set_http_retry_params(retry=False)
    files = [dcmread(BytesIO(encoded(one))) for one in ALL]
    with (
        caplog.at_level(0),
        Listener(site, settings, folder) as listener,
        socket.create_connection(("127.0.0.1", port)),
    ):
        with pytest.raises(HTTPError, match="401"):
            client.store_instances(files)
        session.headers["Authorization"] = f"Bearer {token.read_text()}"
        answer = client.store_instances(files)
        assert [one.ReferencedSOPInstanceUID for one in answer.ReferencedSOPSequence] == [
            one.SOPInstanceUID for one in ALL
        ]
        assert await_study(listener, folder) == (1, [])
        files[0].PatientName = "ROE^RICHARD"
        with pytest.raises(HTTPError, match="409"):
            client.store_instances(files[:1], study_instance_uid="1.2.9")
        client.store_instances([files[1], files[1]])
        assert len(listener.whole(0)) == 1
        await_study(listener, folder)
        assert listener._process is not None
        place = Path(f"/proc/{listener._process.pid}")
        assert token.read_bytes() not in (place / "environ").read_bytes() + (place / "cmdline").read_bytes()
    said = " ".join(record.getMessage() for record in caplog.records if record.name.startswith("client"))
    assert "is here" in said
    assert not [word for word in ("DOE", "ROE", "4711", "1.2.3", "1.2.9") if word in said]


@pytest.mark.system
@pytest.mark.parametrize("stow", [False, True], ids=["c-store", "stow-rs"])
def test_files_of_tls_that_are_none_are_told(site: Path, tmp_path: Path, stow: bool) -> None:
    path = tmp_path / "x.pem"
    path.write_text("no certificate")
    path.chmod(0o600)
    more: dict[str, Any] = {} if stow else {"accept": ("CT1",)}
    settings = listening_at(f"127.0.0.1:{free_port()}", stow=stow, certificate=str(path), key=str(path), **more)
    with pytest.raises(ConfigError, match="--tls-ca cannot be used"):
        Listener(site, settings, tmp_path / "received").__enter__()
