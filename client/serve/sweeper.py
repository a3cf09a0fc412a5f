"""Remove a folder when the process that made it has ended, however it ended: a kill leaves no images behind.

    python -I -S sweeper.py FOLDER       its parent holds the other end of stdin, and writes nothing to it

Only the standard library, for it starts in milliseconds and outlives its parent.
"""

import shutil
import signal
import sys


def main() -> int:
    """Wait for the end of stdin, then remove the folder."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # it goes when its parent goes
    sys.stdin.buffer.read()
    shutil.rmtree(sys.argv[1], ignore_errors=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
