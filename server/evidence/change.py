"""Change record for a predetermined change control plan (PCCP): what a run changed, and how it was tested.

Source: FDA, Marketing Submission Recommendations for a Predetermined Change Control Plan for Artificial
Intelligence-Enabled Device Software Functions, 2024.
"""

from server.evidence.document import Blank, Cell, Document, Part, heading, two_columns
from server.views.facts import RunFacts, count, entered, noted

_MAKER = "the manufacturer"


def document(facts: RunFacts) -> Document:
    """The record of one run."""
    return Document(
        "change",
        "Change record for a predetermined change control plan",
        "what is known of one modification: the model before, the model after, how it was made and how it scored.",
        "the plan, nor a statement that this change lies within one.",
        [_modification(facts), _before(facts), _protocol(facts), _impact()],
        heading(facts),
    )


def _modification(facts: RunFacts) -> Part:
    asked = {"run": "asked for by", "resume": "resumed by"}
    operators = [
        (asked[action], entered(entry, "operator"))
        for entry in facts.audited("act")
        if (action := entry.fields["action"]) in asked
    ]
    return two_columns(
        "Description of modifications",
        [
            ("device and version", Blank(_MAKER, "device, and the version that the change makes")),
            ("modification in the plan", Blank(_MAKER, "which modification of the plan this is")),
            ("new model, SHA-256", facts.model_sha256 or "the run keeps no final model"),
            ("kind of change", "weights, trained anew" if facts.run.initial is None else "weights, trained further"),
            ("network", facts.setting("model.architecture")),
            ("rounds planned", facts.setting("federation.rounds")),
            ("rounds done", count([entered(entry, "round") for entry, _ in facts.merged])),
            *operators,
        ],
    )


def _before(facts: RunFacts) -> Part:
    if facts.run.initial is None:
        text = "The run starts from random weights of its seed: there is no model before it."
        return two_columns("The model before", [("seed", facts.setting("seed"))], text)
    sha256 = facts.run.initial.sha256
    made = [one for one in facts.of_members("aggregated") if one.fields["model"] == sha256]
    rows: list[tuple[str, Cell]] = [("model before, SHA-256", facts.setting("initial.sha256"))]
    rows += [("made here in run", entered(one, "run")) for one in made[-1:]]
    rows += [("after its round", entered(one, "round")) for one in made[-1:]]
    if not made:
        rows.append(("where it came from", Blank(_MAKER, "this coordinator's log has no such model")))
    return two_columns("The model before", rows)


def _protocol(facts: RunFacts) -> Part:
    rows: list[tuple[str, Cell]] = [
        ("data management", Blank(_MAKER, "data of the plan, and how these hospitals' data fit")),
        ("held out for testing, share of patients", facts.setting("data.test-fraction")),
        ("held out for choosing, share of patients", facts.setting("data.validation-fraction")),
        ("which round's model is kept", facts.setting("federation.keep")),
        ("score that is looked at", facts.run.task.headline),
    ]
    for line, event in facts.scored("test"):
        rows += [(f"test, {event['site']}: {name}", noted(line, event, name)) for name in facts.score_names(event)]
    rows += [
        ("performance evaluation", Blank(_MAKER, "acceptance criteria of the plan, and whether they are met")),
        ("update procedure", Blank(_MAKER, "how it is put to use, told, and taken back")),
    ]
    return two_columns("Modification protocol", rows, *facts.noise_of("test"))


def _impact() -> Part:
    return two_columns(
        "Impact assessment",
        [
            ("benefits and risks", Blank(_MAKER, "of this change, and of several changes together")),
            (
                "comparison with the model before",
                "`wardround-server runs compare` where both are runs of this coordinator",
            ),
            ("mitigation", Blank(_MAKER, "of the risks found")),
        ],
    )


__all__ = ["document"]
