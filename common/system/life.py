"""Signs of life: a file that a process touches while it is well, so that others can tell without asking it.

For health checks of containers, which come every half minute and must cost next to nothing: only the standard library
and common/text.py are imported here, and nothing is sent. The age of a file counts, so a process that hangs is found
out as well as one that is gone.
"""

import contextlib
import os
import sys
import time
from pathlib import Path

from common.text import shown

SIGN_OF_LIFE_S = 10.0


class SignOfLife:
    """One process's file; `give` as often as one likes, it is touched every ten seconds."""

    def __init__(self, path: Path, *, make: bool = False) -> None:
        """Nothing is touched yet.

        Args:
            path: of the file.
            make: it need not be there before.
        """
        self._path, self._make = path, make
        self._next = 0.0  # of the clock

    def give(self) -> None:
        """Touch the file if that is due; where that cannot be done, nothing is said."""
        now = time.monotonic()
        if now >= self._next:
            self._next = now + SIGN_OF_LIFE_S
            with contextlib.suppress(OSError):
                self._path.touch(mode=0o600) if self._make else os.utime(self._path)


def age_s(path: Path) -> float:
    """Seconds since the last sign of life; infinite where there never was one."""
    try:
        return time.time() - path.stat().st_mtime
    except OSError:
        return float("inf")


def home_of(variable: str, default: Path) -> Path:
    """The folder that a health check is about, which takes no argument but `--alive`."""
    return Path(os.environ.get(variable) or default)


def told(problem: str) -> int:
    """Say what is wrong, in a line.

    Returns:
        The exit code of the health check.
    """
    sys.stdout.write(f"{shown(problem) or 'well'}\n")
    return 1 if problem else 0


__all__ = ["SIGN_OF_LIFE_S", "SignOfLife", "age_s", "home_of", "told"]
