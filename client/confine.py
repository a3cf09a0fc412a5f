"""What the worker gives up before it touches data: its network, its parent's absence, its standard output.

Linux only where the kernel is concerned (prctl(2), unshare(2), user_namespaces(7)); elsewhere the functions say
that they could not. Only the standard library is imported here, because a network namespace holds for the calling
thread and those it starts: numpy and torch start threads when they are imported, so this comes first.
"""

import ctypes
import errno
import os
import signal
import sys
from pathlib import Path

REMOVED = "removed"

_PR_SET_PDEATHSIG = 1
_CLONE_NEWUSER = 0x10000000
_CLONE_NEWNET = 0x40000000


def die_with_parent() -> None:
    """Ask the kernel to kill this process when the agent's thread that started it ends."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)


def remove_network() -> str:
    """Move to a network namespace of our own: no interface, not even loopback.

    Returns:
        "removed", or why the kernel did not allow it.
    """
    if sys.platform != "linux":
        return f"not removed: {sys.platform} has no network namespaces"
    user, group = os.getuid(), os.getgid()
    problem = _unshare(_CLONE_NEWNET)
    if problem == errno.EPERM:
        # Without CAP_SYS_ADMIN: in a user namespace of our own, where we stay who we are.
        problem = _unshare(_CLONE_NEWUSER | _CLONE_NEWNET)
        if not problem:
            Path("/proc/self/setgroups").write_text("deny", encoding="ascii")
            Path("/proc/self/uid_map").write_text(f"{user} {user} 1", encoding="ascii")
            Path("/proc/self/gid_map").write_text(f"{group} {group} 1", encoding="ascii")
    return f"not removed: {os.strerror(problem)}" if problem else REMOVED


def take_pipe() -> tuple[int, int]:
    """Keep the pipe to ourselves: whatever a library prints goes to the log (stderr), not between the frames.

    Returns:
        File descriptors to read questions from and write answers to; no child inherits them.
    """
    questions, answers = os.dup(0), os.dup(1)
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    os.dup2(2, 1)
    return questions, answers


def _unshare(flags: int) -> int:
    libc = ctypes.CDLL(None, use_errno=True)
    return ctypes.get_errno() if libc.unshare(flags) else 0
