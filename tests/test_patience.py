"""No test waits by a clock or a limit of its own: what is waited for has the patience of all (tests/patience.py).

A limit of seconds that is ample on one machine is too short on another, and what fails there is a test of something
else.
"""

import ast
from collections.abc import Iterator
from typing import TypeAlias

import pytest

from tests import ROOT
from tests.rooms import place, tree

# What does something for so long by the clock, and does not wait for it: doubles that hold a call as a gateway does, a
# look that lasts, faults that strike and end.
OWN_CLOCK = (
    "tests/patience.py",
    "tests/client/coordinator.py",
    "tests/system/ear.py",
    "tests/client/agent/test_pulse.py",
    "tests/faults/line.py",
    "tests/faults/stage.py",
    "tests/faults/kinds.py",
    "tests/faults/trial.py",
)
CLOCKS = ("monotonic", "perf_counter", "time")
# Settings of what is tested, which happen to be called like a limit.
SETTINGS = ("Dimse", "DicomWeb")
# No longer than this it is a look, or a limit that shall be reached.
SHORT_S = 1.0

Node: TypeAlias = ast.expr | ast.stmt


def waits(source: ast.AST) -> Iterator[Node]:
    """Loops that look at a clock to see whether they have waited too long."""
    for loop in ast.walk(source):
        if isinstance(loop, ast.While) and any(_compares_a_clock(node) for node in ast.walk(loop)):
            yield loop


def limits(source: ast.AST) -> Iterator[Node]:
    """Calls that wait for so many seconds and no more: as `timeout`, or as the one argument of what always waits."""
    for node in ast.walk(source):
        if not isinstance(node, ast.Call) or _name(node.func) in SETTINGS:
            continue
        given = [one.value for one in node.keywords if one.arg == "timeout"]
        if isinstance(node.func, ast.Attribute) and node.func.attr in ("join", "wait", "result", "settimeout"):
            given += node.args
        if any(isinstance(one, ast.Constant) and _is_long(one.value) for one in given):
            yield node


def test_every_wait_has_the_patience_of_all() -> None:
    found = {path: tree(path) for path in sorted((ROOT / "tests").rglob("*.py"))}
    judged = {path: source for path, source in found.items() if str(path.relative_to(ROOT)) not in OWN_CLOCK}
    assert len(found) - len(judged) == len(OWN_CLOCK)
    own = [place(path, node) for path, source in judged.items() for node in (*waits(source), *limits(source))]
    assert own == []


@pytest.mark.parametrize(
    "code",
    [
        "until = time.monotonic() + 5\nwhile not done():\n    assert time.monotonic() < until",
        "while not done() and monotonic() < until: pass",
        "while not done():\n    if until < time.time(): break",
        "process.communicate(timeout=60)",
        "subprocess.run(words, timeout=120.0)",
        "thread.join(10)",
        "connection.settimeout(5)",
        "stub.Check(request, timeout=10)",
    ],
)
def test_every_wait_with_a_limit_of_its_own_is_seen(code: str) -> None:
    assert [*waits(ast.parse(code)), *limits(ast.parse(code))]


@pytest.mark.parametrize(
    "code",
    [
        "while not done(): time.sleep(0.1)",
        "assert time.monotonic() - began < 30",
        "while left:\n    seen.append(time.monotonic())",
        "process.communicate(timeout=PATIENCE_S)",
        "queue.get(timeout=0.3)",
        "', '.join(words)",
        "Dimse(name='main', timeout=60)",
    ],
)
def test_what_is_no_such_wait_is_not_taken_for_one(code: str) -> None:
    assert [*waits(ast.parse(code)), *limits(ast.parse(code))] == []


def _compares_a_clock(node: ast.AST) -> bool:
    if not isinstance(node, ast.Compare):
        return False
    return any(isinstance(one, ast.Call) and _name(one.func) in CLOCKS for one in ast.walk(node))


def _name(called: ast.expr) -> str:
    return called.attr if isinstance(called, ast.Attribute) else called.id if isinstance(called, ast.Name) else ""


def _is_long(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and value > SHORT_S
