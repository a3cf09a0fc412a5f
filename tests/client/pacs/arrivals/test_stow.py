"""Each request of STOW-RS has a defined answer, and what did not come whole is no whole study."""

import socket
import ssl
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from pydicom.uid import BasicTextSRStorage, generate_uid

from client.pacs.arrivals.arriving import (
    CLASS_NOT_TAKEN,
    NO_ROOM,
    NOT_AS_BEFORE,
    NOT_UNDERSTOOD,
    Arrivals,
    Arrived,
    Limits,
)
from client.pacs.arrivals.settings import Stowing
from client.pacs.arrivals.stow import NOT_OF_THE_STUDY, Bounds
from client.pacs.arrivals.webserver import Web
from client.pacs.problems import PacsError
from tests.client.pacs.arrivals.bodies import (
    BOUNDARY,
    FAILED,
    KIND,
    PLACE,
    STORED,
    WITHOUT,
    asked,
    began,
    body,
    heard,
    part,
)
from tests.client.pacs.certificates import Hospital
from tests.client.pacs.objects import COUNT, STUDY, encoded, object_of, uid_of
from tests.client.pacs.senders import free_port
from tests.patience import PATIENCE_S, eventually

ALL = [encoded(object_of(number)) for number in range(COUNT)]
UIDS = [uid_of(number) for number in range(COUNT)]
WORD = "0123456789abcdef0123456789abcdef"
BROKE_OFF = "its request broke off, or could not be read"


@dataclass
class Service:
    port: int
    arrivals: Arrivals

    def ended(self) -> list[Arrived]:
        """The next studies that came to their end."""
        return list(eventually(lambda: list(self.arrivals.finished()), "a study comes to its end"))

    def problems(self) -> list[str | None]:
        return [one.problem for one in self.ended()]


@contextmanager
def serving(
    folder: Path, bounds: Bounds | None = None, limits: Limits | None = None, **settings: Any
) -> Iterator[Service]:
    arrivals = Arrivals(folder, 0.0, limits or Limits(spare=0))
    given = Stowing(address="127.0.0.1", port=free_port(), **settings)
    web = Web(given, arrivals, bounds)
    try:
        yield Service(given.port, arrivals)
    finally:
        web.shutdown()


@pytest.fixture
def service(tmp_path: Path) -> Iterator[Service]:
    with serving(tmp_path) as one:
        yield one


def report() -> bytes:
    made = object_of(9)
    made.SOPClassUID = made.file_meta.MediaStorageSOPClassUID = BasicTextSRStorage
    return encoded(made)


def test_what_is_answered_as_stored_lies_on_the_disk_as_it_was_sent(service: Service, tmp_path: Path) -> None:
    answer = asked(service.port, body(ALL))
    assert (answer.status, answer.uids(STORED)) == (200, UIDS)
    assert answer.json.keys() == {"00081190", STORED}
    (one,) = service.ended()
    assert (one.objects, one.problem) == (COUNT, None)
    files = {path.stem: path for path in (tmp_path / one.name).glob("*/*.dcm")}
    assert [files[uid].read_bytes() for uid in UIDS] == ALL
    assert all(path.stat().st_mode & 0o077 == 0 for path in files.values())


def test_a_body_in_chunks_and_a_second_request_on_one_connection_are_taken(service: Service) -> None:
    whole = body(ALL)
    answer = asked(service.port, (whole[at : at + 100] for at in range(0, len(whole), 100)))
    assert (answer.status, len(answer.uids(STORED))) == (200, COUNT)
    with began(service.port, whole, len(whole)) as connection:
        assert heard(connection).status == 200
        connection.sendall(f"OPTIONS {PLACE} HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n".encode())
        assert heard(connection).status == 405


def test_what_is_no_image_is_refused_by_name_and_the_study_is_whole_without_it(service: Service) -> None:
    answer = asked(service.port, body([ALL[0], report()]))
    assert (answer.status, answer.uids(STORED), answer.uids(FAILED)) == (202, UIDS[:1], [uid_of(9)])
    assert answer.reasons() == [CLASS_NOT_TAKEN]
    assert service.problems() == [None]
    answer = asked(service.port, body([report()]))
    assert (answer.status, answer.reasons()) == (409, [CLASS_NOT_TAKEN])


def test_what_is_no_dicom_object_is_told_without_a_name(service: Service) -> None:
    answer = asked(service.port, body([ALL[0], b"nothing that is DICOM"]))
    assert (answer.status, answer.uids(STORED)) == (202, UIDS[:1])
    assert (answer.reasons(WITHOUT), answer.uids(FAILED)) == ([NOT_UNDERSTOOD], [])
    assert service.problems() == ["an object came that is no DICOM object"]
    assert asked(service.port, body([b"x"])).status == 409


def test_an_object_of_another_study_than_the_path_names_is_not_stored(service: Service, tmp_path: Path) -> None:
    other = encoded(object_of(7, study="1.2.9"))
    answer = asked(service.port, body([other, ALL[0]]), place=f"{PLACE}/{STUDY}")
    assert (answer.status, answer.uids(STORED), answer.reasons()) == (202, UIDS[:1], [NOT_OF_THE_STUDY])
    assert service.problems() == ["an object came that is not of the study that was named with it"]
    answer = asked(service.port, body(ALL), place=f"{PLACE}/1.2.9")
    assert (answer.status, answer.reasons()) == (409, [NOT_OF_THE_STUDY] * COUNT)
    assert len(list(tmp_path.rglob("*.dcm"))) == 1
    assert asked(service.port, body(ALL), place=f"{PLACE}/{STUDY}/").status == 200


def test_one_object_twice_is_stored_once_and_with_two_contents_it_is_refused(service: Service) -> None:
    answer = asked(service.port, body([ALL[0], ALL[0]]))
    assert (answer.status, answer.uids(STORED)) == (200, [UIDS[0]] * 2)
    assert [(one.objects, one.repeated, one.problem) for one in service.ended()] == [(1, 1, None)]
    answer = asked(service.port, body([ALL[0], encoded(object_of(0, value=9))]))
    assert (answer.status, answer.reasons()) == (202, [NOT_AS_BEFORE])
    assert service.problems() == ["one object came twice with two contents"]


def test_where_there_is_no_room_a_sender_is_told_to_come_again(tmp_path: Path) -> None:
    with serving(tmp_path, limits=Limits(spare=1 << 60)) as service:
        answer = asked(service.port, body(ALL))
    assert (answer.status, answer.reasons()) == (503, [NO_ROOM] * COUNT)
    assert int(answer.headers["retry-after"]) > 0


@pytest.mark.parametrize(
    ("status", "line", "headers"),
    [
        (405, f"GET {PLACE}", {}),
        (405, f"OPTIONS {PLACE}", {}),
        (405, f"PUT {PLACE}/{STUDY}", {}),
        (404, "POST /", {}),
        (404, "GET /dicom-web/", {}),
        (404, "POST /dicom-web/instances", {}),
        (404, "POST /dicom-webs/studies", {}),
        (404, f"POST {PLACE}/{STUDY}/series", {}),
        (404, f"POST {PLACE}/..%2f..%2fx", {}),
        (400, f"POST {PLACE}/DOE", {}),
        (400, f"POST {PLACE}", {"Content_Type": 'multipart/related; type="application/dicom"'}),
        (415, f"POST {PLACE}", {"Content_Type": "application/dicom"}),
        (415, f"POST {PLACE}", {"Content_Type": KIND.replace("application/dicom", "application/dicom+json")}),
        (415, f"POST {PLACE}", {"Content_Encoding": "gzip"}),
        (406, f"POST {PLACE}", {"Accept": "application/dicom+xml"}),
        (421, f"POST {PLACE}", {"Host": "evil.example"}),
        (200, f"POST {PLACE}", {"Host": "localhost", "Accept": "text/html, application/*;q=0.5"}),
    ],
)
def test_what_is_asked_for_besides_is_refused_by_its_head(
    service: Service, tmp_path: Path, status: int, line: str, headers: dict[str, str]
) -> None:
    method, place = line.split()
    answer = asked(service.port, body(ALL), method=method, place=place, **headers)
    assert answer.status == status
    assert "access-control-allow-origin" not in answer.headers
    if status != 200:
        assert answer.headers["connection"] == "close"
        assert list(tmp_path.iterdir()) == []
    assert answer.headers.get("allow") == ("POST" if status == 405 else None)


def test_who_does_not_show_the_token_is_refused_before_anything_else(tmp_path: Path) -> None:
    path = tmp_path / "token"
    path.write_text(f"{WORD}\n")
    folder = tmp_path / "coming"
    folder.mkdir()
    with serving(folder, token=str(path)) as service:
        for given in ("", WORD, f"Basic {WORD}", f"Bearer {WORD[:-1]}", f"Bearer {WORD}x", "Bearer", "Bearer \xe4"):
            answer = asked(service.port, body(ALL), place="/elsewhere", Authorization=given)
            assert (answer.status, answer.headers["www-authenticate"]) == (401, "Bearer"), given
        # A long body does not keep it from being heard.
        assert asked(service.port, bytes(8 << 20)).status == 401
        assert list(folder.iterdir()) == []
        answer = asked(service.port, body(ALL), Authorization=f"bearer {WORD}", Host="pacs.example")
        assert answer.status == 200


@pytest.mark.parametrize("held", ["", "short", "two words of it are none", "x" * 15])
def test_a_file_without_a_token_is_no_token(tmp_path: Path, held: str) -> None:
    path = tmp_path / "token"
    path.write_text(held)
    with pytest.raises(PacsError, match="holds no token") as refused, serving(tmp_path, token=str(path)):
        pass
    assert not held or held not in str(refused.value)


BROKEN = [
    pytest.param(part(ALL[0]) + part(ALL[1]), 400, id="no end"),
    pytest.param(part(ALL[0]) + part(ALL[1])[:-40], 400, id="half an object"),
    pytest.param(part(ALL[0]) + b"--" + BOUNDARY + b"\r\nX: " + bytes(9000), 400, id="long headers"),
    pytest.param(part(ALL[0]) + part(b"{}", b"application/json") + part(ALL[1]), 415, id="another kind"),
    pytest.param(body([ALL[0]]) + bytes(1 << 17), 400, id="much after the end"),
]


@pytest.mark.parametrize(("content", "status"), BROKEN)
def test_a_body_that_cannot_be_read_leaves_no_whole_study(service: Service, content: bytes, status: int) -> None:
    answer = asked(service.port, content)
    assert (answer.status, answer.json) == (status, {})
    assert service.problems() == [BROKE_OFF]
    assert asked(service.port, body(ALL)).status == 200
    assert service.problems() == [None]


def test_who_hangs_up_in_the_middle_leaves_no_whole_study(service: Service) -> None:
    content = part(ALL[0]) + part(ALL[1])
    with began(service.port, content, 1 << 20):
        pass
    assert service.problems() == [BROKE_OFF]


def test_who_is_silent_or_too_slow_is_let_go(tmp_path: Path) -> None:
    with serving(tmp_path, Bounds(silence=0.3, grace=60)) as service:
        with began(service.port, part(ALL[0]) + part(ALL[1]), 1 << 20) as connection:
            assert heard(connection).status == 408
        assert service.problems() == [BROKE_OFF]
    with serving(tmp_path, Bounds(silence=20, grace=0.3, pace=1 << 20)) as service:
        content = part(ALL[0]) + part(ALL[1])
        with began(service.port, content, 1 << 20) as connection:
            answers: list[int] = []
            thread = threading.Thread(target=lambda: answers.append(heard(connection).status))
            thread.start()
            while thread.is_alive():
                try:
                    connection.sendall(b"x")
                except OSError:
                    break
                time.sleep(0.05)
            thread.join()
        assert answers == [408]
        assert service.problems() == [BROKE_OFF]


def test_a_request_longer_than_is_taken_is_refused_by_its_head_and_in_its_middle(tmp_path: Path) -> None:
    with serving(tmp_path, Bounds(whole=4000)) as service:
        assert asked(service.port, body([bytes(5000)])).status == 413
        # It waits for our word, and hears that it need not send.
        with began(service.port, b"", 1 << 40, "Expect: 100-continue") as connection:
            assert connection.recv(1 << 16).startswith(b"HTTP/1.1 413")
        assert asked(service.port, slowly(part(ALL[0]), part(ALL[1]), *[bytes(1000)] * 9)).status == 413
        assert service.problems() == [BROKE_OFF]


def slowly(*pieces: bytes) -> Iterator[bytes]:
    for piece in pieces:
        yield piece
        time.sleep(0.05)


def test_too_many_at_a_time_and_too_much_in_memory_are_told_to_come_again(tmp_path: Path) -> None:
    with serving(tmp_path, Bounds(requests=1, held=30_000)) as service:
        half = part(ALL[0]) + part(ALL[1])[:200]
        with began(service.port, half, 1 << 20) as connection:
            await_status(service.port, 503)
            connection.sendall(bytes(40_000))
            answer = heard(connection)
            assert (answer.status, "retry-after" in answer.headers) == (503, True)
        assert service.problems() == [BROKE_OFF]
        await_status(service.port, 200)


def await_status(port: int, status: int) -> None:
    """Until a request is answered so: another's beginning or end may take a moment."""
    eventually(lambda: asked(port, body(ALL)).status == status, f"it is answered {status}")


def test_a_head_that_is_none_or_has_no_end_costs_nobody(service: Service) -> None:
    with socket.create_connection(("127.0.0.1", service.port), PATIENCE_S) as connection:
        connection.sendall(f"POST {PLACE} HTTP/1.1\r\nX: ".encode() + b"x" * 20_000)
        assert heard(connection).status == 400
    assert asked(service.port, body(ALL)).status == 200


def test_over_tls_only_who_shows_a_certificate_of_the_hospital_is_heard(tmp_path: Path) -> None:
    hospital, stranger = Hospital(tmp_path / "ca"), Hospital(tmp_path / "other")
    ours, our_key, _ = hospital.issue("us")
    coming = tmp_path / "coming"
    coming.mkdir()
    known = ssl.create_default_context(cafile=str(hospital.ca))
    known.load_cert_chain(*hospital.issue("scanner")[:2])
    with serving(coming, certificate=str(ours), key=str(our_key), ca=str(hospital.ca)) as service:
        answer = asked(service.port, body(ALL), tls=known, Host="pacs.example")
        assert answer.status == 200
        for context in unknown(hospital, stranger):
            with pytest.raises(OSError, match=r"(?i)alert|reset|closed|eof"):
                asked(service.port, body(ALL), tls=context)
        with pytest.raises((OSError, ValueError)):
            asked(service.port, body(ALL))  # in the clear
        assert service.problems() == [None]
    assert len(list(coming.rglob("*.dcm"))) == COUNT


def unknown(hospital: Hospital, stranger: Hospital) -> Sequence[ssl.SSLContext]:
    """Who shows no certificate, and who shows one of another authority."""
    bare = ssl.create_default_context(cafile=str(hospital.ca))
    forged = ssl.create_default_context(cafile=str(hospital.ca))
    forged.load_cert_chain(*stranger.issue("them")[:2])
    return bare, forged


def test_two_senders_of_one_study_are_both_waited_for(service: Service) -> None:
    first, second = part(ALL[0]), part(ALL[1])
    end = b"--" + BOUNDARY + b"--\r\n"
    with began(service.port, first + second[:99], len(first + second + end)) as connection:
        other = encoded(object_of(5, uid=str(generate_uid())))
        assert asked(service.port, body([other])).status == 200
        assert list(service.arrivals.finished()) == [], "the other one goes on"
        connection.sendall(second[99:] + end)
        assert heard(connection).status == 200
    assert [(one.objects, one.problem) for one in service.ended()] == [(3, None)]
