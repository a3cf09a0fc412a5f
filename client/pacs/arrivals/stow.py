"""STOW-RS: what is asked of a sender, what is read of it, and what it is answered (PS3.18 10.5).

    POST /dicom-web/studies            objects of any studies
    POST /dicom-web/studies/{study}    objects of that one

    200  all objects are stored          202  some are          409  none is
    400  no such body, or it broke off   401  no token, or another     404, 405  nothing else is here
    406  another answer is asked for     408  too slow          413  too long   415  another kind of body
    421  not by a name of this machine   503  no room now, try again later

A request is looked at in the order of its head: token, place, kind of body, length. Only then its body is read, part
by part, and each part is on the disk before the next one is looked at. The request is one association for
`client.pacs.arrivals.arriving`; what broke off in its middle leaves no study that is taken for whole.
"""

import asyncio
import contextlib
import hashlib
import hmac
import json
import time
from collections.abc import AsyncIterator, Collection
from dataclasses import dataclass, field
from typing import Any

from client.pacs.arrivals.arriving import NO_ROOM, STORED, Arrivals, Head, Limits, head_of, is_uid
from client.pacs.arrivals.parts import BodyError, Parts, boundary_of
from client.pacs.arrivals.settings import BASE
from client.pacs.receiving import MOST_BYTES
from common.web.fenced import App, Fenced, Message, Receive, Send

NOT_OF_THE_STUDY = 0xA900

_JSON = "application/dicom+json"
_HEADERS = ((b"cache-control", b"no-store"), (b"x-content-type-options", b"nosniff"))
_MORE = {401: [("www-authenticate", "Bearer")], 405: [("allow", "POST")], 503: [("retry-after", "30")]}
_ALIVE_S = 1.0
# Of what still comes of a request that is refused: bytes, seconds in all, and seconds without anything.
_DRAINED, _DRAINED_S, _DRAINED_PAUSE_S = 16 << 20, 5.0, 0.5
_BROKE_OFF = "its request broke off, or could not be read"


@dataclass(frozen=True)
class Bounds:
    """What one sender, and all together, may ask for. Bytes and seconds.

    requests: at a time. held: of the parts in hand, of all of them. whole: of one request. silence: until the next
    piece. pace: bytes a second, on the average, once a request has lasted for `grace`.
    """

    requests: int = 8
    held: int = 2 << 30
    whole: int = 16 << 30
    silence: float = 30.0
    pace: int = 16 << 10
    grace: float = 60.0


@dataclass
class _Tally:
    """What became of the objects of a request. without: those that say of themselves nothing that can be told."""

    stored: list[Head] = field(default_factory=list)
    failed: list[tuple[Head, int]] = field(default_factory=list)
    without: list[int] = field(default_factory=list)

    def add(self, head: Head | None, status: int) -> None:
        if head is None:
            self.without.append(status)
        elif status == STORED:
            self.stored.append(head)
        else:
            self.failed.append((head, status))

    @property
    def status(self) -> int:
        reasons = [*self.without, *(reason for _, reason in self.failed)]
        if not reasons:
            return 200
        return 202 if self.stored else 503 if set(reasons) == {NO_ROOM} else 409

    def answer(self) -> bytes:
        """PS3.18 I.2 and F: UIDs that the sender has sent, and reasons; nothing else."""
        found: dict[str, Any] = {"00081190": {"vr": "UR"}}  # there is nothing to retrieve from here
        if self.failed:
            found["00081198"] = _sequence(
                [_reference(head) | {"00081197": {"vr": "US", "Value": [reason]}} for head, reason in self.failed]
            )
        if self.stored:
            found["00081199"] = _sequence([_reference(head) | {"00081190": {"vr": "UR"}} for head in self.stored])
        if self.without:
            found["0008119A"] = _sequence([{"00081197": {"vr": "US", "Value": [reason]}} for reason in self.without])
        return json.dumps(found).encode()


class Stow:
    """What waits at a port for requests of STOW-RS: an ASGI application, for one event loop.

    Whatever may wait for the disk, or for another who writes, is done in a thread: the loop answers meanwhile.
    """

    def __init__(
        self,
        arrivals: Arrivals,
        token: str | None = None,
        hosts: Collection[str] = (),
        bounds: Bounds | None = None,
    ) -> None:
        """Nothing has come yet.

        Args:
            arrivals: takes the objects.
            token: that each request must show; None: none need be shown.
            hosts: what a Host header may be; empty: anything.
            bounds: of what is taken.
        """
        self._arrivals, self._hosts, self._bounds = arrivals, frozenset(hosts), bounds or Bounds()
        self._digest = None if token is None else _digest(token.encode())
        self._open: dict[object, Parts | None] = {}
        self._fenced = Fenced(self._guarded, _HEADERS, _fault)

    @property
    def app(self) -> App:
        """For a web server."""
        return self._fenced

    async def _guarded(self, scope: Message, receive: Receive, send: Send) -> None:
        """Answer a request, whatever it is."""
        association, body = object(), _Body(scope, receive, self._bounds)
        try:
            study, boundary = self._asked(scope)
            if len(self._open) >= self._bounds.requests:
                raise BodyError(503, "Too many send at a time. Try again later.")
            self._open[association] = None
            try:
                tally = await self._taken(association, study, boundary, body)
            except MemoryError:
                raise BodyError(503, "There is no room for it now. Try again later.") from None
            finally:
                del self._open[association]
        except BodyError as error:
            await body.drain()
            await _answer(send, error.status, f"{error}\n".encode(), "text/plain; charset=utf-8")
        else:
            await _answer(send, tally.status, tally.answer(), _JSON)

    def _asked(self, scope: Message) -> tuple[str | None, bytes]:
        """The study that a request names, and what stands between its parts.

        Raises:
            BodyError: it is no request that is served here.
        """
        headers = _Headers(scope)
        if self._digest is not None:
            scheme, _, given = headers.only("authorization").partition(" ")
            if scheme.lower() != "bearer" or not hmac.compare_digest(_digest(given.strip().encode()), self._digest):
                raise BodyError(401, "The token is missing or wrong. Send Authorization: Bearer TOKEN.")
        if self._hosts and headers.only("host").lower() not in self._hosts:
            raise BodyError(421, "The Host header does not name this machine's own address.")
        study = _study(scope["path"])
        if scope["method"] != "POST":
            raise BodyError(405, "Only POST.")
        boundary = boundary_of(headers.only("content-type"))
        if headers.only("content-encoding", "identity").lower() != "identity":
            raise BodyError(415, "The body is packed. Send it as it is.")
        if not _accepts(headers.all("accept")):
            raise BodyError(406, f"The answer is {_JSON}. Accept it.")
        length = headers.only("content-length", "0")
        if length.isdecimal() and int(length) > self._bounds.whole:
            raise BodyError(413, f"The request is longer than {self._bounds.whole} bytes. Send the study in several.")
        return study, boundary

    async def _taken(self, association: object, study: str | None, boundary: bytes, body: "_Body") -> _Tally:
        """Read a request to its end, and have its objects taken.

        Raises:
            BodyError: it is not to be read, or does not come to its end.
        """
        parts, tally = Parts(boundary, MOST_BYTES, Limits().objects), _Tally()
        self._open[association] = parts
        problem: str | None = _BROKE_OFF
        told = time.monotonic()
        try:
            async for piece in body.pieces():
                if time.monotonic() - told >= _ALIVE_S:
                    told = time.monotonic()
                    await asyncio.to_thread(self._arrivals.alive, association)
                for encoded in parts.feed(piece):
                    tally.add(*await asyncio.to_thread(self._take, association, study, encoded))
                if sum(one.held for one in self._open.values() if one is not None) > self._bounds.held:
                    raise BodyError(503, "There is no room for it now. Try again later.")
            parts.finish()
            problem = None
        finally:
            await asyncio.to_thread(self._arrivals.ended, association, problem)
        return tally

    def _take(self, association: object, study: str | None, encoded: bytes) -> tuple[Head | None, int]:
        head = head_of(encoded)
        if study is not None and head is not None and head.study != study:
            self._arrivals.refuse(association, "an object came that is not of the study that was named with it")
            return head, NOT_OF_THE_STUDY
        return head, self._arrivals.take(association, encoded, head)


class _Headers:
    def __init__(self, scope: Message) -> None:
        self._pairs = [(name.decode("latin-1").lower(), value.decode("latin-1")) for name, value in scope["headers"]]

    def all(self, name: str) -> list[str]:
        return [value.strip() for key, value in self._pairs if key == name]

    def only(self, name: str, absent: str = "") -> str:
        """The one value; nothing where there are several."""
        values = self.all(name)
        return absent if not values else values[0] if len(values) == 1 else ""


class _Body:
    """A body as it comes."""

    def __init__(self, scope: Message, receive: Receive, bounds: Bounds) -> None:
        self._receive, self._bounds = receive, bounds
        self._is_over = False
        # For our word, before it sends anything.
        self._waits = any(name.lower() == b"expect" for name, _ in scope["headers"])

    async def pieces(self) -> AsyncIterator[bytes]:
        """Each as it comes.

        Raises:
            BodyError: it breaks off, is too slow, or too long.
        """
        bounds, came, waited_s = self._bounds, 0, 0.0
        while not self._is_over:
            began = time.monotonic()
            try:
                piece = await asyncio.wait_for(self._next(), bounds.silence)
            except TimeoutError:
                raise BodyError(408, f"Nothing came for {bounds.silence:g} s.") from None
            waited_s += time.monotonic() - began  # of the sender's time, not of ours
            came += len(piece)
            if came > bounds.whole:
                raise BodyError(413, f"The request is longer than {bounds.whole} bytes. Send the study in several.")
            if waited_s > bounds.grace and came < bounds.pace * waited_s:
                raise BodyError(408, f"It comes with less than {bounds.pace} bytes a second.")
            yield piece

    async def drain(self) -> None:
        """Read some of what still comes, and drop it: who is cut off in the middle does not hear the answer."""
        drained = 0
        with contextlib.suppress(BodyError, TimeoutError):
            async with asyncio.timeout(_DRAINED_S):
                while not self._waits and not self._is_over and drained < _DRAINED:
                    drained += len(await asyncio.wait_for(self._next(), _DRAINED_PAUSE_S))

    async def _next(self) -> bytes:
        message = await self._receive()
        self._waits = False
        self._is_over = not message.get("more_body", False)
        if message["type"] != "http.request":
            raise BodyError(400, "The body broke off.")
        return bytes(message.get("body", b""))


def _study(path: str) -> str | None:
    """The study that a path names; None: it is for any.

    Raises:
        BodyError: nothing is there.
    """
    place, _, study = path.removeprefix(BASE).removeprefix("/").partition("/")
    if not path.startswith(f"{BASE}/") or place != "studies" or "/" in study.removesuffix("/"):
        raise BodyError(404, f"There is nothing here but {BASE}/studies.")
    study = study.removesuffix("/")
    if study and not is_uid(study):
        raise BodyError(400, "The study in the path is no UID.")
    return study or None


def _accepts(accept: list[str]) -> bool:
    kinds = [one.partition(";")[0].strip().lower() for line in accept for one in line.split(",")]
    return not any(kinds) or not {_JSON, "application/json", "application/*", "*/*"}.isdisjoint(kinds)


async def _answer(send: Send, status: int, body: bytes, kind: str) -> None:
    headers = [("content-type", kind), ("content-length", str(len(body))), *_MORE.get(status, ())]
    if kind != _JSON:
        headers.append(("connection", "close"))  # the rest of its body would be taken for another request
    coded = [(name.encode(), value.encode()) for name, value in headers]
    await send({"type": "http.response.start", "status": status, "headers": coded})
    await send({"type": "http.response.body", "body": body})


async def _fault(send: Send) -> None:
    await _answer(send, 500, b"Something went wrong here.\n", "text/plain; charset=utf-8")


def _sequence(items: list[dict[str, Any]]) -> dict[str, Any]:
    return {"vr": "SQ", "Value": items}


def _reference(head: Head) -> dict[str, Any]:
    return {
        "00081150": {"vr": "UI", "Value": [head.sop_class]},
        "00081155": {"vr": "UI", "Value": [head.uid]},
    }


def _digest(text: bytes) -> bytes:
    """Of one length, whatever the text: its comparison tells nothing."""
    return hashlib.sha256(text).digest()


__all__ = ["NOT_OF_THE_STUDY", "Bounds", "Stow"]
