"""What a run left at the coordinator, removed at the end of a project; what accounts for it stays.

Removed is what lies in the run's folder: checkpoints, the model as the run left it, curves, report. The signed record
of a completed run, its model in it, stays unless it is asked for too. The audit log, the proposal with the hospitals'
answers and the mark that says when stay always.
"""

import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from common.errors import ConfigError
from common.identity.operators import Act
from server.archive import folder as archive
from server.archive.record import ARCHIVE
from server.home import purged
from server.home.folder import Home, folder_name
from server.registry import operators
from server.registry.audit_trail import open_log
from server.registry.proposals import Proposal


@dataclass(frozen=True)
class Left:
    """What a run left in one place."""

    what: str  # for people
    place: Path
    files: int
    size: int  # bytes


@dataclass(frozen=True)
class Purge:
    """What would be removed of a run, and what stays."""

    proposal: Proposal
    removed: Sequence[Left]
    stays: Sequence[tuple[str, str]]  # what, why

    @property
    def files(self) -> int:
        """How many files are removed."""
        return sum(one.files for one in self.removed)


def plan(home: Home, proposal: Proposal, *, with_record: bool = False) -> Purge:
    """Look what a run left here.

    Args:
        home: the coordinator's.
        proposal: the run.
        with_record: the record of a completed run goes too, and with it its model.

    Raises:
        ConfigError: the run is open or its process has not ended; or it is completed and has no record yet.
    """
    if proposal.open or proposal.run_id is not None:
        raise ConfigError(
            f"{proposal.name} {proposal.run_hash[:8]} is {proposal.state}, or its process has not ended yet. Stop it "
            f"with `wardround-server stop {proposal.run_hash[:8]}`, or wait a moment, then try again."
        )
    results = home.run_folder(proposal.document)
    record = home.path / ARCHIVE / folder_name(proposal.document)
    if proposal.state == "completed" and not record.exists() and not with_record and not purged.is_purged(results):
        raise ConfigError(
            f"{proposal.name} has no folder among the models yet, and its model would be lost. A running coordinator "
            "makes it within a few minutes; or give --with-record, to keep no model."
        )
    removed = [_counted(f"in runs/{results.name}", one) for one in _entries(results) if one.name != purged.NAME]
    stays = list(_STAYS)
    if record.exists() and with_record:
        removed.append(_counted("signed record, with the model", record))
    elif record.exists():
        stays.insert(0, (f"signed record in {ARCHIVE}/{record.name}, with the model", "--with-record removes it"))
    return Purge(proposal, removed, stays)


def carry_out(home: Home, signer: operators.Signer, purge: Purge) -> None:
    """Sign it, enter it in the audit log, then remove. What is interrupted is done again by another call.

    Raises:
        AuditError: the log cannot be written; nothing was removed.
    """

    def remove(_act: Act) -> None:
        open_log(home).append("purged", {"run": purge.proposal.run_hash, "files": purge.files})
        purged.mark(home.run_folder(purge.proposal.document), purge.files)
        for one in purge.removed:
            if not one.place.is_dir():
                one.place.unlink(missing_ok=True)
            elif one.place.parent.name == ARCHIVE:
                archive.remove(one.place)
            else:
                shutil.rmtree(one.place)

    operators.carry_out(home, signer, (purge.proposal.run_hash,), remove, only="purge")


_STAYS = (
    ("audit log, with each update's receipt", "it only grows; it has an entry of this purge now"),
    ("the proposal and the hospitals' answers", "they say who wanted the run, and who agreed"),
    ("what was exported to other folders", "this program does not know where; remove it there"),
)


def _entries(folder: Path) -> list[Path]:
    return sorted(folder.iterdir()) if folder.is_dir() else []


def _counted(what: str, place: Path) -> Left:
    files = [Path(folder, name) for folder, _, names in os.walk(place) for name in names]
    files = files if place.is_dir() else [place]
    return Left(f"{place.name} {what}" if place.parent.name != ARCHIVE else what, place, len(files), _size(files))


def _size(files: Sequence[Path]) -> int:
    return sum(path.lstat().st_size for path in files)


__all__ = ["Left", "Purge", "carry_out", "plan"]
