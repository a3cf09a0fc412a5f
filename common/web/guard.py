"""The door: what every request must show before anything else of it is looked at.

In this order: a Host header that names this server by a loopback name and its port, or else 421, which stops pages of a
browser whose name was made to mean 127.0.0.1 (DNS rebinding); the token as `Authorization: Bearer`, or else 401; a body
no longer than is taken, or else 413. What needs no token is for whoever puts the guard up to say. No answer allows
another origin to read it, and none is cached. Of faults see fenced.py.
Source: RFC 9110 (421, 15.5.20; 401, 15.5.2), RFC 6750 (Bearer).
"""

import json
from collections.abc import Collection

from common.errors import ErrorCode
from common.web.fenced import App, Fenced, Message, Receive, Send
from common.web.token import Token

_HEADERS = ((b"cache-control", b"no-store"), (b"x-content-type-options", b"nosniff"))


class Guard:
    """An ASGI application around another one."""

    def __init__(
        self, app: App, token: Token, hosts: Collection[bytes], most_bytes: int, *, free: Collection[str] = ()
    ) -> None:
        """Nothing is asked yet.

        Args:
            app: what is guarded.
            token: who may ask.
            hosts: what a Host header may be.
            most_bytes: of a body.
            free: paths that need no token.
        """
        self._free = frozenset(free)
        self._app, self._token, self._hosts, self._most_bytes = app, token, frozenset(hosts), most_bytes
        self._fenced = Fenced(self._guarded, _HEADERS, _fault)

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Let a request pass, or answer it."""
        await self._fenced(scope, receive, send)

    async def _guarded(self, scope: Message, receive: Receive, send: Send) -> None:
        if refusal := self._refusal(scope):
            await _answer(send, *refusal)
        else:
            await self._app(scope, receive, send)

    def _refusal(self, scope: Message) -> tuple[int, str, str] | None:
        if _values(scope, b"host") not in [[host] for host in self._hosts]:
            return 421, ErrorCode.BAD_REQUEST, "the Host header does not name this server. Use http://127.0.0.1:PORT."
        if scope["path"] not in self._free:
            scheme, _, given = (*_values(scope, b"authorization"), b"")[0].partition(b" ")
            if len(_values(scope, b"authorization")) != 1 or scheme.lower() != b"bearer" or not self._token.fits(given):
                return 401, ErrorCode.NOT_APPROVED, "the token is missing or wrong. Send Authorization: Bearer TOKEN."
        lengths = _values(scope, b"content-length")
        if lengths and (not lengths[0].isdigit() or int(lengths[0]) > self._most_bytes):
            return 413, ErrorCode.UNSUPPORTED, f"the body is longer than {self._most_bytes} bytes."
        return None


def _values(scope: Message, name: bytes) -> list[bytes]:
    return [value.lower() if name == b"host" else value for key, value in scope["headers"] if key.lower() == name]


async def _fault(send: Send) -> None:
    await _answer(send, 500, ErrorCode.INTERNAL, "the request met an unexpected error. Report that.")


async def _answer(send: Send, status: int, code: str, message: str) -> None:
    body = json.dumps({"error": {"code": code, "message": message}}).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    if status == 401:
        headers.append((b"www-authenticate", b"Bearer"))
    # What is left of the request's body is not read: the connection ends.
    headers.append((b"connection", b"close"))
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


__all__ = ["Guard"]
