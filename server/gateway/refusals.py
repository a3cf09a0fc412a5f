"""Refused calls, as entries of the coordinator's audit log: that one was refused, and to whom, never what it asked.

Nobody fills the log with them: of a caller and a reason the first ten are entered, then one in ten minutes; of all
callers together who have shown no certificate a hundred, then one a minute, because addresses cost nothing.
"""

import logging
import time
from collections.abc import Callable
from typing import Literal, TypeAlias

from common.audit.log import AuditLog
from common.console.logs import Trouble
from common.errors import AuditError
from server.gateway.limits import Notes
from server.registry.registry import Registry

Refused: TypeAlias = Literal[
    "unauthenticated", "permission-denied", "invalid-argument", "resource-exhausted", "deadline"
]

FIRST, THEN_EVERY_S = 10, 600.0
FIRST_OF_STRANGERS, THEN_OF_STRANGERS_EVERY_S = 100, 60.0

_SITE = "site "
_STRANGERS = "strangers"

_log = logging.getLogger(__name__)


class Refusals:
    """Enters the refusals of one door. For all of its threads."""

    def __init__(self, log: AuditLog, registry: Registry, clock: Callable[[], float] = time.monotonic) -> None:
        self._log, self._registry = log, registry
        self._trouble = Trouble(_log)
        self._each = Notes(1 / THEN_EVERY_S, FIRST, clock)
        self._strangers = Notes(1 / THEN_OF_STRANGERS_EVERY_S, FIRST_OF_STRANGERS, clock)

    def __call__(self, caller: str, status: Refused) -> None:
        """Enter a refusal, unless there were many.

        Args:
            caller: "site NAME" where a certificate of ours says so, as `server.gateway.interceptor.site_of` does; else
            an address,
                which is not entered.
            status: how the call ended.
        """
        if self._each.write(f"{caller} {status}") is None:
            return
        if not caller.startswith(_SITE) and self._strangers.write(_STRANGERS) is None:
            return
        names = [site.name for site in self._registry.sites() if caller == f"{_SITE}{site.name}"]
        known = {"site": names[0]} if names else {}
        try:
            self._log.append("call-refused", {"status": status, **known})
        except AuditError as error:
            self._trouble.say(f"a refusal is not recorded: {error}")
