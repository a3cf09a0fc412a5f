"""What a site is at, said with each heartbeat: which round of which run, and whether its worker moves.

So that a coordinator need not guess from silence: a site that trains for hours is told from one that hangs, and from
one that knows of no question. It says neither how far the work is nor how much there is, which patients decide.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass

# In a call's metadata.
_KEY = "wardround-work"
_FORM = re.compile(r"([0-9a-f]{64}) ([0-9]{1,7}) (moves|hangs)")


@dataclass(frozen=True)
class AtWork:
    """A worker that was asked and has not answered; it hangs if it has long used no processor."""

    run_hash: str
    round: int
    hangs: bool = False


def stamp(work: AtWork | None) -> tuple[tuple[str, str], ...]:
    """As metadata of a call; none while nothing is done."""
    if work is None:
        return ()
    return ((_KEY, f"{work.run_hash} {work.round} {'hangs' if work.hangs else 'moves'}"),)


def said(metadata: Iterable[tuple[str, str | bytes]] | None) -> AtWork | None:
    """Inverse of `stamp`; None where there is nothing of this form."""
    for key, value in metadata or ():
        if key == _KEY and isinstance(value, str) and (found := _FORM.fullmatch(value)):
            return AtWork(found[1], int(found[2]), found[3] == "hangs")
    return None


__all__ = ["AtWork", "said", "stamp"]
