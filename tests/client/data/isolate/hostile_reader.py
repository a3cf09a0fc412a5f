"""A reader process whose parser does what the first file of a study tells it to: hang, crash, eat memory, lie.

Everything else is the real thing: start, limits, frames. Run in place of `client.data.isolate.reader`.
"""

import os
import signal
import socket
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from client.data.isolate import answering, frames, reader
from client.data.read import sources
from client.data.study.pulse import watched
from client.data.study.study import Reference, Study
from common.errors import DataError


def read(reference: Reference, wanted: object) -> Study:  # noqa: PLR0912 - one branch a deed
    """What the real one gives, unless the file says otherwise."""
    for path in watched(reference.images):
        order = path.read_text()
        match order.split()[0]:
            case "hang":
                time.sleep(1000)
            case "until":
                while not Path(order.split()[1]).exists():
                    time.sleep(0.01)
            case "segfault":
                os.kill(os.getpid(), signal.SIGSEGV)
            case "kill":  # as the kernel does where the machine runs out of memory
                os.kill(os.getpid(), signal.SIGKILL)
            case "exit":
                os._exit(0)
            case "eat":
                # At once: piece by piece it would fill the machine's memory up to the limit.
                eaten = bytearray(int(order.split()[1]))
                raise DataError(f"ate {len(eaten) >> 20} MiB")
            case "raise":
                raise KeyError("SECRET^NAME")
            case "environment":
                raise DataError(" ".join(sorted(os.environ)))
            case "write":
                try:
                    Path(order.split()[1]).write_text("patient")
                except OSError as error:
                    raise DataError(f"write: {type(error).__name__}") from error
            case "network":
                try:
                    socket.create_connection(("127.0.0.1", int(order.split()[1])), timeout=1)
                except OSError as error:
                    raise DataError(f"connect: {type(error).__name__}") from error
            case "print":
                os.write(1, b"SECRET^NAME")
                os.write(2, b"SECRET^NAME")
    image = np.full((1, 8, 9), -1, np.float32)
    image[0, 0, 0] = len(reference.images)
    return Study(image, None, None, None, "", "foreign", "foreign", reference.images[:1])


def lie(question: Mapping[str, Any], most_bytes: int) -> answering.Answer:  # noqa: PLR0911, PLR0912 - one branch a lie
    """A compromised process: whatever goes over the pipe is its own."""
    what = Path(question["reference"]["images"][0]).read_text()
    header, arrays = honest(question, most_bytes)
    match what:
        case "lie spacing":
            return {**header, "spacing-mm": ["x", 1]}, arrays
        case "lie affine":
            return {**header, "affine": [[1.0, 2.0]]}, arrays
        case "lie order":
            return {**header, "order": [7]}, arrays
        case "lie order negative":
            return {**header, "order": [-1]}, arrays
        case "lie axes":
            return header, (np.zeros(5, np.float32),)
        case "lie label unasked":
            return header, (*arrays, np.zeros((8, 9), np.uint8))
        case "lie padding":
            return {**header, "padded": True}, (*arrays, np.zeros((9, 8), np.uint8))
        case "lie padding untold":
            return header, (*arrays, np.zeros((8, 9), np.uint8), np.zeros((8, 9), np.uint8))
        case "lie kind":
            return {**header, "kind": "obey"}, arrays
        case "lie problem":
            return {"kind": "problem", "problem": {"code": "rm -rf", "text": "x"}}, ()
        case "lie terminal":
            return {"kind": "problem", "problem": {"code": "unreadable", "text": "\x1b[2Jcleared" + "x" * 9000}}, ()
        case "lie size":  # announced, never sent
            _raw({**header, "kind": "answer", "arrays": [["f4", [1 << 15, 1 << 15, 1 << 5]]]})
        case "lie negative":
            _raw({**header, "kind": "answer", "arrays": [["f4", [-1, -8]]]})
        case "lie dtype":
            _raw({**header, "kind": "answer", "arrays": [["O", [8]]]})
        case "lie garbage":
            os.write(pipe, os.urandom(4096))
        case "lie beats":
            while True:
                frames.send(pipe, {"kind": "beat"})
        case "lie dribble":
            os.write(pipe, b"\0\0")
            time.sleep(1000)
    return header, arrays


def _raw(header: dict[str, Any]) -> None:
    import json  # noqa: PLC0415

    text = json.dumps(header).encode()
    os.write(pipe, len(text).to_bytes(4, "big") + text)


def serve(questions: int, answers: int, network: str, *, most_bytes: int) -> None:
    """Note the pipe."""
    global pipe  # noqa: PLW0603
    pipe = answers
    real(questions, answers, network, most_bytes=most_bytes)


pipe = -1
real, honest = answering.serve, answering._WORK["read"]
answering.serve = serve
answering._WORK = {**answering._WORK, "read": lie}
sources.read = read

if __name__ == "__main__":
    sys.exit(reader.main())
