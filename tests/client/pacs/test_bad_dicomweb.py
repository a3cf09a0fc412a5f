"""The same of peers that speak DICOMweb, or something that looks like it."""

import json
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from pydicom.dataset import Dataset

from client.pacs.caller import Caller
from client.pacs.problems import AwayError, PacsError
from client.pacs.pulling import Pulled, estimate, pull, staging_of
from client.pacs.query import Study, query_of
from client.pacs.settings import DicomWeb
from tests.client.pacs.objects import (
    COUNT,
    SERIES,
    STUDY,
    encoded,
    instance_answer,
    object_of,
    series_answer,
    study_answer,
)

pytestmark = pytest.mark.system

ALL = [encoded(object_of(number)) for number in range(COUNT)]
JSON, BOUNDARY = "application/dicom+json", "part"
Answer = Callable[["Handler"], None]


class Handler(BaseHTTPRequestHandler):
    """Answers by the first entry whose words are in the path."""

    protocol_version = "HTTP/1.1"
    answers: Mapping[str, Answer] = {}

    def do_GET(self) -> None:
        self.close_connection = True
        place = self.path.partition("?")[0]
        next(answer for words, answer in self.answers.items() if place.endswith(words))(self)

    def say(self, body: bytes, kind: str = JSON, code: int = 200, length: int | None = None, **headers: str) -> None:
        self.send_response(code)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body) if length is None else length))
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        """Nothing."""


def listed(*answers: Dataset) -> Answer:
    body = json.dumps([answer.to_json_dict() for answer in answers]).encode()
    return lambda handler: handler.say(body)


def parts(sent: Sequence[bytes], *, ended: bool = True) -> bytes:
    head = f"--{BOUNDARY}\r\nContent-Type: application/dicom\r\n\r\n".encode()
    body = b"".join(head + one + b"\r\n" for one in sent)
    return body + (f"--{BOUNDARY}--\r\n".encode() if ended else b"")


def sends(sent: Sequence[bytes], **more: Any) -> Answer:
    kind = f'multipart/related; type="application/dicom"; boundary={BOUNDARY}'
    return lambda handler: handler.say(parts(sent), kind, **more)


@contextmanager
def bad_web(**answers: Answer) -> Iterator[str]:
    """Its URL; `studies`, `series`, `instances` and `retrieve` are answered as told, the rest well."""
    well = {
        "studies": listed(study_answer()),
        "series": listed(series_answer()),
        "instances": listed(*(instance_answer(number) for number in range(COUNT))),
        "retrieve": sends(ALL),
    }
    told = well | answers
    places = {"retrieve": f"/series/{SERIES}", "studies": "/studies", "series": "/series", "instances": "/instances"}
    handler = type("Told", (Handler,), {"answers": {place: told[what] for what, place in places.items()}})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}/dicom-web"
    finally:
        server.shutdown()
        server.server_close()


def pulled_from(tmp_path: Path, url: str, **more: Any) -> Pulled:
    out = tmp_path / "out"
    with Caller(tmp_path, DicomWeb(name="bad", url=url, timeout=3), staging_of(out)) as caller:
        wanted = estimate(caller, query_of({"modality": "CT"}), out)
        return pull(caller, wanted, out, **{"patience_s": 0, **more})


def checked(tmp_path: Path, url: str, **more: Any) -> None:
    with Caller(tmp_path, DicomWeb(**{"name": "bad", "url": url, "timeout": 3, **more})) as caller:
        caller.ask("check")


def assert_nothing_kept(tmp_path: Path) -> None:
    assert [path.name for path in (tmp_path / "out").iterdir()] == [".pulling"]


def failure(pulled: Pulled) -> str:
    assert pulled.studies == 0
    ((text, _),) = pulled.failed.items()
    return text


def test_a_good_peer_is_pulled_from(tmp_path: Path) -> None:
    with bad_web() as url:
        assert pulled_from(tmp_path, url).files == COUNT
    assert len(list((tmp_path / "out" / STUDY / SERIES).glob("*.dcm"))) == COUNT


def test_all_that_comes_is_counted_for_the_rate(tmp_path: Path) -> None:
    staging = staging_of(tmp_path / "out")
    with bad_web() as url, Caller(tmp_path, DicomWeb(name="good", url=url), staging) as caller:
        study = estimate(caller, query_of({"modality": "CT"}), tmp_path).studies[0].model_dump(mode="json")
        came = caller.ask("retrieve", study=study, folder=str(staging / "x"), rate=None)
    assert came["came"] > came["size"] == sum(map(len, ALL))


def test_half_a_study_is_not_kept(tmp_path: Path) -> None:
    with bad_web(retrieve=sends(ALL[:1])) as url:
        assert "3 of 4 objects did not come" in failure(pulled_from(tmp_path, url))
    assert_nothing_kept(tmp_path)


def test_an_answer_that_breaks_off_is_tried_again_and_then_given_up(tmp_path: Path) -> None:
    with (
        bad_web(retrieve=sends(ALL, length=len(parts(ALL)) + 100)) as url,
        pytest.raises(AwayError, match="in its middle"),
    ):
        pulled_from(tmp_path, url)
    assert_nothing_kept(tmp_path)


def test_an_object_that_breaks_off_at_the_end_of_a_whole_answer_is_not_kept(tmp_path: Path) -> None:
    """pydicom takes half of the pixels for an object."""
    cut = parts(ALL, ended=False)[:-50]
    kind = f"multipart/related; boundary={BOUNDARY}"
    with (
        bad_web(retrieve=lambda handler: handler.say(cut, kind)) as url,
        pytest.raises(AwayError, match="in its middle"),
    ):
        pulled_from(tmp_path, url)
    assert_nothing_kept(tmp_path)


def test_what_comes_twice_is_kept_once_and_counted(tmp_path: Path) -> None:
    with bad_web(retrieve=sends([*ALL, ALL[0]])) as url:
        pulled = pulled_from(tmp_path, url)
    assert (pulled.files, pulled.repeated) == (COUNT, 1)


def test_one_name_with_two_contents_is_refused(tmp_path: Path) -> None:
    with bad_web(retrieve=sends([*ALL, encoded(object_of(0, value=7))])) as url:
        assert "twice with two contents" in failure(pulled_from(tmp_path, url))
    assert_nothing_kept(tmp_path)


@pytest.mark.parametrize("uid", ["../../../evil", "1.2.3.9", "/evil"])
def test_an_object_that_was_not_asked_for_is_refused(tmp_path: Path, uid: str) -> None:
    forged = object_of(0)
    forged["SOPInstanceUID"]._value = uid
    with bad_web(retrieve=sends([*ALL[1:], encoded(forged)])) as url:
        assert "was not asked for" in failure(pulled_from(tmp_path, url))
    assert_nothing_kept(tmp_path)
    assert not any("evil" in path.name for path in tmp_path.rglob("*"))


@pytest.mark.parametrize("uid", ["../../evil", "..", "1/2", "1.2.3\n"])
def test_a_uid_that_is_a_path_is_no_study(tmp_path: Path, uid: str) -> None:
    body = json.dumps([{"0020000D": {"vr": "UI", "Value": [uid]}}]).encode()
    with bad_web(studies=lambda handler: handler.say(body)) as url:
        out = tmp_path / "out"
        with Caller(tmp_path, DicomWeb(name="bad", url=url, timeout=3), staging_of(out)) as caller:
            wanted = estimate(caller, query_of({"modality": "CT"}), out)
    assert uid.strip() == "1.2.3" or wanted.studies == ()
    assert all(study.uid == "1.2.3" for study in wanted.studies)


def test_results_without_end_are_an_error(tmp_path: Path) -> None:
    def endless(handler: Handler) -> None:
        offset = int(handler.path.partition("offset=")[2].partition("&")[0] or 0)
        handler.say(json.dumps([study_answer(f"1.2.{offset + n}").to_json_dict() for n in range(500)]).encode())

    with bad_web(studies=endless) as url, pytest.raises(PacsError, match="answers with more than 10,000"):
        pulled_from(tmp_path, url)


def test_a_peer_that_ignores_the_offset_is_asked_twice_and_no_more(tmp_path: Path) -> None:
    asked: list[str] = []

    def same(handler: Handler) -> None:
        asked.append(handler.path)
        handler.say(json.dumps([study_answer(f"1.2.{n}").to_json_dict() for n in range(500)]).encode())

    with bad_web(studies=same, series=listed()) as url, Caller(tmp_path, DicomWeb(name="bad", url=url)) as caller:
        found = estimate(caller, query_of({"modality": "CT"}), tmp_path)
    assert len(asked) == 2
    assert dict(found.left_out) == {"study without such images": 500}


def test_a_connection_that_is_closed_when_it_could_be_used_again_does_no_harm(tmp_path: Path) -> None:
    def lingers(handler: Handler) -> None:
        handler.say(json.dumps([study_answer().to_json_dict()]).encode())
        time.sleep(0.3)  # the next question would come meanwhile, and find no answer

    with bad_web(studies=lingers) as url:
        assert pulled_from(tmp_path, url).files == COUNT


def test_a_giant_answer_is_not_read_to_its_end(tmp_path: Path) -> None:
    sent = [0]

    def giant(handler: Handler) -> None:
        handler.send_response(200)
        handler.send_header("Content-Type", JSON)
        handler.end_headers()
        handler.wfile.write(b"[")
        while sent[0] < 1 << 30:
            sent[0] += handler.wfile.write(b" " * (1 << 20))

    with bad_web(studies=giant) as url, pytest.raises(PacsError, match="longer than 64 MiB"):
        pulled_from(tmp_path, url)
    assert sent[0] < 1 << 28


@pytest.mark.parametrize(
    ("code", "kind", "said"),
    [
        (401, PacsError, "does not know us"),
        (403, PacsError, "does not allow this"),
        (404, PacsError, "no DICOMweb at this address"),
        (406, PacsError, "cannot send objects as they are stored"),
        (503, AwayError, "answers 503"),
    ],
)
def test_what_it_answers_is_explained(tmp_path: Path, code: int, kind: type[PacsError], said: str) -> None:
    answer = lambda handler: handler.say(b"secret of theirs", code=code)  # noqa: E731
    with bad_web(studies=answer) as url, pytest.raises(kind, match=said) as told:
        checked(tmp_path, url)
    assert type(told.value) is kind
    assert "secret of theirs" not in str(told.value)


def test_it_is_not_followed_elsewhere_and_gets_no_token_there(tmp_path: Path) -> None:
    token, heard = tmp_path / "token", []
    token.write_text("abc")
    token.chmod(0o600)

    def elsewhere(handler: Handler) -> None:
        heard.append(handler.headers.get("Authorization"))
        handler.say(b"", code=302, Location="http://127.0.0.1:1/dicom-web/studies")

    with bad_web(studies=elsewhere) as url, pytest.raises(PacsError, match="sends us elsewhere"):
        checked(tmp_path, url, token=str(token))
    assert heard == ["Bearer abc"]


@pytest.mark.parametrize("body", [b"[1, 2]", b'{"a": 1}', b'[{"0020000D": 3}]', b"[[[[]]]]"])
def test_json_that_is_no_dicom_is_no_study(tmp_path: Path, body: bytes) -> None:
    assert studies_of(tmp_path, body) == ()


@pytest.mark.parametrize("body", [b"<html>", b"{", b"[[[[", b"[" * 100_000])
def test_what_is_no_json_is_an_error(tmp_path: Path, body: bytes) -> None:
    with pytest.raises(PacsError, match="no DICOMweb"):
        studies_of(tmp_path, body)


def studies_of(tmp_path: Path, body: bytes) -> tuple[Study, ...]:
    """What is found where the PACS answers a search for studies with that."""
    with (
        bad_web(studies=lambda handler: handler.say(body)) as url,
        Caller(tmp_path, DicomWeb(name="bad", url=url, timeout=3)) as caller,
    ):
        return estimate(caller, query_of({"modality": "CT"}), tmp_path).studies


def test_a_silent_peer_is_not_waited_for_without_end(tmp_path: Path) -> None:
    with (
        bad_web(studies=lambda _handler: time.sleep(5)) as url,
        pytest.raises(AwayError, match="does not answer in 1 s"),
    ):
        checked(tmp_path, url, timeout=1)


def test_nothing_that_listens_is_told_apart(tmp_path: Path, free_port: int) -> None:
    with pytest.raises(AwayError, match="whether the PACS is started"):
        checked(tmp_path, f"http://127.0.0.1:{free_port}/dicom-web")
