"""The worker gives its rights up for good: each claim is tried out in a process that went through the same door.

Where the kernel has no Landlock or allows no namespaces, the functions say so and these tests are skipped.
"""

import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from client.agent.worker_process import Worker
from client.commands import diagnosis
from common.system import sandbox
from tests import ROOT
from tests.patience import eventually

DOOR = """
import ctypes, json, os, resource, signal, socket, sys
from pathlib import Path
from common.system import sandbox
home, port, parent = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
sandbox.shed()
network = sandbox.remove_network()
keys = sandbox.hide([home / name for name in sandbox.SECRETS])
disk = sandbox.lock([home / name for name in sandbox.WRITABLE])
libc = ctypes.CDLL(None)
def tried(deed):
    try:
        return repr(deed())
    except OSError as error:
        return type(error).__name__
said = {"network": network, "keys": keys, "disk": disk}
said |= {name: tried(deed) for name, deed in {
    "tls": lambda: sorted(os.listdir(home / "tls")),
    "key": lambda: (home / "tls" / "key.pem").read_bytes(),
    "site key": lambda: (home / "site.key").read_bytes(),
    "site.toml": lambda: (home / "site.toml").read_text(),
    "its own": lambda: (home / "state" / "ledger").write_text("x")
    and (home / "state" / "ledger").rename(home / "state" / "moved").read_text(),
    "cache": lambda: (home / "cache" / "entry").write_bytes(b"x"),
    "policy": lambda: (home / "policy.toml").write_text("require-privacy = false"),
    "policy by rename": lambda: (home / "state" / "moved").rename(home / "policy.toml"),
    "settings": lambda: (home / "site.toml").write_text("x"),
    "forgotten": lambda: (home / "forgotten.sealed").unlink(),
    "in home": lambda: (home / "stray").write_text("x"),
    "beside home": lambda: (home.parent / "stray").write_text("x"),
    "over a picture": lambda: (home.parent / "pacs.dcm").write_text("x"),
    "remove a picture": lambda: (home.parent / "pacs.dcm").unlink(),
    "read a picture": lambda: (home.parent / "pacs.dcm").read_text(),
    "approval": lambda: (home / "proposals" / "answer.json").write_text("yes"),
    "audit log": lambda: (home / "audit.sqlite").read_text(),
    "new key": lambda: (home / "tls" / "key.pem").write_text("x"),
    "memory": lambda: open(f"/proc/{parent}/mem", "rb"),
    "other root": lambda: os.listdir(Path("/proc", str(parent), "root")),
    "signal": lambda: os.kill(parent, 0),
    "port": lambda: socket.create_connection(("127.0.0.1", port), 1),
    "listen": lambda: socket.create_server(("127.0.0.1", 0)),
    "abstract": lambda: socket.socket(socket.AF_UNIX).connect("\\0wardround-test-" + str(port)),
}.items()}
said["landlock"] = libc.syscall(444, None, 0, 1)
said["unmount"] = libc.umount2(os.fsencode(home / "tls"), 2)
said["escape"] = (libc.unshare(0x10020000), libc.umount2(os.fsencode(home / "tls"), 2))[1]
said["core"] = resource.getrlimit(resource.RLIMIT_CORE)
said["open"] = [fd for fd in range(3, 64) if Path(f"/proc/self/fd/{fd}").exists()]
said["rights"] = Path("/proc/self/status").read_text().split("NoNewPrivs:")[1].split()[0]
print(json.dumps(said))
"""


@pytest.fixture(scope="module")
def said(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, object]]:
    """What a process behind the door can do."""
    folder = tmp_path_factory.mktemp("hospital")
    home = folder / "home"
    for name in ("tls", "proposals", *sandbox.WRITABLE):
        (home / name).mkdir(parents=True)
    for name in ("policy.toml", "forgotten.sealed"):
        (home / name).write_text("as the hospital wrote it")
    (home / "proposals" / "answer.json").write_text("no")
    (home / "audit.sqlite").write_text("log")
    (home / "tls" / "key.pem").write_text("TLS KEY")
    (home / "site.key").write_bytes(b"S" * 32)
    (home / "site.toml").write_text("name")
    (folder / "pacs.dcm").write_text("picture")
    inherited = os.open(home / "tls" / "key.pem", os.O_RDONLY)
    with socket.create_server(("127.0.0.1", 0)) as server, socket.socket(socket.AF_UNIX) as local:
        port = server.getsockname()[1]
        local.bind(f"\0wardround-test-{port}")
        local.listen()
        arguments = [sys.executable, "-c", DOOR, str(home), str(port), str(os.getpid())]
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        done = subprocess.run(
            arguments, env=environment, capture_output=True, text=True, pass_fds=[inherited], check=False
        )
    os.close(inherited)
    assert done.returncode == 0, done.stderr
    found: dict[str, object] = json.loads(done.stdout)
    for key, wanted in (("network", sandbox.REMOVED), ("keys", sandbox.HIDDEN), ("disk", sandbox.LOCKED)):
        if found[key] != wanted:
            assert str(found[key]).startswith("not ")
            pytest.skip(f"the kernel here gives no such protection: {found[key]}")
    yield found
    assert (home / "tls" / "key.pem").read_text() == "TLS KEY", "what is hidden in there must be whole out here"
    assert (home / "site.key").read_bytes() == b"S" * 32
    assert (folder / "pacs.dcm").read_text() == "picture"
    assert (home / "proposals" / "answer.json").read_text() == "no"
    assert not (folder / "stray").exists()
    for name in ("policy.toml", "forgotten.sealed"):
        assert (home / name).read_text() == "as the hospital wrote it"


def test_keys_are_out_of_reach_and_the_way_back_is_closed(said: dict[str, object]) -> None:
    assert (said["tls"], said["key"], said["site key"]) == ("[]", "FileNotFoundError", "b''")
    assert (said["unmount"], said["escape"]) == (-1, -1)
    assert said["other root"] == "PermissionError"
    assert str(said["new key"]).endswith("Error")


def test_neither_approvals_nor_the_audit_log_can_be_touched(said: dict[str, object]) -> None:
    assert str(said["approval"]).endswith("Error")
    assert said["audit log"] == "''"


def test_writes_go_to_its_own_folders_and_nowhere_else(said: dict[str, object]) -> None:
    assert (said["its own"], said["cache"]) == ("'x'", "1")
    for deed in ("in home", "beside home", "over a picture", "remove a picture"):
        assert said[deed] == "PermissionError", deed


def test_policy_and_settings_cannot_be_changed_by_the_process_that_parses_images(said: dict[str, object]) -> None:
    for deed in ("policy", "settings", "forgotten"):
        assert said[deed] == "PermissionError", deed
    assert said["policy by rename"] in ("PermissionError", "OSError")


def test_what_the_worker_needs_can_be_read(said: dict[str, object]) -> None:
    assert (said["site.toml"], said["read a picture"]) == ("'name'", "'picture'")


def test_other_processes_of_the_same_user_are_out_of_reach(said: dict[str, object]) -> None:
    assert said["memory"] == "PermissionError"
    assert str(said["abstract"]).endswith("Error")
    if int(str(said["landlock"])) >= 6:  # younger kernels guard signals too
        assert said["signal"] == "PermissionError"


def test_no_port_of_the_host_answers_and_none_can_be_opened(said: dict[str, object]) -> None:
    assert str(said["port"]).endswith("Error")
    assert str(said["listen"]).endswith("Error")


def test_no_core_file_no_inherited_file_and_no_new_right(said: dict[str, object]) -> None:
    assert (said["core"], said["open"], said["rights"]) == ([0, 0], [], "1")


def test_real_worker_and_doctor_say_what_was_given_up(tmp_path: Path, said: dict[str, object]) -> None:
    (tmp_path / "tls").mkdir()
    (tmp_path / "site.toml").write_text('name = "north"\n')
    worker = Worker(tmp_path, threads=1)
    worker.tend()
    log = tmp_path / "logs" / "worker.log"
    try:
        eventually(lambda: _is_ready(worker), "the worker", every_s=0.1)
    finally:
        worker.stop()
    assert "network removed, keys hidden, disk locked" in log.read_text()
    (finding,) = (one for one in diagnosis.examine(tmp_path) if one.what == "worker's files")
    assert finding.ok, finding.detail


def _is_ready(worker: Worker) -> bool:
    worker.tend()
    return worker.network == sandbox.REMOVED
