"""The other forms of a finished run's model, as a process apart makes them: a MONAI bundle and ONNX.

To hold a bundle against the model, images are prepared as a hospital prepares them, which nothing here can; so another
program does, simulations/exchange/apart.py. It is given the model by a pipe and gives the forms back by one: no key,
and on no disk a model in the clear. In a home one is made at a time, with less right to the processor than a round.

A form that cannot be had harms no run: it is left out, and what is said of it says why.
"""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from common.crypto.stream import SUFFIX
from common.errors import ConfigError
from common.system.environment import PACKAGES, for_child
from common.system.locks import locked
from common.wire.frames import Frame, FrameError, receive_frame, send_frame
from server.home.checkpoints import MODEL_FILES
from server.home.folder import Home
from server.registry.proposals import Proposal

BUNDLE, ONNX = "monai-bundle", "onnx"
LEFT_OUT = "left-out"
LOG_NAME = "forms.log"

_COMMAND = (sys.executable, "-P", "-m", "simulations.exchange.apart")
_LONGEST_S = 3600.0
_SCRATCH, _LOCK = "forms", "forms.lock"
_PLACES = ("bundle", "model.onnx")


@dataclass(frozen=True)
class Forms:
    """What was made. told: of each form what is said of it, with `left-out`, the reason, where it is not there."""

    told: Mapping[str, Mapping[str, Any]]
    files: Mapping[str, bytes] = field(default_factory=dict, repr=False)


def left_out(reason: str) -> Forms:
    """None of them, and why."""
    return Forms({name: {LEFT_OUT: reason} for name in (BUNDLE, ONNX)})


class _BusyError(ConfigError):
    """Another makes the forms of a model."""


class Maker:
    """Makes the forms of one run's model, in a thread of its own."""

    def __init__(self, home: Home, proposal: Proposal) -> None:
        """It begins at once; where server.toml does without, it has ended."""
        self._home, self._proposal = home, proposal
        self._process: subprocess.Popen[bytes] | None = None
        self._stopped = threading.Event()
        self._made: Forms | None = None
        self._thread = threading.Thread(target=self._work, name="forms")
        if home.config.exchange_forms:
            self._thread.start()
        else:
            self._made = left_out("exchange-forms = false in server.toml.")

    @property
    def made(self) -> Forms | None:
        """What was made; None before it is, and after a stop."""
        if self._thread.is_alive() or self._stopped.is_set():
            return None
        return self._made or left_out(f"it failed; see {self._home.logs / LOG_NAME}.")

    def wait(self) -> Forms:
        """What was made, when it is."""
        try:
            if self._home.config.exchange_forms:
                self._thread.join()
        except BaseException:
            self.stop()
            raise
        return self.made or left_out("it was stopped.")

    def stop(self) -> None:
        """End it; nothing was made."""
        self._stopped.set()
        while self._thread.is_alive():
            if (process := self._process) is not None:
                _kill(process)
            self._thread.join(0.1)

    def _work(self) -> None:
        home, proposal = self._home, self._proposal
        try:
            model = _opened(home, proposal)
            with self._alone(), _scratch(home.path / _SCRATCH) as scratch:
                self._made = None if self._stopped.is_set() else self._ask(model, scratch)
        except (ConfigError, FrameError, OSError) as error:
            self._made = left_out(f"{error}".rstrip(".") + f"; see {home.logs / LOG_NAME}.")

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """When no other makes any in this home, nor does after a stop."""
        while True:
            try:
                with locked(self._home.path / _LOCK, _BusyError("another makes the forms of a model")):
                    yield
                    return
            except _BusyError:
                if self._stopped.is_set():
                    raise

    def _ask(self, model: Mapping[str, bytes], scratch: Path) -> Forms:
        """Raises: ConfigError, FrameError or OSError where the process does not answer."""
        deadline = time.monotonic() + _LONGEST_S
        with (self._home.logs / LOG_NAME).open("wb") as log:
            process = subprocess.Popen(  # noqa: S603 - our own interpreter and module
                _COMMAND,
                env=for_child(PYTHONPATH=str(PACKAGES), TMPDIR=str(scratch)),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                start_new_session=True,
            )
        self._process = process
        assert process.stdin is not None  # noqa: S101
        assert process.stdout is not None  # noqa: S101
        os.set_blocking(process.stdin.fileno(), False)  # or one that does not read would be waited for without end
        try:
            with process.stdin as questions, process.stdout as answers:
                try:
                    send_frame(questions.fileno(), Frame({}, model), deadline)
                    answer = receive_frame(answers.fileno(), deadline)
                except FrameError as error:
                    raise _ended(process) or error from error
            if answer is None:
                raise _ended(process) or ConfigError("the process that makes it said nothing")
            return _checked(answer)
        finally:
            self._process = None
            _kill(process)


def _opened(home: Home, proposal: Proposal) -> dict[str, bytes]:
    folder, sealer = home.run_folder(proposal.document), home.sealer_of(proposal.run_hash)
    return {name: sealer.open((folder / f"{name}{SUFFIX}").read_bytes(), name) for name in MODEL_FILES}


@contextmanager
def _scratch(folder: Path) -> Iterator[Path]:
    """An empty folder, which is gone afterwards; one that a killed process left goes first. Only under the lock."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(mode=0o700)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _ended(process: subprocess.Popen[bytes]) -> ConfigError | None:
    """How it ended, if it did by itself."""
    try:
        code = process.wait(5.0)
    except subprocess.TimeoutExpired:
        return None
    how = f"was ended by signal {-code}" if code < 0 else f"ended with exit code {code}"
    return ConfigError(f"the process that makes it {how}")


def _kill(process: subprocess.Popen[bytes]) -> None:
    """End it with all that it started."""
    with contextlib.suppress(ProcessLookupError, PermissionError):  # the latter of macOS, for one that has ended
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _checked(answer: Frame) -> Forms:
    told = answer.header.get("forms")
    paths = [PurePosixPath(name) for name in answer.parts]
    if not isinstance(told, dict) or told.keys() != {BUNDLE, ONNX}:
        raise ConfigError("the process that makes it answered with something else")
    if any(path.is_absolute() or ".." in path.parts or path.parts[0] not in _PLACES for path in paths):
        raise ConfigError("the process that makes it answered with files of other places")
    return Forms(told, {name: bytes(data) for name, data in answer.parts.items()})


__all__ = ["BUNDLE", "LEFT_OUT", "ONNX", "Forms", "Maker", "left_out"]
