"""Requests of STOW-RS as senders make them, good and bad: bodies of parts, and a socket that says them as it likes."""

import http.client
import json
import socket
from collections.abc import Sequence
from typing import Any

from tests.patience import PATIENCE_S

BOUNDARY = b"0f3cf5c0"
KIND = f'multipart/related; type="application/dicom"; boundary="{BOUNDARY.decode()}"'
PLACE = "/dicom-web/studies"
FAILED, STORED, WITHOUT = "00081198", "00081199", "0008119A"


def part(content: bytes, kind: bytes = b"application/dicom", *more: bytes) -> bytes:
    """One part, with the boundary before it."""
    return b"\r\n".join([b"--" + BOUNDARY, b"Content-Type: " + kind, *more, b"", content, b""])


def body(contents: Sequence[bytes]) -> bytes:
    """Parts, and the boundary at their end."""
    return b"".join(map(part, contents)) + b"--" + BOUNDARY + b"--\r\n"


class Answer:
    """status, headers by their names in small letters, and the body: JSON where it is, else text."""

    def __init__(self, heard: http.client.HTTPResponse) -> None:
        self.status, text = heard.status, heard.read()
        self.headers = {name.lower(): value for name, value in heard.getheaders()}
        is_json = self.headers.get("content-type") == "application/dicom+json"
        self.json: dict[str, Any] = json.loads(text) if is_json else {}
        self.text = text.decode()

    def uids(self, sequence: str) -> list[str]:
        """The objects of a sequence."""
        return [item["00081155"]["Value"][0] for item in self.json.get(sequence, {}).get("Value", [])]

    def reasons(self, sequence: str = FAILED) -> list[int]:
        """Why they were not stored."""
        return [item["00081197"]["Value"][0] for item in self.json.get(sequence, {}).get("Value", [])]


def asked(
    port: int, content: Any = b"", *, method: str = "POST", place: str = PLACE, tls: Any = None, **headers: str
) -> Answer:
    """What a request is answered. An iterable is sent in chunks. headers: with _ for -."""
    given = {name.replace("_", "-"): value for name, value in ({"Content_Type": KIND} | headers).items()}
    kind = http.client.HTTPConnection if tls is None else http.client.HTTPSConnection
    connection = kind("127.0.0.1", port, timeout=PATIENCE_S, **({} if tls is None else {"context": tls}))
    try:
        connection.request(method, place, content, given)
        return Answer(connection.getresponse())
    finally:
        connection.close()


def began(port: int, content: bytes, length: int, *more: str) -> socket.socket:
    """A connection on which a request has begun: its head, and the first bytes of its body."""
    opened = socket.create_connection(("127.0.0.1", port), PATIENCE_S)
    head = [f"POST {PLACE} HTTP/1.1", f"Host: 127.0.0.1:{port}", f"Content-Type: {KIND}", f"Content-Length: {length}"]
    opened.sendall("\r\n".join([*head, *more, "", ""]).encode() + content)
    return opened


def heard(opened: socket.socket) -> Answer:
    """The answer on it, to its end."""
    answer = http.client.HTTPResponse(opened)
    answer.begin()
    return Answer(answer)
