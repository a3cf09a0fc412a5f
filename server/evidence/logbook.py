"""Events of a run as the coordinator's audit log has them: Regulation (EU) 2024/1689, Article 12."""

from collections.abc import Mapping, Sequence

from common.audit.entries import Entry
from server.evidence.document import Blank, Cell, Document, Part, heading, two_columns
from server.views.facts import RunFacts, count, entered

# What of an entry says the most about it, in this order.
_DETAILS = ("action", "code", "phase", "update", "model", "what", "receipt.update")
_NAMES: Mapping[str, str] = {"round": "receipt", "act": "act of an operator"}


def document(facts: RunFacts) -> Document:
    """The logbook of one run."""
    return Document(
        "logbook",
        "EU AI Act: log of the run's events, Article 12",
        "every entry about this run in the coordinator's audit log, with its number and time there.",
        "the log: that is signed, and is verified with `wardround-server audit verify`. Nor is it a log of the use of "
        "the model on patients, which begins where the model is put to use.",
        [_log(facts), _events(facts)],
        heading(facts),
    )


def _log(facts: RunFacts) -> Part:
    return two_columns(
        "The log",
        [
            ("public key of the log", entered(facts.entries[0], "key")),
            ("entries about this run", count([entered(entry, "seq") for entry in facts.audited()])),
            ("period of use, reference data, natural persons who verify", Blank("the provider", "Article 12(3)")),
            ("how long logs are kept, Articles 19 and 26(6)", Blank("the deployer", "time limit")),
        ],
    )


def _events(facts: RunFacts) -> Part:
    rows = [_row(entry) for entry in facts.audited()]
    columns = ("number", "time", "event", "round", "who", "detail")
    return Part("Events", (), columns, rows, "The log says nothing of this run.")


def _row(entry: Entry) -> Sequence[Cell]:
    whole = {**entry.fields, **{f"receipt.{name}": value for name, value in entry.fields.get("receipt", {}).items()}}

    def first(*names: str) -> Cell:
        return next((entered(entry, name) for name in names if name in whole), "")

    return [
        entered(entry, "seq"),
        entered(entry, "time"),
        _NAMES.get(entry.kind, entry.kind),
        first("round", "receipt.round"),
        first("site", "receipt.site", "operator"),
        first(*_DETAILS),
    ]


__all__ = ["document"]
