"""What holds for each answer of a server here: its headers, and that a fault tells nothing of itself.

Of what went wrong inside only the kind is logged, for its text may quote a header of an image, and nothing of it is
answered. No other protocol than HTTP is spoken.
"""

import logging
from collections.abc import Awaitable, Callable, MutableMapping, Sequence
from typing import Any, TypeAlias

Message: TypeAlias = MutableMapping[str, Any]
Receive: TypeAlias = Callable[[], Awaitable[Message]]
Send: TypeAlias = Callable[[Message], Awaitable[None]]
App: TypeAlias = Callable[[Message, Receive, Send], Awaitable[None]]
Headers: TypeAlias = Sequence[tuple[bytes, bytes]]

_log = logging.getLogger(__name__)


class Fenced:
    """An ASGI application around another one."""

    def __init__(self, app: App, headers: Headers, fault: Callable[[Send], Awaitable[None]]) -> None:
        """Nothing is asked yet.

        Args:
            app: what answers.
            headers: which each answer is given.
            fault: answers for it where it fails.
        """
        self._app, self._headers, self._fault = app, tuple(headers), fault

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Let it answer."""
        if scope["type"] != "http":
            return
        started = False

        async def sent(message: Message) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                message["headers"] = [*message.get("headers", ()), *self._headers]
            await send(message)

        try:
            await self._app(scope, receive, sent)
        except Exception as error:  # noqa: BLE001 - a fault of one request must not show its data, nor stop the rest
            _log.error("a request met an unexpected %s", type(error).__name__)
            if not started:
                await self._fault(sent)


__all__ = ["App", "Fenced", "Headers", "Message", "Receive", "Send"]
