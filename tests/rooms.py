"""The rooms of the house and the arrows between them, read from the sources.

    python -m tests.rooms            every room, how many files it holds, and the rooms it imports; exit 1 on a circle

A room is a folder with code in it. An import counts wherever it stands: in a function, under TYPE_CHECKING, by name
through importlib. The parser decides, not the import system, so a module that nobody imports yet is held to
the rules too.
"""

import ast
import functools
import re
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from tests import ROOT

PACKAGES = ("client", "common", "server", "simulations")
# What Flower loads. A door stands in front of its house and opens into a room: it is a room of its own.
DOORS = ("client.app", "server.app")
# A page that is filled, or that another one extends, is an import too.
_TEMPLATE = re.compile(rf'"((?:{"|".join(PACKAGES)})/[a-z_/]+\.(?:html|svg))"')


def modules(*packages: str) -> Iterator[Path]:
    """The sources of packages."""
    for package in packages or PACKAGES:
        yield from sorted((ROOT / package).rglob("*.py"))


def tree(path: Path) -> ast.Module:
    """The syntax tree of a source."""
    return ast.parse(path.read_text(encoding="utf-8"), filename=str(path))


def name_of(path: Path) -> str:
    """Dotted name of a module or package."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


@functools.cache
def imports(path: Path, *, at_once: bool = False) -> tuple[str, ...]:
    """Dotted names of all that a file imports; `from a import b` gives a and a.b.

    Args:
        path: of the source.
        at_once: only what is imported when the module is, not within a function or for types.
    """
    return tuple(_imports(path, at_once=at_once))


def _imports(path: Path, *, at_once: bool) -> Iterator[str]:
    for node in _at_once(tree(path)) if at_once else ast.walk(tree(path)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(filter(None, [_package(path, node.level), node.module]))
            yield base
            yield from (f"{base}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Call) and called(node) in ("import_module", "importlib.import_module", "__import__"):
            assert node.args, f"{place(path, node)}: an import whose name the contract cannot read"
            assert isinstance(node.args[0], ast.Constant), f"{place(path, node)}: import by a computed name"
            yield str(node.args[0].value)


def called(node: ast.Call) -> str:
    """What a call calls, as it is written."""
    return ast.unparse(node.func)


def place(path: Path, node: ast.expr | ast.stmt) -> str:
    """Where an expression or a statement stands, file:line."""
    return f"{path.relative_to(ROOT)}:{node.lineno}"


def room_of(module: str) -> str:
    """The room that a module stands in: its folder."""
    return module if module in DOORS else module.rpartition(".")[0]


def rooms() -> dict[str, list[str]]:
    """Room -> its modules, `__init__` not counted."""
    found: dict[str, list[str]] = {}
    for path in modules():
        if path.name != "__init__.py":
            found.setdefault(room_of(name_of(path)), []).append(name_of(path))
    return found


def ours_imported(path: Path, known: Mapping[str, Path], *, at_once: bool = False) -> set[str]:
    """The modules of ours that a file imports."""
    names = {name for name in imports(path, at_once=at_once) if name in known}
    # `from a import b`, b a module: a itself is named too, and is what b stands in.
    return {name for name in names if known[name].name != "__init__.py" or not _only_passes_through(known[name])}


def known() -> dict[str, Path]:
    """Dotted name -> source, of all that is ours."""
    return {name_of(path): path for path in modules()}


def arrows() -> dict[str, set[str]]:
    """Room -> the other rooms that it imports."""
    all_modules = known()
    found: dict[str, set[str]] = {room: set() for room in rooms()}
    for name, path in all_modules.items():
        room = room_of(name) if path.name != "__init__.py" else name
        for target in ours_imported(path, all_modules):
            to = target if all_modules[target].name == "__init__.py" else room_of(target)
            if to != room:
                found.setdefault(room, set()).add(to)
    kinds = ("py", "html", "svg")
    for path in [one for package in PACKAGES for kind in kinds for one in (ROOT / package).rglob(f"*.{kind}")]:
        room = ".".join(path.relative_to(ROOT).parts[:-1])
        for template in _TEMPLATE.findall(path.read_text(encoding="utf-8")):
            to = template.rpartition("/")[0].replace("/", ".")
            if to != room and (ROOT / template).is_file():
                found[room].add(to)
    return found


def circles(graph: Mapping[str, Iterable[str]]) -> list[list[str]]:
    """Rooms that import each other, directly or by way of others; empty where all arrows point down."""
    reach = {room: _reached(graph, room) for room in graph}
    together = {frozenset({room, *(o for o in reach[room] if room in reach.get(o, ()))}) for room in graph}
    return sorted(sorted(group) for group in together if len(group) > 1)


def closure(start: str) -> set[str]:
    """All that comes into a process with a module: names of ours and of others, as far as ours import them at once."""
    all_modules, seen, waiting = known(), set[str](), [start]
    while waiting:
        name = waiting.pop()
        if name in seen:
            continue
        seen.add(name)
        if name in all_modules:
            parents = [name.rsplit(".", count)[0] for count in range(1, name.count(".") + 1)]
            waiting += [*imports(all_modules[name], at_once=True), *parents]
    return seen


def _only_passes_through(init: Path) -> bool:
    return not any(name.split(".")[0] in PACKAGES for name in imports(init))


def _reached(graph: Mapping[str, Iterable[str]], start: str) -> set[str]:
    seen, waiting = set[str](), list(graph[start])
    while waiting:
        if (room := waiting.pop()) not in seen:
            seen.add(room)
            waiting += graph.get(room, ())
    return seen


def _at_once(node: ast.AST) -> Iterator[ast.AST]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)):
            continue
        if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
            continue
        yield child
        yield from _at_once(child)


def _package(path: Path, level: int) -> str:
    """The package that a relative import of this level starts from; empty for an absolute one."""
    return ".".join(path.relative_to(ROOT).parts[:-level]) if level else ""


def _levels(graph: Mapping[str, set[str]]) -> dict[str, int]:
    """How many floors a room stands above the ground; every arrow points to a lower one."""
    floors: dict[str, int] = {}

    def floor(room: str) -> int:
        if room not in floors:
            floors[room] = 1 + max((floor(below) for below in graph.get(room, ())), default=-1)
        return floors[room]

    for room in graph:
        floor(room)
    return floors


def main() -> int:
    """Print the rooms from the top floor down."""
    graph, held = arrows(), rooms()
    if found := circles(graph):
        print(*(f"CIRCLE: {', '.join(group)}" for group in found), sep="\n")
        return 1
    floors = _levels(graph)
    for room in sorted(graph, key=lambda one: (-floors[one], one)):
        print(f"{floors[room]:2}  {room} ({len(held.get(room, ()))})  ->  {', '.join(sorted(graph[room])) or '-'}")
    print(f"{len(graph)} rooms, {sum(map(len, graph.values()))} arrows, all of them down.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
