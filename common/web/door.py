"""What a request must show before a dashboard looks at it. In this order:

    Host                names this server by a loopback name and its port, else 421: stops a page whose own name was
                        made to mean 127.0.0.1 (DNS rebinding)
    path                begins with PLACE (login.py), else 404, whatever else the request is
    method              GET or POST, else 405
    Sec-Fetch-Site      where a browser sends it: from this page or from a person, else 403
    Origin              of a POST: this server, else 403; body: a form (415) of 64 KiB at most (413), within 10 s (408)
    cookie              a session, else to the login; open are only the login and the files of its page
    csrf                of a POST: the session's, else 403

Every answer says that nothing is cached, framed, sniffed or loaded from elsewhere, and that no script stands in it.
Source: Fetch Metadata (W3C), CSP 3, RFC 9110 (15.5.20), OWASP's CSRF cheat sheet.
"""

import asyncio
import hmac
from collections.abc import Collection
from http.cookies import CookieError, SimpleCookie
from urllib.parse import parse_qsl

from common.web.fenced import App, Fenced, Message, Receive, Send
from common.web.login import COOKIE, Session, Sessions, is_csrf

LOGIN = "/login"
STATIC = "/static/"
MOST_BYTES = 64 << 10
BODY_S = 10.0

_MOST_FIELDS = 50
_HEADERS = {
    "cache-control": "no-store",
    "content-security-policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
        "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
    ),
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(), geolocation=(), microphone=()",
    # Not no-referrer: under that a browser names no Origin with a form.
    "referrer-policy": "same-origin",
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
}


class _RefusedError(Exception):
    """A request goes no further."""

    def __init__(self, status: int, why: str, headers: tuple[tuple[str, str], ...] = ()) -> None:
        super().__init__(why)
        self.status, self.headers = status, headers


class Door:
    """An ASGI application around a dashboard's, which finds `session` and `form` in the scope."""

    def __init__(self, app: App, sessions: Sessions, hosts: Collection[bytes]) -> None:
        """Nothing is asked yet.

        Args:
            app: what is behind the door.
            sessions: who may look.
            hosts: what a Host header may be.
        """
        self._app, self._sessions = app, sessions
        self._hosts = frozenset(host.decode() for host in hosts)
        headers = [(name.encode(), value.encode()) for name, value in _HEADERS.items()]
        self._fenced = Fenced(self._guarded, headers, _fault)

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Let a request pass, or answer it."""
        await self._fenced(scope, receive, send)

    async def _guarded(self, scope: Message, receive: Receive, send: Send) -> None:
        try:
            await self._look(scope, receive)
        except _RefusedError as refused:
            await _answer(send, refused.status, str(refused), refused.headers)
        else:
            await self._app(scope, receive, send)

    async def _look(self, scope: Message, receive: Receive) -> None:
        headers = _Headers(scope)
        if headers.only("host") not in self._hosts:
            raise _RefusedError(421, "The Host header does not name this server. Use the link that was shown.")
        base, path = f"/{self._sessions.place}", scope["path"]
        if not hmac.compare_digest(path[: len(base)].encode(), base.encode()) or path[len(base) : len(base) + 1] != "/":
            raise _RefusedError(404, "There is nothing here.")
        if scope["method"] not in ("GET", "POST"):
            raise _RefusedError(405, "Only GET and POST.", (("allow", "GET, POST"),))
        if headers.only("sec-fetch-site", "none") not in ("same-origin", "none"):
            raise _RefusedError(403, "Another page asked for this. Open the link yourself.")
        scope["base"], scope["inner"], scope["form"] = base, path[len(base) :], {}
        is_post = scope["method"] == "POST"
        if is_post:
            if headers.only("origin") != f"http://{headers.only('host')}":
                raise _RefusedError(403, "The form is not of this page.")
            scope["form"] = await _form(headers, receive)
        scope["session"] = session = self._session(headers)
        if scope["inner"] == LOGIN or scope["inner"].startswith(STATIC):
            return
        if session is None:
            if is_post or scope["inner"] == "/events":
                raise _RefusedError(401, "Nobody is logged in. Have another link shown: dashboard --link.")
            raise _RefusedError(303, "Log in first.", (("location", f"{base}{LOGIN}"),))
        if is_post and not is_csrf(session, scope["form"].get("csrf", "")):
            raise _RefusedError(403, "The form is not one that this page has shown. Reload the page.")

    def _session(self, headers: "_Headers") -> Session | None:
        """By any cookie of our name: a server on another port may have set one too."""
        for line in headers.all("cookie"):
            for part in line.split(";"):
                try:
                    found = SimpleCookie(part.strip()).get(COOKIE)
                except CookieError:
                    continue
                if found is not None and (session := self._sessions.find(found.value)) is not None:
                    return session
        return None


class _Headers:
    def __init__(self, scope: Message) -> None:
        self._pairs = [(name.decode("latin-1").lower(), value.decode("latin-1")) for name, value in scope["headers"]]

    def all(self, name: str) -> list[str]:
        return [value for key, value in self._pairs if key == name]

    def only(self, name: str, absent: str = "") -> str:
        """The one value, in small letters; nothing where there are several."""
        values = self.all(name)
        return absent if not values else values[0].lower() if len(values) == 1 else ""


async def _form(headers: _Headers, receive: Receive) -> dict[str, str]:
    if headers.only("content-type").partition(";")[0].strip() != "application/x-www-form-urlencoded":
        raise _RefusedError(415, "Only a form is taken.")
    length = headers.only("content-length", "0")
    if not length.isdigit() or int(length) > MOST_BYTES:
        raise _RefusedError(413, f"More than {MOST_BYTES} bytes.")
    body = b""
    try:
        async with asyncio.timeout(BODY_S):
            while True:
                message = await receive()
                if message["type"] == "http.disconnect":
                    raise _RefusedError(400, "The request ended early.")
                body += message.get("body", b"")
                if len(body) > MOST_BYTES:
                    raise _RefusedError(413, f"More than {MOST_BYTES} bytes.")
                if not message.get("more_body", False):
                    break
    except TimeoutError:
        raise _RefusedError(408, f"The form did not come within {BODY_S:g} s.") from None
    try:
        pairs = parse_qsl(body.decode("utf-8"), keep_blank_values=True, max_num_fields=_MOST_FIELDS)
    except ValueError:
        raise _RefusedError(400, "The form cannot be read.") from None
    fields = dict(pairs)
    if len(fields) != len(pairs):
        raise _RefusedError(400, "The form says one thing twice.")
    return fields


async def _fault(send: Send) -> None:
    await _answer(send, 500, "The page met an unexpected error. Report that.")


async def _answer(send: Send, status: int, text: str, headers: tuple[tuple[str, str], ...] = ()) -> None:
    body = f"{text}\n".encode()
    # What is left of the request's body is not read: the connection ends.
    about = (("content-type", "text/plain; charset=utf-8"), ("content-length", str(len(body))), ("connection", "close"))
    raw = [(name.encode(), value.encode()) for name, value in (*about, *headers)]
    await send({"type": "http.response.start", "status": status, "headers": raw})
    await send({"type": "http.response.body", "body": body})


__all__ = ["BODY_S", "LOGIN", "MOST_BYTES", "STATIC", "Door"]
