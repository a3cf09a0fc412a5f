"""A program that is to stop when asked, after what it has in hand."""

import signal
from collections.abc import Callable


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


__all__ = ["asked_to_stop"]
