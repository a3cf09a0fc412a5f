import os
import signal
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from common.errors import ConfigError, FederationError
from common.system.namespaces import network_of
from common.wire import channels
from server.commands import doctor
from server.coordinator import health, supervisor
from server.coordinator.doors import doors
from server.gateway import enrolment
from server.home.folder import Home, open_home
from server.home.key_agent import KeyAgent
from server.registry.registry import Registry
from server.registry.sites import Presence
from tests import ROOT
from tests.patience import PATIENCE_S, eventually
from tests.server.coordinators import enrol, is_listening, new_home

pytestmark = pytest.mark.system


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return new_home(tmp_path / "home")


@contextmanager
def started(home: Home) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        [sys.executable, "-m", "server.commands.main", "start", "--home", str(home.path)],
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
        process.communicate(timeout=PATIENCE_S)


def family(process: subprocess.Popen[str]) -> list[psutil.Process]:
    children: list[psutil.Process] = psutil.Process(process.pid).children(recursive=True)
    return children


def named(process: subprocess.Popen[str], word: str) -> psutil.Process:
    return next(child for child in family(process) if word in " ".join(child.cmdline()))


def alive(processes: list[psutil.Process]) -> list[psutil.Process]:
    # Where nobody reaps orphans, a dead process stays as a zombie.
    return [one for one in processes if one.is_running() and one.status() != psutil.STATUS_ZOMBIE]


def test_it_serves_restarts_what_dies_and_leaves_nothing_behind(home, monkeypatch):
    monkeypatch.setattr("server.coordinator.doors._PROBE_S", PATIENCE_S)
    left_over = home.flower / "apps" / "earlier-run" / "run.toml"
    left_over.parent.mkdir(parents=True)
    left_over.touch()
    with started(home) as process:
        assert not left_over.exists()
        assert supervisor.is_running(home)
        assert {door.name: door.state for door in doors(home)} == {
            "gateway": "up",
            "enrolment": "closed: no invitation is open",
            "superlink": "up",
            "superexec": "up",
        }
        enrolment.invite(home, Registry(home.registry), "st-mary")
        eventually(lambda: is_listening(home.config.enrolment_port))
        with channels.secure_channel(home.enrolment_address, home.root_pem) as channel:
            reply = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=PATIENCE_S)
        assert reply.status == health_pb2.HealthCheckResponse.SERVING
        assert "Handshake failed" not in (home.logs / "gateway.log").read_text()
        eventually(lambda: not health.problem_of(home.path, alive=False))

        second = subprocess.run(
            [sys.executable, "-m", "server.commands.main", "start", "--home", str(home.path)],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=False,
        )
        assert second.returncode == 1
        assert "runs already" in second.stderr

        gateway = named(process, "server.coordinator.serve")
        gateway.kill()
        eventually(lambda: not gateway.is_running())
        eventually(lambda: is_listening(home.config.gateway_port))

        everything = family(process)
        assert len(everything) == 3  # SuperLink, its SuperExec, the doors
        process.terminate()
        assert process.wait(PATIENCE_S) == 0
    assert alive(everything) == []
    assert not supervisor.is_running(home)
    for log in ("superlink.log", "superexec.log", "gateway.log"):
        assert (home.logs / log).stat().st_size > 0


def test_a_killed_launcher_takes_its_children_with_it_and_the_home_starts_again(home):
    with started(home) as process:
        everything = family(process)
        os.kill(process.pid, signal.SIGKILL)
        eventually(lambda: not alive(everything))
    with started(home) as process:
        assert supervisor.is_running(home)
        process.send_signal(signal.SIGINT)
        assert process.wait(PATIENCE_S) == 0


def test_port_of_another_program_is_not_called_ours(home, tmp_path):
    stranger = new_home(tmp_path / "stranger")
    with started(stranger), socket.create_server(("127.0.0.1", home.config.enrolment_port)):
        config = home.config.model_copy(update={"gateway_port": stranger.config.gateway_port})
        states = {door.name: door for door in doors(Home(home.path, config))}
    assert {name: door.ok for name, door in states.items()} == {
        "gateway": False,
        "enrolment": False,
        "superlink": False,
        "superexec": False,
    }
    assert "another program" in states["gateway"].state
    assert "another program" in states["enrolment"].state
    assert states["superlink"].state == "down"


def test_where_the_gateway_is_not_there_the_enrolment_port_is_down_and_not_closed(home):
    assert not Registry(home.registry).is_expecting()
    assert {door.name: (door.ok, door.state) for door in doors(home)} == dict.fromkeys(
        ("gateway", "enrolment", "superlink", "superexec"), (False, "down")
    )


def test_nobody_is_here_until_a_site_has_called_the_gateway_that_runs(home, monkeypatch):
    registry = Registry(home.registry)
    enrol(home, registry, "a")
    registry.set_presence("a", Presence.HERE)  # as a coordinator that was killed left it
    looks: list[Presence] = []

    def rest(_holder: KeyAgent, _seconds: float) -> None:
        looks.append(registry.site("a").presence)
        if looks[-1] is Presence.AWAY or len(looks) > 1000:
            raise FederationError("seen enough")
        time.sleep(0.02)

    def announce(_line: str) -> None:
        assert registry.site("a").presence is Presence.AWAY
        registry.set_presence("a", Presence.HERE)

    gateway = supervisor._Child("gateway", ["sleep", "0.2"], {"PATH": os.defpath}, home.logs / "gateway.log")
    monkeypatch.setattr(supervisor, "_children", lambda *_: [gateway])
    monkeypatch.setattr(supervisor, "_network", lambda _: None)
    monkeypatch.setattr(supervisor, "_await_ready", lambda *_: None)
    monkeypatch.setattr(KeyAgent, "rest", rest)
    with pytest.raises(FederationError, match="seen enough"):
        supervisor.start(home, announce)
    assert looks[0] is Presence.HERE
    assert looks[-1] is Presence.AWAY


def test_log_that_grows_is_cut_while_its_process_goes_on(tmp_path, monkeypatch):
    monkeypatch.setattr(supervisor, "_LOG_BYTES", 1000)
    log = tmp_path / "one.log"
    with log.open("ab") as writer:
        for number in range(5):
            writer.write(f"{number}".encode() * 400)
            writer.flush()
            supervisor._trim(log)
    assert log.read_bytes() == b"3" * 400 + b"4" * 400
    assert log.with_suffix(".log.1").read_bytes() == b"0" * 400 + b"1" * 400 + b"2" * 400


@pytest.mark.parametrize("word", ["flower-superexec", "server.coordinator.superlink", "server.coordinator.serve"])
def test_status_tells_the_truth_of_a_killed_process_and_it_is_started_again(home, word):
    name = {"server.coordinator.serve": "gateway"}.get(word, word[-9:])
    with started(home) as process:
        killed = named(process, word)
        # The launcher is held back from starting it again, so that there is something to see.
        os.kill(process.pid, signal.SIGSTOP)
        killed.kill()
        eventually(lambda: not alive([killed]))
        assert name in {door.name for door in doors(home) if not door.ok}
        os.kill(process.pid, signal.SIGCONT)
        eventually(lambda: all(door.ok for door in doors(home)))
        assert named(process, word).pid != killed.pid


def test_a_superexec_follows_its_superlink_because_the_runs_are_lost_with_it(home):
    with started(home) as process:
        superexec = named(process, "flower-superexec")
        named(process, "server.coordinator.superlink").kill()
        eventually(lambda: not alive([superexec]))
        eventually(lambda: all(door.ok for door in doors(home)))


LISTENING = "import psutil; print([one.laddr for one in psutil.net_connections('tcp') if one.status == 'LISTEN'])"
REACHES = """
import socket, sys
port, path = int(sys.argv[1]), sys.argv[2]
try:
    socket.create_connection(("127.0.0.1", port), 5.0)
    print("loopback is open")
except ConnectionRefusedError:
    print("loopback refuses")
try:
    socket.socket(socket.AF_UNIX).connect(path)
    print("socket is open")
except (PermissionError, FileNotFoundError):
    print("socket refuses")
"""
NOBODY = 65534


def test_no_other_account_reaches_the_superlink(home):
    # As another account of this host, who knows the port and the socket's place, and has read a token in `ps`.
    with started(home) as process:
        superlink, superexec = named(process, "server.coordinator.superlink"), named(process, "flower-superexec")
        here = network_of(os.getpid())
        assert network_of(superlink.pid) == network_of(superexec.pid) != here
        assert network_of(named(process, "server.coordinator.serve").pid) == here
        assert home.superlink == home.path / "superlink.sock"
        assert stat.S_IMODE(home.superlink.stat().st_mode) == 0o600
        port = home.config.superlink_port
        if os.getuid() == 0:
            home.path.chmod(0o711)  # even if somebody opened the folder
            asked = subprocess.run(
                ["/usr/bin/env", "python3", "-c", REACHES, str(port), str(home.superlink)],
                user=NOBODY,
                env={"PATH": "/usr/bin:/bin"},
                cwd="/",
                capture_output=True,
                text=True,
                check=False,
            )
            home.path.chmod(0o700)
            assert asked.stdout == "loopback refuses\nsocket refuses\n", asked.stderr
            # Within, it listens on loopback and nowhere else.
            # By a program: code of ours between fork and exec may abort where another thread is in gRPC.
            inside = ["nsenter", f"--net=/proc/{superlink.pid}/ns/net"]
            found = subprocess.run(
                [*inside, sys.executable, "-c", LISTENING], capture_output=True, text=True, check=True
            )
            assert found.stdout == f"[addr(ip='127.0.0.1', port={port})]\n"
        else:
            assert not is_listening(port)


def test_without_a_network_of_its_own_start_says_so_and_asks_for_the_setting(home, monkeypatch):
    monkeypatch.setattr(supervisor, "private_network", lambda: "Operation not permitted")
    with pytest.raises(ConfigError, match=r"Operation not permitted.*private-network = false in .*server\.toml"):
        supervisor.start(home, lambda _: None)
    assert not is_listening(home.config.gateway_port)


def test_with_the_setting_it_starts_on_the_shared_loopback_and_doctor_says_what_that_means(home):
    text = (home.path / "server.toml").read_text()
    assert "private-network = true\n" in text  # the shipped default
    (home.path / "server.toml").write_text(text.replace("private-network = true", "private-network = false"))
    shared = open_home(home.path)
    with started(shared) as process:
        assert network_of(named(process, "flower-superexec").pid) == network_of(os.getpid())
        assert all(door.ok for door in doors(shared))
        assert is_listening(shared.config.superlink_port)
        assert doctor.superlink_addresses(shared) == {"127.0.0.1"}
        (finding,) = [one for one in doctor.examine(shared) if one.what == "superlink network"]
        assert "any account of this host" in finding.detail


@pytest.mark.parametrize("name", ["gateway_port", "enrolment_port", "superlink_port"])
def test_a_port_in_use_is_named_with_what_to_do(home, name):
    port = getattr(home.config, name)
    home = Home(home.path, home.config.model_copy(update={"private_network": False}))
    with socket.socket() as other:
        other.bind(("127.0.0.1", port))
        other.listen()
        key = name.replace("_", "-")
        with pytest.raises(FederationError, match=rf"port {port} \({key}\).*set another {key} in .*server\.toml"):
            supervisor.start(home, lambda _: None)
