"""Nothing that only Linux has is used where macOS, which the README names, would come by.

What exists where is read from the type stubs of the standard library (typeshed, which comes with mypy); the sources are
read by the parser. A name that macOS lacks may stand behind `sys.platform`, or where its absence is caught.
"""

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import mypy
import pytest

from tests import ROOT

PACKAGES = ("client", "common", "deploy", "server", "simulations")
STUBS = Path(mypy.__file__).parent / "typeshed" / "stdlib"
# Modules of the operating system, and where their stubs lie; what a star import brings along is read too.
STUB_OF = {
    "errno": "errno.pyi",
    "fcntl": "fcntl.pyi",
    "mmap": "mmap.pyi",
    "os": "os/__init__.pyi",
    "resource": "resource.pyi",
    "select": "select.pyi",
    "signal": "signal.pyi",
    "socket": "socket.pyi",
    "time": "time.pyi",
}


@cache
def names_on(platform: str, stub: str) -> frozenset[str]:
    """All names that a stub declares for a platform, its classes' members (of enumerations) included."""
    return frozenset(_declared(ast.parse((STUBS / stub).read_text(encoding="utf-8")).body, platform))


def _declared(body: list[ast.stmt], platform: str) -> Iterator[str]:
    for node in body:
        match node:
            case ast.If():
                yield from _declared(node.body if _holds(node.test, platform) else node.orelse, platform)
            case ast.FunctionDef() | ast.AsyncFunctionDef():
                yield node.name
            case ast.ClassDef():
                yield node.name
                yield from _declared(node.body, platform)
            case ast.AnnAssign(target=ast.Name(id=name)):
                yield name
            case ast.Assign():
                yield from (target.id for target in node.targets if isinstance(target, ast.Name))
            case ast.ImportFrom():
                yield from (alias.asname or alias.name for alias in node.names)


def _holds(test: ast.expr, platform: str) -> bool:
    """What a condition in a stub comes to; versions count as met."""
    match test:
        case ast.BoolOp(op=ast.And()):
            return all(_holds(one, platform) for one in test.values)
        case ast.BoolOp(op=ast.Or()):
            return any(_holds(one, platform) for one in test.values)
        case ast.UnaryOp(op=ast.Not()):
            return not _holds(test.operand, platform)
        case ast.Compare(ops=[ast.Eq()], comparators=[ast.Constant(value=str(name))]):
            return platform == name
        case ast.Compare(ops=[ast.NotEq()], comparators=[ast.Constant(value=str(name))]):
            return platform != name
    return True


def lacks(module: str, name: str) -> bool:
    """Whether Linux has the name and macOS has not."""
    stub = STUB_OF[module]
    return name in names_on("linux", stub) and name not in names_on("darwin", stub)


def test_the_stubs_know_what_macos_lacks() -> None:
    assert lacks("socket", "SOCK_NONBLOCK")
    assert lacks("os", "O_PATH")
    assert lacks("fcntl", "F_SETPIPE_SZ")
    assert not lacks("socket", "AF_UNIX")
    assert not lacks("os", "fork")
    assert not lacks("signal", "SIGTERM")


def unguarded(source: str) -> list[str]:
    """Names that only Linux has, used where nothing keeps macOS away: `module.name`, with the line."""
    tree = ast.parse(source)
    return [f"line {line}: {name}" for name, line in _uses(tree.body, guarded=False)]


def _uses(body: list[ast.stmt], *, guarded: bool) -> Iterator[tuple[str, int]]:
    for node in body:
        if isinstance(node, ast.If) and "sys.platform" in ast.unparse(node.test):
            yield from _uses(node.orelse, guarded=guarded)
            # `if sys.platform != "linux": return ...`: what follows is Linux's.
            guarded = guarded or isinstance(node.body[-1], ast.Return | ast.Raise)
            continue
        inner = guarded or _catches(node)
        children = [child for child in ast.iter_child_nodes(node) if not isinstance(child, ast.stmt)]
        if not inner:
            yield from (found for child in children for found in _names_in(child))
        for name in ("body", "orelse", "finalbody"):
            yield from _uses(getattr(node, name, []), guarded=inner)
        for handler in getattr(node, "handlers", []):
            yield from _uses(handler.body, guarded=inner)
        if isinstance(node, ast.Match):
            yield from (found for case in node.cases for found in _uses(case.body, guarded=inner))


def _catches(node: ast.stmt) -> bool:
    """Whether a statement lives with a missing attribute."""
    if isinstance(node, ast.With):
        return any("AttributeError" in ast.unparse(item.context_expr) for item in node.items)
    if isinstance(node, ast.Try):
        return any(
            handler.type is not None and "AttributeError" in ast.unparse(handler.type) for handler in node.handlers
        )
    return False


def _names_in(node: ast.AST) -> Iterator[tuple[str, int]]:
    if isinstance(node, ast.IfExp) and "sys.platform" in ast.unparse(node.test):
        return
    if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
        module = node.value.id
        if module in STUB_OF and lacks(module, node.attr):
            yield f"{module}.{node.attr}", node.lineno
    for child in ast.iter_child_nodes(node):
        yield from _names_in(child)


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("import socket\nx = socket.SOCK_DGRAM | socket.SOCK_NONBLOCK", ["line 2: socket.SOCK_NONBLOCK"]),
        ("def f():\n    with open(1):\n        return [os.O_PATH]", ["line 3: os.O_PATH"]),
        ("if sys.platform == 'linux':\n    os.setns(1)", []),
        ("def f():\n    if sys.platform != 'linux':\n        return\n    os.setns(1)", []),
        ("x = os.O_PATH if sys.platform == 'linux' else 0", []),
        ("with suppress(OSError, AttributeError):\n    fcntl.F_SETPIPE_SZ", []),
        ("try:\n    os.O_PATH\nexcept AttributeError:\n    pass", []),
        ("for x in y:\n    if z:\n        os.sched_setaffinity(0)", ["line 3: os.sched_setaffinity"]),
    ],
)
def test_a_use_without_a_guard_is_found_and_one_with_a_guard_is_none(source: str, found: list[str]) -> None:
    assert unguarded(source) == found


@pytest.mark.parametrize("package", PACKAGES)
def test_nothing_that_macos_lacks_is_used_without_a_guard(package: str) -> None:
    found = {
        f"{path.relative_to(ROOT)}": uses
        for path in sorted((ROOT / package).rglob("*.py"))
        if (uses := unguarded(path.read_text(encoding="utf-8")))
    }
    assert found == {}
