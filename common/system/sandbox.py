"""What a process gives up before it touches data, the worker first: network, keys, most of the disk, output.

Linux only where the kernel is concerned (prctl(2), unshare(2), user_namespaces(7), mount(2), landlock(7)); elsewhere
the functions say that they could not. Only the standard library is imported, here and in common/system/namespaces.py,
because all of this holds for the calling thread and those it starts: numpy and torch start threads when they are
imported, so this comes first.

The order matters: `remove_network` may make the user namespace in which `hide` may mount, and after `lock` nothing is
mounted or unmounted any more. What this process starts inherits all of it.
"""

import contextlib
import ctypes
import os
import resource
import signal
import struct
import sys
from collections.abc import Sequence
from pathlib import Path

from common.system.namespaces import leave_network, unshare

REMOVED = "removed"
HIDDEN = "hidden"
LOCKED = "locked"
# Of a site's home, what the worker has no use for: it gets the site key and the run by its pipe.
SECRETS = ("tls", "site.key", "audit.sqlite", "proposals", "outbox")
# Of a site's home, all that the worker may write to. Not its settings: who takes it over changes no policy.
WRITABLE = ("cache", "state", "scratch")
# Of the hidden, folders that are made later than the first worker: what is not there cannot be covered.
MADE_LATER = ("proposals", "outbox")

_PR_SET_PDEATHSIG = 1
_PR_SET_NO_NEW_PRIVS = 38
_CLONE_NEWNS = 0x00020000
_MS_RDONLY, _MS_NOSUID, _MS_NODEV, _MS_NOEXEC = 1, 2, 4, 8
_MS_BIND, _MS_REC, _MS_SLAVE = 0x1000, 0x4000, 0x80000

# landlock(7): the same numbers on all architectures; what may be asked for depends on the kernel's version of it.
_LANDLOCK_CREATE, _LANDLOCK_ADD, _LANDLOCK_RESTRICT = 444, 445, 446
_LANDLOCK_VERSION, _LANDLOCK_BENEATH, _LANDLOCK_PORT = 1, 1, 2
_WRITE_FILE, _REMOVE_AND_MAKE, _REFER, _TRUNCATE = 1 << 1, 0b1_1111_1111 << 4, 1 << 13, 1 << 14
_BIND_TCP, _CONNECT_TCP = 0b01, 0b10
_ABSTRACT_SOCKETS_AND_SIGNALS = 0b11


def die_with_parent() -> None:
    """Ask the kernel to kill this process when the agent's thread that started it ends."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)


def remove_network() -> str:
    """Move to a network namespace of our own: no interface, not even loopback.

    Returns:
        "removed", or why the kernel did not allow it.
    """
    problem = leave_network()
    return f"not removed: {problem}" if problem else REMOVED


def shed() -> None:
    """Keep the three standard files only, write no core file (it would hold images), and never gain a right."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    os.closerange(3, os.sysconf("SC_OPEN_MAX"))


def hide(paths: Sequence[Path]) -> str:
    """Cover files and folders with nothing, in a mount namespace of our own.

    Returns:
        "hidden", or why the kernel did not allow it.
    """
    if sys.platform != "linux":
        return f"not hidden: {sys.platform} has no mount namespaces"
    # Slave: what is mounted on the machine later is seen here, and nothing of this is seen there.
    problem = unshare(_CLONE_NEWNS) or _mount("none", Path("/"), None, _MS_REC | _MS_SLAVE)
    for path in paths:
        if problem or not path.exists():
            continue
        if path.is_dir():
            problem = _mount("none", path, "tmpfs", _MS_RDONLY | _MS_NOSUID | _MS_NODEV | _MS_NOEXEC)
        else:
            problem = _mount(os.devnull, path, None, _MS_BIND)
    return f"not hidden: {os.strerror(problem)}" if problem else HIDDEN


def lock(writable: Sequence[Path], ports: Sequence[int] = (), listening: Sequence[int] = ()) -> str:
    """Write nowhere but beneath these folders (and /dev, /proc); reach into no process that was there before us.

    That is: read no memory and send no signal, open no TCP connection, and change no mount.

    Args:
        writable: the folders.
        ports: of other machines, to which connections may be opened all the same.
        listening: of this machine, at which others may be waited for.

    Returns:
        "locked", or why the kernel did not allow it.
    """
    if sys.platform != "linux":
        return f"not locked: {sys.platform} has no Landlock"
    libc = ctypes.CDLL(None, use_errno=True)
    version = libc.syscall(_LANDLOCK_CREATE, None, 0, _LANDLOCK_VERSION)
    if version < 1:
        return f"not locked: the kernel has no Landlock ({os.strerror(ctypes.get_errno())})"
    rights = _WRITE_FILE | _REMOVE_AND_MAKE | (_REFER if version >= 2 else 0) | (_TRUNCATE if version >= 3 else 0)
    rules = struct.pack("=QQQ", rights, _BIND_TCP | _CONNECT_TCP, _ABSTRACT_SOCKETS_AND_SIGNALS)
    known = 8 if version < 4 else 16 if version < 6 else 24
    ruleset = libc.syscall(_LANDLOCK_CREATE, rules[:known], known, 0)
    problem = ctypes.get_errno() if ruleset < 0 else 0
    for folder in (*writable, Path("/dev"), Path("/proc")):
        if not problem:
            beneath = os.open(folder, os.O_PATH | os.O_CLOEXEC)
            rule = struct.pack("=Qi", rights, beneath)
            problem = ctypes.get_errno() if libc.syscall(_LANDLOCK_ADD, ruleset, _LANDLOCK_BENEATH, rule, 0) else 0
            os.close(beneath)
    # Port 0: one that the system chooses, to which some libraries bind before they connect.
    bound = [*([0] if ports else []), *listening]
    doors = [(_CONNECT_TCP, port) for port in ports] + [(_BIND_TCP, port) for port in bound]
    for right, port in doors if version >= 4 else ():
        if not problem:
            rule = struct.pack("=QQ", right, port)
            problem = ctypes.get_errno() if libc.syscall(_LANDLOCK_ADD, ruleset, _LANDLOCK_PORT, rule, 0) else 0
    libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)  # the kernel asks for it
    if not problem and libc.syscall(_LANDLOCK_RESTRICT, ruleset, 0):
        problem = ctypes.get_errno()
    if ruleset >= 0:
        os.close(ruleset)
    return f"not locked: {os.strerror(problem)}" if problem else LOCKED


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


def _mount(source: str, target: Path, kind: str | None, flags: int) -> int:
    libc = ctypes.CDLL(None, use_errno=True)
    named = None if kind is None else kind.encode()
    failed = libc.mount(source.encode(), os.fsencode(target), named, ctypes.c_ulong(flags), None)
    return ctypes.get_errno() if failed else 0
