"""What the folder of a finished run holds, under home/models/NAME-HASH8/.

    run.json                    the run's document: its SHA-256 is the run's hash
    model.safetensors.sealed    the model, and
    model.json.sealed           its manifest, as the run left them; `wardround-server export` opens them
    bundle/ model.onnx.sealed   the model as MONAI bundle and as ONNX, each file sealed (server/archive/forms.py)
    metrics.jsonl summary.json report.html
    receipts.jsonl              each update's receipt with both signatures, as in the audit log
    provenance.json             what went into the model, round by round, who proposed the run, and with which programs;
                                of bundle and ONNX how far they differ, or why they are left out
    card.json card.html         the model card (server/evidence/card.py)

A run is finished when it is completed: one that failed or was stopped may go on. The folder is made when the last
receipt is there, by the coordinator, or by the first command that looks for it.
"""

import json
from collections.abc import Iterator, Mapping
from typing import Any

from common.crypto.stream import SUFFIX
from common.errors import ConfigError
from common.text import as_json
from server.archive import folder, forms
from server.archive.folder import Kept
from server.evidence import card
from server.evidence.document import as_data, page
from server.federation.events import JOURNAL_NAME, SUMMARY_NAME, read_summary
from server.home.checkpoints import MODEL_FILES
from server.home.folder import Home, folder_name
from server.registry.proposals import Proposal
from server.views.facts import RunFacts, facts_of
from server.views.report import REPORT_NAME, report_page

ARCHIVE = "models"
RUN_NAME, RECEIPTS_NAME, PROVENANCE_NAME = "run.json", "receipts.jsonl", "provenance.json"


def keep(home: Home, proposal: Proposal, made: forms.Forms | None = None) -> bool:
    """Write the folder of a run that is completed, unless it is there.

    Args:
        home: the coordinator's.
        proposal: the run.
        made: the model's other forms; None: they are made here, which takes about a minute.

    Returns:
        Whether it was written now.

    Raises:
        ConfigError: the run is not completed, or a file of it is missing.
        OSError: the disk is full, or the like.
    """
    results = home.run_folder(proposal.document)
    summary = read_summary(results)
    if summary is None or summary["status"] != "completed":
        raise ConfigError(f"{proposal.name} is {proposal.state}: only a completed run has a folder among the models.")
    place = home.path / ARCHIVE / folder_name(proposal.document)
    if is_kept(home, proposal):
        return False
    facts = facts_of(home, proposal)
    about = card.document(facts)
    made = made or forms.Maker(home, proposal).wait()
    sealer = home.sealer_of(proposal.run_hash)
    try:
        files = {
            RUN_NAME: proposal.document.text.encode(),
            **{f"{name}{SUFFIX}": (results / f"{name}{SUFFIX}").read_bytes() for name in MODEL_FILES},
            **{f"{name}{SUFFIX}": sealer.seal(data, name) for name, data in made.files.items()},
            JOURNAL_NAME: (results / JOURNAL_NAME).read_bytes(),
            SUMMARY_NAME: (results / SUMMARY_NAME).read_bytes(),
            REPORT_NAME: report_page(results).encode(),
            RECEIPTS_NAME: "".join(_receipts(facts)).encode(),
            PROVENANCE_NAME: f"{as_json(_provenance(facts, made))}\n".encode(),
            "card.json": as_data(about).encode(),
            "card.html": page(about).encode(),
        }
    except FileNotFoundError as error:
        missing = error.filename and str(error.filename).rpartition("/")[2]
        raise ConfigError(f"the results of {proposal.name} lack {missing}. Restore them from a backup.") from error
    told = {"run": proposal.run_hash, "name": proposal.name, "model-sha256": summary["model-sha256"]}
    return folder.write(place, files, {**told, "made": facts.made}, home.log_key)


def is_kept(home: Home, proposal: Proposal) -> bool:
    """Whether the folder of a run is there; nothing in it is looked at."""
    return (home.path / ARCHIVE / folder_name(proposal.document)).exists()


def kept(home: Home, proposal: Proposal) -> Kept:
    """The folder of a completed run, checked; made now where it is not there yet.

    Raises:
        ConfigError: as `keep`, or it was changed.
    """
    keep(home, proposal)
    found = there(home, proposal)
    if found is None:
        raise ConfigError(f"{proposal.name} had a folder among the models a moment ago. Try again.")
    return found


def there(home: Home, proposal: Proposal) -> Kept | None:
    """The folder of a run, checked; None where there is none. Nothing is written.

    Raises:
        ConfigError: it was changed.
    """
    place = home.path / ARCHIVE / folder_name(proposal.document)
    if not place.exists():
        return None
    found = folder.read(place, home.log_key.public_key())
    if found.manifest["run"] != proposal.run_hash:
        raise ConfigError(f"{found.path.name} among the models is of another run than its name says. Move it away.")
    return found


def forms_in(found: Kept) -> Mapping[str, Mapping[str, Any]]:
    """What is said of the model's other forms; nothing in a folder of a version that made none."""
    told: Mapping[str, Mapping[str, Any]] = json.loads(found.read(PROVENANCE_NAME)).get("forms", {})
    return told


def has_all_receipts(home: Home, proposal: Proposal) -> bool:
    """Whether both sides signed for each update in the model."""
    facts = facts_of(home, proposal)
    signed = {_place(entry.fields["receipt"]) for entry in facts.audited("round")}
    return {_place(entry.fields) for _, updates in facts.merged for entry in updates} <= signed


def _place(fields: Mapping[str, Any]) -> tuple[Any, ...]:
    return fields["round"], fields["site"], fields["update"]


def _receipts(facts: RunFacts) -> Iterator[str]:
    for entry in facts.audited("round"):
        yield json.dumps({"seq": entry.seq, **entry.fields}, sort_keys=True) + "\n"


def _provenance(facts: RunFacts, made: forms.Forms) -> dict[str, Any]:
    """The way from the first weights to the model, as the audit log has it."""
    rounds = [
        {
            "round": entry.fields["round"],
            "model": entry.fields["model"],
            "updates": {one.fields["site"]: one.fields["update"] for one in updates},
            "seq": entry.seq,
        }
        for entry, updates in facts.in_model
    ]
    initial = facts.run.initial
    return {
        "run": facts.run_hash,
        "proposed-by": sorted(
            {one.fields["operator"] for one in facts.audited("act") if one.fields["action"] == "run"}
        ),
        "initial": None if initial is None else initial.sha256,
        "rounds": rounds,
        "model": None if facts.model_sha256 is None else facts.model_sha256.value,
        "model-round": None if facts.model_round is None else facts.model_round.value,
        "policies": {one.fields["receipt"]["site"]: one.fields["receipt"]["policy"] for one in facts.audited("round")},
        "programs": dict(facts.programs),
        "forms": dict(made.told),
        "audit-log": {"key": facts.entries[0].fields["key"], "entries": len(facts.entries)},
    }


__all__ = ["ARCHIVE", "forms_in", "has_all_receipts", "is_kept", "keep", "kept", "there"]
