"""Privacy statement: what differential privacy a run gave to patients, as each hospital stated it."""

from common.privacy.accountant import ACCOUNTANT
from common.privacy.guarantee import NOISE, not_covered, why_void
from server.evidence.document import Blank, Cell, Document, Part, heading, two_columns
from server.federation.events import OVERALL
from server.views.facts import RunFacts, count, entered, noted


def document(facts: RunFacts) -> Document:
    """The statement of one run."""
    return Document(
        "privacy",
        "Privacy statement",
        "the epsilon and delta that each hospital stated with its updates, and what they rest on.",
        "a proof: it is in docs/privacy-engine.md. Nor is it the hospital's ledger, which stays there and counts all "
        "runs; `wardround-client ledger` shows it.",
        [*_stated(facts), _audits(facts)],
        heading(facts),
    )


def aimed_at(facts: RunFacts) -> Cell:
    """The epsilon that a run aims at; none is stated of a run that guarantees nothing."""
    return "no guarantee: see privacy" if why_void(facts.run) else facts.setting("privacy.target-epsilon")


def _stated(facts: RunFacts) -> list[Part]:
    run = facts.run
    if run.privacy is None:
        text = "The run has no [privacy] table: there is no guarantee, and no epsilon is stated."
        return [Part("No differential privacy", (text,))]
    if reason := why_void(run):
        return [Part("No guarantee", (f"No epsilon is stated: {reason}.",))]
    return [_by_site(facts), _rests_on(facts), _held_out(facts), _uncovered(facts)]


def _by_site(facts: RunFacts) -> Part:
    rows: list[list[Cell]] = []
    for site in facts.sites:
        if (last := facts.last_trained(site)) is None:
            continue
        receipts = [one for one in facts.audited("round") if one.fields["receipt"]["site"] == site]
        rows.append(
            [
                noted(*last, "site"),
                noted(*last, "epsilon"),
                noted(*last, "delta"),
                facts.guaranteed(site, "cohort-size-class"),
                facts.guaranteed(site, "steps"),
                facts.guaranteed(site, "noise-multiplier"),
                noted(*last, "round"),
                count([entered(one, "receipt.round") for one in receipts]),
                entered(receipts[-1], "receipt.epsilon") if receipts else "no receipt",
            ]
        )
    columns = (
        *("site", "epsilon of the run so far", "delta", "declared patients, class"),
        *("steps of these updates", "noise multiplier"),
        *("last round", "receipts", "epsilon charged for the last round with a receipt"),
    )
    text = (
        "A site that trained, and was left out of a model, spent as well; its updates that were refused state no "
        "epsilon here. The steps are of updates that passed the checks; an epsilon counts all. "
        "Delta is one tenth of one over the declared number of patients, or smaller."
    )
    return Part("By hospital, for one patient", (text,), columns, rows, "No hospital has trained.")


def _rests_on(facts: RunFacts) -> Part:
    rows: list[tuple[str, Cell]] = [
        ("unit", "patient, with all of the patient's images of one hospital"),
        ("epsilon aimed at", facts.setting("privacy.target-epsilon")),
        ("sampling", "Poisson: each patient in each step, independently"),
        ("probability of a patient in a step", facts.setting("privacy.sampling-rate")),
        ("steps of a round", facts.setting("training.local-steps")),
        ("rounds planned", facts.setting("federation.rounds")),
        ("clipping norm of a patient's gradient", facts.setting("privacy.clipping-norm")),
        ("noise", NOISE),
        ("accountant", ACCOUNTANT),
    ]
    if facts.run.initial is not None:
        rows.append(("by the coordinator's word, the first weights are public", facts.setting("initial.public")))
    return two_columns("What it rests on", rows)


def _held_out(facts: RunFacts) -> Part:
    lines = [(line, event) for line, event in facts.journal("evaluate") if event["site"] != OVERALL]
    rows = [
        [
            noted(line, event, "site"),
            noted(line, event, "phase"),
            noted(line, event, "round"),
            noted(line, event, "scores-epsilon") if "scores-epsilon" in event else "exact: no guarantee",
            noted(line, event, "scores-delta") if "scores-delta" in event else "exact: no guarantee",
        ]
        for line, event in lines
    ]
    columns = ("site", "phase", "round", "epsilon of the run's scores so far", "delta")
    return Part("Held-out patients", (), columns, rows, "No scores came.")


def _uncovered(facts: RunFacts) -> Part:
    return Part(
        "What the guarantee says nothing of", (), ("not covered",), [[one] for one in not_covered(facts.run.task)]
    )


def _audits(facts: RunFacts) -> Part:
    return two_columns(
        "Audits",
        [
            ("receipts in the coordinator's audit log", count([entered(one, "seq") for one in facts.audited("round")])),
            ("what the audit log shows", "that both sides signed what a round was charged; not that it was true"),
            ("attack on this model", "none was made by this program; no membership test of this model is known here"),
            ("attack on the engine", "`wardround-sim audit` attacks the same code with invented patients"),
            ("what an attack shows", "it can refute a guarantee, and cannot prove one: see docs/privacy-audit.md"),
            ("the hospitals' ledgers", Blank("each hospital", "whether its ledger and audit log agree with this")),
        ],
    )


__all__ = ["aimed_at", "document"]
