"""C-MOVE from peers that offer no C-GET, send elsewhere, other things, less than they say, or nothing at all."""

import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pydicom.dataset import Dataset
from pydicom.uid import MRImageStorage
from pynetdicom import AE, evt

from client.pacs.caller import Caller
from client.pacs.problems import AwayError, PacsError
from client.pacs.pulling import Pulled, estimate, pull, staging_of
from client.pacs.query import query_of
from client.pacs.settings import Dimse
from tests.client.pacs.bad_dimse import ECHO, FIND, GET, MOVE, bad_pacs, gets, moves
from tests.client.pacs.objects import COUNT, STUDY, object_of, uid_of
from tests.client.pacs.senders import free_port, sent
from tests.patience import PATIENCE_S

pytestmark = pytest.mark.system

ALL = [object_of(number) for number in range(COUNT)]
WITHOUT_GET = (ECHO, FIND, MOVE)


def peer_at(port: int, ours: int, **more: Any) -> Dimse:
    known: dict[str, Any] = {"name": "bad", "host": "127.0.0.1", "port": port, "called": "HOSPITAL", "timeout": 3}
    return Dimse(**(known | {"move_address": "127.0.0.1", "move_port": ours} | more))


def pulled_from(tmp_path: Path, port: int, ours: int, **more: Any) -> Pulled:
    out = tmp_path / "out"
    with Caller(tmp_path, peer_at(port, ours, **more), staging_of(out)) as caller:
        wanted = estimate(caller, query_of({"modality": "CT"}), out)
        return pull(caller, wanted, out, patience_s=0)


def failure(pulled: Pulled) -> str:
    assert pulled.studies == 0
    ((text, _),) = pulled.failed.items()
    return text


def checked(tmp_path: Path, port: int, ours: int, **more: Any) -> dict[str, str]:
    said: dict[str, str] = {}
    with Caller(tmp_path, peer_at(port, ours, **more)) as caller:
        caller.ask("check", lambda header: said.update({header["what"]: header["detail"]} if "what" in header else {}))
    return said


def assert_whole(tmp_path: Path) -> None:
    came = sorted(path.stem for path in (tmp_path / "out" / STUDY).glob("*/*.dcm"))
    assert came == [uid_of(number) for number in range(COUNT)]


def assert_closed(port: int) -> None:
    with socket.socket() as probe:
        assert probe.connect_ex(("127.0.0.1", port)) != 0


def test_a_pacs_without_c_get_is_asked_to_send_to_our_port_which_is_open_only_meanwhile(tmp_path: Path) -> None:
    ours = free_port()
    with bad_pacs(move=moves(ours, ALL), offered=WITHOUT_GET) as port:
        said = checked(tmp_path, port, ours)
        assert "C-MOVE is used" in said["C-GET"]
        assert f"WARDROUND must be registered there as 127.0.0.1, port {ours}" in said["C-MOVE"]
        with Caller(tmp_path, peer_at(port, ours)) as caller:
            caller.ask("check")
            assert_closed(ours)  # and not only as its process ends
        assert pulled_from(tmp_path, port, ours).files == COUNT
    assert_whole(tmp_path)


@pytest.mark.parametrize(
    ("retrieve", "by"), [("auto", "get"), ("c-get", "get"), ("c-move", "move")], ids=["auto", "c-get", "c-move"]
)
def test_which_way_studies_come_is_as_pacs_toml_has_it(tmp_path: Path, retrieve: str, by: str) -> None:
    asked: list[str] = []
    ours = free_port()

    def noted(name: str, answer: Any) -> Any:
        def handler(event: evt.Event) -> Iterator[Any]:
            asked.append(name)
            yield from answer(event)

        return handler

    both = (*WITHOUT_GET, GET)
    with bad_pacs(get=noted("get", gets(ALL)), move=noted("move", moves(ours, ALL)), offered=both) as port:
        assert pulled_from(tmp_path, port, ours, retrieve=retrieve).files == COUNT
    assert asked == [by]


def test_a_pacs_without_either_is_told_what_it_lacks(tmp_path: Path) -> None:
    with bad_pacs(offered=(ECHO, FIND)) as port, pytest.raises(PacsError, match="no C-MOVE either"):
        checked(tmp_path, port, free_port())


def test_a_pacs_that_does_not_know_where_we_are_is_told_where(tmp_path: Path) -> None:
    ours = free_port()
    said = rf"does not know where WARDROUND is .*registered there, as 127.0.0.1, port {ours}"
    with bad_pacs(move=moves(None, ALL), offered=WITHOUT_GET) as port:
        with pytest.raises(PacsError, match=said):
            checked(tmp_path, port, ours)
        assert "does not know where" in failure(pulled_from(tmp_path, port, ours))


def test_a_pacs_that_sends_to_another_machine_is_found_out(tmp_path: Path) -> None:
    elsewhere = AE(ae_title="WARDROUND")
    elsewhere.add_supported_context(ALL[0].SOPClassUID)
    other: Any = elsewhere.start_server(
        ("127.0.0.1", 0), block=False, evt_handlers=[(evt.EVT_C_STORE, lambda _event: 0)]
    )
    try:
        with bad_pacs(move=moves(other.server_address[1], ALL), offered=WITHOUT_GET) as port:
            said = failure(pulled_from(tmp_path, port, free_port()))
    finally:
        other.shutdown()
    assert "says that it has sent 4 objects, and 0 came here" in said


def test_a_pacs_that_cannot_reach_us_is_told_apart(tmp_path: Path) -> None:
    ours = free_port()
    with bad_pacs(move=moves(free_port(), ALL), offered=WITHOUT_GET) as port:
        said = failure(pulled_from(tmp_path, port, ours))
    assert f"registered there, as 127.0.0.1, port {ours}" in said  # pynetdicom's word for it


def test_what_the_pacs_says_it_could_not_send_is_named(tmp_path: Path) -> None:
    ours = free_port()
    other = object_of(3)
    other.SOPClassUID = other.file_meta.MediaStorageSOPClassUID = MRImageStorage  # not agreed
    with bad_pacs(move=moves(ours, [*ALL[:3], other]), offered=WITHOUT_GET) as port:
        assert "could not send 1 of the objects" in failure(pulled_from(tmp_path, port, ours))


@pytest.mark.parametrize(
    "foreign",
    [object_of(99), object_of(0, study="1.2.9"), object_of(0, series="1.2.3.9")],
    ids=["object", "study", "series"],
)
def test_what_was_not_asked_for_is_refused(tmp_path: Path, foreign: Dataset) -> None:
    ours = free_port()
    with bad_pacs(move=moves(ours, [*ALL[:2], foreign, *ALL[2:]]), offered=WITHOUT_GET) as port:
        assert "was not asked for" in failure(pulled_from(tmp_path, port, ours))
    assert list((tmp_path / "out").glob("[!.]*")) == []


def test_half_a_study_that_is_called_all_is_not_kept(tmp_path: Path) -> None:
    ours = free_port()
    with bad_pacs(move=moves(ours, ALL[:2]), offered=WITHOUT_GET) as port:
        assert "2 of 4 objects did not come" in failure(pulled_from(tmp_path, port, ours))
    assert list((tmp_path / "out").glob("[!.]*")) == []


def test_nobody_but_the_pacs_is_let_in_while_the_port_is_open(tmp_path: Path) -> None:
    ours = free_port()
    others: list[list[int] | None] = []

    def answer(event: evt.Event) -> Iterator[Any]:
        others.append(sent(ours, ALL, calling="STRANGER"))
        others.append(sent(ours, ALL, calling="HOSPITAL", called="NOBODY"))
        yield from moves(ours, ALL)(event)

    with bad_pacs(move=answer, offered=WITHOUT_GET) as port:
        assert pulled_from(tmp_path, port, ours).files == COUNT
    assert others == [None, None]


def test_a_pacs_that_is_silent_on_both_associations_is_let_go(tmp_path: Path) -> None:
    over = threading.Event()

    def silent(_event: evt.Event) -> Iterator[Any]:
        yield "127.0.0.1", free_port(), {"bind_address": ("127.0.0.1", 0)}
        over.wait(PATIENCE_S)

    try:
        with (
            bad_pacs(move=silent, offered=WITHOUT_GET) as port,
            pytest.raises(AwayError, match="was silent for 1 s"),
        ):
            pulled_from(tmp_path, port, free_port(), timeout=1)
    finally:
        over.set()


def test_a_pacs_that_sends_for_longer_than_its_timeout_and_says_nothing_is_waited_for(tmp_path: Path) -> None:
    ours = free_port()

    def slow(event: evt.Event) -> Iterator[Any]:
        # No answer is pending meanwhile: all that is heard of it comes to our port.
        for one in ALL:
            time.sleep(0.6)
            assert sent(ours, [one], calling="HOSPITAL") == [0]
        yield "127.0.0.1", ours, {}
        yield 0

    with bad_pacs(move=slow, offered=WITHOUT_GET) as port:
        said = failure(pulled_from(tmp_path, port, ours, timeout=1))
    assert "says that it has sent 0 objects, and 4 came here" in said, "it was heard to its end"


def test_a_port_that_is_taken_is_told(tmp_path: Path) -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as other,
        bad_pacs(offered=WITHOUT_GET) as port,
        pytest.raises(PacsError, match=r"is not to be had .*move-port"),
    ):
        checked(tmp_path, port, other.getsockname()[1])
