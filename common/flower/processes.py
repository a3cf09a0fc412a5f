"""Flower's processes at a coordinator: how a SuperLink and its SuperExec are started, and with which environment.

A SuperLink answers by its port on loopback, and by a unix socket where it has a network of its own.
"""

import contextlib
import logging
import os
import socket
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from common.system.environment import PACKAGES, flower_variables, for_child
from common.system.files import socket_address

# Of a request's body, which a SuperLink reads before it waits for the program to take it. At uvicorn's own 64 kB each
# part goes through five layers by itself, and a model costs twice the CPU; all of it comes to lie in memory either way.
READ_AHEAD_BYTES = 16 * 1024 * 1024
# A connection on which nothing moves is closed by a client after 5 s (httpx). At uvicorn's own 5 s both would close it
# at once, and a request that sets out just then is lost.
KEEP_ALIVE_S = 60
# The program that a SuperExec starts for each run.
SERVER_APP = "flwr-serverapp"
# What a ServerApp sends once more after its task is finished, and with that its token void.
_LAST_WORDS = tuple(f"[/v1/runtime/{name}]" for name in ("push-logs", "send-task-heartbeat", "push-task-output"))
_VOID_TOKEN = "task-token authentication failed"  # noqa: S105 - words of Flower's


def superlink_command(port: int, path: Path | None = None) -> list[str]:
    """A SuperLink on loopback, and on a unix socket; its state is in memory and disposable. See `superexec_command`."""
    program = [str(Path(sys.executable).with_name("flower-superlink"))]
    if path is not None:
        program = [sys.executable, "-m", "server.coordinator.superlink", str(path)]
    return [*program, *("--insecure", "--host", "127.0.0.1", "--port", str(port), "--isolation", "process")]


def superexec_command(port: int, parent: int) -> list[str]:
    """The SuperExec of a SuperLink, which starts a ServerApp for each run; it ends with its parent."""
    return [
        str(Path(sys.executable).with_name("flower-superexec")),
        *("--insecure", "--runtime-api-address", f"127.0.0.1:{port}", "--parent-pid", str(parent)),
    ]


def run_superlink(path: Path, arguments: Sequence[str]) -> None:
    """Be a SuperLink that answers on a unix socket too, which only its owner can use. Returns when it has ended.

    Args:
        path: of the socket; one that a killed process left is replaced.
        arguments: of the command `flower-superlink`.
    """
    import uvicorn  # noqa: PLC0415 - with the next one 2 s, which no other caller of this module should pay
    from flwr.superlink.cli.flower_superlink import flower_superlink  # noqa: PLC0415
    from uvicorn.protocols.http import h11_impl, httptools_impl  # noqa: PLC0415

    from common.flower.short_way import short_way  # noqa: PLC0415 - with it the rest of a SuperLink

    path.unlink(missing_ok=True)
    listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    before = os.umask(0o177)
    with socket_address(path) as address:
        listening.bind(address)
    os.umask(before)

    def run(app: Any, **settings: Any) -> None:
        config = uvicorn.Config(short_way(app), **{**settings, "timeout_keep_alive": KEEP_ALIVE_S})
        with contextlib.suppress(KeyboardInterrupt):  # as uvicorn.run does: it has ended in order
            uvicorn.Server(config).run(sockets=[config.bind_socket(), listening])

    logging.getLogger("flwr").addFilter(told_as_last_words)
    for protocol in (h11_impl, httptools_impl):
        vars(protocol)["HIGH_WATER_LIMIT"] = READ_AHEAD_BYTES
    uvicorn.run = run
    sys.argv = ["flower-superlink", *arguments]
    flower_superlink()


def told_as_last_words(record: logging.LogRecord) -> bool:
    """A filter of Flower's log: what it calls an error as an ordinary run ends is told as what it is.

    With flwr 1.41.0 a task's token is void as soon as its output was taken (CoreState.finish_task) or its run stopped,
    and only then the ServerApp ends its log and its heartbeat (run_serverapp.py, on_exit): each may call once more.
    """
    said = record.getMessage()
    if record.levelno == logging.ERROR and said.startswith(_LAST_WORDS) and _VOID_TOKEN in said:
        record.levelno, record.levelname = logging.INFO, logging.getLevelName(logging.INFO)
        record.msg, record.args = f"{said} Such are a ServerApp's last words, whose run has ended; nothing is lost.", ()
    return True


def superlink_environment(flower_home: Path) -> dict[str, str]:
    """Environment of the SuperLink, its SuperExec and ServerApps: no secret in it, and nothing leaves this machine."""
    packages = str(PACKAGES)
    ours = {
        **flower_variables(flower_home, quiet=False),
        # A run starts within this time; each poll costs the SuperLink about 15 ms of CPU.
        "FLWR_SUPEREXEC_TASK_POLL_INTERVAL": "1",
        # SuperLink and SuperExec start their children by name.
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)]),
        "PYTHONPATH": os.pathsep.join(filter(None, [packages, os.environ.get("PYTHONPATH")])),
        "NO_PROXY": "127.0.0.1,localhost",
        "no_proxy": "127.0.0.1,localhost",
    }
    return for_child(**ours)


__all__ = [
    "SERVER_APP",
    "run_superlink",
    "superexec_command",
    "superlink_command",
    "superlink_environment",
    "told_as_last_words",
]
