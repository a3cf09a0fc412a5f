"""How every process of ours writes its log: one line a record, and no line that foreign text has made.

Messages and errors may repeat what another side sent. A record is one line of visible signs; a traceback follows
indented, so that nothing in it begins like a record.
"""

import logging
import os
from collections.abc import Sequence

from common.text import shown

_FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"
_INDENT = "    "


class LineFormatter(logging.Formatter):
    """Time, level, name and message in one line; see the module."""

    def __init__(self) -> None:
        super().__init__(_FORMAT)

    def format(self, record: logging.LogRecord) -> str:
        """The record's line, and its traceback below."""
        record.message = record.getMessage()
        record.asctime = self.formatTime(record)
        below = [self.formatException(record.exc_info)] if record.exc_info and record.exc_info[0] else []
        below += [record.stack_info] if record.stack_info else []
        lines = [_INDENT + shown(line) for text in below for line in text.split("\n")]
        return "\n".join([shown(self.formatMessage(record)), *lines])


def log_to(level: int, handlers: Sequence[logging.Handler] | None = None) -> None:
    """Send the log of this process to these handlers; None: to stderr."""
    handlers = handlers or [logging.StreamHandler()]
    for handler in handlers:
        handler.setFormatter(LineFormatter())
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


__all__ = ["LineFormatter", "log_to", "on_screen"]
