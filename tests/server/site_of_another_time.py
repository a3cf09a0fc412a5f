"""A site whose clock is off: `python -m tests.server.site_of_another_time ADDRESS FOLDER SECONDS ROUNDS`.

FOLDER holds root.pem, key.pem and certificate.pem. It works as the agent does, on the agent's own Fleet; answers each
message with the round as its update, and prints how far its clock is ahead by its own reckoning.
"""

import sys
import threading
import time
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from flwr.app.message import message as flower_message
from flwr.supercore import date

from client.agent import fleet as fleets
from client.agent.fleet import Fleet
from common.flower.packing import question_of, reply_to
from common.wire import clock
from common.wire.channels import secure_channel
from common.wire.messages import TrainReply
from common.wire.records import reply_to_record, request_from_record


class Off:
    """The module `time` on this site. Not gRPC's, which would mistake the difference for its calls' deadlines."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds

    def time(self) -> float:
        return time.time() + self._seconds

    def __getattr__(self, name: str) -> Any:
        return getattr(time, name)


def set_clocks(off_s: float) -> None:
    """Ours and Flower's; that of the TLS library is the machine's, which no test can move."""
    right = date.now

    def now() -> datetime:
        return right() + timedelta(seconds=off_s)

    date.now = flower_message.now = now  # type: ignore[attr-defined]
    vars(fleets)["time"] = vars(clock)["time"] = Off(off_s)


def main(address: str, folder: Path, off_s: float, rounds: int) -> None:
    """Answer as many messages as there are rounds."""
    set_clocks(off_s)
    root, key, certificate = ((folder / f"{name}.pem").read_bytes() for name in ("root", "key", "certificate"))
    with secure_channel(address, root, key, certificate, max_receive_bytes=64_000_000) as channel:
        fleet = Fleet(channel, threading.Event())
        fleet.activate()
        sys.stdout.write(f"{fleet.ahead_s:.0f}\n")
        sys.stdout.flush()
        for _ in range(rounds):
            while (pulled := fleet.pull()) is None:
                pass
            request = request_from_record(fleet.fetch(*pulled, 64_000_000).content)
            reply = TrainReply(request.run_hash, request.round, {"weights": bytes([request.round])}, 10, {})
            fleet.push(reply_to(question_of(pulled[0]), reply_to_record(reply)))
        fleet.close()


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), float(sys.argv[3]), int(sys.argv[4]))
