"""Who may look at a dashboard: whoever opens the link that was shown to the person who started it, once.

    http://127.0.0.1:PORT/PLACE/login#TOKEN

TOKEN is 256 random bits, good for one use within a quarter of an hour. It stands behind the '#', which a browser sends
to no server and names to no page it goes to: the page's own script, or the person, puts it into a form. It buys a
session, 256 other bits in a cookie that no script reads and no other site's page has sent (HttpOnly, SameSite=Strict).
PLACE is 128 bits more. A cookie of 127.0.0.1 goes to every port of it, also to one on which another account of this
machine listens; this one is bound to PLACE, which such a server does not know and so is never asked for.
Source: RFC 6265bis (4.1.2.7, 8.5: cookies know no ports; 8.6: paths).
"""

import hashlib
import hmac
import secrets
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field

COOKIE = "wardround"
LINK_S = 15 * 60.0
SESSION_S = 12 * 3600.0
MOST_SESSIONS = 20

_BYTES = 32


@dataclass
class Session:
    """One browser that is logged in."""

    ends: float  # by the clock
    csrf: str = field(default_factory=lambda: secrets.token_urlsafe(_BYTES), repr=False)
    told: str = ""  # what an act has done: shown once, on the next page


class Sessions:
    """The link that is open, and the browsers that are logged in. For all threads."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.place = secrets.token_urlsafe(16)
        self._clock = clock
        self._lock = threading.Lock()
        self._link: tuple[bytes, float] | None = None
        self._sessions: dict[bytes, Session] = {}

    def token(self) -> str:
        """A token for the next login; the one before is void."""
        token = secrets.token_urlsafe(_BYTES)
        with self._lock:
            self._link = (_digest(token), self._clock() + LINK_S)
        return token

    def log_in(self, token: str) -> str | None:
        """The value of a cookie, for a token that is good; then the token is good no more."""
        with self._lock:
            if self._link is None or not hmac.compare_digest(_digest(token), self._link[0]):
                return None
            ends, self._link = self._link[1], None
            if ends < self._clock():
                return None
            while len(self._sessions) >= MOST_SESSIONS:
                self._sessions.pop(next(iter(self._sessions)))
            value = secrets.token_urlsafe(_BYTES)
            self._sessions[_digest(value)] = Session(self._clock() + SESSION_S)
            return value

    def find(self, value: str) -> Session | None:
        """The session of a cookie, if it lasts."""
        with self._lock:
            found = self._sessions.get(_digest(value))
            if found is not None and found.ends < self._clock():
                del self._sessions[_digest(value)]
                return None
            return found

    def log_out(self, session: Session) -> None:
        """End a session, with the streams that it has open."""
        with self._lock:
            session.ends = 0.0
            self._sessions = {key: one for key, one in self._sessions.items() if one is not session}

    def lasts(self, session: Session) -> bool:
        """Whether a session that was found before is still one."""
        return session.ends >= self._clock()


def is_csrf(session: Session, given: str) -> bool:
    """Whether a form is one that this session was shown."""
    return hmac.compare_digest(given.encode(), session.csrf.encode())


def _digest(text: str) -> bytes:
    return hashlib.sha256(text.encode()).digest()


__all__ = ["COOKIE", "LINK_S", "MOST_SESSIONS", "SESSION_S", "Session", "Sessions", "is_csrf"]
