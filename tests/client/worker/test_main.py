"""The worker process: its frames are safe from prints, it has no network, and it never outlives its agent."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch

from client.agent import worker_process
from client.agent.worker_process import Worker
from client.home.folder import RESIDUALS_NAME
from client.home.offer import Offer
from client.rules import exit_gate
from client.site import open_site
from client.train.answer import _device
from client.worker import loop, protocol
from client.worker.protocol import Describe, PipeError, Work
from common.config import RunConfig, sha256_of, validate
from common.config.rundocument import issue
from common.errors import ConfigError, ErrorCode
from common.learning.checkpoint import pack, unpack
from common.learning.network import build_model
from common.system import sandbox
from common.wire.frames import Frame
from common.wire.messages import EvaluateReply, EvaluateRequest, Refusal, TrainReply, TrainRequest
from simulations.generators.anatomy import SCANNERS
from simulations.generators.phantoms import write_hospital
from tests import ROOT
from tests.patience import PATIENCE_S, eventually

RUN = validate(
    RunConfig,
    {
        "name": "tiny",
        "model": {"channels": [8, 16]},
        "data": {"modality": "CT", "classes": ["lesion"]},
        "preprocessing": {"spacing-mm": [6.0, 6.0], "intensity": "window", "window": [-100, 250]},
        "training": {"local-steps": 2, "batch-size": 2, "patch-size": [16, 16]},
        "federation": {"rounds": 2},
    },
)
PATIENTS = 4


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    write_hospital(folder / "pacs", scanner=SCANNERS["a"], patients=PATIENTS, seed=1, slices=3, rows=48)
    (folder / "site.toml").write_text('name = "north"\nthreads = 1\n[[data]]\npath = "pacs"\n')
    (folder / "policy.toml").write_text("require-privacy = false\nmin-patients = 1\nmin-held-out = 1\n")
    return folder


@pytest.fixture(scope="module")
def worker(home: Path) -> Iterator[Worker]:
    """One real worker for all tests of this file: starting it takes seconds."""
    one = Worker(home, threads=1)
    one.tend()
    yield one
    one.stop()
    assert one.pid is None


def weights() -> bytes:
    return pack(build_model(RUN).state_dict())


def python(code: str, **keywords: Any) -> subprocess.Popen[bytes]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(
        [sys.executable, "-c", code], env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, **keywords
    )


def test_worker_says_what_the_site_has(worker: Worker) -> None:
    offer = worker.ask(Describe(issue(RUN)), PATIENCE_S)
    assert isinstance(offer, Offer)
    parameters = sum(one.numel() for one in build_model(RUN).parameters())
    assert (offer.patients, offer.quarantined, offer.parameters) == (PATIENTS, {}, parameters)
    assert worker.network == sandbox.REMOVED or worker.network.startswith("not removed: ")


def test_worker_trains_and_evaluates_with_the_client_app(worker: Worker) -> None:
    trained = worker.ask(Work(issue(RUN), TrainRequest(sha256_of(RUN), 1, {"weights": weights()}), "a.1"), PATIENCE_S)
    assert isinstance(trained, TrainReply)
    assert unpack(trained.parts["weights"]).keys() == unpack(weights()).keys()
    assert trained.parts["weights"] != weights()
    request = EvaluateRequest(sha256_of(RUN), 1, "validation", {"weights": trained.parts["weights"]})
    scores = worker.ask(Work(issue(RUN), request, "a.2"), PATIENCE_S)
    assert isinstance(scores, EvaluateReply)
    assert 0 <= scores.metrics["dice"] <= 1


@pytest.mark.parametrize("precision", ["bfloat16", "int8"])
def test_what_a_real_worker_rounds_passes_the_gate_and_what_rounding_took_is_in_its_home(
    worker: Worker, home: Path, precision: str
) -> None:
    """A worker may write to few places of its home. Trained again, the round gives the same bytes."""
    values = RUN.model_dump(by_alias=True)
    federation = {**values["federation"], "rounds": 3, "update-precision": precision}
    run = validate(RunConfig, {**values, "format": 2, "federation": federation, "deterministic": True})
    sent = []
    for number, attempt in ((1, "a"), (2, "b"), (2, "c")):
        request = TrainRequest(sha256_of(run), number, {"weights": weights()})
        trained = worker.ask(Work(issue(run), request, attempt), PATIENCE_S)
        assert isinstance(trained, TrainReply)
        left = exit_gate.release(trained, request, run)
        assert isinstance(left, TrainReply)
        sent.append(bytes(left.parts["weights"]))
    assert sent[1] == sent[2] != sent[0]
    assert len(sent[0]) <= {"bfloat16": 0.51, "int8": 0.26}[precision] * len(weights())
    kept = (home / RESIDUALS_NAME / sha256_of(run)).glob("*")
    assert sorted(path.name for path in kept) == ["1.sealed", "2.sealed"]


def test_what_goes_wrong_is_a_code_on_the_pipe_and_a_reason_in_the_log(worker: Worker, home: Path) -> None:
    bad = TrainRequest(sha256_of(RUN), 1, {"weights": b"not a model"})
    assert worker.ask(Work(issue(RUN), bad, "a.3"), PATIENCE_S) == Refusal(sha256_of(RUN), 1, ErrorCode.WRONG_TENSORS)
    other = validate(RunConfig, RUN.model_dump() | {"data": {"modality": "MR", "classes": ("lesion",)}})
    refusal = worker.ask(Describe(issue(other)), PATIENCE_S)
    assert isinstance(refusal, Refusal)
    assert "safetensors" in (home / "logs" / "worker.log").read_text()


def test_worker_killed_while_it_works_is_reported_and_the_next_question_answered(worker: Worker) -> None:
    worker.ask(Describe(issue(RUN)), PATIENCE_S)
    pid = worker.pid
    assert pid is not None
    os.kill(pid, signal.SIGSTOP)
    threading.Timer(1.0, os.kill, (pid, signal.SIGKILL)).start()
    with pytest.raises(PipeError) as caught:
        worker.ask(Describe(issue(RUN)), PATIENCE_S)
    assert caught.value.code == ErrorCode.WORKER_FAILED
    assert isinstance(worker.ask(Describe(issue(RUN)), PATIENCE_S), Offer)
    assert worker.pid not in (None, pid)


def test_worker_that_hangs_is_ended_at_the_deadline(worker: Worker) -> None:
    worker.ask(Describe(issue(RUN)), PATIENCE_S)
    pid = worker.pid
    assert pid is not None
    os.kill(pid, signal.SIGSTOP)
    with pytest.raises(PipeError) as caught:
        worker.ask(Describe(issue(RUN)), 0.2)
    assert caught.value.code == ErrorCode.DEADLINE
    assert not psutil.pid_exists(pid)


def test_worker_that_hangs_is_noticed_long_before_the_deadline_and_the_next_one_answers(
    worker: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker.ask(Describe(issue(RUN)), PATIENCE_S)
    pid = worker.pid
    assert pid is not None
    monkeypatch.setattr(worker_process, "STALLED_S", 0.5)
    monkeypatch.setattr(worker_process, "_LOOK_EVERY_S", 0.1)
    os.kill(pid, signal.SIGSTOP)
    with pytest.raises(PipeError, match="hangs") as caught:
        worker.ask(Describe(issue(RUN)), 3600.0)
    assert caught.value.code == ErrorCode.WORKER_FAILED  # for which it is asked once more
    assert not psutil.pid_exists(pid)
    monkeypatch.undo()
    assert isinstance(worker.ask(Describe(issue(RUN)), PATIENCE_S), Offer)


def test_gpu_vanished_ends_the_worker_for_one_that_looks_for_it_anew(
    home: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def lost(*_: object) -> None:
        raise torch.AcceleratorError("CUDA error: unspecified launch failure")

    monkeypatch.setattr(loop, "answer_request", lost)
    question = Work(issue(RUN), TrainRequest(sha256_of(RUN), 1, {"weights": weights()}), "attempt")
    with pytest.raises(torch.AcceleratorError):
        loop.answer(question, home)
    assert "the GPU has failed" in caplog.text


def test_gpu_vanished_from_a_site_that_wants_one_is_said_with_what_to_do(
    tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    (tmp_path / "site.toml").write_text((home / "site.toml").read_text().replace("threads", 'device = "cuda"\nthreads'))
    with pytest.raises(ConfigError, match="nvidia-smi"):
        _device(open_site(tmp_path))


SMALL = """
import sys
from pathlib import Path
from client.agent.worker_process import Worker
from client.worker.protocol import Work
from common.wire.messages import TrainReply, TrainRequest
from tests.patience import PATIENCE_S
from tests.client.worker.test_main import RUN, issue, sha256_of, weights
worker = Worker(Path(sys.argv[1]), threads=1)
request = TrainRequest(sha256_of(RUN), 1, {"weights": weights()})
answer = worker.ask(Work(issue(RUN), request, "small"), PATIENCE_S)
worker.stop()
sys.exit(0 if isinstance(answer, TrainReply) else str(answer))
"""


def test_shared_memory_too_small_costs_a_worker_nothing(home: Path, tmp_path: Path) -> None:
    """Containers give /dev/shm 64 MB, and what loads images in several processes fails there; 4 kB here."""
    mounted = "mount -t tmpfs -o size=4k tmpfs /dev/shm"
    if subprocess.run(["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", mounted], check=False).returncode:
        pytest.skip("the kernel lets no user mount a /dev/shm of its own")
    command = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", f'{mounted} && exec "$@"', "sh"]
    done = subprocess.run(
        [*command, sys.executable, "-c", SMALL, str(home)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        cwd=tmp_path,
        check=False,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr


def test_environment_of_the_worker_holds_no_secrets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTPS_PROXY", "http://user:password@proxy")
    monkeypatch.setenv("SOME_TOKEN", "secret")
    one = Worker(tmp_path, threads=3)
    one.tend()
    try:
        assert one.pid is not None
        environment = psutil.Process(one.pid).environ()
    finally:
        one.stop()
    assert not {"HTTPS_PROXY", "SOME_TOKEN"} & environment.keys()
    assert environment["OMP_NUM_THREADS"] == "3"


def test_broken_worker_is_restarted_with_pauses_and_never_hangs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "executable", "/bin/false")
    one = Worker(tmp_path)
    for _ in range(2):
        with pytest.raises(PipeError):
            one.ask(Describe(issue(RUN)), PATIENCE_S)
    with pytest.raises(PipeError, match="not running"):
        one.ask(Describe(issue(RUN)), PATIENCE_S)
    one.stop()


def test_prints_do_not_reach_the_frames() -> None:
    code = (
        "import os, subprocess\n"
        "from common.system import sandbox\n"
        "questions, answers = sandbox.take_pipe()\n"
        "print('print'); os.write(1, b'write'); os.system('echo child'); assert os.read(0, 1) == b''\n"
        "from client.worker import protocol\n"
        "protocol.send(answers, protocol.receive(questions))\n"
    )
    process = python(code, stderr=subprocess.PIPE)
    assert process.stdin is not None
    protocol.send(process.stdin.fileno(), Frame({"kind": "echo"}, {"one": b"payload"}))
    output, log = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 0, log
    length = len(json.dumps({"header": {"kind": "echo"}, "parts": [["one", 7]]}, separators=(",", ":")))
    assert len(output) == 4 + length + len(b"payload")
    assert all(word in log for word in (b"print", b"write", b"child"))


def test_network_is_gone_where_the_kernel_allows_it(free_port: int) -> None:
    code = (
        "import socket\n"
        "from common.system import sandbox\n"
        "said = sandbox.remove_network()\n"
        "probe = socket.socket()\n"
        "probe.settimeout(1)\n"
        f"failed = probe.connect_ex(('127.0.0.1', {free_port}))\n"
        "print(said, failed, [name for _, name in socket.if_nameindex()])\n"
    )
    with socket.create_server(("127.0.0.1", free_port)):
        output, _ = python(code).communicate(timeout=PATIENCE_S)
    said = output.decode().strip()
    if said.startswith("not removed"):
        pytest.skip(f"this kernel does not allow network namespaces here: {said}")
    assert said.startswith("removed ")
    assert not said.startswith("removed 0 ")
    assert said.endswith("['lo']")


def test_worker_dies_with_its_agent() -> None:
    child = (
        "from common.system import sandbox; import time; "
        "sandbox.die_with_parent(); print('up', flush=True); time.sleep(600)"
    )
    parent = (
        "import subprocess, sys, time\n"
        f"child = subprocess.Popen([sys.executable, '-c', {child!r}], stdout=subprocess.PIPE)\n"
        "child.stdout.readline()\n"
        "print(child.pid, flush=True)\n"
        "time.sleep(600)\n"
    )
    process = python(parent)
    assert process.stdout is not None
    pid = int(process.stdout.readline())
    assert psutil.pid_exists(pid)
    process.kill()
    process.wait()
    eventually(lambda: not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE)
