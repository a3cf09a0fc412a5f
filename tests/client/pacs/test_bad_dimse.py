"""Peers that refuse, break off, repeat, make up or never end: each is told apart, and no half study is kept."""

import itertools
import socket
import struct
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pydicom.dataset import Dataset
from pynetdicom import evt

from client.pacs import listing
from client.pacs.caller import Caller
from client.pacs.problems import AwayError, PacsError
from client.pacs.pulling import Pulled, estimate, pull, staging_of
from client.pacs.query import query_of
from client.pacs.settings import Dimse
from tests.client.pacs.bad_dimse import ECHO, FIND, bad_pacs, finds, gets, raw_server
from tests.client.pacs.objects import COUNT, STUDY, instance_answer, object_of, series_answer, study_answer, uid_of
from tests.patience import PATIENCE_S

pytestmark = pytest.mark.system

ALL = [object_of(number) for number in range(COUNT)]


def peer_at(port: int, **more: Any) -> Dimse:
    return Dimse(**{"name": "bad", "host": "127.0.0.1", "port": port, "called": "HOSPITAL", "timeout": 3, **more})


def pulled_from(tmp_path: Path, port: int, **more: Any) -> Pulled:
    out = tmp_path / "out"
    with Caller(tmp_path, peer_at(port), staging_of(out)) as caller:
        wanted = estimate(caller, query_of({"modality": "CT"}), out)
        return pull(caller, wanted, out, **{"patience_s": 0, **more})


def checked(tmp_path: Path, port: int, **more: Any) -> list[str]:
    said: list[str] = []
    with Caller(tmp_path, peer_at(port, **more)) as caller:
        caller.ask("check", lambda header: said.append(str(header.get("what"))))
    return said


def assert_nothing_kept(tmp_path: Path) -> None:
    assert [path.name for path in (tmp_path / "out").iterdir()] == [".pulling"]
    outside = [path for path in tmp_path.rglob("*.dcm") if not path.is_relative_to(tmp_path / "out" / ".pulling")]
    assert outside == []


def failure(pulled: Pulled) -> str:
    assert pulled.studies == 0
    ((text, count),) = pulled.failed.items()
    assert count == 1
    return text


def test_a_good_peer_is_pulled_from(tmp_path: Path) -> None:
    with bad_pacs(get=gets(ALL)) as port:
        assert pulled_from(tmp_path, port).files == COUNT
    assert sorted(path.stem for path in (tmp_path / "out" / STUDY).glob("*/*.dcm")) == [uid_of(n) for n in range(COUNT)]


def test_all_that_comes_is_counted_for_the_rate(tmp_path: Path) -> None:
    staging = staging_of(tmp_path / "out")
    with bad_pacs(get=gets(ALL)) as port, Caller(tmp_path, peer_at(port), staging) as caller:
        study = estimate(caller, query_of({"modality": "CT"}), tmp_path).studies[0].model_dump(mode="json")
        came = caller.ask("retrieve", study=study, folder=str(staging / "x"), rate=None)
    assert came["came"] > sum(len(one.PixelData) for one in ALL)


def test_half_a_study_that_is_called_all_is_not_kept(tmp_path: Path) -> None:
    with bad_pacs(get=gets(ALL[:2])) as port:
        assert "2 of 4 objects did not come" in failure(pulled_from(tmp_path, port))
    assert_nothing_kept(tmp_path)


def test_a_series_of_which_less_is_listed_than_counted_is_not_kept(tmp_path: Path) -> None:
    with bad_pacs(finds(series=[series_answer(count=COUNT + 3)]), gets(ALL)) as port:
        assert "counts 7 objects in a series and lists 4" in failure(pulled_from(tmp_path, port))
    assert_nothing_kept(tmp_path)


def test_an_association_that_is_dropped_in_the_middle_is_tried_again(tmp_path: Path) -> None:
    attempts = itertools.count()

    def answer(event: evt.Event) -> Iterator[Any]:
        first = next(attempts) == 0
        yield COUNT
        for number, one in enumerate(ALL):
            if first and number == 2:
                event.assoc.abort()
                return
            yield 0xFF00, one

    told: list[str] = []
    with bad_pacs(get=answer) as port:
        assert pulled_from(tmp_path, port, patience_s=60, tell=told.append).files == COUNT
    assert len(told) == 1
    assert "ended the association" in told[0]


def test_an_association_that_is_always_dropped_ends_the_pull(tmp_path: Path) -> None:
    def answer(event: evt.Event) -> Iterator[Any]:
        yield COUNT
        yield 0xFF00, ALL[0]
        event.assoc.abort()

    with bad_pacs(get=answer) as port, pytest.raises(AwayError, match="ended the association"):
        pulled_from(tmp_path, port)
    assert_nothing_kept(tmp_path)


def test_what_comes_twice_is_kept_once_and_counted(tmp_path: Path) -> None:
    with bad_pacs(get=gets([*ALL, ALL[0]])) as port:
        pulled = pulled_from(tmp_path, port)
    assert (pulled.files, pulled.repeated) == (COUNT, 1)


def test_one_name_with_two_contents_is_refused(tmp_path: Path) -> None:
    with bad_pacs(get=gets([*ALL, object_of(0, value=7)])) as port:
        assert "twice with two contents" in failure(pulled_from(tmp_path, port))
    assert_nothing_kept(tmp_path)


@pytest.mark.parametrize(
    "foreign",
    [object_of(99), object_of(0, study="1.2.9"), object_of(0, series="1.2.3.9")],
    ids=["object", "study", "series"],
)
def test_what_was_not_asked_for_is_refused(tmp_path: Path, foreign: Dataset) -> None:
    with bad_pacs(get=gets([foreign, *ALL[1:]])) as port:
        assert "was not asked for" in failure(pulled_from(tmp_path, port))
    assert_nothing_kept(tmp_path)


@pytest.mark.parametrize("uid", ["../../../evil", "/evil", "1.2/../../3", "..", "1..2", "", "1." * 60])
def test_a_uid_that_is_a_path_is_no_study_and_no_object(tmp_path: Path, uid: str) -> None:
    with bad_pacs(finds(studies=[_raw("StudyInstanceUID", uid)]), gets(ALL)) as port:
        out = tmp_path / "out"
        with Caller(tmp_path, peer_at(port), staging_of(out)) as caller:
            wanted = estimate(caller, query_of({"modality": "CT"}), out)
        assert (wanted.studies, dict(wanted.left_out)) == ((), {"study whose answer is not valid DICOM": 1})
    forged = [*[instance_answer(number) for number in range(1, COUNT)], _raw("SOPInstanceUID", uid)]
    with bad_pacs(finds(instances=forged), gets(ALL)) as port, Caller(tmp_path, peer_at(port)) as caller:
        wanted = estimate_without_size(caller, tmp_path)
        with pytest.raises(PacsError, match="without a valid UID"):
            caller.ask("size", study=wanted)
    assert_nothing_kept(tmp_path)


def estimate_without_size(caller: Caller, out: Path) -> Any:
    found = caller.ask("search", query=query_of({"modality": "CT"}).model_dump(mode="json"))["found"]
    return found["studies"][0]


def test_results_without_end_are_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def endless(event: evt.Event) -> Iterator[Any]:
        for number in itertools.count():
            if event.is_cancelled or not event.assoc.is_established:
                return
            yield 0xFF00, study_answer(f"1.2.{number}")

    with bad_pacs(endless) as port, pytest.raises(PacsError, match="answers with more than 10,000"):
        pulled_from(tmp_path, port)
    assert listing.MOST_STUDIES == 10_000


def test_a_message_longer_than_agreed_is_not_read(tmp_path: Path) -> None:
    """A PDU of 4 GiB: its length is looked at, and the connection let go."""
    sent = [0]

    def speak(connection: socket.socket) -> None:
        connection.recv(1 << 16)
        connection.sendall(struct.pack(">BBL", 2, 0, 0xFFFFFFF0))
        while sent[0] < 1 << 30:
            connection.sendall(bytes(1 << 20))
            sent[0] += 1 << 20

    with raw_server(speak) as port, pytest.raises(AwayError):
        checked(tmp_path, port)
    assert sent[0] < 16 << 20


@pytest.mark.parametrize(
    ("calling", "called", "said"),
    [("STRANGER", "HOSPITAL", "does not know our AE title STRANGER"), ("WARDROUND", "NOBODY", "is not called NOBODY")],
)
def test_a_wrong_title_is_named(tmp_path: Path, calling: str, called: str, said: str) -> None:
    def picky(event: evt.Event) -> None:
        event.assoc.ae.require_calling_aet = ["WARDROUND"]
        event.assoc.ae.require_called_aet = True

    with (
        bad_pacs(handlers=[(evt.EVT_CONN_OPEN, picky)]) as port,
        pytest.raises(PacsError, match=said),
    ):
        checked(tmp_path, port, calling=calling, called=called)


def test_a_peer_without_c_get_is_told_what_it_lacks(tmp_path: Path) -> None:
    with bad_pacs(offered=(ECHO, FIND)) as port, pytest.raises(PacsError, match="offers WARDROUND no C-GET"):
        checked(tmp_path, port)


def test_a_peer_that_takes_none_of_our_syntaxes_is_told_apart(tmp_path: Path) -> None:
    with bad_pacs(stores=()) as port, pytest.raises(PacsError, match="none of our contexts for the objects"):
        checked(tmp_path, port)


def test_a_peer_that_takes_nothing_at_all_is_told_apart(tmp_path: Path) -> None:
    with (
        bad_pacs(offered=("1.2.840.10008.5.1.4.31",), stores=()) as port,
        pytest.raises(PacsError, match="none of what we"),
    ):
        checked(tmp_path, port)


def test_a_peer_that_refuses_the_query_is_told_apart(tmp_path: Path) -> None:
    def refuses(_event: evt.Event) -> Iterator[Any]:
        yield 0x0124, None

    with bad_pacs(refuses) as port, pytest.raises(PacsError, match="status 0124"):
        checked(tmp_path, port)


def test_nothing_that_listens_is_told_apart(tmp_path: Path, free_port: int) -> None:
    with pytest.raises(AwayError, match="nothing listens"):
        checked(tmp_path, free_port)


def test_a_silent_peer_is_not_waited_for_without_end(tmp_path: Path) -> None:
    with (
        raw_server(_listen) as port,
        pytest.raises(AwayError, match="answers nothing that"),
    ):
        checked(tmp_path, port, timeout=1)


def test_a_peer_that_falls_silent_in_the_middle_is_let_go(tmp_path: Path) -> None:
    over = threading.Event()

    def silent(_event: evt.Event) -> Iterator[Any]:
        yield COUNT
        yield 0xFF00, ALL[0]
        over.wait(PATIENCE_S)
        yield 0xFF00, ALL[1]

    try:
        with bad_pacs(get=silent) as port, pytest.raises(AwayError, match="was silent for 3 s"):
            pulled_from(tmp_path, port)
    finally:
        over.set()
    assert_nothing_kept(tmp_path)


def _listen(connection: socket.socket) -> None:
    while connection.recv(1 << 16):
        pass


def _raw(keyword: str, value: str) -> Dataset:
    """An answer whose UID is none."""
    answer = study_answer() if keyword == "StudyInstanceUID" else instance_answer(0)
    answer[keyword]._value = value
    return answer
