import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from common.errors import FederationError
from common.wire import channels
from server import enrolment, launcher
from server.home import Home
from server.registry import Registry
from tests.server.coordinator import new_home

pytestmark = pytest.mark.system

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def home(tmp_path) -> Home:
    return new_home(tmp_path / "home")


@contextmanager
def started(home: Home) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        [sys.executable, "-m", "server.cli", "start", "--home", str(home.path)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line.startswith("ready: gateway "), (line, process.stderr and process.stderr.read())
        yield process
    finally:
        process.terminate()
        process.communicate(timeout=40)


def family(process: subprocess.Popen[str]) -> list[psutil.Process]:
    return psutil.Process(process.pid).children(recursive=True)


def named(process: subprocess.Popen[str], word: str) -> psutil.Process:
    return next(child for child in family(process) if word in " ".join(child.cmdline()))


def alive(processes: list[psutil.Process]) -> list[psutil.Process]:
    # Where nobody reaps orphans, a dead process stays as a zombie.
    return [one for one in processes if one.is_running() and one.status() != psutil.STATUS_ZOMBIE]


def wait_for(condition: Callable[[], object], timeout_s: float = 30.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.1)


def test_it_serves_restarts_what_dies_and_leaves_nothing_behind(home):
    left_over = home.flower / "apps" / "earlier-run" / "run.toml"
    left_over.parent.mkdir(parents=True)
    left_over.touch()
    with started(home) as process:
        assert not left_over.exists()
        assert launcher.is_running(home)
        assert {door.name: door.state for door in launcher.doors(home)} == {
            "gateway": "up",
            "enrolment": "closed: no invitation is open",
            "superlink": "up",
        }
        enrolment.invite(home, Registry(home.registry), "st-mary")
        wait_for(lambda: launcher.is_listening(home.config.enrolment_port))
        with channels.secure_channel(home.enrolment_address, home.root_pem) as channel:
            reply = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=10)
        assert reply.status == health_pb2.HealthCheckResponse.SERVING
        assert "Handshake failed" not in (home.logs / "gateway.log").read_text()

        second = subprocess.run(
            [sys.executable, "-m", "server.cli", "start", "--home", str(home.path)],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=False,
        )
        assert second.returncode == 1
        assert "runs already" in second.stderr

        gateway = named(process, "server.serve")
        gateway.kill()
        wait_for(lambda: not gateway.is_running())
        wait_for(lambda: launcher.is_listening(home.config.gateway_port))

        everything = family(process)
        assert len(everything) >= 3  # SuperLink, its SuperExec, the doors
        start = time.monotonic()
        process.terminate()
        assert process.wait(30) == 0
        assert time.monotonic() - start < 15
    assert alive(everything) == []
    assert not launcher.is_running(home)
    for log in ("superlink.log", "gateway.log"):
        assert (home.logs / log).stat().st_size > 0


def test_a_killed_launcher_takes_its_children_with_it_and_the_home_starts_again(home):
    with started(home) as process:
        everything = family(process)
        os.kill(process.pid, signal.SIGKILL)
        wait_for(lambda: not alive(everything))
    with started(home) as process:
        assert launcher.is_running(home)
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 0


def test_port_of_another_program_is_not_called_ours(home, tmp_path):
    stranger = new_home(tmp_path / "stranger")
    with started(stranger), socket.create_server(("127.0.0.1", home.config.enrolment_port)):
        config = home.config.model_copy(update={"gateway_port": stranger.config.gateway_port})
        states = {door.name: door for door in launcher.doors(Home(home.path, config))}
    assert {name: door.ok for name, door in states.items()} == {
        "gateway": False,
        "enrolment": False,
        "superlink": False,
    }
    assert "another program" in states["gateway"].state
    assert "another program" in states["enrolment"].state
    assert states["superlink"].state == "down"


def test_log_that_grows_is_cut_while_its_process_goes_on(tmp_path, monkeypatch):
    monkeypatch.setattr(launcher, "_LOG_BYTES", 1000)
    log = tmp_path / "one.log"
    with log.open("ab") as writer:
        for number in range(5):
            writer.write(f"{number}".encode() * 400)
            writer.flush()
            launcher._trim(log)
    assert log.read_bytes() == b"3" * 400 + b"4" * 400
    assert log.with_suffix(".log.1").read_bytes() == b"0" * 400 + b"1" * 400 + b"2" * 400


def test_superlink_listens_on_loopback_only(home):
    with started(home) as process:
        superlink = named(process, "flower-superlink")
        listening = [one.laddr for one in superlink.net_connections("tcp") if one.status == psutil.CONN_LISTEN]
        assert {address.ip for address in listening} == {"127.0.0.1"}
        assert {address.port for address in listening} == {home.config.superlink_port}


@pytest.mark.parametrize("name", ["gateway_port", "enrolment_port", "superlink_port"])
def test_a_port_in_use_is_named_with_what_to_do(home, name):
    port = getattr(home.config, name)
    with socket.socket() as other:
        other.bind(("127.0.0.1", port))
        other.listen()
        key = name.replace("_", "-")
        with pytest.raises(FederationError, match=rf"port {port} \({key}\).*set another {key} in .*server\.toml"):
            launcher.start(home, lambda _: None)
