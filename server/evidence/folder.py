"""A folder with all documents about a run, each as a page and as JSON, and an index with their hashes."""

from collections.abc import Callable, Mapping
from hashlib import sha256
from pathlib import Path

from common.errors import ConfigError
from common.system.files import write_private
from common.text import as_json
from server.evidence import (
    annex_iv,
    card,
    change,
    crosswalk,
    impact,
    logbook,
    outgoing,
    participation,
    privacy,
    processing,
    sbom,
)
from server.evidence.document import FORMAT, Document, as_data, page
from server.views.facts import RunFacts

INDEX_NAME = "index.json"

DOCUMENTS: tuple[Callable[[RunFacts], Document], ...] = (
    processing.document,
    impact.document,
    outgoing.document,
    privacy.document,
    card.document,
    change.document,
    annex_iv.document,
    logbook.document,
    crosswalk.document,
    participation.document,
)


def files_of(facts: RunFacts) -> Mapping[str, bytes]:
    """All files, the index last: name -> content."""
    documents = [make(facts) for make in DOCUMENTS]
    files: dict[str, bytes] = {}
    for one in documents:
        files |= {f"{one.name}.html": page(one).encode(), f"{one.name}.json": as_data(one).encode()}
    if (listed := sbom.components()) is not None:
        files[sbom.NAME] = listed.encode()
    index = {
        "wardround-evidence": FORMAT,
        "run": facts.run_hash,
        "name": facts.run.name,
        "state": facts.proposal.state,
        "made": facts.made,
        "blanks": sum(len(one.blanks) for one in documents),
        "documents": [{"document": one.name, "title": one.title, "blanks": len(one.blanks)} for one in documents],
        "components": sbom.NAME if sbom.NAME in files else None,
        "sha256": {name: sha256(data).hexdigest() for name, data in files.items()},
    }
    return files | {INDEX_NAME: f"{as_json(index)}\n".encode()}


def write(facts: RunFacts, folder: Path) -> str:
    """Write the documents into a new or empty folder.

    Returns:
        SHA-256 of the index, which names all the others.

    Raises:
        ConfigError: there is something in the folder.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ConfigError(f"{folder} is there already. Give a new or empty folder with --evidence.")
    files = files_of(facts)
    for name, data in files.items():
        write_private(folder / name, data)
    return sha256(files[INDEX_NAME]).hexdigest()


__all__ = ["DOCUMENTS", "INDEX_NAME", "files_of", "write"]
