"""Who took part in a run, from when to when, who did not and why, and who withdrew."""

from server.evidence.document import Blank, Cell, Document, Part, heading, two_columns
from server.federation.events import BY_COORDINATOR, NOT_ASKED, NOT_THERE
from server.views.facts import RunFacts, count, entered, noted


def document(facts: RunFacts) -> Document:
    """Participation and withdrawals of one run."""
    return Document(
        "participation",
        "Participation and withdrawals",
        "what each hospital answered, in which rounds its updates entered, who was left out and why, and who left.",
        "a record of patients' consents or withdrawals: those are the hospitals', and never come to the coordinator.",
        [
            _answers(facts),
            _rounds(facts),
            _in_vain(facts),
            _absent(facts),
            _starts(facts),
            _membership(facts),
            _patients(),
        ],
        heading(facts),
    )


def _answers(facts: RunFacts) -> Part:
    rows = [
        [entered(entry, "site"), entered(entry, "kind"), entered(entry, "time")]
        for entry in facts.audited("approved", "denied")
        if "site" in entry.fields
    ]
    return Part("Answers to the proposal", (), ("hospital", "answer", "when"), rows, "No hospital has answered.")


def _rounds(facts: RunFacts) -> Part:
    rows: list[list[Cell]] = []
    merged = [entry for _, updates in facts.in_model for entry in updates]
    for site in facts.sites:
        entries = [entry for entry in merged if entry.fields["site"] == site]
        if entries:
            rounds = [entered(entry, "round") for entry in entries]
            rows.append([entered(entries[0], "site"), count(rounds), rounds[0], rounds[-1]])
    columns = ("hospital", "rounds with its update", "first", "last")
    text = "Updates of rounds after the one whose model is kept are not in it; outgoing has them too."
    return Part("Updates in the model", (text,), columns, rows, "No update entered a model.")


def _in_vain(facts: RunFacts) -> Part:
    named = ("round", "site", "update")
    merged = {tuple(one.fields[name] for name in named) for _, updates in facts.in_model for one in updates}
    rows: list[list[Cell]] = [
        [*(entered(entry, f"receipt.{name}") for name in named), entered(entry, "time")]
        for entry in facts.audited("round")
        if tuple(entry.fields["receipt"][name] for name in named) not in merged
    ]
    text = (
        "A hospital worked and signed for them, and they count for its privacy. They are in no model that is kept: "
        "refused, too late, of a round after the one that is kept, of one that was not done before the run ended, or "
        "of one that was done again, after a stop, without them."
    )
    return Part("Updates in no model", (text,), ("round", "hospital", "SHA-256", "receipt of"), rows, "None.")


def _starts(facts: RunFacts) -> Part:
    rows: list[list[Cell]] = [
        [entered(entry, "action"), entered(entry, "operator"), "", entered(entry, "time")]
        for entry in facts.audited("act")
        if entry.fields["action"] in ("stop", "resume")
    ]
    rows += [
        ["went on from the model it had kept", "", noted(line, event, "resumed-from"), noted(line, event, "time")]
        for line, event in facts.journal("run-started")
        if event["resumed-from"]
    ]
    text = (
        "A run goes on after the last round whose model was kept. One that was under way is asked again: a hospital "
        "then sends the update that it has made, under the same receipt, and is charged once."
    )
    columns = ("what", "operator", "after round", "when")
    return Part("Stopped and gone on with", (text,), columns, rows, "The run was not stopped.")


def _absent(facts: RunFacts) -> Part:
    rows: list[list[Cell]] = [
        [
            entered(entry, "round") if "round" in entry.fields else "",
            entered(entry, "site") if "site" in entry.fields else "not stated",
            entered(entry, "code"),
            entered(entry, "time"),
        ]
        for entry in facts.audited("refusal")
    ]
    text = (
        "A code is the hospital's refusal of what it was asked, or the coordinator's of the answer (second table); "
        "`deadline` stands for no answer in time."
    )
    return Part("Who was left out of a round", (text,), ("round", "hospital", "code", "when"), rows, "Nobody was.")


def _membership(facts: RunFacts) -> Part:
    sites = set(facts.sites)
    rows: list[list[Cell]] = [
        [entered(entry, "site"), entered(entry, "kind"), entered(entry, "time")]
        for entry in facts.of_members("enrolled", "renewed", "revoked")
        if entry.fields["site"] in sites
    ]
    for line, event in facts.journal("round"):
        if event.get(BY_COORDINATOR):
            rows.append([noted(line, event, BY_COORDINATOR), "its answer was refused here", noted(line, event, "time")])
        if event["missing"]:
            rows.append([noted(line, event, "missing"), "missing in a round", noted(line, event, "time")])
        if event.get(NOT_THERE):
            rows.append([noted(line, event, NOT_THERE), "gone, and not asked in a round", noted(line, event, "time")])
        if event.get(NOT_ASKED):
            rows.append([noted(line, event, NOT_ASKED), "not asked in a round, as drawn", noted(line, event, "time")])
    return Part("Joined, left, missing", (), ("hospital", "what", "when"), rows)


def _patients() -> Part:
    return two_columns(
        "Patients who withdrew",
        [
            (
                "withdrawals",
                Blank("each hospital", "how many patients it has forgotten; its certificates of `data forget` say so"),
            ),
            ("this model", "was trained with whoever took part then, and cannot forget"),
            ("what follows for this model", Blank("the controller", "whether it is withdrawn or trained anew")),
        ],
    )


__all__ = ["document"]
