"""Extract for technical documentation by the points of Annex IV: Regulation (EU) 2024/1689."""

from server.evidence.document import Blank, Cell, Document, Part, heading, two_columns
from server.views.facts import RunFacts, count, each, entered, noted

_PROVIDER = "the provider"


def document(facts: RunFacts) -> Document:
    """The extract of one run."""
    return Document(
        "annex-iv",
        "EU AI Act: extract for Annex IV",
        "what one training run contributes to the technical documentation, by the points of Annex IV.",
        "the documentation, nor a conformity assessment, nor a statement that a system is high-risk or is not.",
        [_general(facts), _elements(facts), _monitoring(facts), _rest()],
        heading(facts),
    )


def _general(facts: RunFacts) -> Part:
    return two_columns(
        "Point 1: general description",
        [
            ("(a) intended purpose, provider, version", Blank(_PROVIDER, "purpose, name, version of the system")),
            ("(a) name of the run that made the model", facts.setting("name")),
            ("(a) model, SHA-256", facts.model_sha256 or "the run keeps no final model"),
            ("(b) interaction with hardware and other software", Blank(_PROVIDER, "where the model is built in")),
            ("(c) versions: this program", facts.program("wardround")),
            ("(c) versions: torch", facts.program("torch")),
            ("(c) versions: monai", facts.program("monai")),
            ("(d) to (h) forms, hardware, interface, instructions", Blank(_PROVIDER, "as placed on the market")),
        ],
    )


def _elements(facts: RunFacts) -> Part:
    setting = facts.setting
    entries = [entered(entry, "site") for _, updates in facts.in_model for entry in updates]
    rows: list[tuple[str, Cell]] = [
        ("(a) methods of development: strategy", setting("strategy.kind")),
        ("(a) pre-trained weights, SHA-256", setting("initial.sha256") if facts.run.initial else "none"),
        ("(b) design: network", setting("model.architecture")),
        ("(b) design: task", setting("task.kind")),
        ("(b) what it optimises: loss", setting("task.loss.kind")),
        ("(b) optimizer", setting("training.optimizer")),
        ("(b) learning rate", setting("training.learning-rate")),
        ("(b) rationale and trade-offs", Blank(_PROVIDER, "why these choices, and for which people")),
        ("(c) computation: local steps a round", setting("training.local-steps")),
        *(
            [("(c) computation: seconds after which a site ends a round", setting("training.local-seconds"))]
            if facts.run.training.local_seconds is not None
            else []
        ),
        ("(c) computation: rounds", setting("federation.rounds")),
        ("(d) data: modality", setting("data.modality")),
        ("(d) data: hospitals whose updates entered", each(entries)),
        ("(d) data: provenance, selection, labelling, cleaning", Blank("each hospital", "data sheet")),
        ("(e) human oversight, Article 14", Blank(_PROVIDER, "measures")),
        ("(f) predetermined changes", "see change"),
        ("(g) validation: share of patients", setting("data.validation-fraction")),
        ("(g) testing: share of patients", setting("data.test-fraction")),
    ]
    for line, event in facts.scored("test"):
        rows += [(f"(g) test, {event['site']}: {name}", noted(line, event, name)) for name in facts.score_names(event)]
    rows += [
        ("(g) test logs, dated and signed by those responsible", Blank(_PROVIDER, "signature")),
        ("(h) cybersecurity", "docs/security.md; the settings of this run: see impact"),
    ]
    return two_columns("Point 2: elements and development", rows, *facts.noise_of("test"))


def _monitoring(facts: RunFacts) -> Part:
    refused = [entered(entry, "code") for entry in facts.audited("refusal")]
    return two_columns(
        "Points 3 and 4: limits, and whether the metrics fit",
        [
            ("accuracy for specific groups", Blank(_PROVIDER, "groups; the program knows hospitals and no groups")),
            ("refusals in the run", count(refused)),
            ("foreseeable unintended outcomes", Blank(_PROVIDER, "outcomes, and risks to fundamental rights")),
            ("headline score", facts.run.task.headline),
            ("why the metrics fit", Blank(_PROVIDER, "reason")),
        ],
    )


def _rest() -> Part:
    return two_columns(
        "Points 5 to 9",
        [
            ("5: risk management, Article 9", Blank(_PROVIDER, "description")),
            ("6: changes through the lifecycle", "the record of this one: see change"),
            ("7: harmonised standards applied", Blank(_PROVIDER, "list, or other solutions")),
            ("8: EU declaration of conformity", Blank(_PROVIDER, "copy")),
            ("9: post-market monitoring, Article 72", Blank(_PROVIDER, "plan")),
        ],
    )


__all__ = ["document"]
