"""Model card: the fields of CHAI's applied model card and of Model Facts labels, filled as far as a run shows them.

Sources: Coalition for Health AI, Applied Model Card; Sendak et al., "Presenting machine learning model information to
clinical end users with model facts labels", npj Digital Medicine 2020.
"""

from common.privacy.guarantee import why_void
from server.evidence.document import Blank, Cell, Document, Part, heading, two_columns
from server.federation.events import OVERALL
from server.views.facts import RunFacts, count, each, entered, noted

_DEVELOPER, _CLINIC = "the developer", "the clinical lead"


def document(facts: RunFacts) -> Document:
    """The card of a run's model."""
    return Document(
        "card",
        "Model card",
        "what the run's records say of its model, in the fields of CHAI's applied model card and of Model Facts.",
        "a statement that the model is fit for any use. It is for research, and no medical device.",
        [_summary(facts), _uses(), _training(facts), *_scores(facts), _limits(facts)],
        heading(facts),
    )


def _summary(facts: RunFacts) -> Part:
    finished = next((noted(line, event, "time") for line, event in facts.journal("run-finished")), None)
    return two_columns(
        "Name, developer, release",
        [
            ("model name", facts.setting("name")),
            ("developer", Blank(_DEVELOPER, "name, contact, funding, conflicts of interest")),
            ("release date", finished or "the run has not finished"),
            ("model, SHA-256", facts.model_sha256 or "the run keeps no final model"),
            ("round of the model", facts.model_round or "the run keeps no final model"),
            ("run document", "see run.json: its SHA-256 is the run's hash"),
            ("program", facts.program("wardround")),
            ("regulatory status", Blank(_DEVELOPER, "status; without one it is research software")),
            ("summary", Blank(_DEVELOPER, "what the model does, for clinicians")),
        ],
    )


def _uses() -> Part:
    return two_columns(
        "Uses and directions",
        [
            ("intended use and workflow", Blank(_CLINIC, "use, setting, place in the workflow")),
            ("primary intended users", Blank(_CLINIC, "users and their training")),
            ("how to use, target population", Blank(_CLINIC, "for which patients and images")),
            ("cautioned out-of-scope settings and uses", Blank(_CLINIC, "where it must not be used")),
            ("clinical risk level", Blank(_CLINIC, "level, and why")),
        ],
    )


def _training(facts: RunFacts) -> Part:
    names = ("task.kind", "data.classes", "data.modality", "model.architecture", "model.dims", "task.loss.kind")
    labels = ("outcome: task", "outcome: classes", "input: modality", "network", "network, dimensions", "loss")
    rows: list[tuple[str, Cell]] = [(label, facts.setting(name)) for label, name in zip(labels, names, strict=True)]
    entries = [entry for _, updates in facts.in_model for entry in updates]
    rows += [
        ("intensities", facts.setting("preprocessing.intensity")),
        ("strategy", facts.setting("strategy.kind")),
        ("hospitals whose updates are in it", each([entered(entry, "site") for entry in entries])),
        ("updates in it", count([entered(entry, "update") for entry in entries])),
        *_patients(facts),
        ("first weights, SHA-256", _initial(facts)),
        ("data source, collection, dates", Blank("each hospital", "scanners, years, how images were chosen")),
        ("people in the data: age, sex, origin", Blank("each hospital", "what is known; the program sees none of it")),
        ("who labelled, and how well they agree", Blank("each hospital", "readers, protocol, agreement")),
    ]
    return two_columns("What it was trained on", rows)


def _initial(facts: RunFacts) -> Cell:
    return "random, from the run's seed" if facts.run.initial is None else facts.setting("initial.sha256")


def _patients(facts: RunFacts) -> list[tuple[str, Cell]]:
    """As the sites told them: in steps of five and at least ten, and not at all under privacy."""
    found: list[tuple[str, Cell]] = []
    for site in facts.sites:
        last = facts.last_trained(site)
        if last is not None and last[1]["patients"]:
            found.append((f"patients of {site}, in steps as it told them", noted(*last, "patients")))
    return found or [("patients", "not told to the coordinator")]


def _scores(facts: RunFacts) -> list[Part]:
    parts = []
    for phase in ("test", "validation"):
        lines = facts.scored(phase)
        names = list(dict.fromkeys(name for _, event in lines for name in facts.score_names(event)))
        rows: list[list[Cell]] = []
        for line, event in lines:
            site: Cell = "mean of the hospitals" if event["site"] == OVERALL else noted(line, event, "site")
            values: list[Cell] = [noted(line, event, name) if name in event else "not given" for name in names]
            rows.append([site, noted(line, event, "round"), *values])
        text = ("A mean of hospitals counts each the same.", *facts.noise_of(phase))
        columns = ("hospital", "round", *names)
        parts.append(Part(f"Key metrics: {phase} patients", text, columns, rows, "No scores came."))
    return parts


def _limits(facts: RunFacts) -> Part:
    covered = "no guarantee: see privacy" if why_void(facts.run) else "differential privacy: see privacy"
    return two_columns(
        "Limits, warnings and trust",
        [
            ("known biases and ethical considerations", Blank(_CLINIC, "known biases, and what is done about them")),
            (
                "fairness",
                "scores by hospital stand above, where they gave any; no attribute of a patient is known",
            ),
            ("other populations", "no hospital outside the run has scored the model in it"),
            ("transparency", "`wardround-client explain` shows what a prediction depends on"),
            ("privacy of training patients", "none: see impact" if facts.run.privacy is None else covered),
            ("when to stop using it", Blank(_CLINIC, "signs of drift, and who decides")),
            ("monitoring and maintenance", Blank(_DEVELOPER, "who watches, how often, next review")),
        ],
    )


__all__ = ["document"]
