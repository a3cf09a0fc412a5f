"""How much one caller may ask of a door: calls a second and at once, bytes a call and an hour, seconds a call.

A caller is a site (by its certificate) or, where nobody has one yet, an address. What it does beyond its limits is
refused for itself alone. The clock is passed in. The rates are many times what an honest agent needs: measured over
rounds of nothing but talk, as fast as they go (5 a second), it made 5 calls a second of each kind and 65 for objects.
Bytes are counted when they have passed, so a call is never cut; the next one waits until the debt is paid off.
"""

import threading
from collections.abc import Callable
from dataclasses import dataclass, field

from common.wire.records import PIECE_BYTES

# Together. An agent holds two long polls, moves three objects and says now and then that it is there.
CALLS_AT_ONCE = 12
# Behind one address there may be many sites that wait for their approval.
ENROLMENTS_AT_ONCE = 32
# In each direction. The weights of 50 million parameters, the most a hospital's policy allows as it is shipped, once
# every 11 seconds: 19 MB a second are more than most hospitals' lines carry.
BYTES_PER_HOUR = 64 * 1024**3
# A caller's refusals are written down once in this time, with their number.
NOTE_EVERY_S = 60.0
# Calls at once: when a place may be free again.
_PLACE_S = 1.0
# What it may not do at all is written down one by one up to so many lines, then one in ten seconds.
DENIALS = 200
DENIALS_PER_S = 0.1

# Callers of whom nothing was heard for so long are forgotten.
_FORGET_S = 3600.0
_MAX_CALLERS = 10_000


@dataclass(frozen=True)
class Rule:
    """The limits of one kind of call."""

    kind: str
    max_bytes: int  # of a request
    per_second: float
    burst: int  # calls that may come at once after a silence
    seconds: float  # a call may take, its request's way here included


CONTROL = Rule("control", 64 * 1024, 50.0, 500, 60.0)
POLL = Rule("poll", 64 * 1024, 50.0, 500, 60.0)
# At most 1000 ids and the tree they stand in.
ANNOUNCEMENT = Rule("announcement", 1024 * 1024, 50.0, 500, 60.0)
OBJECT = Rule("object", PIECE_BYTES + 64 * 1024, 200.0, 2000, 600.0)
ENROLMENT = Rule("enrolment", 16 * 1024, 5.0, 200, 60.0)
MAX_REQUEST_BYTES = OBJECT.max_bytes

RULES = {
    "PullMessages": POLL,
    "ListProposals": POLL,
    "PushMessages": ANNOUNCEMENT,
    "PullObject": OBJECT,
    "PushObject": OBJECT,
    "Enrol": ENROLMENT,
    "Collect": ENROLMENT,
}


@dataclass(frozen=True)
class Reached:
    """A limit that a caller has reached."""

    why: str
    wait_s: float  # until it is worth trying again


def rule_of(method: str) -> Rule:
    """The rule for a method by its full name, such as /flwr.proto.Fleet/PullMessages."""
    return RULES.get(method.rpartition("/")[2], CONTROL)


class Bucket:
    """A token bucket: `burst` at once, `per_second` on average."""

    def __init__(self, per_second: float, burst: int, now: float) -> None:
        self._per_second, self._burst = per_second, burst
        self._tokens, self._filled = float(burst), now

    def take(self, now: float) -> bool:
        """Use a token, if there is one."""
        if self.wait(now) > 0.0:
            return False
        self._tokens -= 1.0
        return True

    def spend(self, tokens: float, now: float) -> None:
        """Use many, whether they are there or not: what is missing is a debt."""
        self._fill(now)
        self._tokens -= tokens

    def wait(self, now: float) -> float:
        """Seconds until there is a token; 0 if there is one."""
        self._fill(now)
        return max(0.0, (1.0 - self._tokens) / self._per_second)

    def _fill(self, now: float) -> None:
        self._tokens = min(self._burst, self._tokens + (now - self._filled) * self._per_second)
        self._filled = now


class Notes:
    """Says which of a caller's lines are worth writing, so that nobody fills the log."""

    def __init__(self, per_second: float, burst: int, clock: Callable[[], float]) -> None:
        self._per_second, self._burst, self._clock = per_second, burst, clock
        self._lock = threading.Lock()
        self._buckets: dict[str, Bucket] = {}
        self._silent: dict[str, int] = {}

    def write(self, caller: str) -> int | None:
        """None: keep silent about this one. Otherwise how many were kept silent since the last line."""
        now = self._clock()
        with self._lock:
            if caller not in self._buckets and len(self._buckets) >= _MAX_CALLERS:
                self._buckets.clear()
                self._silent.clear()
            bucket = self._buckets.setdefault(caller, Bucket(self._per_second, self._burst, now))
            if bucket.take(now):
                return self._silent.pop(caller, 0)
            self._silent[caller] = self._silent.get(caller, 0) + 1
            return None


def unwritten(silent: int) -> str:
    """The end of a line that was written: how many like it were kept silent before; nothing where none was."""
    return f"; {silent} more like it were not written" if silent else ""


@dataclass
class _Caller:
    """What one caller is doing."""

    received: Bucket  # bytes from it
    sent: Bucket
    at_once: int = 0
    last: float = 0.0
    buckets: dict[str, Bucket] = field(default_factory=dict)


class Limits:
    """What every caller does at one door."""

    def __init__(
        self, clock: Callable[[], float], at_once: int = CALLS_AT_ONCE, bytes_per_hour: int = BYTES_PER_HOUR
    ) -> None:
        self._clock, self._at_once, self._bytes_per_hour = clock, at_once, bytes_per_hour
        self._lock = threading.Lock()
        self._callers: dict[str, _Caller] = {}

    def enter(self, caller: str, rule: Rule) -> Reached | None:
        """Begin a call.

        Returns:
            None, and then `leave` must follow; or which limit is reached.
        """
        now = self._clock()
        with self._lock:
            if caller not in self._callers:
                self._forget(now)
            found = self._callers.setdefault(caller, _Caller(self._hour(now), self._hour(now)))
            found.last = now
            bucket = found.buckets.setdefault(rule.kind, Bucket(rule.per_second, rule.burst, now))
            if not bucket.take(now):
                return Reached(f"more than {rule.per_second:g} {rule.kind} calls a second", bucket.wait(now))
            for bytes_, way in ((found.received, "from"), (found.sent, "to")):
                if wait_s := bytes_.wait(now):
                    return Reached(f"more than {self._bytes_per_hour} bytes an hour {way} it", wait_s)
            if found.at_once >= self._at_once:
                return Reached(f"more than {self._at_once} calls at once", _PLACE_S)
            found.at_once += 1
            return None

    def moved(self, caller: str, *, received: int = 0, sent: int = 0) -> None:
        """Count the bytes of a call that has begun and not ended."""
        now = self._clock()
        with self._lock:
            self._callers[caller].received.spend(received, now)
            self._callers[caller].sent.spend(sent, now)

    def leave(self, caller: str) -> None:
        """End a call."""
        with self._lock:
            self._callers[caller].at_once -= 1

    def _hour(self, now: float) -> Bucket:
        return Bucket(self._bytes_per_hour / 3600, self._bytes_per_hour, now)

    def _forget(self, now: float) -> None:
        for name, one in list(self._callers.items()):
            if not one.at_once and (now - one.last > _FORGET_S or len(self._callers) >= _MAX_CALLERS):
                del self._callers[name]
