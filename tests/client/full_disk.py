"""An agent whose home is on a small disk that is filled and emptied: `python -m tests.client.full_disk FOLDER`.

Mounts a tmpfs on FOLDER, so it must run in a mount namespace of its own. Prints what happened as one JSON object.
"""

import ctypes
import json
import os
import socket
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from client.agent import loop as agents
from client.agent.loop import Agent
from client.agent.status import read_status
from client.home.identity import load_identity
from client.site import open_site
from client.trail.audit_trail import open_log
from common.wire.messages import EvaluateRequest, Refusal, Reply, TrainRequest
from tests.client.agent.test_loop import PRIVATE_TOML, UPDATED, WEIGHTS, FakeWorker, Stage, good
from tests.client.coordinator import Authority, Coordinator
from tests.patience import PATIENCE_S, eventually

SIZE = 4 << 20
POLICY = "min-patients = 1\nlifetime-epsilon = 20.0\n"


def mount(folder: Path) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.mount(b"tmpfs", os.fsencode(folder), b"tmpfs", 0, f"size={SIZE}".encode()):
        raise OSError(ctypes.get_errno(), "mount")


def fill(folder: Path) -> None:
    """To the last byte."""
    with (folder / "ballast").open("ab", buffering=0) as file:
        for size in (1 << 16, 1 << 12, 1):
            try:
                while file.write(bytes(size)) == size:
                    pass
            except OSError:
                continue


def empty(folder: Path) -> None:
    (folder / "ballast").unlink()


def code(reply: Reply) -> str:
    return str(reply.code) if isinstance(reply, Refusal) else type(reply).__name__


@contextmanager
def running(home: Path, coordinator: Coordinator) -> Iterator[tuple[Stage, threading.Thread]]:
    worker = FakeWorker(good)
    agent = Agent(home, load_identity(home), worker)
    thread = threading.Thread(target=agent.run)
    thread.start()
    yield Stage(home, coordinator, worker, agent), thread
    agent.stop()
    thread.join(timeout=PATIENCE_S)


def main(home: Path) -> dict[str, object]:
    mount(home)
    agents.UPKEEP_S, agents.FULL_PAUSE_S = 0.05, 0.1
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    authority = Authority()
    coordinator = Coordinator(authority, port).start()
    authority.admit(home, "north", coordinator.address)
    (home / "policy.toml").write_text(POLICY)
    said: dict[str, object] = {}

    def train(stage: Stage, round_: int) -> str:
        coordinator.ask(TrainRequest(run_hash, round_, {"weights": WEIGHTS}))
        return code(stage.reply())

    with running(home, coordinator) as (stage, thread):
        run_hash = stage.propose(PRIVATE_TOML)
        stage.approve(run_hash)
        said["before"] = train(stage, 1)
        fill(home)
        said["full"] = [train(stage, 2), train(stage, 2)]
        coordinator.ask(EvaluateRequest(run_hash, 1, "validation", {"weights": UPDATED}))
        said["full, scores"] = code(stage.reply())
        said["alive"] = thread.is_alive()
        said["connections"] = coordinator.activations
        eventually(lambda: stage.agent._status._values["disk"] == "disk-full")
        empty(home)
        said["room again"] = train(stage, 2)
        eventually(lambda: read_status(home)["disk"] == "in order")

        def fill_now(question: object) -> object:
            fill(home)
            return good(question)  # type: ignore[arg-type]

        stage.worker.answer = fill_now  # type: ignore[assignment]
        said["full after the work"] = train(stage, 3)
        said["alive then"] = thread.is_alive()
    said["ended well"] = not thread.is_alive() and not stage.agent._failed
    with running(home, coordinator) as (stage, thread):
        eventually(lambda: stage.agent._status._values["disk"] == "disk-full")
        said["started on a full disk"] = thread.is_alive()
        empty(home)
        said["and with room"] = train(stage, 3)
    said["charges"] = [one.round for one in open_site(home).ledger.entries()]
    kinds = [entry.kind for entry in open_log(home).entries()]
    said["entries"] = {kind: kinds.count(kind) for kind in ("spend", "round")}
    coordinator.stop()
    return said


if __name__ == "__main__":
    sys.stdout.write(json.dumps(main(Path(sys.argv[1]))) + "\n")
