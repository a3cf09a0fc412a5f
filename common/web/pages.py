"""The pages of a dashboard: what a side gives, behind a login, and kept fresh by a stream that says when to look again.

A side describes itself by a `Dashboard`: functions that make a page, and functions that do what a button asks. Each
page can be read without a script. With it the page asks `/events` (server-sent events), is told a new stamp whenever
something has changed, and fetches itself anew; nothing but a stamp is in the stream.
"""

import asyncio
import hashlib
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from starlette.datastructures import URLPath
from starlette.requests import Request
from starlette.responses import HTMLResponse, PlainTextResponse, RedirectResponse, Response, StreamingResponse
from starlette.routing import compile_path

from common.advice import Advice
from common.errors import ConfigError, WardroundError
from common.pages.html import Markup, advised, fragment, render
from common.web.door import LOGIN, STATIC
from common.web.fenced import Message, Receive, Send
from common.web.login import COOKIE, SESSION_S, Session, Sessions

MOST_STREAMS = 24  # of 64 connections

_LOOK_EVERY_S = 1.0
_SIGN_OF_LIFE = 15  # looks
_FILES = {
    "dashboard.css": "text/css; charset=utf-8",
    "dashboard.js": "text/javascript; charset=utf-8",
}


@dataclass(frozen=True)
class Visit:
    """By whom and with what a page is asked for."""

    base: str  # begins every link
    csrf: str  # goes with every form
    path: Mapping[str, str] = field(default_factory=dict)  # what the address says, such as {"run": "3f2a91c0"}


@dataclass(frozen=True)
class Page:
    """What is shown. said: one line on how things are, read out whenever it changes."""

    title: str
    body: Markup
    said: str = ""


Act = Callable[[Visit, Mapping[str, str]], str]


@dataclass(frozen=True)
class Dashboard:
    """What a side shows, and what can be done there."""

    name: str
    advice: Advice  # of this side's commands, for the pages
    menu: Sequence[tuple[str, str]]  # label, path
    pages: Mapping[str, Callable[[Visit], Page]]  # by path, such as "/runs/{run}"
    # By path, such as "/runs/{run}/stop"; given the form, says what was done. Then "/runs/{run}" is shown. Each
    # needs the ticked box `sure` of its form.
    acts: Mapping[str, Act]
    stamp: Callable[[], str]  # another one whenever a page may have changed
    at_once: Mapping[str, Act] = field(default_factory=dict)  # acts that need no box: a no, a look


class Pages:
    """The ASGI application behind the door."""

    def __init__(self, dashboard: Dashboard, sessions: Sessions, stopped: Callable[[], bool]) -> None:
        self._dashboard, self._sessions, self._stopped = dashboard, sessions, stopped
        self._streams = 0
        self._pages = [(compile_path(path)[0], show) for path, show in dashboard.pages.items()]
        acts = {**{path: _if_sure(do) for path, do in dashboard.acts.items()}, **dashboard.at_once}
        self._acts = [(compile_path(path)[0], do) for path, do in acts.items()]

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Answer a request that the door has let in."""
        request = Request(scope, receive)
        response = await (self._post(request) if request.method == "POST" else self._get(request))
        await response(scope, receive, send)

    async def _get(self, request: Request) -> Response:
        inner, session = request.scope["inner"], request.scope["session"]
        if inner.startswith(STATIC):
            return _file(inner.removeprefix(STATIC))
        if inner == LOGIN:
            return self._login(request) if session is None else _to(request, "/")
        if inner == "/events":
            return self._events(session)
        for pattern, show in self._pages:
            if found := pattern.fullmatch(inner):
                return await self._shown(request, show, _visit(request, found.groupdict()), inner)
        return self._page(request, _message("Not found", "There is no such page."), status=404)

    async def _post(self, request: Request) -> Response:
        inner, session, form = request.scope["inner"], request.scope["session"], request.scope["form"]
        if inner == LOGIN:
            cookie = self._sessions.log_in(form.get("token", ""))
            return self._login(request, wrong=True) if cookie is None else _with_cookie(_to(request, "/"), cookie)
        if inner == "/logout":
            self._sessions.log_out(session)
            return _with_cookie(_to(request, LOGIN), "")
        for pattern, do in self._acts:
            if found := pattern.fullmatch(inner):
                try:
                    session.told = await asyncio.to_thread(do, _visit(request, found.groupdict()), form)
                except WardroundError as error:
                    return self._page(request, _message("Not done", str(error)), status=409)
                return _to(request, inner.rpartition("/")[0] or "/")
        return self._page(request, _message("Not found", "Nothing can be done there."), status=404)

    async def _shown(self, request: Request, show: Callable[[Visit], Page], visit: Visit, current: str) -> Response:
        stamp = await asyncio.to_thread(self._stamp)  # first: what changes while the page is made is news
        try:
            page, status = await asyncio.to_thread(show, visit), 200
        except WardroundError as error:
            # Of a page about something, that there is no such thing; of the others, that they cannot be made now.
            page, status = (
                _message("Not shown", str(error)),
                404 if isinstance(error, ConfigError) and visit.path else 503,
            )
        return self._page(request, page, stamp=stamp, current=current, status=status)

    def _page(
        self, request: Request, page: Page, *, stamp: str = "", current: str = "", status: int = 200
    ) -> HTMLResponse:
        session: Session = request.scope["session"]
        told, session.told = session.told, ""
        text = render(
            "common/web/layout.html",
            name=self._dashboard.name,
            menu=self._dashboard.menu,
            base=request.scope["base"],
            csrf=session.csrf,
            current=current,
            stamp=stamp,
            title=page.title,
            said=page.said,
            told=told,
            body=page.body,
        )
        return HTMLResponse(advised(text, self._dashboard.advice), status)

    def _login(self, request: Request, *, wrong: bool = False) -> HTMLResponse:
        name, advice = self._dashboard.name, self._dashboard.advice
        text = render(
            "common/web/login.html", name=name, base=request.scope["base"], wrong=wrong, program=advice.program
        )
        return HTMLResponse(advised(text, advice), 403 if wrong else 200)

    def _events(self, session: Session) -> Response:
        if self._streams >= MOST_STREAMS:
            return PlainTextResponse("Too many pages are open. Close some.\n", 503, {"retry-after": "10"})
        return StreamingResponse(self._news(session), media_type="text/event-stream")

    async def _news(self, session: Session) -> AsyncIterator[str]:
        self._streams += 1
        try:
            yield "retry: 2000\n\n"
            last, silent = "", 0
            while self._sessions.lasts(session) and not self._stopped():
                stamp = await asyncio.to_thread(self._stamp)
                silent += 1
                if stamp != last:
                    yield f"event: stamp\ndata: {stamp}\n\n"
                elif silent >= _SIGN_OF_LIFE:
                    yield ": nothing new\n\n"
                if stamp != last or silent >= _SIGN_OF_LIFE:
                    last, silent = stamp, 0
                await asyncio.sleep(_LOOK_EVERY_S)
        finally:
            self._streams -= 1

    def _stamp(self) -> str:
        try:
            text = self._dashboard.stamp()
        except (WardroundError, OSError) as error:
            text = type(error).__name__
        return hashlib.sha256(text.encode()).hexdigest()[:16]


def _if_sure(do: Act) -> Act:
    """A browser asks for the box before it sends the form; whoever sends one otherwise is asked here."""

    def done(visit: Visit, form: Mapping[str, str]) -> str:
        if not form.get("sure"):
            raise ConfigError(
                "the box beside the button is not ticked. Nothing was done. Go back, read it and tick it."
            )
        return do(visit, form)

    return done


def _visit(request: Request, path: Mapping[str, str]) -> Visit:
    return Visit(request.scope["base"], request.scope["session"].csrf, path)


def _message(title: str, text: str) -> Page:
    return Page(title, fragment("common/web/message.html", text=text))


def _to(request: Request, path: str) -> RedirectResponse:
    return RedirectResponse(URLPath(request.scope["base"] + path), 303)


def _with_cookie(response: Response, value: str) -> Response:
    """Set the cookie, or with no value take it away. The path keeps it from servers on other ports (login.py)."""
    response.set_cookie(
        COOKIE,
        value,
        max_age=int(SESSION_S) if value else 0,
        path=response.headers["location"].rpartition("/")[0] + "/",
        httponly=True,
        samesite="strict",
    )
    return response


def _file(name: str) -> Response:
    if name not in _FILES:
        return PlainTextResponse("There is nothing here.\n", 404)
    return Response((Path(__file__).parent / "static" / name).read_bytes(), media_type=_FILES[name])


__all__ = ["MOST_STREAMS", "Act", "Dashboard", "Page", "Pages", "Visit"]
