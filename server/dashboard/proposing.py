"""Propose a run in a browser: a run.toml pasted or read from a file, looked at, then signed by the operator.

What is signed is what was shown: the form carries the run's hash, and where another text was looked at since, nothing
is proposed. The document, the signature, the audit log and the registry are those of `wardround-server run`.
"""

import threading
from collections.abc import Mapping
from dataclasses import dataclass, field

from common.config import RunConfig
from common.config.rundocument import RunDocument, from_toml
from common.errors import ConfigError, WardroundError
from common.pages.html import fragment
from common.privacy.guarantee import why_void
from common.text import counted
from common.web.pages import Page, Visit
from server.coordinator import supervisor, wishes
from server.home.folder import Home
from server.registry import operators
from server.registry.registry import Registry
from server.views.run import settings_of

_BEFORE = "No hospital is asked before you sign."


@dataclass(frozen=True)
class _Draft:
    """A text that was looked at."""

    text: str = ""
    document: RunDocument | None = None  # None: it is none
    fault: str = ""


@dataclass
class Desk:
    """The text that is looked at last; of one operator, in however many windows."""

    _draft: _Draft = field(default_factory=_Draft)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def look_at(self, text: str) -> str:
        """Read a run.toml; what is wrong with it stands on the page.

        Returns:
            What was done, in a sentence.
        """
        try:
            draft = _Draft(text, document=_fit(from_toml(text)))
        except WardroundError as error:
            draft = _Draft(text, fault=str(error))
        with self._lock:
            self._draft = draft
        return "It cannot be proposed as it is." if draft.document is None else f"Read it before you sign. {_BEFORE}"

    @property
    def draft(self) -> _Draft:
        """As it is now."""
        with self._lock:
            return self._draft

    def clear(self) -> None:
        """What was proposed is no draft any more."""
        with self._lock:
            self._draft = _Draft()


def page_of(home: Home, registry: Registry, operator: str, desk: Desk, visit: Visit) -> Page:
    """The page with the text, what is wrong with it or what it would mean, and the button."""
    draft = desk.draft
    document, refusal = draft.document, None
    if document is not None:
        refusal = _refusal(home, registry, document)
    body = fragment(
        "server/dashboard/propose.html",
        base=visit.base,
        csrf=visit.csrf,
        lines=draft.text.expandtabs(4).split("\n"),  # one by one: text is shown without ends of lines
        fault=draft.fault,
        document=document,
        refusal=refusal,
        rows=[] if document is None else _meaning(registry, document.config),
        notes=[] if document is None else [f"{sentence}." for sentence in document.config.idle],
        settings=[] if document is None else settings_of(document.config),
        operator=operator,
    )
    said = "Paste a run.toml, or read one from a file." if not draft.text else f"{draft.fault or 'It is a valid run.'}"
    return Page("Propose a run", body, said)


def sign(home: Home, registry: Registry, signer: operators.Signer, desk: Desk, form: Mapping[str, str]) -> str:
    """Propose what was shown.

    Args:
        home: the coordinator's.
        registry: its registry.
        signer: who may `run`.
        desk: what was looked at.
        form: with the hash that was shown.

    Returns:
        What was done, in a sentence.

    Raises:
        ConfigError: nothing was looked at, or another text since; or the run is known already.
        FederationError: the coordinator is not running.
    """
    document, seen = desk.draft.document, form.get("seen")
    if document is None or seen != document.hash:
        if known := next((one for one in registry.proposals() if one.run_hash == seen), None):
            return f"{known.name} {known.run_hash[:8]} is proposed already. Nothing was changed."
        raise ConfigError(
            "another run.toml has been looked at since the page was shown. Nothing was proposed. Go back, reload the "
            "page and read it again."
        )
    proposal = wishes.propose(home, registry, [signer], document)
    desk.clear()
    return (
        f"Proposed {proposal.name} {proposal.run_hash[:8]}, signed by {signer.name}. "
        f"At each site: `wardround-client approve {proposal.run_hash[:8]}`"
    )


def _fit(document: RunDocument) -> RunDocument:
    if document.config.initial is not None:
        raise ConfigError(
            "[initial] names first weights, and their file cannot be given in a browser. Propose it with "
            "`wardround-server run RUN.toml --initial MODEL`."
        )
    return document


def _refusal(home: Home, registry: Registry, document: RunDocument) -> str | None:
    """Why it cannot be proposed now."""
    if not supervisor.is_running(home):
        return "The coordinator is not running. Start it with `wardround-server start`, then reload the page."
    try:
        registry.must_be_new(document.hash)
    except ConfigError as error:
        return str(error)
    return None


def _meaning(registry: Registry, run: RunConfig) -> list[tuple[str, str]]:
    """What is asked of whom; each hospital works out for itself what it means there."""
    federation = run.federation
    here = [site.name for site in registry.sites() if site.state == "active"]
    enough = "" if len(here) >= federation.quorum else ", too few for the quorum"
    named = f"{counted(len(here), 'site')}{enough}: {', '.join(here) or 'nobody has enrolled yet'}"
    before = [one for one in registry.proposals() if one.name == run.name]
    rows = [
        ("run", run.name),
        ("asks", named),
        ("a round needs", counted(federation.quorum, "site")),
        ("rounds", f"{federation.rounds}, of {run.training.work} at each site"),
        ("trains", f"{run.model.dims}D {run.model.architecture}, {run.data.modality}: {', '.join(run.data.classes)}"),
        ("updates become a model by", run.strategy.kind),
        ("privacy", _privacy(run)),
    ]
    return rows + ([("of this name before", counted(len(before), "run"))] if before else [])


def _privacy(run: RunConfig) -> str:
    if run.privacy is None:
        return "no differential privacy: hospitals whose policy requires it refuse"
    if reason := why_void(run):
        return f"no guarantee: {reason}"
    return f"epsilon {run.privacy.target_epsilon:g} for one patient at each site, charged before each round"


__all__ = ["Desk", "page_of", "sign"]
