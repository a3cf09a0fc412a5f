"""Network namespaces of Linux: unshare(2), setns(2), user_namespaces(7), network_namespaces(7), netdevice(7).

Only the standard library is imported: all of this holds for the calling thread and those it starts, so it comes before
libraries that start threads.
"""

import ctypes
import errno
import fcntl
import os
import socket
import struct
import sys
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

_CLONE_NEWUSER = 0x10000000
_CLONE_NEWNET = 0x40000000
# netdevice(7); a request is 40 bytes: the interface's name in 16, then its flags.
_SIOCGIFFLAGS, _SIOCSIFFLAGS, _IFF_UP = 0x8913, 0x8914, 1


@dataclass(frozen=True)
class PrivateNetwork:
    """A network namespace with a loopback of its own and nothing else, for processes that are started into it.

    It lasts while this process holds it, or one lives in it.
    """

    network: int  # descriptors of the namespaces
    user: int | None  # in which the network's was made; None: our own

    def enter(self) -> None:
        """Move this process there. For a child between fork and exec: the process must have one thread.

        Raises:
            OSError: the kernel does not allow it.
        """
        libc = ctypes.CDLL(None, use_errno=True)
        for descriptor, kind in ((self.user, _CLONE_NEWUSER), (self.network, _CLONE_NEWNET)):
            if descriptor is not None and libc.setns(descriptor, kind):
                raise OSError(ctypes.get_errno(), "setns")

    def close(self) -> None:
        """Hold it no longer."""
        for descriptor in (self.user, self.network):
            if descriptor is not None:
                os.close(descriptor)


def leave_network() -> str:
    """Move to a network namespace of our own: no interface is up, not even loopback.

    Returns:
        "", or why the kernel did not allow it.
    """
    if sys.platform != "linux":
        return f"{sys.platform} has no network namespaces"
    problem = unshare(_CLONE_NEWNET)
    return os.strerror(problem) if problem else ""


def unshare(kind: int) -> int:
    """Move to a namespace of our own, of one kind; 0, or the number of the error.

    Who may not (without CAP_SYS_ADMIN) does it in a user namespace of its own, and stays who it is.
    """
    user, group = os.getuid(), os.getgid()
    problem = _unshare(kind)
    if problem == errno.EPERM:
        problem = _unshare(_CLONE_NEWUSER | kind)
        if not problem:
            Path("/proc/self/setgroups").write_text("deny", encoding="ascii")
            Path("/proc/self/uid_map").write_text(f"{user} {user} 1", encoding="ascii")
            Path("/proc/self/gid_map").write_text(f"{group} {group} 1", encoding="ascii")
    return problem


def private_network() -> PrivateNetwork | str:
    """Make one; why the kernel did not allow it otherwise. Forks, so the process should have one thread."""
    if sys.platform != "linux":
        return f"{sys.platform} has no network namespaces"
    (told, tell), (wait, release) = os.pipe(), os.pipe()
    child = os.fork()
    if not child:
        os._exit(_make_and_wait(tell, wait, (told, release)))
    for descriptor in (tell, wait):
        os.close(descriptor)
    try:
        with os.fdopen(told) as answer:
            problem = answer.read()
        return problem or _opened(child)
    finally:
        os.close(release)
        os.waitpid(child, 0)


def network_of(pid: int) -> str:
    """Which network namespace a process is in, by the kernel's name for it; empty where it cannot be told."""
    with suppress(OSError):
        return str(Path(f"/proc/{pid}/ns/net").readlink())
    return ""


def _make_and_wait(tell: int, wait: int, others: tuple[int, int]) -> int:
    """The child: make the namespaces, say how it went, and be there until the parent has opened them."""
    for descriptor in others:
        os.close(descriptor)
    try:
        problem = leave_network()
        if not problem:
            _raise_loopback()
    except OSError as error:
        problem = str(error.strerror)
    os.write(tell, problem.encode())
    os.close(tell)
    os.read(wait, 1)
    return 0


def _opened(child: int) -> PrivateNetwork:
    own, found = Path("/proc/self/ns"), Path(f"/proc/{child}/ns")
    same = (own / "user").readlink() == (found / "user").readlink()
    user = None if same else os.open(found / "user", os.O_RDONLY | os.O_CLOEXEC)
    return PrivateNetwork(os.open(found / "net", os.O_RDONLY | os.O_CLOEXEC), user)


def _raise_loopback() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        request = struct.pack("16sh22x", b"lo", 0)
        _, flags = struct.unpack("16sh22x", fcntl.ioctl(control, _SIOCGIFFLAGS, request))
        fcntl.ioctl(control, _SIOCSIFFLAGS, struct.pack("16sh22x", b"lo", flags | _IFF_UP))


def _unshare(flags: int) -> int:
    libc = ctypes.CDLL(None, use_errno=True)
    return ctypes.get_errno() if libc.unshare(flags) else 0


__all__ = ["PrivateNetwork", "leave_network", "network_of", "private_network", "unshare"]
