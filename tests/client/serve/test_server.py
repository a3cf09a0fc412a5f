"""A server over a real socket: what it answers, and what it does not let itself be talked into."""

import asyncio
import contextlib
import http.client
import io
import json
import os
import signal
import socket
import stat
import sys
import threading
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pydicom
import pytest
from PIL import Image

from client.predict.prediction import predict_study
from client.serve.server import _private
from common.errors import ConfigError
from common.learning.network import build_model
from common.system.locks import locked
from common.web.guard import Guard
from common.web.listening import listening
from common.web.token import Token
from simulations.generators.phantoms import SCANNERS, write_study
from tests import ROOT, loopback
from tests.client.serve.servers import Server, children, serving, zipped
from tests.client.thresholds import run_for, save
from tests.patience import PATIENCE_S, eventually

pytestmark = pytest.mark.system

PLACES = 3


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = run_for()
    return save(tmp_path_factory.mktemp("model"), run, build_model(run))


@pytest.fixture(scope="module")
def server(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    options = ("--places", str(PLACES), "--most-mib", "1")
    with serving(model, tmp_path_factory.mktemp("serve"), *options) as started:
        yield started


def picture(seed: int = 0, shape: tuple[int, int] = (40, 32)) -> bytes:
    buffer = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 255, shape, np.uint8)
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def finished(server: Server, job: str) -> Any:
    def ended() -> Any:
        told = server.json("GET", f"/v1/jobs/{job}")
        return told["state"] in ("done", "failed") and told

    return eventually(ended, "the job ends")


def raw(server: Server, request: bytes) -> bytes:
    with socket.create_connection(("127.0.0.1", server.port), timeout=PATIENCE_S) as connection:
        connection.sendall(request)
        answer = b""
        with contextlib.suppress(ConnectionResetError):
            while part := connection.recv(65536):
                answer += part
                if b"connection: close" not in answer.lower() and b"}" in part:
                    break
    return answer


def test_study_goes_in_as_a_zip_and_its_segmentation_is_that_of_predict(
    server: Server, model: Path, tmp_path: Path
) -> None:
    series = write_study(tmp_path / "ct", scanner=SCANNERS["a"], seed=1, slices=4, rows=32, labelled=False)
    job = server.json("POST", "/v1/jobs", zipped(series.images), expected=202)
    assert job["state"] in ("queued", "working", "done")
    told = finished(server, job["job"])
    (by_predict,) = predict_study(model, tmp_path / "ct", tmp_path / "out").studies
    (study,) = told["result"]["studies"]
    assert study["voxels"] == by_predict.voxels
    assert study["slices"] == 4
    assert told["studies"] == {"done": 1, "of": 1}
    assert told["files"] == ["overlay.png", "segmentation.dcm"]
    status, headers, data = server.ask("GET", f"/v1/jobs/{job['job']}/files/segmentation.dcm")
    assert (status, headers["content-type"], headers["cache-control"]) == (200, "application/dicom", "no-store")
    given, wanted = pydicom.dcmread(io.BytesIO(data)), pydicom.dcmread(tmp_path / "out" / "segmentation.dcm")
    assert np.array_equal(given.pixel_array, wanted.pixel_array)
    assert given.PatientID == wanted.PatientID
    assert server.ask("GET", f"/v1/jobs/{job['job']}/files/segmentation.dcm")[0] == 404  # once
    assert server.ask("GET", f"/v1/jobs/{job['job']}/files/overlay.png")[0] == 200
    assert server.ask("GET", f"/v1/jobs/{job['job']}")[0] == 404  # all of it was fetched
    assert list((server.place / "jobs").iterdir()) == []


def test_picture_is_answered_at_once_as_numbers_or_as_a_picture(server: Server, model: Path, tmp_path: Path) -> None:
    (tmp_path / "eye.png").write_bytes(picture())
    (by_predict,) = predict_study(model, tmp_path / "eye.png", tmp_path / "out").studies
    answer = server.json("POST", "/v1/predict", picture())
    assert answer["studies"][0]["voxels"] == by_predict.voxels
    assert set(answer["studies"][0]["seconds"]) == {"reading", "network", "writing"}
    status, headers, data = server.ask("POST", "/v1/predict?answer=labels.png", picture())
    assert (status, headers["content-type"]) == (200, "image/png")
    assert data == (tmp_path / "out" / "eye-labels.png").read_bytes()
    assert server.ask("POST", "/v1/predict?answer=../token", picture())[0] == 404
    assert list((server.place / "jobs").iterdir()) == []
    figures = server.json("GET", "/v1/figures")
    assert figures["done"] >= 2
    assert {row["part"] for row in figures["latency-ms"]} == {"reading", "network", "writing", "all"}


def test_two_at_once_are_both_answered(server: Server) -> None:
    answers: dict[int, Any] = {}
    threads = [
        threading.Thread(
            target=lambda seed=seed: answers.update({seed: server.json("POST", "/v1/predict", picture(seed))})
        )
        for seed in (1, 2)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE_S)
    alone = {seed: server.json("POST", "/v1/predict", picture(seed)) for seed in (1, 2)}
    assert {seed: one["studies"][0]["voxels"] for seed, one in answers.items()} == {
        seed: one["studies"][0]["voxels"] for seed, one in alone.items()
    }


def routes(server: Server) -> list[tuple[str, str]]:
    paths = server.json("GET", "/openapi.json")["paths"]
    return [(method.upper(), path) for path, methods in paths.items() for method in methods]


def test_openapi_tells_every_route_and_no_page_loads_from_elsewhere(server: Server) -> None:
    told = set(routes(server))
    assert {("POST", "/v1/jobs"), ("POST", "/v1/predict"), ("GET", "/health"), ("GET", "/v1/figures")} <= told
    for path in ("/docs", "/redoc", "/docs/oauth2-redirect", "/"):
        assert server.ask("GET", path)[0] == 404


@pytest.mark.parametrize(
    "headers",
    [
        {"Authorization": ""},
        {"Authorization": "Bearer "},
        {"Authorization": "Bearer wrong"},
        {"Authorization": "Basic d3JvbmcK"},
        {"Authorization": "Bearer \xff\xfe"},
    ],
    ids=["none", "empty", "wrong", "basic", "no text"],
)
def test_without_the_token_nothing_is_answered_but_health(server: Server, headers: dict[str, str]) -> None:
    for method, path in [*routes(server), ("GET", "/openapi.json"), ("GET", f"/v1/figures?token={server.token}")]:
        status, told, data = server.ask(method, path, b"x" if method == "POST" else None, headers)
        if path == "/health":
            assert (status, json.loads(data)) == (200, {"live": True, "ready": True})
        else:
            assert (status, json.loads(data)["error"]["code"]) == (401, "not-approved")
            assert "access-control-allow-origin" not in told


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:{port}", "127.0.0.1", "127.0.0.1:1", "10.99.0.1:{port}"]
)
def test_request_that_calls_the_server_by_another_name_is_refused_whatever_it_carries(
    server: Server, host: str
) -> None:
    """A page of a browser whose name was made to mean 127.0.0.1 sends its own name."""
    for path in ("/health", "/v1/figures"):
        status, _, data = server.ask("GET", path, None, {"Host": host.format(port=server.port)})
        assert (status, json.loads(data)["error"]["code"]) == (421, "bad-request")
    line = f"GET /health HTTP/1.1\r\nHost: 127.0.0.1:{server.port}\r\nHost: evil.example\r\n\r\n".encode()
    assert b" 200 " not in raw(server, line).split(b"\r\n", 1)[0]
    assert server.ask("GET", "/health", None, {"Host": f"LocalHost:{server.port}"})[0] == 200


def test_no_other_origin_may_read_an_answer(server: Server) -> None:
    status, headers, _ = server.ask(
        "OPTIONS", "/v1/jobs", None, {"Origin": "http://evil.example", "Access-Control-Request-Method": "POST"}
    )
    assert status == 405
    assert not [name for name in headers if name.startswith("access-control")]


def test_job_of_another_name_is_not_there(server: Server) -> None:
    job = server.json("POST", "/v1/jobs", picture(), expected=202)["job"]
    for other in (job[:-1], "x" * len(job), "..", "%2e%2e%2ftoken", "../../token"):
        for path in (f"/v1/jobs/{other}", f"/v1/jobs/{other}/files/overlay.png"):
            assert server.ask("GET", path)[0] in (404, 405)
    finished(server, job)
    assert server.ask("GET", f"/v1/jobs/{job}/files/..%2f..%2f..%2ftoken")[0] == 404
    assert server.ask("DELETE", f"/v1/jobs/{job}")[0] == 204
    assert server.ask("GET", f"/v1/jobs/{job}")[0] == 404


def test_upload_that_is_too_long_is_refused_by_what_it_says_and_by_what_it_sends(server: Server) -> None:
    head = f"POST /v1/jobs HTTP/1.1\r\nHost: 127.0.0.1:{server.port}\r\nAuthorization: Bearer {server.token}\r\n"
    assert raw(server, f"{head}Content-Length: {1 << 40}\r\n\r\n".encode()).startswith(b"HTTP/1.1 413")
    with contextlib.suppress(ConnectionError):  # the rest of the body is not waited for
        status, _, _ = server.ask("POST", "/v1/jobs", (bytes(1 << 16) for _ in range(64)), chunked=True)
        assert status == 413
    eventually(lambda: list((server.place / "jobs").iterdir()) == [])
    assert server.json("POST", "/v1/predict", picture())["state"] == "done"


def test_upload_that_breaks_off_gives_its_place_back(server: Server) -> None:
    head = (
        f"POST /v1/jobs HTTP/1.1\r\nHost: 127.0.0.1:{server.port}\r\nAuthorization: Bearer {server.token}\r\n"
        "Content-Length: 100000\r\n\r\nhalf"
    )
    for _ in range(2 * PLACES):
        with socket.create_connection(("127.0.0.1", server.port), timeout=PATIENCE_S) as connection:
            connection.sendall(head.encode())
            eventually(lambda: any((server.place / "jobs").iterdir()))
        eventually(lambda: list((server.place / "jobs").iterdir()) == [])
    assert server.json("POST", "/v1/predict", picture())["state"] == "done"


def test_when_all_places_are_taken_the_next_is_told_to_come_again(server: Server) -> None:
    head = (
        f"POST /v1/jobs HTTP/1.1\r\nHost: 127.0.0.1:{server.port}\r\nAuthorization: Bearer {server.token}\r\n"
        "Content-Length: 100000\r\n\r\nhalf"
    )
    with contextlib.ExitStack() as held:
        for count in range(PLACES):
            connection = held.enter_context(socket.create_connection(("127.0.0.1", server.port), timeout=PATIENCE_S))
            connection.sendall(head.encode())
            eventually(lambda: len(list((server.place / "jobs").iterdir())) == count + 1)  # noqa: B023 - asked here and now
        status, headers, data = server.ask("POST", "/v1/jobs", picture())
        assert (status, json.loads(data)["error"]["code"]) == (429, "rate-limited")
        assert int(headers["retry-after"]) > 0
    eventually(lambda: list((server.place / "jobs").iterdir()) == [])


def test_archive_that_is_refused_and_file_that_is_no_image_leave_nothing(server: Server) -> None:
    bomb = io.BytesIO()
    with zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("zeros", bytes(8 << 20))
    status, _, data = server.ask("POST", "/v1/jobs", bomb.getvalue())
    assert (status, json.loads(data)["error"]["code"]) == (413, "unsupported")
    status, _, data = server.ask("POST", "/v1/predict", b"no image at all")
    assert status == 422
    assert json.loads(data)["error"]["code"] in ("unreadable", "not-opened", "no-data")
    assert list((server.place / "jobs").iterdir()) == []


@pytest.mark.parametrize("said", [b"", b"GET /health HTTP/1.1\r\nHost: 127.0"], ids=["silent", "half a head"])
def test_connections_that_ask_nothing_whole_are_closed_for_those_that_do(server: Server, said: bytes) -> None:
    """Of an account without the token: as many as are taken."""
    with contextlib.ExitStack() as opened:
        for _ in range(70):
            opened.enter_context(socket.create_connection(("127.0.0.1", server.port))).sendall(said)
        status = eventually(lambda: (said := server.ask("GET", "/v1/figures")[0]) != 503 and said, every_s=0.5)
        assert status == 200


def test_only_the_owner_can_read_the_token_and_only_this_machine_can_connect(server: Server) -> None:
    assert stat.S_IMODE(server.token_file.stat().st_mode) == 0o600
    assert stat.S_IMODE(server.place.stat().st_mode) == 0o700
    assert len(server.token) >= 43  # 256 bits in base64
    addresses = {one.laddr.ip for one in psutil.Process(server.process.pid).net_connections() if one.status == "LISTEN"}
    assert addresses == {"127.0.0.1"}
    if loopback.entered():
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection((loopback.OTHER_ADDRESS, server.port), timeout=PATIENCE_S)


def test_file_that_kills_its_reader_is_one_failed_job(model: Path, tmp_path: Path) -> None:
    program = (sys.executable, "-P", str(ROOT / "tests" / "client" / "serve" / "hostile_server.py"))
    with serving(model, tmp_path / "serve", program=program) as server:
        for order in (b"segfault", b"exit"):
            volume = order.ljust(344) + b"n+1\0"  # which is a NIfTI volume to whoever does not open it
            status, _, data = server.ask("POST", "/v1/predict", volume)
            assert (status, json.loads(data)["error"]["code"]) == (422, "unreadable"), data
        assert server.json("GET", "/health")["ready"]
        assert server.json("GET", "/v1/figures")["failed"] == 2
        _, err = server.end()
    assert server.process.returncode == 0, err
    assert list(server.folder.iterdir()) == []


def _is_there(one: psutil.Process) -> bool:
    return bool(one.is_running() and one.status() != psutil.STATUS_ZOMBIE)


def test_a_kill_leaves_neither_images_nor_processes(model: Path, tmp_path: Path) -> None:
    with serving(model, tmp_path / "serve") as server:
        job = server.json("POST", "/v1/jobs", picture(), expected=202)["job"]
        finished(server, job)
        assert any((server.place / "jobs" / job / "results").rglob("*.png"))
        helpers = children(server.process.pid)
        assert len(helpers) == 2  # a reader, and the sweeper
        server.end(signal.SIGKILL)
    eventually(lambda: list(server.folder.iterdir()) == [])
    eventually(lambda: not any(_is_there(one) for one in helpers))


def test_a_stop_finishes_the_job_in_hand_takes_no_other_and_leaves_nothing(model: Path, tmp_path: Path) -> None:
    """And what an earlier server left, which was killed together with its sweeper, has gone with the start."""
    series = write_study(tmp_path / "ct", scanner=SCANNERS["a"], seed=1, slices=30, rows=160, labelled=False)
    left = tmp_path / "serve" / "wardround-serve-old"
    (left / "jobs").mkdir(parents=True)
    (left / "lock").touch()
    (left / "jobs" / "image").write_bytes(b"patient")
    os.utime(left, (1, 1))
    foreign = tmp_path / "serve" / "something-else"
    foreign.mkdir()
    with serving(model, tmp_path / "serve") as server:
        assert set(server.folder.iterdir()) == {foreign, server.place}
        answers: list[Any] = []
        study, token = zipped(series.images), server.token
        asking = threading.Thread(target=lambda: answers.append(server.ask("POST", "/v1/predict", study)))
        asking.start()
        eventually(lambda: len(children(server.process.pid)) == 2)  # the sweeper, and a reader for the job in hand
        helpers = children(server.process.pid)
        server.process.send_signal(signal.SIGTERM)
        with contextlib.suppress(OSError, http.client.HTTPException):  # it is gone already
            eventually(lambda: server.ask("POST", "/v1/jobs", picture())[0] == 503)
        asking.join(PATIENCE_S)
        out, err = (part.decode() for part in server.process.communicate(timeout=PATIENCE_S))
    assert server.process.returncode == 0, err
    assert answers[0][0] == 200
    assert list(server.folder.iterdir()) == [foreign]
    assert not any(_is_there(one) for one in helpers)
    assert token not in out + err
    assert "1 study answered" in err
    assert "ms a slice" in err
    assert "Latency" in out


def test_port_that_is_taken_is_said(free_port: int) -> None:
    with listening(free_port) as (one,):
        one.listen()
        with (
            pytest.raises(ConfigError, match=f"port {free_port} of 127.0.0.1 cannot be taken"),
            listening(free_port),
        ):
            pass


def test_folder_of_a_server_that_runs_and_one_that_has_just_begun_are_left_alone(tmp_path: Path) -> None:
    made = {name: tmp_path / f"wardround-serve-{name}" for name in ("running", "beginning", "left")}
    for place in made.values():
        place.mkdir()
        (place / "lock").touch()
    for name in ("running", "left"):
        os.utime(made[name], (1, 1))
    with locked(made["running"] / "lock"), _private(tmp_path) as place:
        os.utime(made["running"], (1, 1))
        assert set(tmp_path.iterdir()) == {made["running"], made["beginning"], place}
        assert stat.S_IMODE(place.stat().st_mode) == 0o700
    assert set(tmp_path.iterdir()) == {made["running"], made["beginning"]}


@pytest.mark.timeout(PATIENCE_S)
def test_what_another_user_laid_into_a_folder_of_all_is_not_looked_into(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A pipe in place of the lock made the next start wait for ever."""
    theirs = tmp_path / "wardround-serve-theirs"
    theirs.mkdir()
    os.mkfifo(theirs / "lock")
    os.utime(theirs, (1, 1))
    (tmp_path / "wardround-serve-link").symlink_to(tmp_path)
    monkeypatch.setattr(os, "getuid", lambda: theirs.stat().st_uid + 1)
    with _private(tmp_path) as place:
        assert set(tmp_path.iterdir()) == {theirs, tmp_path / "wardround-serve-link", place}


def guarded(folder: Path, *headers: tuple[bytes, bytes]) -> tuple[int, dict[bytes, bytes]]:
    """How a guard that takes bodies of 10 bytes answers what has these headers beside its Host; TOKEN is the token."""
    sent: list[Any] = []

    async def inner(_scope: Any, _receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})

    async def send(message: Any) -> None:
        sent.append(message)

    token = Token.made(folder / "token")
    told = [(key, value.replace(b"TOKEN", token.path.read_bytes().strip())) for key, value in headers]
    scope = {"type": "http", "path": "/v1/figures", "headers": [(b"host", b"127.0.0.1:1"), *told]}
    asyncio.run(Guard(inner, token, [b"127.0.0.1:1"], 10)(scope, None, send))  # type: ignore[arg-type]
    return sent[0]["status"], dict(sent[0]["headers"])


RIGHT = (b"authorization", b"Bearer TOKEN")


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ([RIGHT], 200),
        ([(b"Authorization", b"bEARER TOKEN")], 200),
        ([RIGHT, (b"authorization", b"Bearer wrong")], 401),
        ([RIGHT, RIGHT], 401),
        ([(b"authorization", b"Bearer TOKENx")], 401),
        ([RIGHT, (b"content-length", b"10")], 200),
        ([RIGHT, (b"content-length", b"11")], 413),
        ([RIGHT, (b"content-length", b"-1")], 413),
        ([RIGHT, (b"content-length", b"many")], 413),
    ],
)
def test_guard_lets_pass_what_has_one_right_token_and_a_length_that_is_taken(
    tmp_path: Path, headers: list[tuple[bytes, bytes]], status: int
) -> None:
    answered, told = guarded(tmp_path, *headers)
    assert answered == status
    assert (told[b"cache-control"], told[b"x-content-type-options"]) == (b"no-store", b"nosniff")


def test_what_goes_wrong_inside_is_told_by_its_kind_alone(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async def broken(_scope: Any, _receive: Any, _send: Any) -> None:
        raise KeyError("SECRET^NAME")

    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    token = Token.made(tmp_path / "token")
    guard = Guard(broken, token, [b"127.0.0.1:1"], 10)
    headers = [(b"host", b"127.0.0.1:1"), (b"authorization", b"Bearer " + token.path.read_bytes().strip())]
    asyncio.run(guard({"type": "http", "path": "/v1/figures", "headers": headers}, None, send))  # type: ignore[arg-type]
    assert sent[0]["status"] == 500
    assert "SECRET" not in caplog.text + sent[1]["body"].decode()
    assert "KeyError" in caplog.text
