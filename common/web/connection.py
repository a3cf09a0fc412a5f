"""A connection that asks, or is closed: one that sends no whole request head in time holds no place that others need.

uvicorn counts every connection, and bounds how long one may be silent between two requests alone. Without this, whoever
may connect, with a token or none, could open as many as are taken, say nothing or a letter now and then, and the server
would answer nobody. What is being answered may take its time: an upload has a bound of its own.
"""

import asyncio

from uvicorn.protocols.http.h11_impl import H11Protocol, RequestResponseCycle

# Between two looks; closed is what has asked nothing from one look to the next.
PATIENCE_S = 5.0


class Connection(H11Protocol):
    """One of the web server's; on its loop."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn's is
        """Begin to look."""
        super().connection_made(transport)
        self._look_later()

    def connection_lost(self, exc: Exception | None) -> None:
        """Look no more."""
        self._next_look.cancel()
        super().connection_lost(exc)

    def _look_later(self) -> None:
        self._next_look = self.loop.call_later(PATIENCE_S, self._look, self.cycle)

    def _look(self, before: RequestResponseCycle | None) -> None:
        is_answered = self.cycle is None or self.cycle.response_complete
        if self.cycle is before and is_answered:
            self.transport.close()
        else:
            self._look_later()


__all__ = ["PATIENCE_S", "Connection"]
