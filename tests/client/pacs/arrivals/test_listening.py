"""What waits for studies takes them of those it knows, each whole or set aside by name, and reaches nothing else."""

import json
import socket
import ssl
import subprocess
import sys
import time
from pathlib import Path

import pytest
from pydicom.dataset import Dataset

from client.pacs.arriving import LONGEST_PAUSE_S, NO_ROOM, NOT_AS_BEFORE, NOT_UNDERSTOOD, STORED, Arrivals, Limits
from client.pacs.listener import COMING, QUARANTINE, WHOLE, Listener
from client.pacs.settings import Listening, listening_at
from common.errors import ConfigError
from common.system import sandbox
from tests import ROOT
from tests.client.pacs.certificates import Hospital
from tests.client.pacs.objects import COUNT, encoded, object_of, uid_of
from tests.client.pacs.senders import free_port, sent

ALL = [object_of(number) for number in range(COUNT)]
PLENTY = Limits(spare=0)


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def arrivals(folder: Path, clock: Clock, limits: Limits = PLENTY) -> Arrivals:
    return Arrivals(folder, 5.0, limits, clock)


def test_a_study_is_whole_when_its_association_is_released_and_it_is_quiet(tmp_path: Path, clock: Clock) -> None:
    coming = arrivals(tmp_path, clock)
    assert [coming.take("a", encoded(one)) for one in (*ALL, ALL[0])] == [STORED] * (COUNT + 1)
    clock.now += 30
    assert list(coming.finished()) == [], "its association is open"
    coming.ended("a", released=True)
    clock.now += 4
    assert list(coming.finished()) == [], "another association may bring more"
    clock.now += 1
    (one,) = coming.finished()
    assert (one.objects, one.repeated, one.problem) == (COUNT, 1, None)
    assert sorted(path.stem for path in (tmp_path / one.name).glob("*/*.dcm")) == [uid_of(n) for n in range(COUNT)]
    assert list(coming.finished()) == []


def test_an_association_that_is_kept_open_does_not_keep_a_study_for_ever(tmp_path: Path, clock: Clock) -> None:
    coming = arrivals(tmp_path, clock)
    coming.take("a", encoded(ALL[0]))
    clock.now += LONGEST_PAUSE_S
    assert [one.problem for one in coming.finished()] == [None]


def test_what_breaks_off_is_not_whole_unless_it_is_another_study(tmp_path: Path, clock: Clock) -> None:
    coming = arrivals(tmp_path, clock)
    coming.take("a", encoded(ALL[0]))
    coming.take("b", encoded(object_of(0, study="1.2.4", series="1.2.4.1", uid="1.2.4.1.1")))
    coming.ended("a", released=False)
    coming.ended("b", released=True)
    coming.ended("b", released=False)  # the connection is closed after a release
    clock.now += 5
    assert [one.problem for one in coming.finished()] == ["its association broke off", None]


@pytest.mark.parametrize(
    ("limits", "objects", "status", "problem"),
    [
        (PLENTY, [ALL[0], object_of(0, value=9)], NOT_AS_BEFORE, "one object came twice with two contents"),
        (Limits(spare=0, objects=1), ALL[:2], NO_ROOM, "it is larger than is taken"),
        (Limits(spare=0, size=len(encoded(ALL[0]))), ALL[:2], NO_ROOM, "it is larger than is taken"),
        (Limits(spare=1 << 60), ALL[:1], NO_ROOM, "the disk is full"),
    ],
)
def test_a_study_of_which_an_object_is_refused_is_not_whole(
    tmp_path: Path, limits: Limits, objects: list[Dataset], status: int, problem: str
) -> None:
    clock = Clock()
    coming = arrivals(tmp_path, clock, limits)
    answers = [coming.take("a", encoded(one)) for one in objects]
    assert answers[-1] == status
    coming.ended("a", released=True)
    clock.now += 5
    assert [one.problem for one in coming.finished()] == [problem]


def test_studies_in_the_making_are_bounded_and_what_is_no_object_is_refused(tmp_path: Path, clock: Clock) -> None:
    coming = arrivals(tmp_path, clock, Limits(studies=1, spare=0))
    assert coming.take("a", encoded(ALL[0])) == STORED
    assert coming.take("b", encoded(object_of(0, study="1.2.4"))) == NO_ROOM
    assert coming.take("a", b"nothing that is DICOM") == NOT_UNDERSTOOD
    assert coming.refused == 2
    with pytest.warns(UserWarning, match="VR UI"):  # pydicom's, that it is no UID
        assert coming.take("c", encoded(object_of(1, study="../../x"))) == NOT_UNDERSTOOD, "a name is no path"
    coming.ended("a", released=True)
    clock.now += 5
    assert [one.problem for one in coming.finished()] == ["an object came that is no DICOM object"]


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
    given = {"certificate": str(ours), "key": str(our_key), "ca": str(hospital.ca)}
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
        ("127.0.0.1:11112", {"accept": ("CT1",), "certificate": "x.pem"}, "--tls-key"),
        ("127.0.0.1:11112", {"accept": ("CT1",), "certificate": "x.pem", "key": "x.key"}, "is not there"),
    ],
)
def test_where_to_listen_is_checked(text: str, more: dict[str, object], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        listening_at(text, **more)
