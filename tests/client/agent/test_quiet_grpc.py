"""What a hospital's screen shows is ours: gRPC writes no lines between."""

import os
import subprocess
import sys
import threading
import tomllib
from pathlib import Path

import grpc

from common.identity import certificates
from common.wire import channels
from tests import ROOT
from tests.patience import PATIENCE_S

# Starts as wardround-client does, says what gRPC found when it was loaded, and then waits for an answer of a server,
# until that is stopped.
WAITS = """
import importlib.abc
import os
import sys
from importlib.metadata import EntryPoint
from pathlib import Path

class Watch(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name == "grpc._cython":
            print(os.environ.get("GRPC_VERBOSITY"), file=sys.stderr)

sys.meta_path.insert(0, Watch())
_, script, address, root = sys.argv
sys.argv[1:] = ["--version"]
try:
    EntryPoint("wardround-client", script, "console_scripts").load()()
except SystemExit as done:
    assert not done.code

from common.wire import channels
with channels.secure_channel(address, Path(root).read_bytes()) as channel:
    print(channel.unary_unary("/test/Held").future(b"").code().name, file=sys.stderr)
"""


def test_end_of_a_connection_is_no_line_of_grpc_on_the_screen_of_a_hospital(tmp_path: Path, free_port: int) -> None:
    key, root_key = certificates.new_key(), certificates.new_key()
    root = certificates.new_root(root_key, "root")
    (tmp_path / "root.pem").write_bytes(certificates.to_pem(root))
    certificate = certificates.server_certificate(key, ["127.0.0.1"], root, root_key)
    credentials = channels.Credentials(certificates.key_to_pem(key), certificates.to_pem(certificate), None)
    called, over = threading.Event(), threading.Event()

    def held(_request: bytes, _context: object) -> bytes:
        called.set()
        over.wait()
        return b""

    def add(server: grpc.Server) -> None:
        handlers = {"Held": grpc.unary_unary_rpc_method_handler(held)}
        server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler("test", handlers)])

    server = channels.serve(f"127.0.0.1:{free_port}", lambda: credentials, add, workers=2)
    script = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]["wardround-client"]
    command = [sys.executable, "-c", WAITS, script, f"127.0.0.1:{free_port}", str(tmp_path / "root.pem")]
    environment = {name: value for name, value in os.environ.items() if name != "GRPC_VERBOSITY"}
    process = subprocess.Popen(command, cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True)
    try:
        assert called.wait(PATIENCE_S)
        server.stop(0).wait()
    finally:
        over.set()
        _, said = process.communicate(timeout=PATIENCE_S)
    assert said in {"ERROR\nCANCELLED\n", "ERROR\nUNAVAILABLE\n"}
