"""home/status.json, by which a running agent says how it is, and home/agent.lock, by which it is the only one.

The lock's file is touched while the agent lives, so that of one that was killed it is known until when it did.
Written whole, by a rename, when something changed; the command line reads it. The certificate's days are counted
while the agent runs, so that a site whose certificate runs out says so itself.
"""

import json
import logging
import os
import threading
import time
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import grpc

from client.agent.health import CONNECTED, IN_ORDER, LOCK_NAME, STATUS_NAME
from client.home.identity import Identity
from common.errors import ConfigError
from common.system.files import write_private
from common.system.life import SignOfLife
from common.system.locks import is_locked, locked
from common.wire import clock, versions
from common.wire.channels import certificate_trouble
from common.wire.messages import Refusal, Reply
from common.wire.proxy import told_of_proxy

EXPIRED, REFUSED, OTHER_VERSION = "certificate expired", "refused", "other version"
STOPPED, FAILED = "stopped", "failed"  # the last that an agent writes
DISK_FULL = "disk-full"

_log = logging.getLogger(__name__)

# The code of an answer that came after its question was taken back.
OVER = "reply no longer asked for"


class Status:
    """home/status.json: what `wardround-client status` shows. Written whole, by a rename, when something changed."""

    def __init__(self, home: Path, identity: Identity) -> None:
        self._path = home / STATUS_NAME
        self._life = SignOfLife(home / LOCK_NAME)  # which a simulated site does not have
        self._identity = identity
        self._lock = threading.Lock()
        self._is_written = True
        self._values: dict[str, Any] = {
            "site": identity.site,
            "coordinator": identity.gateway,
            "pid": os.getpid(),
            "state": "starting",
            "since": time.time(),
            "node-id": None,
            "worker": None,
            "network": "unknown",
            "versions": "",
            "clock": clock.in_words(None),
            "last-round": None,
            "last-error": None,
            "disk": IN_ORDER,
            "certificate-days-left": identity.days_left,
        }
        self.update(started=time.time())

    @property
    def is_connected(self) -> bool:
        """Whether the coordinator answered last."""
        return bool(self._values["state"] == CONNECTED)

    @property
    def node_session(self) -> tuple[object, object]:
        """Changes with every new connection."""
        return self._values["node-id"], self._values["since"]

    def connected(self, node_id: int, ahead_s: float | None) -> None:
        """The coordinator knows us.

        Args:
            node_id: our number there.
            ahead_s: of our clock, against the coordinator's.
        """
        _log.info("connected to %s as node %d", self._identity.gateway, node_id)
        if not clock.is_well(ahead_s):
            _log.warning(
                "this computer's clock is %s. Updates count all the same; certificates, the policy's hours and the "
                "audit log go by it: set one of the two right",
                clock.in_words(ahead_s),
            )
        said = clock.in_words(ahead_s)
        self.update(**{"state": CONNECTED, "since": time.time(), "node-id": node_id, "clock": said})

    def away(self, error: Exception) -> None:
        """The coordinator does not answer, or refuses us. Said once in the log, until it changes."""
        if told := versions.refused(error):
            self._other_version(told)
            return
        code = error.code() if isinstance(error, grpc.RpcError) else None
        refused = code in (grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED)
        state = EXPIRED if self._identity.days_left < 0 else REFUSED if refused else "connecting"
        if self._values["state"] != state or self._values["node-id"] is not None:
            trouble = certificate_trouble(error) if isinstance(error, grpc.RpcError) else ""
            proxy = told_of_proxy(self._identity.gateway)
            reason = (
                f"cannot be trusted now: {trouble}" if trouble else f"is away; trying again until it is back.{proxy}"
            )
            reason = "refuses this site's certificate" if refused else reason
            if state == EXPIRED:
                reason = "cannot be reached: our certificate has expired. Ask for an invitation and join again"
            _log.warning("the coordinator at %s %s", self._identity.gateway, reason)
            self.update(**{"state": state, "since": time.time(), "node-id": None})

    def _other_version(self, why: str) -> None:
        """The two sides are of versions that do not work together; why, and what to do. Said once in the log."""
        if self._values["state"] != OTHER_VERSION or self._values["versions"] != why:
            _log.error("%s. Nothing is done until then; trying again", why)
        self.update(**{"state": OTHER_VERSION, "node-id": None, "versions": why})

    def renewed(self, identity: Identity) -> None:
        """The site has its next certificate."""
        self._identity = identity
        self.update()

    def worked(self, reply: Reply, kind: str, seconds: float) -> None:
        """A message was answered."""
        entry = {
            "run": reply.run_hash or None,
            "round": reply.round or None,
            "kind": kind,
            "seconds": round(seconds, 3),
        }
        entry["at"] = time.time()
        if isinstance(reply, Refusal):
            self.update(**{"last-error": entry | {"code": str(reply.code)}})
        else:
            self.update(**{"last-round": entry})

    def lost(self, kind: str, *, over: bool) -> None:
        """A reply was not taken, since its question is over or for another reason, which the log says."""
        code = OVER if over else "reply not taken, see logs/agent.log"
        self.update(**{"last-error": {"kind": kind, "code": code, "at": time.time()}})

    def update(self, **changes: object) -> None:
        """Change values and write the file if any is new; where there is no room, later."""
        with self._lock:
            self._life.give()
            values = self._values | changes | {"certificate-days-left": self._identity.days_left}
            if values == self._values and self._is_written and self._path.exists():
                return
            self._values = values
            try:
                write_private(self._path, json.dumps(values, indent=2).encode(), durable=False)
                self._is_written = True
            except OSError as error:
                if self._is_written:
                    _log.error("status.json cannot be written (%s); it shows an earlier state", error.strerror)
                self._is_written = False


def only_one(home: Path) -> AbstractContextManager[object]:
    """Hold home/agent.lock, so that a home has one agent.

    Raises:
        ConfigError: another agent holds it.
    """
    busy = ConfigError(f"an agent runs on {home} already. Stop it first, or use another --home.")
    return locked(home / LOCK_NAME, busy)


def is_running(home: Path) -> bool:
    """Whether an agent holds this home's lock."""
    return is_locked(home / LOCK_NAME)


def last_sign_of_life(home: Path) -> float:
    """Of an agent, in seconds since the epoch; one that was stopped gave it at its end."""
    return max(path.stat().st_mtime for path in (home / STATUS_NAME, home / LOCK_NAME) if path.exists())


def read_status(home: Path) -> dict[str, Any]:
    """What the agent wrote last; empty if there never was one."""
    path = home / STATUS_NAME
    try:
        values: dict[str, Any] = json.loads(path.read_bytes()) if path.exists() else {}
    except ValueError as error:
        raise ConfigError(f"{path} cannot be read. Delete it; a running agent writes it again.") from error
    return values
