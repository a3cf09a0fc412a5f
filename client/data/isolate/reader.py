"""The process that parses: it holds the libraries that decode foreign files, and nothing that could be stolen.

Started by `client.data.isolate.child`, which may kill it at any time. This file is the door: before the first file is
opened it gives up its network, the means to write files, and memory beyond a limit; its environment holds no secret,
and what its libraries print goes nowhere. Only then it imports what parses (`client.data.isolate.answering`).

    python -P -m client.data.isolate.reader LIMIT      frames on stdin and stdout; LIMIT in bytes of address space
"""

import contextlib
import resource
import sys
from collections.abc import Sequence
from pathlib import Path

from common.system import sandbox

_OPEN_FILES = 64


def main(arguments: Sequence[str] | None = None) -> int:
    """Answer questions until the pipe is closed."""
    (memory,) = map(int, sys.argv[1:] if arguments is None else arguments)
    sandbox.die_with_parent()
    network = sandbox.remove_network()
    questions, answers = sandbox.take_pipe()
    _limit(memory)

    from client.data.isolate import answering  # noqa: PLC0415 - under the limits

    answering.serve(questions, answers, network, most_bytes=memory // 2)
    return 0


def _limit(memory: int) -> None:
    """Limits of the kernel, for good: address space, no core file (it would show the patient), no file that grows."""
    with contextlib.suppress(OSError):  # where the machine's memory runs out, this process goes first
        Path("/proc/self/oom_score_adj").write_text("1000", encoding="ascii")
    limits = {
        resource.RLIMIT_AS: memory,
        resource.RLIMIT_CORE: 0,
        resource.RLIMIT_FSIZE: 0,
        resource.RLIMIT_NOFILE: _OPEN_FILES,
    }
    for what, most in limits.items():
        hard = resource.getrlimit(what)[1]
        bound = most if hard == resource.RLIM_INFINITY else min(most, hard)
        with contextlib.suppress(ValueError, OSError):  # macOS knows some of them by name only
            resource.setrlimit(what, (bound, bound))


if __name__ == "__main__":
    sys.exit(main())
