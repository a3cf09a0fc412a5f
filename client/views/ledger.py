"""The privacy ledger as it is shown: what each run has been charged, and each cohort over its life."""

from collections import Counter
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

from client.home.folder import LEDGER_NAME
from client.rules import purged
from client.site import Site, current_site
from common.privacy.charges import Charge
from common.privacy.scores import is_held_out


class Charged(NamedTuple):
    """One cohort's charges by a run, or by all of them."""

    cohort: str
    run_hash: str | None  # None: all runs together
    name: str | None
    charges: int
    epsilon: float
    delta: float
    reserved_steps: int

    @property
    def held_out(self) -> bool:
        """Whether the cohort is that of held-out patients, whose scores are paid for."""
        return is_held_out(self.cohort)


def charged(site: Site) -> list[Charged]:
    """A row for each cohort and run, then one for each cohort.

    Raises:
        PrivacyError: the ledger cannot be read.
    """
    entries = _entries(site)
    if not entries:
        return []
    reserved = {(one.cohort, one.run_hash): one.steps for one in site.ledger.reservations()}
    names = purged.names(site.home)
    rounds = Counter((entry.cohort, entry.run_hash) for entry in entries)
    delta = {(entry.cohort, entry.run_hash): entry.delta for entry in entries}
    rows = [
        Charged(
            cohort,
            run_hash,
            names.get(run_hash),
            count,
            site.ledger.spent(cohort, delta[cohort, run_hash], run_hash),
            delta[cohort, run_hash],
            reserved.get((cohort, run_hash), 0),
        )
        for (cohort, run_hash), count in rounds.items()
    ]
    for cohort in dict.fromkeys(entry.cohort for entry in entries):
        least = min(entry.delta for entry in entries if entry.cohort == cohort)  # as the budget is measured
        total = sum(count for (name, _), count in rounds.items() if name == cohort)
        kept = sum(steps for (name, _), steps in reserved.items() if name == cohort)
        rows.append(Charged(cohort, None, None, total, site.ledger.spent(cohort, least), least, kept))
    return rows


@lru_cache(maxsize=4)
def charged_as_of(home: Path, _state: tuple[int, ...]) -> Sequence[Charged]:
    """As `charged`, once for each state of the ledger's file: the accountant takes its time."""
    return charged(current_site(home))


def charged_runs(site: Site) -> set[str]:
    """The hashes of the runs that were charged."""
    return {entry.run_hash for entry in _entries(site)}


def _entries(site: Site) -> tuple[Charge, ...]:
    return site.ledger.entries() if (site.home / LEDGER_NAME).exists() else ()


__all__ = ["Charged", "charged", "charged_as_of", "charged_runs"]
