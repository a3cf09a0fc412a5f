"""A network of our own for the whole test run: loopback, and a count of every attempt to reach anything else.

In a network namespace with no other interface each packet that wants out finds no route, and the kernel counts it: from
any process and any library, telemetry and name look-ups included. Linux, and only where the kernel allows it.
Source: namespaces(7), netdevice(7), RFC 4293 (ipSystemStatsOutNoRoutes).
"""

import contextlib
import ctypes
import fcntl
import os
import socket
import struct
import sys
from pathlib import Path

# Belongs to this machine and is no loopback address: what listens on 127.0.0.1 alone does not answer there.
OTHER_ADDRESS = "10.99.0.1"

_CLONE_NEWNET = 0x40000000
_SIOCSIFADDR, _SIOCGIFFLAGS, _SIOCSIFFLAGS = 0x8916, 0x8913, 0x8914
_IFF_UP = 1
_ENTERED = "WARDROUND_TESTS_ON_LOOPBACK"


def enter() -> bool:
    """Move this process, and all it starts, to a network of its own. False where the kernel does not allow it."""
    if sys.platform != "linux" or ctypes.CDLL(None, use_errno=True).unshare(_CLONE_NEWNET):
        return False
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        _up(control, b"lo")
        address = struct.pack("16sH2x4s8x", b"lo:1", socket.AF_INET, socket.inet_aton(OTHER_ADDRESS))
        fcntl.ioctl(control, _SIOCSIFADDR, address)
        _up(control, b"lo:1")
    os.environ[_ENTERED] = str(os.getpid())
    return True


def entered() -> bool:
    """Whether this process runs in a network of its own."""
    return _ENTERED in os.environ


def escapes() -> int:
    """Attempts to reach something beyond this machine, since `enter`."""
    count = 0
    with contextlib.suppress(OSError):
        names, values = (
            line.split() for line in Path("/proc/self/net/snmp").read_text().splitlines() if line.startswith("Ip:")
        )
        count += int(values[names.index("OutNoRoutes")])
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/net/snmp6").read_text().splitlines():
            if line.startswith("Ip6OutNoRoutes"):
                count += int(line.split()[1])
    return count


def own(address: str) -> None:
    """Make an IPv6 address this machine's, within the run's network: for a program that asks for the way there and
    sends nothing, which the kernel would count as an escape."""
    with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as control:
        request = struct.pack("16sIi", socket.inet_pton(socket.AF_INET6, address), 128, socket.if_nametoindex("lo"))
        with contextlib.suppress(FileExistsError):
            fcntl.ioctl(control, _SIOCSIFADDR, request)


def _up(control: socket.socket, name: bytes) -> None:
    request = fcntl.ioctl(control, _SIOCGIFFLAGS, struct.pack("16sH14x", name, 0))
    flags = struct.unpack("16sH14x", request)[1] | _IFF_UP
    fcntl.ioctl(control, _SIOCSIFFLAGS, struct.pack("16sH14x", name, flags))
