"""How long a test waits for what must come true before it says that it failed.

So long that no machine which works at all is too slow, however much it does besides: a test that passes never waits
that long, so patience costs nothing. A time that is itself what is tested (a receive that ends after 0.2 s, a call
that is held) stands in its test.
"""

from collections.abc import Callable
from time import monotonic, sleep  # as they are, whatever a test puts in their place
from typing import Any

# For every wait: a condition, a process or thread that ends, an answer on a socket or of a call. Below the limit that
# pyproject.toml sets for a whole test, so that it is the wait which says what did not happen.
PATIENCE_S = 600.0


def eventually(
    check: Callable[[], Any], what: str | Callable[[], str] = "what is waited for", *, every_s: float = 0.02
) -> Any:
    """Wait until a check is true.

    Args:
        check: asked again and again.
        what: is to come true; or what tells it, with the logs of those that should have done it.
        every_s: seconds between two looks.

    Returns:
        What the check returned at last.
    """
    until = monotonic() + PATIENCE_S
    while not (value := check()):
        assert monotonic() < until, f"not in {PATIENCE_S:g} s: {what if isinstance(what, str) else what()}"
        sleep(every_s)
    return value


__all__ = ["PATIENCE_S", "eventually"]
