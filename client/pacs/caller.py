"""The process that speaks with a PACS, as who started it sees it: asked, heard, and killed where it is silent or lies.

It is started anew for the next question where it was lost: a PACS may send what makes a parser crash.
"""

import contextlib
import importlib.util
import os
import select
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from client.pacs import problems
from client.pacs.problems import AwayError, PacsError, StoreError
from client.pacs.settings import Peer
from common.errors import ConfigError
from common.system.environment import PACKAGES, for_confined
from common.wire import frames
from common.wire.frames import FrameError

EXTRA = "pip install 'wardround[client,pacs]'"
HEADER_LIMIT = 64 << 20

_NEEDED = ("pynetdicom", "dicomweb_client", "pydicom")
_KEPT_VARIABLES = ("PATH", "LANG", "LC_ALL", "TZ", "LD_LIBRARY_PATH")
_START_S = 120.0
# A question is some answers of the PACS, each with its own time: how many times that may nothing be heard of it.
_PATIENCE = 4


class Caller:
    """Asks one PACS, through a process of its own."""

    def __init__(self, home: Path, peer: Peer, staging: Path | None = None) -> None:
        """Nothing is started yet.

        Args:
            home: the site's.
            peer: whom to ask.
            staging: where what comes may be written; None: nowhere.

        Raises:
            ConfigError: what speaks with a PACS is not installed.
        """
        check_installed()
        self._peer = peer
        self._silence_s = _PATIENCE * peer.timeout + 60
        self._arguments = ["--home", str(home.resolve()), "--port", str(peer.port)]
        self._arguments += [] if peer.opened is None else ["--opened", str(peer.opened)]
        self._arguments += [] if staging is None else ["--staging", str(staging.resolve())]
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end()

    def ask(
        self, do: str, told: Callable[[dict[str, Any]], None] = lambda _header: None, **more: Any
    ) -> Mapping[str, Any]:
        """The answer to a question.

        Args:
            do: what; see client/pacs/process.py.
            told: called with what is told meanwhile.
            more: of the question.

        Raises:
            PacsError: the PACS refuses or is not to be used so; AwayError: it may go well later.
        """
        question = {"do": do, "peer": self._peer.model_dump(mode="json", by_alias=True), **more}
        try:
            process = self._process or self._start()
            if process.stdin is None or process.stdout is None:
                raise FrameError("it has no pipe")
            frames.send(process.stdin.fileno(), question, header_limit=HEADER_LIMIT)
            while (header := heard(process.stdout.fileno(), self._silence_s))["kind"] in ("beat", "checked"):
                told(header)
            if header["kind"] == "problem":
                raise problems.from_json(header)
            if header["kind"] != "answer":
                raise FrameError("an answer of an unknown kind")
        except (FrameError, KeyError, TypeError) as error:
            self._end()
            raise AwayError(
                "the process that speaks with the PACS was silent too long, or ended over what the PACS sent. Try "
                "again; if it stays so, have the study checked at the PACS."
            ) from error
        except BaseException as error:
            if not isinstance(error, PacsError | StoreError):  # such as Ctrl-C: it may be at work still
                self._end()
            raise
        return header

    def _start(self) -> subprocess.Popen[bytes]:
        self._process = started("client.pacs.process", self._arguments)
        return self._process

    def _end(self) -> None:
        if self._process is not None:
            end(self._process)
            self._process = None


def check_installed() -> None:
    """Refuse to begin where what speaks with a PACS is missing.

    Raises:
        ConfigError: it is not installed.
    """
    if missing := [name for name in _NEEDED if importlib.util.find_spec(name) is None]:
        raise ConfigError(f"a PACS needs {', '.join(missing)}, not installed here. Install: {EXTRA}")


def started(module: str, arguments: Sequence[str]) -> subprocess.Popen[bytes]:
    """A process of this room that is ready, with a pipe each way.

    Raises:
        FrameError: it did not start.
    """
    environment = for_confined(
        *_KEPT_VARIABLES,
        PYTHONPATH=str(PACKAGES),
        PYTHONDONTWRITEBYTECODE="1",
        PYTHONNOUSERSITE="1",
        HOME="/nonexistent",
    )
    process = subprocess.Popen(  # noqa: S603 - our own interpreter and module
        [sys.executable, "-P", "-m", module, *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,  # libraries print what they read, and that can be a name
        bufsize=0,
        env=environment,
        cwd="/",
        start_new_session=True,  # Ctrl-C is for us, who end it
    )
    try:
        if process.stdout is None or heard(process.stdout.fileno(), _START_S).get("kind") != "ready":
            raise FrameError("it did not start")
    except BaseException:
        end(process)
        raise
    return process


def heard(answers: int, patience_s: float) -> dict[str, Any]:
    """The next frame of such a process.

    Raises:
        FrameError: it is silent, or has ended.
    """
    deadline = time.monotonic() + patience_s
    if not select.select([answers], [], [], patience_s)[0]:
        raise FrameError("it is silent")
    os.set_blocking(answers, False)
    header = frames.receive(answers, lambda _header: (), deadline=deadline, header_limit=HEADER_LIMIT)
    if header is None:
        raise FrameError("it ended")
    return header


def end(process: subprocess.Popen[bytes]) -> None:
    """Kill such a process, and close its pipes."""
    process.kill()
    process.wait()
    for stream in (process.stdin, process.stdout):
        with contextlib.suppress(OSError):
            if stream is not None:
                stream.close()


__all__ = ["EXTRA", "HEADER_LIMIT", "Caller", "check_installed", "end", "heard", "started"]
