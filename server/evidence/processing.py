"""Record of processing activities, as far as a run shows it: GDPR, article 30."""

from server.evidence.document import Blank, Document, Part, heading, two_columns
from server.evidence.privacy import aimed_at
from server.views.facts import RunFacts, count, each, entered

_CONTROLLER = "the controller"


def document(facts: RunFacts) -> Document:
    """The record of one run."""
    return Document(
        "processing",
        "Record of processing: GDPR Article 30",
        "what one training run adds to the record that each controller keeps of its processing.",
        "the record itself, a legal basis, or a statement on who is controller and who is processor.",
        [_who(facts), _what(facts), _recipients(facts), _limits(facts)],
        heading(facts),
    )


def _who(facts: RunFacts) -> Part:
    return two_columns(
        "Who, Article 30(1)(a)",
        [
            ("name and contact of the controller", Blank(_CONTROLLER, "name, address, contact")),
            ("joint controllers, and their arrangement", Blank(_CONTROLLER, "who decides on purposes and means")),
            ("representative", Blank(_CONTROLLER, "where one is needed")),
            ("data protection officer", Blank(_CONTROLLER, "name and contact")),
            ("coordinator, where sites reach it", facts.at_server("hosts")),
            ("role of the coordinator", Blank(_CONTROLLER, "processor, joint controller or other, and the contract")),
            *[
                ("proposed by, operator at the coordinator", entered(entry, "operator"))
                for entry in facts.audited("act")
                if entry.fields["action"] == "run"
            ],
            *[
                ("hospital that approved", entered(entry, "site"))
                for entry in facts.audited("approved")
                if "site" in entry.fields
            ],
        ],
    )


def _what(facts: RunFacts) -> Part:
    updates = [entered(entry, "update") for _, updates in facts.merged for entry in updates]
    return two_columns(
        "Purposes, people and data, Article 30(1)(b) and (c)",
        [
            ("purpose", Blank(_CONTROLLER, "the purpose, and its legal basis under Articles 6 and 9")),
            ("task of the run", facts.setting("task.kind")),
            ("classes", facts.setting("data.classes")),
            ("modality of the images", facts.setting("data.modality")),
            ("data subjects", "patients whose images a hospital offers for this run"),
            ("which patients", Blank(_CONTROLLER, "how they were chosen, and what they were told")),
            ("processed at the hospital", "images and labels, with a pseudonym for the patient; they stay there"),
            ("left the hospital", "updates of weights, scores and codes: see outgoing"),
            ("updates that entered a model", count(updates)),
            ("differential privacy, epsilon aimed at", aimed_at(facts)),
        ],
        "Whether an update of weights is personal data is disputed. Without differential privacy treat it as such.",
    )


def _recipients(facts: RunFacts) -> Part:
    gave = [entered(entry, "site") for entry in facts.audited("entered")]
    exports = [entry for entry in facts.of_members("export") if entry.fields["hash"] in _models(facts)]
    return two_columns(
        "Recipients and transfers, Article 30(1)(d) and (e)",
        [
            ("the coordinator", "receives updates, scores, codes and receipts"),
            ("hospitals that gave updates, and receive the model", each(gave)),
            *[("model written out at the coordinator, on", entered(entry, "time")) for entry in exports],
            ("who was given the model", Blank(_CONTROLLER, "recipients outside the federation")),
            ("third countries", Blank(_CONTROLLER, "where the coordinator and the recipients are, and the safeguards")),
        ],
    )


def _limits(facts: RunFacts) -> Part:
    private = facts.run.privacy is not None
    return two_columns(
        "Time limits and security, Article 30(1)(f) and (g)",
        [
            ("images", Blank(_CONTROLLER, "time limit; the program leaves the hospital's files as they are")),
            ("prepared images at the hospital", "encrypted; they follow the folders, and go with `data forget`"),
            ("updates at the hospital", "sealed, the last of each run, until the run is done"),
            (
                "the model at the coordinator",
                Blank(_CONTROLLER, "time limit; the program keeps it until it is removed"),
            ),
            ("security measures", "see impact"),
            ("updates carry noise", "yes: see privacy" if private else "no: the run has no differential privacy"),
        ],
    )


def _models(facts: RunFacts) -> set[object]:
    kept = facts.model_sha256
    return {entry.fields["model"] for entry in facts.audited("aggregated")} | ({kept.value} if kept else set())


__all__ = ["document"]
