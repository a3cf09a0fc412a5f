"""A model goes into a SuperLink without being copied again and again; over real sockets, into a real uvicorn."""

import contextlib
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from flwr.proto.message_pb2 import PushObjectRequest, PushObjectResponse
from httpcore._backends import sync

from common.flower.bodies import PIECE_BYTES
from common.flower.calls import fleet_client
from common.identity import certificates
from tests import ROOT
from tests.patience import PATIENCE_S

CONTENT = bytes(range(256)) * 16_384  # 4 MiB


@contextlib.contextmanager
def superlink(path: Path) -> Iterator[list[bytes]]:
    """Answers each request on a unix socket as a SuperLink does a PushObject; what came of each, head and body."""
    requests: list[bytes] = []
    answer = PushObjectResponse(stored=True).SerializeToString()
    head = f"HTTP/1.1 200 OK\r\ncontent-length: {len(answer)}\r\ncontent-type: application/x-protobuf\r\n\r\n"

    def serve(listening: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = listening.accept()
                with connection, connection.makefile("rb") as stream:
                    lines = []
                    while (line := stream.readline()) not in (b"\r\n", b""):
                        lines.append(line)
                    (size,) = [int(line.split(b":")[1]) for line in lines if line.lower().startswith(b"content-length")]
                    requests.append(b"".join(lines) + stream.read(size))
                    connection.sendall(head.encode() + answer)

    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listening:
        listening.bind(str(path))
        listening.listen()
        threading.Thread(target=serve, args=(listening,), daemon=True).start()
        yield requests


def test_update_goes_to_the_superlink_whole_in_parts_that_a_socket_takes_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is handed to a socket in one part is copied again for each time that the socket took some of it."""
    handed: list[int] = []
    write = sync.SyncStream.write

    def noted(stream: Any, buffer: bytes, timeout: float | None = None) -> None:
        handed.append(len(buffer))
        write(stream, buffer, timeout)

    monkeypatch.setattr(sync.SyncStream, "write", noted)
    request = PushObjectRequest(object_id="ab" * 32, object_content=CONTENT)
    with superlink(tmp_path / "link.sock") as requests:
        client = fleet_client(tmp_path / "link.sock", certificates.new_key())
        assert client.PushObject(request).stored
        client.close()
    (received,) = requests
    assert received.endswith(request.SerializeToString(deterministic=True))
    assert b"transfer-encoding" not in received[:1000].lower()
    assert sum(handed) == len(received) + len(b"\r\n")
    assert max(handed) == PIECE_BYTES


UPLOAD = """
import asyncio, os, sys
from pathlib import Path
import flwr.superlink.cli.flower_superlink
import uvicorn
from common.flower.processes import run_superlink

async def app(scope, receive, send):
    if scope["type"] != "http":
        return
    largest, more = 0, True
    while more:
        await asyncio.sleep(0.2)  # meanwhile the rest arrives
        part = await receive()
        largest, more = max(largest, len(part["body"])), part["more_body"]
    print(largest, flush=True)
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b""})

cli = sys.modules["flwr.superlink.cli.flower_superlink"]  # the package calls a function by the same name
cli.flower_superlink = lambda: uvicorn.run(app, host="127.0.0.1", port=0, lifespan="off", log_level="error")
run_superlink(Path(sys.argv[1]), [])
"""


def test_superlink_reads_a_body_on_while_the_program_is_busy(tmp_path: Path) -> None:
    """uvicorn's own limit is 64 kB; each part is then handed on through all of Flower's layers by itself."""
    path = tmp_path / "link.sock"
    program = [sys.executable, "-c", UPLOAD, str(path)]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    with subprocess.Popen(program, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True) as server:
        try:
            with httpx.Client(transport=httpx.HTTPTransport(uds=str(path), retries=0), timeout=PATIENCE_S) as client:
                for _ in range(600):
                    try:
                        client.post("http://127.0.0.1/", content=CONTENT)
                        break
                    except httpx.ConnectError:
                        threading.Event().wait(0.1)
            assert server.stdout is not None
            assert int(server.stdout.readline()) > len(CONTENT) / 2
        finally:
            server.kill()
