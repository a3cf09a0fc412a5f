"""Register of what left: every message about a run, with its fields, its bytes and who received it."""

from collections.abc import Iterator, Sequence

from common.audit.entries import Entry
from server.evidence.document import Cell, Document, Part, heading
from server.federation.events import OVERALL
from server.views.facts import Fact, RunFacts, entered, header_of, names_in, noted, total

_COLUMNS = (
    "round",
    "site",
    "kind",
    "fields",
    "patients told",
    "bytes of parts",
    "bytes of header",
    "recipient",
    "when",
)


def document(facts: RunFacts) -> Document:
    """The register of one run."""
    return Document(
        "outgoing",
        "Register of what left the hospitals",
        "each update, set of scores, answer and refusal of this run that came to the coordinator, by its records.",
        "the hospital's own record: `wardround-client audit export` and the exit gate there say what it sent. "
        "Attempts whose answer never came do not stand here.",
        [_updates(facts), _scores(facts), _answers(facts), _down(facts), _written_out(facts)],
        heading(facts),
    )


def _updates(facts: RunFacts) -> Part:
    receipts = facts.audited("round")
    parts = ", ".join(facts.run.strategy.up)
    carried = {(event["round"], event["site"]): (line, event) for line, event in facts.journal("train")}
    rows: list[Sequence[Cell]] = []
    for entry in receipts:
        place = (entry.fields["receipt"]["round"], entry.fields["receipt"]["site"])
        rows.append(
            [
                entered(entry, "receipt.round"),
                entered(entry, "receipt.site"),
                f"update, parts: {parts}",
                names_in(*carried[place]) if place in carried else "not in the model: scalars were not kept",
                noted(*carried[place], "patients") if place in carried else "not recorded",
                entered(entry, "receipt.size"),
                header_of(*carried[place], facts.run_hash) if place in carried else "not recorded",
                "the coordinator",
                entered(entry, "time"),
            ]
        )
    sizes = [entered(entry, "receipt.size") for entry in receipts]
    if sizes:
        rows.append(["all rounds", "all sites", "updates", "", "", total(sizes), "", "the coordinator", ""])
    unsigned = _unsigned(facts, receipts)
    for entry in unsigned:
        rows.append(
            [
                entered(entry, "round"),
                entered(entry, "site"),
                f"update without a receipt, parts: {parts}",
                "not known",
                "not known",
                "not known",
                "not known",
                "the coordinator",
                entered(entry, "time"),
            ]
        )
    return Part(
        "Updates",
        (
            "Bytes of parts are those in the receipt that both sides signed, and those shown to a hospital before it "
            "approved: of weights, and of the names and shapes of their tensors. The header has the fields named "
            "here, the run's hash and the round; its bytes follow from them. Envelope and encryption come on top. A "
            "header always has a field for a number of patients: zero where none is told, as with privacy.",
        ),
        _COLUMNS,
        rows,
        "No update came.",
    )


def _unsigned(facts: RunFacts, receipts: Sequence[Entry]) -> list[Entry]:
    """Updates that arrived and have no receipt here, each once."""
    signed = {(entry.fields["receipt"]["round"], entry.fields["receipt"]["site"]) for entry in receipts}
    last = {(entry.fields["round"], entry.fields["site"]): entry for entry in facts.audited("arrived")}
    return [entry for place, entry in last.items() if place not in signed]


def _scores(facts: RunFacts) -> Part:
    rows: list[Sequence[Cell]] = [
        [
            noted(line, event, "round"),
            noted(line, event, "site"),
            noted(line, event, "phase"),
            names_in(line, event),
            noted(line, event, "patients"),
            "none",
            header_of(line, event, facts.run_hash),
            "the coordinator",
            noted(line, event, "time"),
        ]
        for line, event in facts.journal("evaluate")
        if event["site"] != OVERALL
    ]
    return Part("Scores of held-out patients", (), _COLUMNS, rows, "No scores came.")


def _answers(facts: RunFacts) -> Part:
    rows: list[Sequence[Cell]] = [
        [
            entered(entry, "round") if "round" in entry.fields else "before the run",
            entered(entry, "site") if "site" in entry.fields else "not stated",
            {"approved": "approval", "denied": "denial"}.get(entry.kind, "refusal"),
            entered(entry, "code") if "code" in entry.fields else "the answer",
            "none",
            "none",
            "not recorded",
            "the coordinator",
            entered(entry, "time"),
        ]
        for entry in facts.audited("approved", "denied", "refusal")
    ]
    text = "A code may be a hospital's refusal, or the coordinator's about an update; participation says whose it was."
    return Part("Answers, refusals and codes", (text,), _COLUMNS, rows, "No answer came.")


def _down(facts: RunFacts) -> Part:
    rows: list[Sequence[Cell]] = [
        [
            noted(line, event, "round"),
            noted(line, event, "sites"),
            "model, to be trained",
            "weights",
            "none",
            noted(line, event, "bytes-down"),
            "not recorded",
            "the hospitals",
            noted(line, event, "time"),
        ]
        for line, event in facts.journal("round")
    ]
    rows += [
        [
            noted(line, event, "round"),
            "all that were asked",
            "model, to be scored",
            "weights",
            "none",
            noted(line, event, "bytes-down"),
            "not recorded",
            "the hospitals",
            noted(line, event, "time"),
        ]
        for line, event in facts.journal("evaluate")
        if event["site"] == OVERALL
    ]
    text = "Of a round the hospitals are named whose updates entered; others that were asked received the model too."
    return Part("What went to the hospitals", (text,), _COLUMNS, rows, "No round is done.")


def _written_out(facts: RunFacts) -> Part:
    rows = list(_exports(facts))
    return Part(
        "What was written out at the coordinator",
        ("Where a file went afterwards, no program sees.",),
        ("what", "hash", "when"),
        rows,
        "The model of this run was not written out.",
    )


def _exports(facts: RunFacts) -> Iterator[Sequence[Cell]]:
    kept: Fact | None = facts.model_sha256
    models = {entry.fields["model"] for entry in facts.audited("aggregated")} | ({kept.value} if kept else set())
    for entry in facts.of_members("export"):
        if entry.fields["hash"] in models:
            yield [entered(entry, "what"), entered(entry, "hash"), entered(entry, "time")]


__all__ = ["document"]
