"""A coordinator with three hospitals and runs at every stage, by its own registry and journals; nothing is trained."""

from pathlib import Path
from typing import Any

from common.config.rundocument import RunDocument, from_toml
from common.privacy.accountant import epsilon
from common.privacy.guarantee import plan
from server.federation.events import OVERALL, Journal, open_journal
from server.home.folder import Home
from server.registry import operators
from server.registry.registry import Registry
from server.registry.sites import Presence
from tests.server.coordinators import enrol, new_home

SITES = ("st-anna", "st-john", "st-mary")
ROUNDS = 8


def document(name: str, *, private: bool = True) -> RunDocument:
    return from_toml(toml(name, private=private))


def toml(name: str, *, private: bool = True) -> str:
    return f"""
        format = 2
        name = "{name}"
        model = {{ channels = [4, 8], residual-units = 0 }}
        data = {{ modality = "CT", classes = ["lesion"] }}
        training = {{ patch-size = [32, 32], local-steps = 4 }}
        federation = {{ rounds = {ROUNDS}, quorum = 2 }}
        {"privacy = { target-epsilon = 8.0 }" if private else ""}
        """


def coordinator(folder: Path) -> tuple[Home, Registry]:
    """One that knows three hospitals."""
    home = new_home(folder)
    registry = Registry(home.registry)
    for name in SITES:
        enrol(home, registry, name)
    for name in SITES[:2]:
        registry.set_presence(name, Presence.HERE)
    return home, registry


def propose(home: Home, registry: Registry, run: RunDocument) -> None:
    """As the command does."""
    signer = operators.acting(home, registry, "run")
    endorsements = [operators.endorse(signer, run.hash, run.bundle)]
    operators.carry_out(home, signer, (run.hash,), lambda _act: registry.propose(run, endorsements))


def begin(home: Home, registry: Registry, run: RunDocument) -> Journal:
    """Two have approved, and it trains."""
    propose(home, registry, run)
    for name in SITES[:2]:
        registry.answer(run.hash, name, approved=True)
    registry.started(run.hash, 7)
    journal = open_journal(home.run_folder(run), last_round=0)
    journal.record(
        "run-started",
        {"name": run.name, "run-hash": run.hash, "rounds": ROUNDS, "quorum": 2, "seed": 0, "resumed-from": None},
    )
    return journal


def play_round(journal: Journal, run: RunDocument, round_: int, *, odd: str = "", missing: str = "") -> None:
    """What the coordinator writes of a round: each site's update, the round, the scores."""
    sites = [name for name in SITES[:2] if name != missing]
    price = plan(run.config, 40) if run.config.privacy else None
    for place, name in enumerate(sites):
        told: dict[str, Any] = {"train-loss": 1.1 / (round_ + 0.4 * place), "seconds": 41.0 + place}
        if price is not None:
            steps = price.steps_per_round * round_
            spent = epsilon([(price.noise_multiplier, price.sampling_rate, steps)], price.delta)
            told |= {"epsilon": spent, "delta": price.delta, "steps": price.steps_per_round}
        journal.record("train", told | {"round": round_, "site": name, "patients": 40})
    ended: dict[str, Any] = {"round": round_, "sites": sites, "refused": {}, "missing": [missing] if missing else []}
    ended |= {"why-missing": {missing: "away"} if missing else {}, "refused-by-coordinator": []}
    ended |= {"suspicious": {odd: ["opposite direction"]} if odd else {}}
    journal.record("round", ended | {"seconds": 43.2, "bytes-down": 2_400_000, "bytes-up": 2_400_000})
    scores = {name: round(0.81 - 0.5 / (round_ + place), 4) for place, name in enumerate(sites)}
    for name, score in scores.items():
        about = {"round": round_, "phase": "validation", "site": name, "patients": 0}
        journal.record("evaluate", about | {"dice": score, "dice-lesion": score})
    mean = sum(scores.values()) / len(scores)
    about = {"round": round_, "phase": "validation", "site": OVERALL, "mean-of-patients": None, "refused": {}}
    about |= {"missing": [missing] if missing else [], "why-missing": {missing: "at work"} if missing else {}}
    about |= {"seconds": 3.0, "bytes-down": 0}
    journal.record("evaluate", about | {"dice": mean, "dice-lesion": mean})
