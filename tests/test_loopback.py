"""The guard of the whole run sees what it is there to see."""

import subprocess
import sys

import pytest

from tests import ROOT, loopback

# In a network of the child's own, so that the run's count stays at nothing.
CHILD = """
import socket
from tests import loopback
assert loopback.enter() and loopback.escapes() == 0
server = socket.create_server(("127.0.0.1", 0))
socket.create_connection(server.getsockname()).close()
second = socket.create_server((loopback.OTHER_ADDRESS, 0))
socket.create_connection(second.getsockname()).close()
assert loopback.escapes() == 0
other = socket.socket().connect_ex((loopback.OTHER_ADDRESS, server.getsockname()[1]))
assert other != 0
for family, address in ((socket.AF_INET, "192.0.2.1"), (socket.AF_INET6, "2001:db8::1")):
    try:
        socket.socket(family).connect((address, 443))
    except OSError:
        pass
try:
    socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b"x", ("192.0.2.1", 53))
except OSError:
    pass
print(loopback.escapes())
"""


@pytest.mark.skipif(not loopback.entered(), reason="the kernel allows no network namespaces here")
def test_every_attempt_to_leave_is_counted_and_loopback_is_not() -> None:
    done = subprocess.run([sys.executable, "-c", CHILD], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) >= 2  # IPv6 may be switched off
