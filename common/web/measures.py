"""What a side tells Prometheus: on 127.0.0.1 behind a token, or in a file for node_exporter's textfile collector.

A side gives families of samples, made anew at each question; the text of them is made by Prometheus' own library, in
the format that is asked for. A label's values are few: sites, open and latest runs, codes of closed lists.
Sources: Prometheus' exposition formats and its naming practices; RFC 6750 (Bearer).
"""

import asyncio
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response

from common.console.cli import configure_logging, note, say, show_json
from common.console.signals import asked_to_stop
from common.errors import ConfigError
from common.system.files import write_atomically
from common.web.fenced import Message, Receive, Send
from common.web.guard import Guard
from common.web.listening import answering, hosts_of, listening
from common.web.token import Token

TOKEN_NAME = "metrics.token"  # noqa: S105 - a file's name
PATH = "/metrics"
EXTRA = "pip install 'wardround[prometheus]'"

_LOOK_EVERY_S = 0.2


@dataclass(frozen=True)
class Family:
    """One measure, with a value for each set of labels."""

    name: str  # begins with wardround_, ends with the unit; a counter's ends with _total
    said: str  # what it is, in a sentence without its full stop
    samples: Sequence[tuple[Mapping[str, str], float]]
    kind: Literal["gauge", "counter"] = "gauge"


Collect = Callable[[], Iterable[Family]]


def one(name: str, said: str, value: float | None, *, kind: Literal["gauge", "counter"] = "gauge") -> Family:
    """A measure without labels; with no sample where there is no value."""
    return Family(name, said, [] if value is None else [({}, value)], kind)


def states(label: str, names: Iterable[str], now: str, **labels: str) -> Iterator[tuple[Mapping[str, str], float]]:
    """A sample for each state that something may be in: 1 for the one that it is in."""
    yield from (({**labels, label: name}, float(name == now)) for name in names)


def exposition(families: Iterable[Family], accepted: str = "") -> tuple[bytes, str]:
    """The text that Prometheus reads.

    Args:
        families: what is told.
        accepted: the question's Accept header; without one Prometheus' own text format is written.

    Returns:
        The text, and its media type.

    Raises:
        ConfigError: Prometheus' library is not installed.
    """
    try:
        from prometheus_client import CollectorRegistry, exposition  # noqa: PLC0415 - an extra
        from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily  # noqa: PLC0415 - an extra
    except ImportError as error:
        raise ConfigError(f"Prometheus' library is not installed. Install it: {EXTRA}") from error

    class Told:
        def collect(self) -> Iterator[Any]:
            for family in families:
                kind = CounterMetricFamily if family.kind == "counter" else GaugeMetricFamily
                told = kind(family.name, f"{family.said}.")
                for labels, value in family.samples:
                    told.add_sample(family.name, dict(labels), value)
                yield told

    registry = CollectorRegistry(auto_describe=False)
    registry.register(Told())
    encode, media_type = exposition.choose_encoder(accepted)
    return encode(registry), media_type


def tell(collect: Collect, home: Path, *, port: int | None, file: Path | None, every_s: float, as_json: bool) -> None:
    """What the command `metrics` does: print once, serve, or write a file again and again, until Ctrl-C or SIGTERM.

    Args:
        collect: the families, made anew at each call.
        home: the side's folder, for the token.
        port: of 127.0.0.1, to serve there; 0: a free one.
        file: to write, with a name that ends in .prom.
        every_s: between two writings.
        as_json: print data.

    Raises:
        ConfigError: the port is taken, the file's name does not do, Prometheus' library is not installed.
    """
    exposition(())
    if port is not None and file is not None:
        raise ConfigError("--port and --textfile exclude each other. Give one of them.")
    if file is not None and file.suffix != ".prom":
        raise ConfigError(f"{file} does not end in .prom, and node_exporter reads no other file. Give it such a name.")
    if port is None and file is None:
        if as_json:
            show_json(as_data(collect()))
        else:
            for line in exposition(collect())[0].decode().removesuffix("\n").split("\n"):
                say(line)
        return
    stopped = asked_to_stop()
    configure_logging()
    if port is not None:
        _serve(collect, home / TOKEN_NAME, port, stopped, as_json=as_json)
    if file is not None:
        _write(collect, file, every_s, stopped, as_json=as_json)


def as_data(families: Iterable[Family]) -> list[dict[str, object]]:
    """The samples as JSON has them."""
    return [
        {"metric": family.name, "labels": dict(labels), "value": value}
        for family in families
        for labels, value in family.samples
    ]


def _serve(collect: Collect, token: Path, port: int, stopped: Callable[[], bool], *, as_json: bool) -> None:
    os.umask(0o077)
    with listening(port) as sockets:
        number = sockets[0].getsockname()[1]
        guarded = Guard(_Scraped(collect), Token.kept(token), hosts_of(number), most_bytes=0)
        with answering(guarded, sockets):
            address = f"http://127.0.0.1:{number}{PATH}"
            show_json({"address": address, "token": token}) if as_json else say(f"Serving {address}")
            note(f"Prometheus' credentials_file is a copy of {token} that it can read. Ctrl-C or SIGTERM stops.")
            while not stopped():
                time.sleep(_LOOK_EVERY_S)


def _write(collect: Collect, file: Path, every_s: float, stopped: Callable[[], bool], *, as_json: bool) -> None:
    before = os.umask(0o077)
    try:
        _write_readable(file, exposition(collect())[0])
        show_json({"file": file, "every-s": every_s}) if as_json else say(f"Writing {file} every {every_s:g} s")
        note("Ctrl-C or SIGTERM stops, and removes it.")
        due = time.monotonic() + every_s
        while not stopped():
            time.sleep(_LOOK_EVERY_S)
            if time.monotonic() >= due:
                _write_readable(file, exposition(collect())[0])
                due = time.monotonic() + every_s
    finally:
        file.unlink(missing_ok=True)  # or what was true once would be told for ever
        os.umask(before)


def _write_readable(file: Path, text: bytes) -> None:
    """Others may read it, as whoever runs node_exporter is another account; what collecting makes they may not."""
    before = os.umask(0o022)
    try:
        write_atomically(file, text)
    finally:
        os.umask(before)


class _Scraped:
    """The ASGI application behind the guard; one question after another."""

    def __init__(self, collect: Collect) -> None:
        self._collect = collect
        self._turn = asyncio.Lock()

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        request = Request(scope, receive)
        if request.url.path != PATH:
            response: Response = PlainTextResponse("There is nothing here.\n", 404)
        elif request.method != "GET":
            response = PlainTextResponse("Only GET.\n", 405, {"allow": "GET"})
        else:
            async with self._turn:
                text, media_type = await asyncio.to_thread(self._told, request.headers.get("accept", ""))
            response = Response(text, media_type=media_type)
        await response(scope, receive, send)

    def _told(self, accepted: str) -> tuple[bytes, str]:
        return exposition(self._collect(), accepted)


__all__ = ["EXTRA", "PATH", "TOKEN_NAME", "Collect", "Family", "as_data", "exposition", "one", "states", "tell"]
