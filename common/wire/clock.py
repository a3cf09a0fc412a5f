"""How far a site's clock is from the coordinator's: measured when a site connects, and told on both sides.

Each side sends its time with that call, and each makes up its own mind. Nothing depends on it but what people are told:
messages are dated by the coordinator's clock alone. Still a wrong clock is worth a word, because certificates, the
hours of a policy and the audit log go by it.
"""

import math
import time
from collections.abc import Iterable

# Seconds since the epoch, UTC, in a call's metadata.
_KEY, _DIGITS = "wardround-time", 20

# Clocks that are set by a network differ by less; the audit log counts in minutes.
TOLERANCE_S = 60.0


def stamp() -> tuple[tuple[str, str], ...]:
    """This computer's time, as metadata of a call."""
    return ((_KEY, f"{time.time():.3f}"),)


def sent(metadata: Iterable[tuple[str, str | bytes]] | None) -> float | None:
    """The other side's time (Unix s) in a call's metadata; None where there is none of this form."""
    for key, value in metadata or ():
        if key == _KEY and isinstance(value, str) and len(value) <= _DIGITS:
            try:
                seconds = float(value)
            except ValueError:
                return None
            return seconds if math.isfinite(seconds) else None
    return None


def is_well(ahead_s: float | None) -> bool:
    """Whether a difference is too small to be told, or not known."""
    return ahead_s is None or abs(ahead_s) <= TOLERANCE_S


def in_words(ahead_s: float | None, whose: str = "the coordinator's") -> str:
    """A difference: "15 min ahead of the coordinator's".

    Args:
        ahead_s: of the clock that is spoken of, against the other one; seconds.
        whose: the other one.
    """
    if ahead_s is None:
        return "not compared yet"
    if is_well(ahead_s):
        return f"as {whose}, within a minute"
    minutes = round(abs(ahead_s) / 60)
    days, hours = divmod(minutes, 24 * 60)[0], minutes // 60 % 24
    parts = [f"{days} d" if days else "", f"{hours} h" if hours else "", f"{minutes % 60} min" if minutes % 60 else ""]
    return f"{' '.join(filter(None, parts))} {'ahead of' if ahead_s > 0 else 'behind'} {whose}"


__all__ = ["TOLERANCE_S", "in_words", "is_well", "sent", "stamp"]
