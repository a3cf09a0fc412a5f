"""The coordinator's key in the memory of the process that was given it, for the processes that work with it.

`wardround-server start` opens the key once, where it is under a passphrase by asking for that. The gateway, every
ServerApp and the commands then get it over a unix socket in the home, which the folder's mode (0700) and its own (0600)
keep to the coordinator's user: so it stands in no environment, no command line and no file. Flower starts the
ServerApp two processes away and passes on nothing but the environment; a socket reaches it all the same.

While the coordinator runs, whoever runs programs as its user can have the key, as they could from its memory.
"""

import contextlib
import select
import socket
import time
from pathlib import Path
from types import TracebackType
from typing import Self

from common.crypto.derivation import KEY_BYTES
from common.system.files import socket_address

SOCKET_NAME = "key.sock"

# The holder answers between two looks at its children.
_PATIENCE_S = 15.0


class KeyAgent:
    """Holds the key while the coordinator runs. Without a thread of its own: it answers while its process rests."""

    def __init__(self, home: Path, key: bytes) -> None:
        """Open the socket; one that a killed process left is replaced."""
        self._path, self._key = home / SOCKET_NAME, key
        self._path.unlink(missing_ok=True)
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        with socket_address(self._path) as address:
            self._socket.bind(address)
        self._path.chmod(0o600)
        self._socket.listen()
        self._socket.setblocking(False)

    def rest(self, seconds: float) -> None:
        """Sleep, and give the key to whoever asks meanwhile."""
        deadline = time.monotonic() + seconds
        while (left := deadline - time.monotonic()) > 0:
            ready, _, _ = select.select([self._socket], [], [], left)
            if ready:
                with contextlib.suppress(OSError):  # who asked is gone
                    asking, _ = self._socket.accept()
                    with asking:
                        asking.sendall(self._key)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._socket.close()
        self._path.unlink(missing_ok=True)


def ask(home: Path) -> bytes | None:
    """The key from the coordinator of this home that runs; None when none does."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as asking:
        asking.settimeout(_PATIENCE_S)
        try:
            with socket_address(home / SOCKET_NAME) as address:
                asking.connect(address)
            key = asking.recv(KEY_BYTES, socket.MSG_WAITALL)
        except OSError:
            return None
    return key if len(key) == KEY_BYTES else None


__all__ = ["SOCKET_NAME", "KeyAgent", "ask"]
