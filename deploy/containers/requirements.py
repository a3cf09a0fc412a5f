"""What an image installs: the entries of requirements.lock, with their hashes, that one side needs.

    python requirements.py LOCK NAMES...      NAMES: files with a package a line; entries go to stdout

The lock is for development and has everything. `server.txt`, `client.txt` and `build.txt` beside this file say what the
images take of it; a test compares them with what the installed packages ask for. Standard library only: it runs in the
build, before anything is installed.
"""

import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

_ENTRY = re.compile(r"^([A-Za-z0-9][A-Za-z0-9._-]*)==")


def selected(lock: str, names: Iterable[str]) -> str:
    """The entries of a lock of these packages, each with its hashes, in the lock's order.

    Raises:
        KeyError: the lock lacks one.
    """
    wanted, found = set(names), []
    there = set()
    for name, entry in _entries(lock):
        if name in wanted:
            there.add(name)
            found.append(entry)
    if missing := sorted(wanted - there):
        raise KeyError(f"requirements.lock has no {', '.join(missing)}. Make it anew: make lock")
    return "".join(found)


def names_in(path: Path) -> list[str]:
    """The packages that a file lists, without its comments."""
    lines = (line.partition("#")[0].strip() for line in path.read_text(encoding="utf-8").splitlines())
    return [line for line in lines if line]


def main(arguments: Sequence[str]) -> int:
    """Print the entries."""
    lock, *lists = map(Path, arguments)
    try:
        text = selected(lock.read_text(encoding="utf-8"), [name for one in lists for name in names_in(one)])
    except (KeyError, OSError) as error:
        sys.stderr.write(f"requirements.py: {error}\n")
        return 1
    sys.stdout.write(text)
    return 0


def _entries(lock: str) -> Iterator[tuple[str, str]]:
    """Each entry's name and its lines; a package may have several, for different Pythons."""
    entry: list[str] = []
    for line in lock.splitlines(keepends=True):
        if _ENTRY.match(line) and entry:
            yield _name(entry), "".join(entry)
            entry = []
        entry.append(line)
    if entry:
        yield _name(entry), "".join(entry)


def _name(entry: Sequence[str]) -> str:
    found = _ENTRY.match(entry[0])
    return found.group(1).lower() if found else ""


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
