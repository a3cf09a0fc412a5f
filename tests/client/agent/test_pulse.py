"""What works is told from what hangs by the processor, not by its words."""

import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

from client.agent.pulse import Pulse


@contextmanager
def doing(code: str) -> Iterator[int]:
    """A process that has begun with it."""
    command = [sys.executable, "-c", f"print(flush=True)\n{code}"]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        try:
            yield process.pid
        finally:
            process.kill()


def processor_seconds(pid: int) -> float:
    """As the kernel says (proc(5)): fields 14 and 15 of stat, in hundredths."""
    with open(f"/proc/{pid}/stat") as file:  # noqa: PTH123 - not a path of ours
        fields = file.read().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / 100


def still_after(pid: int, seconds: float, every_s: float = 0.1) -> float:
    """What is said after so long, by one who looks now and then."""
    pulse, until = Pulse(pid), time.monotonic() + seconds
    while True:
        time.sleep(every_s)
        said = pulse.still_s()
        if time.monotonic() > until:
            return said


def test_process_that_waits_is_still_for_as_long_as_it_does() -> None:
    with doing("import time; time.sleep(600)") as pid:
        assert still_after(pid, 1.0) >= 1.0


def test_process_that_wakes_up_now_and_then_and_does_nothing_is_still() -> None:
    """Looked at seldom, as an agent does: the kernel counts by hundredths of a second, which are much of a tenth."""
    with doing("import time\nwhile True: time.sleep(0.05)") as pid:
        assert still_after(pid, 2.9, every_s=1.5) >= 1.0


def test_process_that_computes_is_not_still_however_long_it_says_nothing() -> None:
    with doing("while True: pass") as pid:
        before, pulse = processor_seconds(pid), Pulse(pid)
        while processor_seconds(pid) < before + 0.5:
            time.sleep(0.05)
        assert pulse.still_s() == 0.0


def test_process_whose_child_computes_is_not_still() -> None:
    code = "import os, time\nif os.fork():\n  time.sleep(600)\nelse:\n  parent = os.getppid()\n"
    code += "  while os.getppid() == parent: pass"
    with doing(code) as pid:
        time.sleep(0.5)
        pulse = Pulse(pid)
        time.sleep(1.0)
        assert pulse.still_s() == 0.0


def test_process_that_is_gone_is_still() -> None:
    with doing("pass") as pid:
        pass
    assert still_after(pid, 0.3) >= 0.2
