"""The number of patients that a site declares to others: set once, and never the live count.

Delta is 1 / (10 N), and N divides the noisy sums of a private step and of private scores. All of that leaves, so N must
not follow the patients: were it the number found, rounded, the 41st patient would show as a jump from 40 to 45. A
person sets it in site.toml (cohort-size). Where nobody does, the first private run of a modality sets it from what it
finds, rounded up to a multiple of 5, and from then on it stays:

    home/state/declared.json   {"CT": 40}

A cohort that outgrows the number goes on under it. To refuse would tell the coordinator on which day the 41st patient
came; and nothing printed becomes false, as epsilon and delta hold at any N, and only the custom that delta be at most
1 / (10 N) is missed. The person is told instead (worker.log, `show` and `approve`, `data check`), and declares a new
number in site.toml when the hospital wants to.
"""

import json
import logging
import math
from pathlib import Path

from common.errors import ConfigError
from common.files import write_private
from common.locks import locked

STEP = 5

_log = logging.getLogger(__name__)


def declared_size(set_by_site: int | None, found: int, modality: str, path: Path | None, *, keep: bool = True) -> int:
    """The declared number of patients, set now if it never was.

    Args:
        set_by_site: cohort-size in site.toml, which comes before all else.
        found: patients that are usable for the run, at least 1; looked at only where no number was ever set.
        modality: of the run.
        path: state/declared.json; None: nothing is kept.
        keep: False only looks: the number that is declared, or would be.

    Raises:
        ConfigError: the file is damaged. It is not made anew: the number would follow the patients of today.
    """
    rounded = math.ceil(found / STEP) * STEP
    if set_by_site is not None:
        number = set_by_site
    elif path is None:
        return rounded
    else:
        number = _kept(path, modality, rounded) if keep else _read(path).get(modality, rounded)
    if why := outgrown(number, found):
        _log.warning("%s", why)
    return number


def outgrown(declared: int, found: int) -> str | None:
    """What to tell the site's person when there are more patients than were declared; None while there are not."""
    if found <= declared:
        return None
    return (
        f"{found} patients are usable, and this site has declared {declared}. Private runs go on with {declared}: "
        f"delta stays 1 / (10 * {declared}), and steps are larger than planned. To declare a new number, set "
        "cohort-size in site.toml, rounded so that no single patient can be told from it."
    )


def _kept(path: Path, modality: str, first: int) -> int:
    with locked(path.with_suffix(".lock")):
        numbers = _read(path)
        if modality not in numbers:
            write_private(path, json.dumps(numbers | {modality: first}, sort_keys=True).encode())
            _log.info("declared %d patients for private %s runs, from now on", first, modality)
            return first
        return numbers[modality]


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


__all__ = ["declared_size", "outgrown"]
