"""The door: what every request must show before anything else of it is looked at.

In this order: a Host header that names this server by a loopback name and its port, or else 421, which stops pages of a
browser whose name was made to mean 127.0.0.1 (DNS rebinding); the token as `Authorization: Bearer`, or else 401; a body
no longer than is taken, or else 413. Only `/health` is open. No answer allows another origin to read it, none is
cached, and of what went wrong inside only the kind is logged, for its text may quote a header of an image.
Source: RFC 9110 (421, 15.5.20; 401, 15.5.2), RFC 6750 (Bearer).
"""

import json
import logging
from collections.abc import Awaitable, Callable, Collection, MutableMapping
from typing import Any, TypeAlias

from client.serve.token import Token
from common.errors import ErrorCode

Message: TypeAlias = MutableMapping[str, Any]
Receive: TypeAlias = Callable[[], Awaitable[Message]]
Send: TypeAlias = Callable[[Message], Awaitable[None]]
App: TypeAlias = Callable[[Message, Receive, Send], Awaitable[None]]

OPEN = ("/health",)

_HEADERS = ((b"cache-control", b"no-store"), (b"x-content-type-options", b"nosniff"))
_log = logging.getLogger(__name__)


class Guard:
    """An ASGI application around another one."""

    def __init__(self, app: App, token: Token, hosts: Collection[bytes], most_bytes: int) -> None:
        """Nothing is asked yet.

        Args:
            app: what is guarded.
            token: who may ask.
            hosts: what a Host header may be.
            most_bytes: of a body.
        """
        self._app, self._token, self._hosts, self._most_bytes = app, token, frozenset(hosts), most_bytes

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Let a request pass, or answer it."""
        if scope["type"] != "http":
            return  # no other protocol is spoken here
        started = False

        async def sent(message: Message) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                message["headers"] = [*message.get("headers", ()), *_HEADERS]
            await send(message)

        if refusal := self._refusal(scope):
            await _answer(sent, *refusal)
            return
        try:
            await self._app(scope, receive, sent)
        except Exception as error:  # noqa: BLE001 - a fault of one request must not show its data, nor stop the rest
            _log.error("a request met an unexpected %s", type(error).__name__)
            if not started:
                await _answer(sent, 500, ErrorCode.INTERNAL, "the request met an unexpected error. Report that.")

    def _refusal(self, scope: Message) -> tuple[int, str, str] | None:
        if _values(scope, b"host") not in [[host] for host in self._hosts]:
            return 421, ErrorCode.BAD_REQUEST, "the Host header does not name this server. Use http://127.0.0.1:PORT."
        if scope["path"] not in OPEN:
            scheme, _, given = (*_values(scope, b"authorization"), b"")[0].partition(b" ")
            if len(_values(scope, b"authorization")) != 1 or scheme.lower() != b"bearer" or not self._token.fits(given):
                return 401, ErrorCode.NOT_APPROVED, "the token is missing or wrong. Send Authorization: Bearer TOKEN."
        lengths = _values(scope, b"content-length")
        if lengths and (not lengths[0].isdigit() or int(lengths[0]) > self._most_bytes):
            return 413, ErrorCode.UNSUPPORTED, f"the body is longer than {self._most_bytes} bytes."
        return None


def _values(scope: Message, name: bytes) -> list[bytes]:
    return [value.lower() if name == b"host" else value for key, value in scope["headers"] if key.lower() == name]


async def _answer(send: Send, status: int, code: str, message: str) -> None:
    body = json.dumps({"error": {"code": code, "message": message}}).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    if status == 401:
        headers.append((b"www-authenticate", b"Bearer"))
    # What is left of the request's body is not read: the connection ends.
    headers.append((b"connection", b"close"))
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


__all__ = ["OPEN", "App", "Guard"]
