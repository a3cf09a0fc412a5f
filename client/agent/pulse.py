"""Whether a worker that is being asked works or hangs: by the processor time that it and its readers use.

Silence says nothing: reading a large cohort for the first time takes an hour, a step on a slow computer minutes. What
has used no processor for some minutes waits for something that does not come: a lock, a driver, a file server that is
away. It says so however much there is to do, and needs no word of the worker's.
"""

import time

import psutil

# A worker that is so long still is said to hang, and ended if it is so for longer. No wait within our programs lasts
# beyond the first: a minute, for a locked file.
HANGS_S, STALLED_S = 90.0, 300.0
# Less of a core is what a process uses that waits and wakes up now and then.
LEAST_SHARE = 0.01


class Pulse:
    """Of one process and those that it has started, from now on."""

    def __init__(self, pid: int, least_share: float = LEAST_SHARE) -> None:
        """Of `pid`; least_share: of a core, that is no work."""
        self._pid, self._least = pid, least_share
        self._looked = self._moved = time.monotonic()
        self._used_s = _cpu_seconds(pid)

    def still_s(self) -> float:
        """Seconds since they last used the processor, as far as was looked; to be asked every few seconds."""
        now, used_s = time.monotonic(), _cpu_seconds(self._pid)
        more_s = used_s - self._used_s
        # Less than before: one of those that it has started is gone, which is a change too.
        if more_s < 0 or more_s > self._least * (now - self._looked):
            self._moved = now
        self._looked, self._used_s = now, used_s
        return now - self._moved


def _cpu_seconds(pid: int) -> float:
    """User and system time of a process and of its living children; 0 once it is gone."""
    try:
        process = psutil.Process(pid)
        every = [process, *process.children(recursive=True)]
    except psutil.NoSuchProcess:
        return 0.0
    total = 0.0
    for one in every:
        try:
            times = one.cpu_times()
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
        total += times.user + times.system
    return total


__all__ = ["HANGS_S", "LEAST_SHARE", "STALLED_S", "Pulse"]
