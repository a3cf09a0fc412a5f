"""What a strategy keeps at a site from round to round, sealed under the site's key.

    home/state/strategies/<run hash>/<round>.sealed

A round's file is written whole before its update leaves, and that which the round began with stays: a round that is
trained again, after a crash, begins with the same, the last one too. Files of later rounds go: they are of an earlier
start of the run. Once scores of the last round's model are asked for, or the test is made where a run stopped early,
nothing is left (`client.train.answer`); of a run that ends in another way the files stay, and may be deleted. A file
that does not open is told, and not believed: the site goes on as one that takes part for the first time.
"""

import logging
import shutil
from pathlib import Path

from torch import Tensor

from client.home.folder import STRATEGIES_NAME
from client.site import Site
from client.train.strategies import Kept
from common.config import RunConfig
from common.crypto.record_box import RecordBox
from common.errors import UpdateError
from common.learning.checkpoint import pack, unpack
from common.system.files import write_private

_PURPOSE, _SUFFIX = "strategies", ".sealed"
_BETWEEN = "/"  # a part's name, and a tensor's

_log = logging.getLogger(__name__)


def recall(site: Site, run_hash: str, round_: int) -> Kept | None:
    """What the last round before this one has left; None: nothing."""
    before = [number for number in _rounds(_folder(site, run_hash)) if number < round_]
    if not before:
        return None
    number = max(before)
    path = _path(site, run_hash, number)
    try:
        state = unpack(RecordBox(site.key, _PURPOSE).unseal(path.read_bytes(), _context(run_hash, number)))
    except (OSError, ValueError, UpdateError):
        _log.warning("what the strategy kept of round %d does not open: this site goes on as if it were new", number)
        return None
    parts: dict[str, dict[str, Tensor]] = {}
    for name, tensor in state.items():
        part, _, key = name.partition(_BETWEEN)
        parts.setdefault(part, {})[key] = tensor
    return Kept(number, parts)


def retain(site: Site, run: RunConfig, run_hash: str, kept: Kept) -> None:
    """Keep what a round leaves, where another follows, and let go what only earlier ones needed."""
    if kept.round < run.federation.rounds:
        flat = {f"{part}{_BETWEEN}{name}": one for part, state in kept.states.items() for name, one in state.items()}
        sealed = RecordBox(site.key, _PURPOSE).seal(pack(flat), _context(run_hash, kept.round))
        write_private(_path(site, run_hash, kept.round), sealed)
    others = [number for number in _rounds(_folder(site, run_hash)) if number != kept.round]
    newest = max((number for number in others if number < kept.round), default=None)
    for number in others:
        if number != newest:
            _path(site, run_hash, number).unlink(missing_ok=True)


def discard(site: Site, run_hash: str) -> None:
    """Let go all of a run that is over."""
    shutil.rmtree(_folder(site, run_hash), ignore_errors=True)


def _folder(site: Site, run_hash: str) -> Path:
    return site.home / STRATEGIES_NAME / run_hash


def _path(site: Site, run_hash: str, round_: int) -> Path:
    return _folder(site, run_hash) / f"{round_}{_SUFFIX}"


def _rounds(folder: Path) -> list[int]:
    return [int(path.stem) for path in folder.glob(f"*{_SUFFIX}") if path.stem.isdigit()]


def _context(run_hash: str, round_: int) -> bytes:
    return f"{run_hash} {round_}".encode()


__all__ = ["discard", "recall", "retain"]
