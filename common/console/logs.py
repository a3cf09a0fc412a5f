"""How every process of ours writes its log: one line a record, and no line that foreign text has made.

Messages and errors may repeat what another side sent. A record is one line of visible signs; a traceback follows
indented, so that nothing in it begins like a record. What lasts, such as a file that another program holds, is said
once and then counted (`Trouble`).
"""

import logging
import os
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from common.advice import Advice
from common.errors import ErrorCode, WardroundError, code_of
from common.text import counted, shown

_FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"
_INDENT = "    "
# A trouble that lasts is said again after so long, and is over when it has not come for so long.
AGAIN_AFTER_S, OVER_AFTER_S = 600.0, 120.0
_MOST_TROUBLES = 100


class LineFormatter(logging.Formatter):
    """Time, level, name and message in one line; see the module."""

    def __init__(self, advice: Advice | None = None) -> None:
        super().__init__(_FORMAT)
        self._advice = advice or Advice()

    def format(self, record: logging.LogRecord) -> str:
        """The record's line, and its traceback below."""
        record.message = self._advice(record.getMessage())
        record.asctime = self.formatTime(record)
        below = [self.formatException(record.exc_info)] if record.exc_info and record.exc_info[0] else []
        below += [record.stack_info] if record.stack_info else []
        lines = [_INDENT + shown(line) for text in below for line in text.split("\n")]
        return "\n".join([shown(self.formatMessage(record)), *lines])


def log_to(level: int, handlers: Sequence[logging.Handler] | None = None, *, advice: Advice | None = None) -> None:
    """Send the log of this process to these handlers; None: to stderr. What it advises is completed."""
    handlers = handlers or [logging.StreamHandler()]
    for handler in handlers:
        handler.setFormatter(LineFormatter(advice))
    logging.basicConfig(level=level, handlers=handlers, force=True)


def on_screen() -> logging.Handler:
    """To stderr; but a process in the background of a terminal writes nothing over what a person types there."""
    handler = logging.StreamHandler()

    def is_ours(_record: logging.LogRecord) -> bool:
        try:
            screen = handler.stream.fileno()
            return not os.isatty(screen) or os.tcgetpgrp(screen) == os.getpgrp()
        except (OSError, ValueError):
            return True  # no terminal of this session

    handler.addFilter(is_ours)
    return handler


@dataclass
class _Lasting:
    """A trouble that has been said."""

    last: float  # when it came last, and when it was said last; of the clock
    said: float
    silent: int = 0  # how often it came since


class Trouble:
    """Says what goes wrong again and again: once, then every ten minutes how often, and when it is over.

    A process that tries again every second would else fill its log with one line, and hide all others in it. For any
    thread.
    """

    def __init__(self, log: logging.Logger, clock: Callable[[], float] = time.monotonic) -> None:
        self._log, self._clock = log, clock
        self._lock = threading.Lock()
        self._lasting: dict[str, _Lasting] = {}

    def say(self, text: str) -> None:
        """It has come. The same text is the same trouble."""
        self.settle()
        now = self._clock()
        with self._lock:
            one = self._lasting.get(text)
            if one is None:
                if len(self._lasting) < _MOST_TROUBLES:
                    self._lasting[text] = _Lasting(now, now)
                self._log.error("%s", text)
                return
            one.last = now
            one.silent += 1
            if now - one.said >= AGAIN_AFTER_S:
                self._log.error("%s (it came %s more since this was said)", text, counted(one.silent, "time"))
                one.said, one.silent = now, 0

    def settle(self) -> None:
        """To be called now and then: what has not come for a while is over, and how often it came is said."""
        now = self._clock()
        with self._lock:
            over = {text: one for text, one in self._lasting.items() if now - one.last >= OVER_AFTER_S}
            for text, one in over.items():
                del self._lasting[text]
                if one.silent:
                    self._log.info("no more, after %s: %s", counted(one.silent, "more time"), text)


def told(log: logging.Logger, error: BaseException, where: str) -> ErrorCode:
    """Write down why something is refused; the code is all of it that may be told.

    Args:
        log: of the caller.
        error: what was raised; what was not raised on purpose is written with its traceback.
        where: it happened.
    """
    expected = isinstance(error, WardroundError)
    log.error("%s: %s", where, error if expected else "unexpected failure", exc_info=None if expected else error)
    return code_of(error)


__all__ = ["LineFormatter", "Trouble", "log_to", "on_screen", "told"]
