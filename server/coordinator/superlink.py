"""Flower's SuperLink, on a unix socket beside its port on loopback: the port may be in a network of its own.

    python -m server.coordinator.superlink SOCKET --insecure --host 127.0.0.1 --port PORT ...

Started and watched by the launcher; what follows the socket are the options of `flower-superlink`.
"""

import sys
from pathlib import Path

from common.flower.processes import run_superlink

if __name__ == "__main__":
    run_superlink(Path(sys.argv[1]), sys.argv[2:])
