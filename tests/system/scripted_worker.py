"""A worker's process that answers with the bytes it finds in files: what a broken or taken-over worker could say.

Started in the place of Python by the agent's own keeper. The folder `said` beside the home holds `ready`, `describe`
and `work`; an empty file means: end without a word.
"""

import json
import os
import struct
import sys
from pathlib import Path

_PREFIX = struct.Struct(">I")


def main() -> None:
    """Answer until the pipe is closed."""
    said = Path(sys.argv[sys.argv.index("--home") + 1]).parent / "said"
    sys.stderr.write((said / "log").read_text())
    _question()  # the site key
    _say(said / "ready")
    while header := _question():
        _say(said / ("describe" if b'"kind":"describe"' in header else "work"))


def _question() -> bytes:
    prefix = sys.stdin.buffer.read(_PREFIX.size)
    if len(prefix) < _PREFIX.size:
        return b""
    asked = sys.stdin.buffer.read(*_PREFIX.unpack(prefix))
    for _name, size in json.loads(asked)["parts"]:
        sys.stdin.buffer.read(size)
    return asked


def _say(path: Path) -> None:
    if not (words := path.read_bytes()):
        os._exit(3)
    sys.stdout.buffer.write(words)
    sys.stdout.buffer.flush()


if __name__ == "__main__":
    main()
