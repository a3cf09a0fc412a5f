"""The number of patients that a site declares to others: set once, by the hospital, and never the live count.

Delta is 1 / (10 N), and N divides the noisy sums of a private step and of private scores. All of that leaves, so N must
not follow the patients: were it the number found, rounded, the 41st patient would show as a jump from 40 to 45. A
person sets it in site.toml (cohort-size). Where nobody does, the first private run of a modality that the hospital
approves sets it, to the number that was shown for it: what was found, rounded up to a multiple of 5. From then on it
stays:

    home/state/declared.json   {"CT": 40}

A proposal only looks: whoever proposes a run sets nothing, however often, and is told no number before the hospital has
said yes. Work of an approved run sets the number where the approval could not, because nobody had counted yet, or where
there is no approval, as in a simulation.

A cohort that outgrows the number goes on under it. To refuse would tell the coordinator on which day the 41st patient
came; and nothing printed becomes false, as epsilon and delta hold at any N, and only the custom that delta be at most
1 / (10 N) is missed. The person is told instead (worker.log, `show` and `approve`, `data check`), and declares a new
number in site.toml when the hospital wants to.
"""

import json
import logging
import math
from dataclasses import replace
from pathlib import Path

from client.home.folder import DECLARED_NAME
from client.home.offer import Offer
from common.config import RunConfig, SiteConfig
from common.errors import ConfigError
from common.system.files import write_private
from common.system.locks import locked

STEP = 5

_log = logging.getLogger(__name__)


def declared_size(site: SiteConfig, run: RunConfig, found: int, home: Path | None) -> int:
    """The declared number of patients, or the one that would be declared now; nothing is written.

    Args:
        site: whose cohort-size comes before all else.
        run: of which modality; without privacy no number is ever set, and this one follows the patients.
        found: patients that are usable for the run, at least 1; looked at only where no number was ever set.
        home: the site's; None: no number was set.

    Raises:
        ConfigError: the file is damaged. It is not made anew: the number would follow the patients of today.
    """
    number = set_size(site, run, home)
    return math.ceil(found / STEP) * STEP if number is None else number


def set_size(site: SiteConfig, run: RunConfig, home: Path | None) -> int | None:
    """The number that a person or an earlier run has set for runs like this; None: none yet.

    Raises:
        ConfigError: as `declared_size`.
    """
    if site.cohort_size is not None or home is None or run.privacy is None:
        return site.cohort_size
    return _read(home / DECLARED_NAME).get(run.data.modality)


def declare(site: SiteConfig, run: RunConfig, number: int, home: Path) -> int:
    """Set the number for all private runs of a modality, if none was set; for a run that the hospital has approved.

    Args:
        site: whose cohort-size comes before all else.
        run: of which modality; nothing is done for one without privacy.
        number: what was shown to whoever approved.
        home: the site's.

    Returns:
        The number that holds: another one where one was set before.

    Raises:
        ConfigError: as `declared_size`.
    """
    if run.privacy is None or site.cohort_size is not None:
        return site.cohort_size or number
    path, modality = home / DECLARED_NAME, run.data.modality
    with locked(path.with_suffix(".lock")):
        numbers = _read(path)
        if modality not in numbers:
            write_private(path, json.dumps(numbers | {modality: number}, sort_keys=True).encode())
            _log.info("declared %d patients for private %s runs, from now on", number, modality)
        return numbers.get(modality, number)


def as_declared(offer: Offer, site: SiteConfig, run: RunConfig, home: Path) -> Offer:
    """What was counted earlier, with the number that is declared now: another approval may have set it since."""
    return replace(offer, declared_size=declared_size(site, run, offer.patients, home))


def outgrown(declared: int, found: int) -> str | None:
    """What to tell the site's person when there are more patients than were declared; None while there are not."""
    if found <= declared:
        return None
    return (
        f"{found} patients are usable, and this site has declared {declared}. Private runs go on with {declared}: "
        f"delta stays 1 / (10 * {declared}), and steps are larger than planned. To declare a new number, set "
        "cohort-size in site.toml, rounded so that no single patient can be told from it."
    )


def _read(path: Path) -> dict[str, int]:
    try:
        numbers = json.loads(path.read_bytes())
    except FileNotFoundError:
        return {}
    except ValueError:
        numbers = None
    if not isinstance(numbers, dict) or not all(type(one) is int and one > 0 for one in numbers.values()):
        raise ConfigError(
            f"{path.name} in the site's state folder is damaged: it holds the numbers of patients that were declared. "
            "Restore it from a backup, or set cohort-size in site.toml to the number that was declared and remove it."
        )
    return numbers


__all__ = ["as_declared", "declare", "declared_size", "outgrown", "set_size"]
