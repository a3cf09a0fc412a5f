"""What a strategy keeps at a site from round to round, sealed under the site's key (client/home/kept.py).

A round's file is written whole before its update leaves, and that which the round began with stays: a round that is
trained again, after a crash, begins with the same, the last one too. Files of later rounds go: they are of an earlier
start of the run. Once scores of the last round's model are asked for, or the test is made where a run stopped early,
nothing is left (`client.train.answer`) but a personal model, which stays; of a run that ends in another way the files
stay, and may be deleted. A file that does not open is told, and not believed: the site goes on as one that takes part
for the first time.
"""

import logging
from pathlib import Path

from torch import Tensor

from client.home import kept as files
from client.home.folder import RESIDUALS_NAME, STRATEGIES_NAME
from client.site import Site
from client.train.strategies import Kept
from common.config.rundocument import RunDocument
from common.errors import UpdateError
from common.learning.checkpoint import pack, unpack

_log = logging.getLogger(__name__)


def recall(site: Site, document: RunDocument, round_: int) -> Kept | None:
    """What the last round before this one has left; None: nothing."""
    return recall_from(_folder(site, document), site, round_)


def recall_from(folder: Path, site: Site, round_: int) -> Kept | None:
    """Likewise, of any folder of a run's."""
    before = [number for number in files.rounds(folder) if number < round_]
    if not before:
        return None
    number = max(before)
    try:
        state = unpack(files.read(folder, site.key, number))
    except (OSError, ValueError, UpdateError):
        _log.warning("what was kept here of round %d does not open: this site goes on as if it were new", number)
        return None
    parts: dict[str, dict[str, Tensor]] = {}
    for name, tensor in state.items():
        part, _, key = name.partition(files.BETWEEN)
        parts.setdefault(part, {})[key] = tensor
    return Kept(number, parts)


def retain(site: Site, document: RunDocument, kept: Kept) -> None:
    """Keep what a round leaves, where another follows or it is a model, and let go what only earlier ones needed."""
    folder, run = _folder(site, document), document.config
    retain_in(folder, site, kept, wanted=kept.round < run.federation.rounds or run.strategy.PERSONAL)


def retain_in(folder: Path, site: Site, kept: Kept, *, wanted: bool = True) -> None:
    """Likewise, in any folder of a run's; where it is not wanted only earlier ones go."""
    if wanted:
        flat = {
            f"{part}{files.BETWEEN}{name}": one for part, state in kept.states.items() for name, one in state.items()
        }
        files.write(folder, site.key, kept.round, pack(flat))
    others = [number for number in files.rounds(folder) if number != kept.round]
    newest = max((number for number in others if number < kept.round), default=None)
    for number in others:
        if number != newest:
            files.path_of(folder, number).unlink(missing_ok=True)


def discard(site: Site, document: RunDocument) -> None:
    """Let go what only further rounds of a run would need, as it is over."""
    files.remove(residuals_folder(site, document))
    folder = _folder(site, document)
    if not document.config.strategy.PERSONAL:
        files.remove(folder)
    for number in files.rounds(folder)[:-1]:
        files.path_of(folder, number).unlink(missing_ok=True)


def residuals_folder(site: Site, document: RunDocument) -> Path:
    """Where what rounding took from a run's updates is kept: see `client.train.sending`."""
    return site.home / RESIDUALS_NAME / document.hash


def _folder(site: Site, document: RunDocument) -> Path:
    if document.config.strategy.PERSONAL:
        return files.personal_folder(site.home, document.hash)
    return site.home / STRATEGIES_NAME / document.hash


__all__ = ["discard", "recall", "recall_from", "residuals_folder", "retain", "retain_in"]
