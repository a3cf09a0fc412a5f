"""In which runs a patient may have been used, by what this site wrote down: approvals, receipts, scores, places.

The site does not write down which patients a round trained on. What it has is the place of a patient in a run's split,
and the rounds in which the site worked; both together are the most that the patient can have been used in. So the list
may hold a run too many, such as one for another modality, and lacks none that the audit log knows.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from client.rules import purged
from client.trail.audit_trail import has_joined, open_log
from common.config import RunConfig
from common.privacy.guarantee import why_void

PlaceOf = Callable[[RunConfig], str | None]


@dataclass(frozen=True)
class Use:
    """One run that this site worked in."""

    run_hash: str
    name: str | None  # None: its document is gone, and so is the place
    place: str | None  # train, validation, test; None: not known
    certain: bool  # whether the place was kept for the patient; else it follows from the seed, for whoever is there
    private: bool | None  # whether differential privacy holds; noise that guarantees nothing is none
    rounds: tuple[int, ...]  # in which an update left
    updates: tuple[str, ...] = field(repr=False)  # SHA-256 of each
    scored: tuple[str, ...] = field(repr=False)  # models that were scored here, the last one last

    @property
    def as_data(self) -> Mapping[str, Any]:
        """For JSON."""
        return {
            "run": self.run_hash,
            "name": self.name,
            "place": self.place,
            "place-kept": self.certain,
            "differential-privacy": self.private,
            "rounds": list(self.rounds),
            "updates": list(self.updates),
            "models-scored": list(self.scored),
        }


def uses(home: Path, place_of: PlaceOf) -> list[Use]:
    """Every run in which an update or scores left this site, but those in which the patient had no place.

    Args:
        home: the site's.
        place_of: tells where the patient stands in a run; None where the patient was never placed in one like it.

    Raises:
        ConfigError: the file of places is damaged.
    """
    if not has_joined(home):
        return []
    rounds: dict[str, dict[int, str]] = {}
    scored: dict[str, list[str]] = {}
    for entry in open_log(home).entries():
        if entry.kind == "round":
            receipt = entry.fields["receipt"]
            rounds.setdefault(receipt["run"], {})[receipt["round"]] = receipt["update"]
        elif entry.kind == "evaluated":
            models = scored.setdefault(entry.fields["run"], [])
            models += [] if entry.fields["model"] in models else [entry.fields["model"]]
    documents = {run_hash: one.config for run_hash, one in purged.documents(home).items()}
    found = []
    for run_hash in dict.fromkeys([*rounds, *scored]):
        run = documents.get(run_hash)
        place = None if run is None else place_of(run)
        if run is not None and place is None:
            continue
        found.append(
            Use(
                run_hash=run_hash,
                name=None if run is None else run.name,
                place=place,
                certain=run is not None and run.split != "independent",
                private=None if run is None else run.privacy is not None and why_void(run) is None,
                rounds=tuple(sorted(rounds.get(run_hash, {}))),
                updates=tuple(update for _, update in sorted(rounds.get(run_hash, {}).items())),
                scored=tuple(scored.get(run_hash, ())),
            )
        )
    return found


__all__ = ["PlaceOf", "Use", "uses"]
