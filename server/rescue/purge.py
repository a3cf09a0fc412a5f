"""What a run left at the coordinator, removed at the end of a project; what accounts for it stays.

Removed is what lies in the run's folder: checkpoints, the model as the run left it, curves, report. The signed record
of a completed run, its model in it, stays unless it is asked for too. The audit log, the proposal with the hospitals'
answers and the mark that says when stay always.
"""

import shutil
from pathlib import Path

from common.errors import ConfigError
from common.identity.operators import Act
from common.rescue.purging import Purge, left_at
from server.archive import folder as archive
from server.archive.record import ARCHIVE
from server.home import purged
from server.home.folder import Home, folder_name
from server.registry import operators
from server.registry.audit_trail import open_log
from server.registry.proposals import Proposal


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
    removed = [
        left_at(f"{one.name} in runs/{results.name}", one) for one in _entries(results) if one.name != purged.NAME
    ]
    stays = list(_STAYS)
    if record.exists() and with_record:
        removed.append(left_at("signed record, with the model", record))
    elif record.exists():
        stays.insert(0, (f"signed record in {ARCHIVE}/{record.name}, with the model", "--with-record removes it"))
    return Purge(proposal.name, proposal.run_hash, removed, stays)


def carry_out(home: Home, signer: operators.Signer, proposal: Proposal, purge: Purge) -> None:
    """Sign it, enter it in the audit log, then remove. What is interrupted is done again by another call.

    Args:
        home: the coordinator's.
        signer: an operator who may.
        proposal: the run.
        purge: what is removed of it.

    Raises:
        AuditError: the log cannot be written; nothing was removed.
    """

    def remove(_act: Act) -> None:
        open_log(home).append("purged", {"run": purge.run_hash, "files": purge.files})
        purged.mark(home.run_folder(proposal.document), purge.files)
        for one in purge.removed:
            if not one.place.is_dir():
                one.place.unlink(missing_ok=True)
            elif one.place.parent.name == ARCHIVE:
                archive.remove(one.place)
            else:
                shutil.rmtree(one.place)

    operators.carry_out(home, signer, (purge.run_hash,), remove, only="purge")


_STAYS = (
    ("audit log, with each update's receipt", "it only grows; it has an entry of this purge now"),
    ("the proposal and the hospitals' answers", "they say who wanted the run, and who agreed"),
    ("what was exported to other folders", "this program does not know where; remove it there"),
)


def _entries(folder: Path) -> list[Path]:
    return sorted(folder.iterdir()) if folder.is_dir() else []


__all__ = ["carry_out", "plan"]
