"""Annex to a data protection impact assessment: what protects patients in this run as it was set, and what is left.

A risk is listed because of what the run's document, the coordinator's settings and its records say, and the value that
it follows from stands beside it.
"""

from collections.abc import Iterator

from common.privacy.guarantee import COVERED_PARTS, why_void
from common.strategies import WEIGHTS
from server.evidence.document import Blank, Cell, Document, Part, heading, two_columns
from server.evidence.privacy import aimed_at
from server.federation.events import SUSPICIOUS
from server.views.facts import Fact, RunFacts, count, entered, noted

_CONTROLLER = "the controller"


def document(facts: RunFacts) -> Document:
    """The annex of one run."""
    return Document(
        "impact",
        "Annex to a data protection impact assessment: GDPR Article 35",
        "the measures that were in force in this run, and the risks that they leave, from its real settings.",
        "the assessment: necessity, proportionality and the weighing of risks are not in any file.",
        [_measures(facts), _risks(facts), _people()],
        heading(facts),
    )


def _measures(facts: RunFacts) -> Part:
    approved = [entered(entry, "site") for entry in facts.audited("approved") if "site" in entry.fields]
    receipts = [entered(entry, "receipt.site") for entry in facts.audited("round")]
    refused = [entered(entry, "code") for entry in facts.audited("refusal")]
    rows: list[tuple[str, Cell]] = [
        ("operators' signatures under the proposal", count(_operators(facts))),
        ("answers of hospitals that approved this very document", count(approved)),
        ("hospitals that must take part in each round", facts.setting("federation.quorum")),
        ("updates with a receipt that both sides signed", count(receipts)),
        ("refusals, by a hospital's policy or by the coordinator's checks", count(refused)),
        ("an update is refused beyond this norm", facts.setting("federation.max-update-norm")),
        ("strategy", facts.setting("strategy.kind")),
        ("connection", "TLS with certificates of both sides"),
        ("images", "stay at the hospital; the process that reads them has no network"),
        ("the coordinator's Flower in a network of its own", facts.at_server("private-network")),
        ("the coordinator's key under a passphrase", facts.key("key")),
        ("the federation's root key under a passphrase", facts.key("root")),
    ]
    if facts.run.privacy is not None:
        rows += [
            ("noise of differential privacy, unit", "patient, with all of the patient's images"),
            ("epsilon aimed at, for the run and each hospital", aimed_at(facts)),
            ("clipping norm of a patient's gradient", facts.setting("privacy.clipping-norm")),
            ("probability of a patient in a step", facts.setting("privacy.sampling-rate")),
        ]
    return two_columns("Measures", rows, "What a measure does, and the test that holds it, stands in docs/security.md.")


def _risks(facts: RunFacts) -> Part:
    rows = [
        [risk, why, Blank(_CONTROLLER, "likelihood, severity, and whether it is accepted")]
        for tell in (_of_privacy, _of_the_run, _of_the_coordinator, _of_any_run)
        for risk, why in tell(facts)
    ]
    return Part("Risks that are left", (), ("risk", "because of", "assessment"), rows)


def _of_privacy(facts: RunFacts) -> Iterator[tuple[str, Cell]]:
    run = facts.run
    if run.privacy is None:
        yield (
            "Updates and the model may tell whether a patient was trained on, and in part what was seen",
            "the run has no [privacy] table",
        )
    elif reason := why_void(run):
        yield "The noise gives no guarantee, so that the model may tell of single patients", reason
    else:
        yield (
            "What epsilon allows, a bound on what the updates tell of a patient and not zero; epsilon aimed at:",
            facts.setting("privacy.target-epsilon"),
        )
        yield (
            "A patient with data at several hospitals has the bound of each, and no bound for all",
            "unit of the guarantee",
        )
        if exact := _exact(facts):
            yield "Exact scores of held-out patients left a hospital; no guarantee covers them; scores:", count(exact)


def _of_the_run(facts: RunFacts) -> Iterator[tuple[str, Cell]]:
    run = facts.run
    if beside := sorted(set(run.strategy.up) - COVERED_PARTS):
        yield f"Beside {WEIGHTS} there travel {', '.join(beside)}; strategy:", facts.setting("strategy.kind")
    if run.initial is not None:
        yield "The weights that the run starts from may carry data of others; SHA-256:", facts.setting("initial.sha256")
    if run.federation.quorum < 3:
        yield (
            "With so few hospitals one of them can take its own update off the model and see the others'; quorum:",
            facts.setting("federation.quorum"),
        )
    yield (
        "The coordinator sees each hospital's update by itself, as there is no secure aggregation; strategy:",
        facts.setting("strategy.kind"),
    )


def _of_the_coordinator(facts: RunFacts) -> Iterator[tuple[str, Cell]]:
    if not facts.server["private-network"]:
        yield (
            "Accounts of the coordinator's host reach its Flower; in a network of its own:",
            facts.at_server("private-network"),
        )
    if not facts.keys["key"]:
        yield "Who copies the coordinator's folder opens its models and keys; under a passphrase:", facts.key("key")
    if not facts.keys["root"]:
        yield "Who copies the root's key may admit hospitals and operators; under a passphrase:", facts.key("root")
    operators = _operators(facts)
    if len({one.value for one in operators}) < 2:
        yield "One operator alone could propose the run; operators:", count(operators)


def _of_any_run(facts: RunFacts) -> Iterator[tuple[str, Cell]]:
    for line, event in facts.journal("round"):
        if event.get(SUSPICIOUS):
            yield "An update that looked wrong entered the model, of", noted(line, event, SUSPICIOUS)
    yield "When a message came tells how long the work took, and so about how many patients were drawn", "not prevented"
    yield "A released model cannot forget a patient", "not prevented"
    yield "Labels may be wrong, and a model that is right on average may be wrong for some people", "not looked at"


def _people() -> Part:
    return two_columns(
        "What only people can say",
        [
            ("systematic description of the processing, Article 35(7)(a)", Blank(_CONTROLLER, "with processing")),
            ("necessity and proportionality, Article 35(7)(b)", Blank(_CONTROLLER, "why less data would not do")),
            ("advice of the data protection officer, Article 35(2)", Blank("the data protection officer", "advice")),
            ("views of patients, Article 35(9)", Blank(_CONTROLLER, "where they were sought, and what they said")),
            ("prior consultation, Article 36", Blank(_CONTROLLER, "whether the authority was asked")),
        ],
    )


def _exact(facts: RunFacts) -> list[Fact]:
    names = ("scores-epsilon", "refused")
    return [
        noted(line, event, "site")
        for line, event in facts.journal("evaluate")
        if not any(name in event for name in names)
    ]


def _operators(facts: RunFacts) -> list[Fact]:
    """Who signed the proposal, each once."""
    acts = [one for one in facts.audited("act") if one.fields["action"] == "run"]
    return [entered(one, "operator") for one in {one.fields["operator"]: one for one in acts}.values()]


__all__ = ["document"]
