"""The most memory that this process has had, looked at from a given moment on."""

import ctypes
import gc
import resource
import sys
from contextlib import suppress
from pathlib import Path

import psutil

_STATUS, _RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def from_here() -> int:
    """Begin anew; returns the bytes that are held now."""
    gc.collect()
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)  # glibc: what is free already would count for nothing
    with suppress(OSError):
        _RESET.write_text("5")  # Linux: the peak starts anew (proc(5))
    return int(psutil.Process().memory_info().rss)


def most() -> int:
    """Bytes that this process has had in memory at most."""
    if _STATUS.exists():  # the other one may be of the process that started this one
        return 1024 * int(_STATUS.read_text().partition("VmHWM:")[2].split()[0])
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


__all__ = ["from_here", "most"]
