"""The agent's side of the worker: start it scrubbed, ask it, restart it with growing pauses when it dies.

The worker's environment holds only what Python, torch and CUDA need: no proxy, no token, no key, no passphrase. The
site key is the first frame on its pipe. Its code comes from where this file lies, whatever the current folder.
Standard error is home/logs/worker.log.
"""

import contextlib
import logging
import os
import select
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import IO

from client.agent.pulse import STALLED_S, Pulse
from client.home.sitekey import site_key
from client.worker import protocol
from client.worker.protocol import Answer, PipeError, Question, Ready
from common.system.environment import PACKAGES, flower_variables, for_confined
from common.wire.frames import Frame, widen

# Importing torch and MONAI takes 3-10 s, on a busy machine a minute.
START_TIMEOUT_S = 180.0
LOG_LIMIT = 20 << 20  # bytes; an older log is kept beside it
# Pause before the n-th restart in a row. A worker that answered starts the count anew.
PAUSES_S = (0.0, 1.0, 5.0, 20.0, 60.0)

_KEPT_VARIABLES = ("PATH", "LANG", "LC_ALL", "TZ", "LD_LIBRARY_PATH", "CUDA_VISIBLE_DEVICES", "NVIDIA_VISIBLE_DEVICES")
_PATIENCE_S = 0.2
_LOOK_EVERY_S = 5.0

_log = logging.getLogger(__name__)


class Worker:
    """One worker process, restarted when needed. `ask` is for one thread at a time; others wait."""

    def __init__(self, home: Path, threads: int | None = None) -> None:
        self._home, self._threads = home, threads
        self._lock = threading.RLock()
        self._process: subprocess.Popen[bytes] | None = None
        self._ready = False
        self._deaths, self._restart_at = 0, 0.0
        self._stopped = False
        self.network = "unknown"
        self.crashes = 0  # ends that nobody asked for
        self.still_s = 0.0  # how long it has used no processor, while it is being asked

    @property
    def pid(self) -> int | None:
        """Process id while it lives."""
        return self._process.pid if self._process is not None and self._process.poll() is None else None

    def tend(self) -> None:
        """Start the worker if there is none and its pause is over. Returns at once, also while one is being asked."""
        if self._lock.acquire(blocking=False):
            try:
                self._start_if_due()
                self._hear_welcome()
            except PipeError as error:
                _log.error("%s", error)
                self._bury()
            finally:
                self._lock.release()

    def ask(self, question: Question, timeout_s: float) -> Answer:
        """Put a question and wait for the answer.

        Raises:
            PipeError: the worker died or hangs (WORKER_FAILED), or was too slow (DEADLINE). It is restarted.
        """
        with self._lock:
            self._start_if_due()
            process = self._process
            if process is None or process.stdin is None or process.stdout is None:
                raise PipeError("the worker is not running; it is restarted in a moment. See logs/worker.log")
            try:
                deadline = time.monotonic() + START_TIMEOUT_S
                if not self._ready:
                    self._welcome(protocol.receive(process.stdout.fileno(), deadline))
                deadline = time.monotonic() + timeout_s
                protocol.send(process.stdin.fileno(), protocol.question_to_frame(question), deadline)
                self._await_answer(process.stdout.fileno(), process.pid, deadline)
                frame = protocol.receive(process.stdout.fileno(), deadline)
                if frame is None:
                    raise PipeError("the worker ended while it worked. See logs/worker.log")
                answer = protocol.answer_from_frame(frame)
            except PipeError:
                self._bury()
                raise
            self._deaths = 0
            return answer

    def _await_answer(self, fd: int, pid: int, deadline: float) -> None:
        """Until there is something to read, or the deadline is over; a worker that hangs is not waited for."""
        pulse = Pulse(pid)
        try:
            while (left_s := deadline - time.monotonic()) > 0:
                if select.select([fd], [], [], min(left_s, _LOOK_EVERY_S))[0]:
                    return
                self.still_s = pulse.still_s()
                if self.still_s > STALLED_S:
                    raise PipeError(f"the worker hangs: it has used no processor for {self.still_s:.0f} s")
        finally:
            self.still_s = 0.0

    def stop(self) -> None:
        """End the worker; a question in progress fails. For any thread."""
        self._stopped = True
        if not self._lock.acquire(timeout=_PATIENCE_S):
            if (process := self._process) is not None:
                process.kill()
            self._lock.acquire()
        try:
            # Nothing to save: the ledger is on disk before a step, and results live in frames.
            self._bury()
        finally:
            self._lock.release()

    def _start_if_due(self) -> None:
        if self._process is not None and self._process.poll() is not None:
            self._bury()
        if self._process is None and not self._stopped and time.monotonic() >= self._restart_at:
            self._process = self._spawn()

    def _spawn(self) -> subprocess.Popen[bytes]:
        key = site_key(self._home)
        with _log_file(self._home) as log:
            process = subprocess.Popen(  # noqa: S603 - our own interpreter and module
                # -P: the current folder is no place to import from.
                [sys.executable, "-P", "-m", "client.worker.main", "--home", str(self._home)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                bufsize=0,
                env=_environment(self._home, self._threads),
                cwd=self._home,
                # Ctrl-C is for the agent; it ends the worker itself.
                start_new_session=True,
            )
        for stream in (process.stdin, process.stdout):
            if stream is not None:
                os.set_blocking(stream.fileno(), False)
                widen(stream.fileno())
        if process.stdin is not None:
            with contextlib.suppress(PipeError):  # a worker that is gone already is found out when it is asked
                protocol.send(process.stdin.fileno(), protocol.key_to_frame(key), time.monotonic() + _PATIENCE_S)
        self._ready = False
        _log.info("worker %d started", process.pid)
        return process

    def _hear_welcome(self) -> None:
        stdout = self._process.stdout if self._process is not None else None
        if stdout is not None and not self._ready and select.select([stdout], [], [], 0)[0]:
            self._welcome(protocol.receive(stdout.fileno(), time.monotonic() + _PATIENCE_S))

    def _welcome(self, frame: Frame | None) -> None:
        ready = protocol.answer_from_frame(frame) if frame is not None else None
        if not isinstance(ready, Ready):
            raise PipeError("the worker did not start. See logs/worker.log")
        self._ready = True
        self.network = ready.network
        _log.info("worker ready, network %s", ready.network)

    def _bury(self) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        process.kill()
        code = process.wait()
        for stream in (process.stdin, process.stdout):
            if stream is not None:
                stream.close()
        pause = PAUSES_S[min(self._deaths, len(PAUSES_S) - 1)]
        self._deaths += 1
        self._restart_at = time.monotonic() + pause
        if not self._stopped:
            self.crashes += 1
            how = f"was ended by signal {-code}" if code < 0 else f"ended with exit code {code}"
            _log.error("worker %d %s; restart in %.0f s. See logs/worker.log", process.pid, how, pause)


def _log_file(home: Path) -> IO[bytes]:
    """home/logs/worker.log; where it cannot be opened, a worker's last words are lost, and it works all the same."""
    logs = home / "logs"
    path = logs / "worker.log"
    try:
        logs.mkdir(mode=0o700, parents=True, exist_ok=True)
        if path.exists() and path.stat().st_size > LOG_LIMIT:
            path.replace(logs / "worker.log.1")
        return path.open("ab")
    except OSError as error:
        _log.error("logs/worker.log cannot be written (%s)", error.strerror)
        return Path(os.devnull).open("ab")


def _environment(home: Path, threads: int | None) -> dict[str, str]:
    own = {
        "PYTHONPATH": str(PACKAGES),
        "PYTHONUNBUFFERED": "1",
        # Threads that spin while they wait slow a shared machine down several times.
        "OMP_WAIT_POLICY": "PASSIVE",
        # Libraries that want to keep something keep it here.
        "HOME": str(home / "scratch"),
        "TMPDIR": str(home / "scratch"),
        **flower_variables(home / "scratch" / "flower"),
    }
    if threads is not None:
        own |= {"OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}
    return for_confined(*_KEPT_VARIABLES, **own)
