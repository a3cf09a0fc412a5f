"""A program that is to stop when asked: after what it has in hand, or at once but in order."""

import signal
import sys
from collections.abc import Callable
from typing import NoReturn


def asked_to_stop() -> Callable[[], bool]:
    """Catch SIGTERM and SIGINT from now on.

    Returns:
        Whether one has come. The second of a kind does not wait: it ends the program as if it were not caught.
    """
    signals: list[int] = []  # a handler may only do what cannot block

    def stop(received: int, _frame: object) -> None:
        signals.append(received)
        signal.signal(received, signal.SIG_DFL)

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, stop)
    return lambda: bool(signals)


def end_in_order() -> None:
    """From now on SIGTERM ends the program as Ctrl-C does: what it started and made for a while goes with it.

    The exit code is 143, as of a program that the signal killed. A second one does not wait.
    """

    def end(received: int, _frame: object) -> NoReturn:
        signal.signal(received, signal.SIG_DFL)
        sys.exit(128 + received)

    signal.signal(signal.SIGTERM, end)


__all__ = ["asked_to_stop", "end_in_order"]
