"""Studies that others send to this site, as who started the receiving process sees them.

    FOLDER/coming/             what is received; the receiving process may write here alone
    FOLDER/whole/<name>/       studies that are whole, until they are answered
    FOLDER/quarantine/<name>/  those that are not, or that no answer could be made for; <name>.json says why

A study moves from one to the next in one step, flushed to the disk, by us and not by the process that heard it.
"""

import json
import logging
import os
import select
import shutil
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from client.pacs import caller, problems
from client.pacs.arrivals.settings import Waiting
from common.errors import ConfigError
from common.system.files import move, write_private
from common.text import counted
from common.wire import frames
from common.wire.frames import FrameError

COMING, WHOLE, QUARANTINE = "coming", "whole", "quarantine"

_SILENCE_S = 60.0
_AGAIN_S = 1.0

_log = logging.getLogger(__name__)


class Listener:
    """Receives, through a process of its own that is started anew where it is lost."""

    def __init__(self, home: Path, settings: Waiting, folder: Path) -> None:
        """Nothing is opened yet.

        Args:
            home: the site's.
            settings: where to wait, and for whom.
            folder: see the module; made, for the eyes of its owner only.

        Raises:
            ConfigError: what speaks with a PACS is not installed.
        """
        caller.check_installed()
        self._settings, self._folder = settings, folder.absolute()
        coming = self._folder / COMING
        self._arguments = ["--home", str(home.absolute()), "--staging", str(coming), "--port", str(settings.port)]
        self._process: subprocess.Popen[bytes] | None = None
        self._refused = 0

    def __enter__(self) -> Self:
        """Open the port.

        Raises:
            ConfigError: it cannot be opened.
        """
        for name in (COMING, WHOLE, QUARANTINE):
            (self._folder / name).mkdir(mode=0o700, parents=True, exist_ok=True)
        try:
            self._open()
        except (FrameError, problems.PacsError) as error:
            self._close()
            raise ConfigError(f"nothing can be received: {error}") from error
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._close()

    def whole(self, wait_s: float) -> list[Path]:
        """The folders of the studies that are whole and not answered, in the order in which they came.

        Args:
            wait_s: how long one is waited for where there is none.
        """
        try:
            self._hear(0.0 if self._waiting() else wait_s)
        except (FrameError, problems.PacsError, KeyError, TypeError, ValueError) as error:
            _log.error("what receives has ended, and is started anew: %s", error)
            self._close()
            time.sleep(_AGAIN_S)
            try:
                self._open()
            except (FrameError, problems.PacsError) as again:
                _log.error("waiting: nothing can be received: %s", again)
                self._close()
        return self._waiting()

    def set_aside(self, folder: Path, why: str) -> None:
        """Put a study into quarantine, and say so."""
        place = self._folder / QUARANTINE / folder.name
        move(folder, place)
        write_private(place.with_suffix(".json"), f"{json.dumps({'why': why, 'at': time.time()})}\n".encode())
        _log.warning("study %s set aside: %s", folder.name, why)

    @staticmethod
    def done(folder: Path) -> None:
        """Remove what was received of a study that is answered."""
        shutil.rmtree(folder)

    def _waiting(self) -> list[Path]:
        found = [path for path in (self._folder / WHOLE).iterdir() if path.is_dir()]
        return sorted(found, key=lambda path: (path.stat().st_mtime_ns, path.name))

    def _open(self) -> None:
        for left in (self._folder / COMING).iterdir():
            self.set_aside(left, "what receives ended before it was whole")
        self._process = caller.started("client.pacs.arrivals.listening", self._arguments)
        if self._process.stdin is None:
            raise FrameError("it has no pipe")
        settings = self._settings.model_dump(mode="json", by_alias=True)
        frames.send(self._process.stdin.fileno(), {"settings": settings})
        if (header := self._next(_SILENCE_S))["kind"] == "problem":
            raise problems.from_json(header)

    def _hear(self, wait_s: float) -> None:
        """Take what the process tells."""
        if self._process is None or self._process.stdout is None:
            raise FrameError("it does not run")
        while select.select([self._process.stdout], [], [], wait_s)[0]:
            header, wait_s = self._next(_SILENCE_S), 0.0
            if header["kind"] == "arrived":
                self._take(header["study"])
            elif int(header.get("refused", 0)) > self._refused:
                self._refused = int(header["refused"])
                _log.warning("refused so far: %s that belong to no study", counted(self._refused, "object"))

    def _take(self, study: Mapping[str, Any]) -> None:
        name = str(study["name"])
        folder = self._folder / COMING / name
        if os.sep in name or not folder.is_dir():
            _log.warning("a study came of which nothing could be kept: %s", study["problem"])
            return
        there = sum(1 for path in folder.glob("*/*.dcm") if path.is_file())
        problem = study["problem"] or (None if there == study["objects"] else "not all of it lies on the disk")
        if problem is None:
            move(folder, self._folder / WHOLE / name)
            _log.info("study %s is here: %s", name, counted(there, "object"))
        else:
            self.set_aside(folder, str(problem))

    def _next(self, patience_s: float) -> dict[str, Any]:
        if self._process is None or self._process.stdout is None:
            raise FrameError("it does not run")
        return caller.heard(self._process.stdout.fileno(), patience_s)

    def _close(self) -> None:
        if self._process is not None:
            caller.end(self._process)
            self._process = None


__all__ = ["COMING", "QUARANTINE", "WHOLE", "Listener"]
