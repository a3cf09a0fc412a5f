"""A network of one's own, for root and for a user without rights: loopback works in it, and nothing else is there."""

import ctypes
import subprocess
import sys
from collections.abc import Callable

import pytest

from tests import ROOT

_PR_CAPBSET_DROP, _CAP_SYS_ADMIN = 24, 21

MAKES_ONE = """
import os, subprocess, sys
from common.system.namespaces import PrivateNetwork, network_of, private_network
made = private_network()
assert isinstance(made, PrivateNetwork), made
print("user" if made.user is not None else "ours")
INSIDE = '''
import http.client, http.server, os, socket, threading
server = http.server.HTTPServer(("127.0.0.1", 0), http.server.BaseHTTPRequestHandler)
threading.Thread(target=server.serve_forever, daemon=True).start()
connection = http.client.HTTPConnection("127.0.0.1", server.server_port)
connection.request("GET", "/")
connection.getresponse()
print([name for _, name in socket.if_nameindex()], os.getuid())
try:
    socket.create_connection(("192.0.2.1", 80), 1.0)
except OSError as error:
    print(error.strerror)
'''
print(subprocess.run([sys.executable, "-c", INSIDE], preexec_fn=made.enter, capture_output=True, text=True).stdout)
print(network_of(os.getpid()) != "", network_of(2**22 + 1) == "")
"""


def without_rights() -> None:
    """Between fork and exec: root without CAP_SYS_ADMIN is to the kernel what any user is here."""
    ctypes.CDLL(None, use_errno=True).prctl(_PR_CAPBSET_DROP, _CAP_SYS_ADMIN, 0, 0, 0)


@pytest.mark.parametrize("prepare", [None, without_rights], ids=["as we are", "without rights"])
def test_a_private_network_has_loopback_and_no_way_out(prepare: Callable[[], None] | None) -> None:
    found = subprocess.run(
        [sys.executable, "-c", MAKES_ONE], cwd=ROOT, preexec_fn=prepare, capture_output=True, text=True, check=False
    )
    assert found.returncode == 0, found.stderr
    kind, inside, unreachable, _, facts = found.stdout.splitlines()
    assert inside.startswith("['lo'] ")
    assert unreachable == "Network is unreachable"
    assert facts == "True True"
    if prepare is not None:
        assert kind == "user"
