"""All that the coordinator knows of a run, each value with the place where it stands.

Documents about a run (server/evidence) are made of these values and of nothing else, so that whoever doubts one can
look it up. A place is named by its file and the way within it, parts separated by "/":

    audit/SEQ/FIELD       entry number SEQ of the coordinator's audit log; `audit/12/receipt/epsilon`
    journal/LINE/KEY      line LINE, from 1, of the run's metrics.jsonl
    run/TABLE/KEY         the run's document, with its defaults
    summary/KEY           the run's summary.json; of a run that has not ended, what its journal amounts to
    registry/state        the run's row in registry.sqlite
    server/KEY            server.toml
    home/WHAT             how a key of the coordinator's lies: `root` and `key`, true where under a passphrase
    program/NAME          version of an installed package
    clock                 when the document was made, seconds since the epoch

A value that follows from several says how: their sum, their number, and so on.
"""

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any, Literal, TypeAlias

from common.audit.entries import Entry
from common.config import RunConfig
from common.identity.operators import subject_of
from common.privacy.guarantee import why_void
from common.privacy.scores import SCORES_DELTA, SCORES_EPSILON
from server.federation.events import JOURNAL_NAME, OVERALL, Event, read_events, scores_of
from server.home.folder import Home
from server.home.root import is_root_sealed
from server.registry.audit_trail import open_log
from server.registry.proposals import Proposal
from server.views.progress import summary_of
from server.views.sentences import noise_of

Scalar: TypeAlias = int | float | str | bool | None
How: TypeAlias = Literal["is", "sum", "count", "keys", "all", "header"]

_PROGRAMS = ("wardround", "flwr", "torch", "monai", "opacus", "cryptography")
# Of a train or evaluate event: what is said about the message, and not in it.
_ABOUT = ("event", "time", "round", "phase", "site")


@dataclass(frozen=True)
class Fact:
    """A value and where it stands."""

    value: Scalar
    sources: tuple[str, ...]
    # is: the value of the one source; sum, count: of the sources; keys: the names of what the source holds beside what
    # says which message it was; all: the values of the sources, each once, sorted; header: bytes of its header.
    how: How = "is"
    moment: bool = False  # seconds since the epoch


@dataclass(frozen=True)
class RunFacts:
    """One run as the coordinator's files tell it."""

    proposal: Proposal
    events: tuple[Event, ...]
    entries: tuple[Entry, ...]  # the whole audit log
    guarantee: Mapping[str, Any] | None  # of the summary; None without differential privacy
    settings: Mapping[str, Any]  # of the run, with its defaults, in kebab-case
    server: Mapping[str, Any]
    keys: Mapping[str, bool]  # root, key: whether it is under a passphrase
    programs: Mapping[str, str]
    made: int  # seconds since the epoch

    @property
    def run(self) -> RunConfig:
        """The run's settings."""
        return self.proposal.run

    @property
    def run_hash(self) -> str:
        """SHA-256 of its document."""
        return self.proposal.run_hash

    @property
    def now(self) -> Fact:
        """When this was read."""
        return Fact(self.made, ("clock",), moment=True)

    @property
    def state(self) -> Fact:
        """Running, completed, failed and so on."""
        return Fact(self.proposal.state, ("registry/state",))

    def setting(self, path: str) -> Fact:
        """A setting by its dotted keys; None where its table is not there."""
        return Fact(_plain(_at(self.settings, path.split("."))), (f"run/{path.replace('.', '/')}",))

    def guaranteed(self, site: str, key: str) -> Fact:
        """What a site's guarantee says; None where there is none."""
        stated = _at(self.guarantee or {}, ["sites", site, key])
        return Fact(_plain(stated), (f"summary/guarantee/sites/{site}/{key}",))

    def at_server(self, key: str) -> Fact:
        """A key of server.toml."""
        return Fact(_plain(self.server[key]), (f"server/{key}",))

    def key(self, name: str) -> Fact:
        """Whether the root's key (`root`) or the coordinator's (`key`) is under a passphrase."""
        return Fact(self.keys[name], (f"home/{name}",))

    def program(self, name: str) -> Fact:
        """The version of an installed package."""
        return Fact(self.programs[name], (f"program/{name}",))

    def audited(self, *kinds: str) -> list[Entry]:
        """Entries of the audit log about this run, of these kinds or of all."""
        subject = subject_of(self.run_hash)
        return [
            entry
            for entry in self.entries
            if (
                (not kinds or entry.kind in kinds)
                and self.run_hash in (entry.fields.get("run"), entry.fields.get("receipt", {}).get("run"))
            )
            or (entry.kind == "act" and (not kinds or "act" in kinds) and entry.fields["subject"] == subject)
        ]

    def of_members(self, *kinds: str) -> list[Entry]:
        """Entries about who belongs to the federation."""
        return [entry for entry in self.entries if entry.kind in kinds]

    @property
    def merged(self) -> list[tuple[Entry, list[Entry]]]:
        """Each round that made a model, in order: its entry "aggregated", and those "entered" of the updates in it.

        A round that was done again, as the coordinator stopped before it had kept the model, counts as it was done
        last, and what an earlier start did after it does not count.
        """
        rounds: list[tuple[Entry, list[Entry]]] = []
        updates: list[Entry] = []
        for entry in self.audited("entered", "aggregated"):
            if entry.kind == "entered":  # a round's come before its model
                updates.append(entry)
                continue
            before = [one for one in rounds if one[0].fields["round"] < entry.fields["round"]]
            rounds, updates = [*before, (entry, updates)], []
        return rounds

    @property
    def in_model(self) -> list[tuple[Entry, list[Entry]]]:
        """Likewise, up to the round whose model the run keeps; while it keeps none, all."""
        kept = self.model_round
        return [one for one in self.merged if kept is None or one[0].fields["round"] <= int(str(kept.value))]

    def journal(self, *kinds: str) -> Iterator[tuple[int, Event]]:
        """Lines of these kinds, each with its number, from 1."""
        yield from ((number, event) for number, event in enumerate(self.events, start=1) if event["event"] in kinds)

    @property
    def sites(self) -> list[str]:
        """Who answered the proposal, was asked in a round or gave an update."""
        named = {entry.fields["site"] for entry in self.audited() if "site" in entry.fields}
        named |= {entry.fields["receipt"]["site"] for entry in self.audited("round")}
        named |= {str(event["site"]) for _, event in self.journal("train", "evaluate")} - {OVERALL}
        return sorted(named)

    @property
    def model_round(self) -> Fact | None:
        """The round whose model the run keeps; None while it keeps none."""
        return next((noted(line, event, "model-round") for line, event in self.journal("run-finished")), None)

    @property
    def model_sha256(self) -> Fact | None:
        """SHA-256 of the model that the run keeps; None while it keeps none."""
        return next((noted(line, event, "model-sha256") for line, event in self.journal("run-finished")), None)

    def scored(self, phase: str) -> list[tuple[int, Event]]:
        """The evaluations of the model that is kept, or of the last that was scored; the mean of the sites last."""
        kept = self.model_round
        lines = [(line, event) for line, event in self.journal("evaluate") if event["phase"] == phase]
        rounds = [event["round"] for _, event in lines if kept is None or event["round"] <= int(str(kept.value))]
        latest = [(line, event) for line, event in lines if rounds and event["round"] == rounds[-1]]
        return sorted(latest, key=lambda one: (one[1]["site"] == OVERALL, one[1]["site"]))

    def noise_of(self, phase: str) -> tuple[str, ...]:
        """What the noise of those scores means, where they have any."""
        said = noise_of([event for _, event in self.scored(phase)])
        return () if said is None else (said,)

    def score_names(self, event: Event) -> list[str]:
        """The scores of an evaluation, in their order; without what they cost, where the run guarantees nothing."""
        hidden = (SCORES_EPSILON, SCORES_DELTA) if why_void(self.run) else ()
        values = scores_of(event).items()
        return [name for name, value in values if isinstance(value, float | int) and name not in hidden]

    def last_trained(self, site: str) -> tuple[int, Event] | None:
        """The site's last update, as it stated it."""
        lines = [(line, event) for line, event in self.journal("train") if event["site"] == site]
        return lines[-1] if lines else None


def facts_of(home: Home, proposal: Proposal) -> RunFacts:
    """Read what is known of a run.

    Args:
        home: the coordinator's.
        proposal: as the registry has it now.
    """
    config, folder = home.config, home.run_folder(proposal.document)
    return RunFacts(
        proposal=proposal,
        events=tuple(read_events(folder / JOURNAL_NAME)),
        guarantee=summary_of(folder, proposal).get("guarantee"),
        entries=open_log(home).entries(),
        settings=proposal.run.model_dump(mode="json", by_alias=True),
        server=config.model_dump(mode="json", by_alias=True),
        keys={"root": is_root_sealed(home), "key": home.key_file.is_protected},
        programs={name: version(name) for name in _PROGRAMS},
        made=int(time.time()),
    )


def entered(entry: Entry, path: str) -> Fact:
    """A field of an entry of the audit log, by its dotted names; None where it is not there."""
    whole = {**entry.fields, "seq": entry.seq, "time": entry.time, "kind": entry.kind}
    value = _plain(_at(whole, path.split(".")))
    return Fact(value, (f"audit/{entry.seq}/{path.replace('.', '/')}",), moment=path == "time")


def noted(line: int, event: Event, key: str) -> Fact:
    """A value of a line of the journal; None where it is not there."""
    return Fact(_plain(event.get(key)), (f"journal/{line}/{key}",), moment=key == "time")


def names_in(line: int, event: Event) -> Fact:
    """The names of what a message carried, beside which message it was."""
    return Fact(", ".join(sorted(name for name in event if name not in _ABOUT)), (f"journal/{line}",), "keys")


def header_of(line: int, event: Event, run_hash: str) -> Fact:
    """How many bytes the header of a site's message had, which follows from what it said (common/wire/messages.py)."""
    about: dict[str, Any] = {"kind": event["event"], "run-hash": run_hash, "round": event["round"]}
    about |= {"phase": event["phase"]} if "phase" in event else {}
    metrics = {name: value for name, value in event.items() if name not in (*_ABOUT, "patients")}
    head = {**about, "patients": event["patients"], "metrics": metrics}
    text = json.dumps(head, separators=(",", ":"), sort_keys=True, ensure_ascii=False)
    return Fact(len(text.encode()), (f"journal/{line}",), "header")


def total(facts: Sequence[Fact]) -> Fact:
    """The sum of whole numbers."""
    return Fact(sum(int(str(one.value)) for one in facts), tuple(one.sources[0] for one in facts), "sum")


def count(facts: Sequence[Fact]) -> Fact:
    """How many there are."""
    return Fact(len(facts), tuple(one.sources[0] for one in facts), "count")


def each(facts: Sequence[Fact]) -> Fact:
    """Their values, each once."""
    return Fact(", ".join(sorted({str(one.value) for one in facts})), tuple(one.sources[0] for one in facts), "all")


def _at(values: Mapping[str, Any], keys: Sequence[str]) -> Any:
    found: Any = values
    for key in keys:
        found = found.get(key) if isinstance(found, Mapping) else None
    return found


def _plain(value: Any) -> Scalar:
    """A list as people write it; a table says that it is there."""
    if isinstance(value, list | tuple):
        return ", ".join(map(str, value))
    if isinstance(value, Mapping):
        return ", ".join(sorted(map(str, value)))
    return value if value is None or isinstance(value, int | float | str | bool) else str(value)


__all__ = [
    "Fact",
    "RunFacts",
    "count",
    "each",
    "entered",
    "facts_of",
    "header_of",
    "names_in",
    "noted",
    "total",
]
