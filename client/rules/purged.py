"""Runs that were purged at this hospital: their text stays, and they take no part here any more.

    home/proposals/purged/<run hash>.json   the text of the run as it was issued

It says which settings were charged for, which the ledger needs when it is restored from the audit log, and in which
runs a patient may have been used. A purged run is not taken again, whoever proposes or resumes it.
"""

import shutil
from collections.abc import Mapping
from pathlib import Path

from client.rules import approvals
from common.config.rundocument import RunDocument, from_text
from common.errors import ConfigError
from common.system.files import write_private

_FOLDER = "proposals/purged"


def purge(home: Path, document: RunDocument) -> None:
    """Remove what was proposed, answered and found out of a run, but for its text."""
    write_private(_path(home, document.hash), document.text.encode())
    shutil.rmtree(home / "proposals" / document.hash, ignore_errors=True)


def is_purged(home: Path, run_hash: str) -> bool:
    """Whether a run was purged here."""
    return _path(home, run_hash).exists()


def document_of(home: Path, run_hash: str) -> RunDocument:
    """The document of a run that was proposed here, purged or not.

    Raises:
        ConfigError: it is not known here.
    """
    return _read(_path(home, run_hash)) if is_purged(home, run_hash) else approvals.load(home, run_hash).document


def documents(home: Path) -> Mapping[str, RunDocument]:
    """Every run that was proposed here, by its hash; what is damaged is left out."""
    found = {one.run_hash: one.document for one in approvals.load_all(home)}
    for path in sorted((home / _FOLDER).glob("*.json")):
        try:
            found.setdefault(path.stem, _read(path))
        except ConfigError:
            continue  # as of the others, and told where it is needed
    return found


def names(home: Path) -> Mapping[str, str]:
    """The names of all of them, by hash."""
    return {run_hash: document.config.name for run_hash, document in documents(home).items()}


def _path(home: Path, run_hash: str) -> Path:
    return home / _FOLDER / f"{run_hash}.json"


def _read(path: Path) -> RunDocument:
    try:
        document = from_text(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path} is damaged. Restore it from a backup.") from error
    if document.hash != path.stem:
        raise ConfigError(f"{path} was changed: it is the text of a run that was purged. Restore it from a backup.")
    return document


__all__ = ["document_of", "documents", "is_purged", "names", "purge"]
