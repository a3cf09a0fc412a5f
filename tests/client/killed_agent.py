"""An agent that is killed, by SIGKILL, at one place of its round: `python -m tests.client.killed_agent HOME PLACE`."""

import os
import signal
import sys
from pathlib import Path

from client.agent import loop
from client.agent.fleet import Fleet
from client.agent.loop import Agent
from client.home.identity import load_identity
from client.trail import log_exchange
from tests.client.agent.test_loop import FakeWorker, good


def die(*_: object) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    home, place = Path(sys.argv[1]), sys.argv[2]
    loop.UPKEEP_S = 0.05
    if place == "before the push":
        Fleet.push = die  # type: ignore[assignment,method-assign]
    if place == "before the countersignature":
        log_exchange.LogExchange.delivered = die  # type: ignore[assignment,method-assign]
    Agent(home, load_identity(home), FakeWorker(good)).run()
