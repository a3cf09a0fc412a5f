"""A hospital that has joined, with runs proposed and answered, a ledger, an audit log and a data check; no image."""

import datetime
import json
import time
from pathlib import Path

from client.agent.spending import ATTEMPT
from client.home.identity import load_identity
from client.home.offer import Offer
from client.home.sitefile import add_source
from client.rules import approvals
from client.rules.approvals import Appraisal, Proposal
from client.site import open_site
from client.trail.audit_trail import open_log
from common.audit import receipts
from common.audit.entries import decimal_text
from common.config import RunConfig, SourceConfig, validate
from common.identity.operators import Signer
from common.privacy.guarantee import charge_round
from common.system.files import write_private
from tests.client.coordinator import Authority
from tests.documents import carried

COHORT = "c0" * 32
MODEL = "ab" * 32


def a_run(name: str, rounds: int = 8, **tables: object) -> RunConfig:
    values = {
        "format": 2,
        "name": name,
        "model": {"channels": [4, 8], "residual-units": 0},
        "data": {"modality": "CT", "classes": ["lesion"]},
        "training": {"patch-size": [32, 32], "local-steps": 4},
        "federation": {"rounds": rounds, "quorum": 2},
        "privacy": {"target-epsilon": 4.0},
    }
    return validate(RunConfig, values | tables)


def hospital(folder: Path) -> Path:
    """A site's home."""
    home = folder / "site"
    Authority().admit(home, "st-anna", "127.0.0.1:9")
    (folder / "images").mkdir()
    add_source(home / "site.toml", SourceConfig(path=str(folder / "images"), kind="dicom"))
    return home


def propose(home: Path, run: RunConfig, *, patients: int = 43, refusal: str | None = None) -> Proposal:
    """A run with what the agent has found out about it."""
    proposal = approvals.record(home, carried(run), is_open=True, keys=[Signer("maria", "ab" * 32)])
    offer = Offer(
        patients=patients,
        declared_size=45,
        cohort_id=COHORT,
        usable=patients + 3,
        quarantined={"burned-in": 1, "missing-slices": 2},
        parts={"weights": {"encoder.weight": (8, 1, 3, 3), "encoder.bias": (8,), "head.weight": (2, 8, 1, 1)}},
        training=30,
    )
    approvals.note_appraisal(home, proposal.run_hash, Appraisal(offer, refusal))
    return approvals.load(home, proposal.run_hash)


def train(home: Path, run: RunConfig, rounds: int) -> None:
    """What so many private rounds leave in ledger and log."""
    site, log, document, identity = open_site(home), open_log(home), carried(run), load_identity(home)
    for number in range(1, rounds + 1):
        charged = charge_round(
            site.ledger,
            document,
            cohort=COHORT,
            cohort_size=45,
            round_=number,
            attempt=f"{ATTEMPT}{number}",
            lifetime_epsilon=site.policy.lifetime_epsilon,
        )
        epsilon, delta = decimal_text(charged.cost), decimal_text(charged.delta)
        log.append("spend", {"run": document.hash, "round": number, "epsilon": epsilon, "delta": delta})
        receipt = receipts.receipt_for(
            run=document.hash,
            round_=number,
            site=identity.site,
            received=MODEL,
            update=MODEL,
            size=1_204_000,
            policy=MODEL,
            time=time.time(),
            patients=0,
            spent=(epsilon, delta),
        )
        log.append("round", receipts.entry_fields(receipt, receipts.sign(receipt, identity.receipt_key)))


def checked(home: Path) -> None:
    """The report of a data check, as far as a person is told of it here; the rest names studies."""
    aside = [{"study": 44 + place, "pseudonym": "Doe^Jane", "code": code} for place, code in enumerate(["burned-in"])]
    report = {
        "checked": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "run": None,
        "counts": {"usable": 46, "quarantined": 1, "ignored": 2, "patients": 43, "without-foreground": 0},
        "studies": [*({"study": n, "pseudonym": "Doe^Jane"} for n in range(1, 44)), *aside],
        "classes": [{"class": "lesion", "studies": 40, "share": 0.01}],
        "images": [{"modality": "CT", "studies": 46}],
    }
    write_private(home / "check" / "report.json", json.dumps(report).encode())
