"""An agent that is killed, by SIGKILL, at one place of its round: `python -m tests.client.killed_agent HOME PLACE`."""

import os
import signal
import sys
from pathlib import Path

from client import agent, witness
from client.agent import Agent
from client.enrol import load_identity
from client.fleet import Fleet
from tests.client.test_agent import FakeWorker, good


def die(*_: object) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    home, place = Path(sys.argv[1]), sys.argv[2]
    agent.UPKEEP_S = 0.05
    if place == "before the push":
        Fleet.push = die  # type: ignore[assignment,method-assign]
    if place == "before the countersignature":
        witness.Witness.delivered = die  # type: ignore[assignment,method-assign]
    Agent(home, load_identity(home), FakeWorker(good)).run()
