"""The program with the reader of `tests/client/data/isolate/hostile_reader.py`, whose files kill it."""

import sys
from pathlib import Path

from client.commands.main import app
from client.data.isolate import child

child._COMMAND = (  # type: ignore[assignment]
    sys.executable,
    "-P",
    str(Path(__file__).parents[1] / "data" / "isolate" / "hostile_reader.py"),
)

if __name__ == "__main__":
    app()
