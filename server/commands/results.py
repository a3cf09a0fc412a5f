"""wardround-server report: what a run has made, its scores."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from common.console.cli import JsonFlag, note, say, show_table
from common.errors import ConfigError
from common.identity.operators import Act
from server.commands.options import AsOption, HomeOption, KeyOption, RunArgument, asked
from server.federation.events import JOURNAL_NAME, read_events, worst_told
from server.home import purged
from server.home.folder import Home
from server.registry import operators
from server.registry.audit_trail import open_log
from server.registry.proposals import Proposal
from server.views import heterogeneity
from server.views.cross_site import CrossSite, as_columns, cross_site_of
from server.views.facts import facts_of
from server.views.progress import summary_of
from server.views.sentences import noise_of


def report(
    run: RunArgument,
    *,
    home: HomeOption = None,
    json: JsonFlag = False,
    evidence: Annotated[
        Path | None, typer.Option("--evidence", help="A new folder for documents that account for the run.")
    ] = None,
    by: AsOption = operators.FIRST,
    key: KeyOption = None,
) -> None:
    """Print a run's scores and the path of its report.html; of one that goes on, or ended early, as far as it came.

    Example: `wardround-server report lesions --evidence lesions-evidence`
    """
    from server.views.report import write_report  # noqa: PLC0415 - loads jinja2

    opened, registry, signer = asked(home, "report", by, key)
    proposal = registry.proposal(run)
    folder = opened.run_folder(proposal.document)
    purged.check(folder)
    if not (folder / JOURNAL_NAME).exists():
        raise ConfigError(f"{proposal.name} is {proposal.state} and has not begun: there is nothing to report yet.")

    def write(_act: Act) -> Path:
        if evidence is not None:
            _write_evidence(opened, proposal, evidence)
        return write_report(folder, summary_of(folder, proposal))

    path = operators.carry_out(opened, signer, (proposal.run_hash,), write)
    show_scores(opened, proposal, as_json=json)
    # A table as JSON is all that goes to stdout.
    (note if json else say)(f"Report: {path}")
    if evidence is not None:
        (note if json else say)(f"Evidence: {evidence}")


def show_scores(home: Home, proposal: Proposal, *, as_json: bool) -> None:
    """A run's scores and epsilons as a table, a row for each site; then how unlike the sites are."""
    folder, headline = home.run_folder(proposal.document), proposal.run.task.headline
    summary = summary_of(folder, proposal)
    scores = summary.get("scores", {})
    test = scores.get("test") or scores.get("validation") or {"sites": {}, "mean-of-sites": {}}
    privacy = (summary.get("guarantee") or {}).get("sites", {})
    names = [*sorted({*test["sites"], *privacy}), "overall"]
    of = {**test["sites"], "overall": test["mean-of-sites"]}
    rows: list[tuple[object, ...]] = [
        (
            name,
            of.get(name, {}).get(headline),
            of.get(name, {}).get("score-noise"),  # standard deviation of what the site added; none where it is exact
            privacy.get(name, {}).get("epsilon"),
            privacy.get(name, {}).get("delta"),
        )
        for name in names
    ]
    title = f"{proposal.name} {proposal.run_hash[:8]}: {summary.get('status', proposal.state)}"
    columns = ["site", headline, "score-noise", "epsilon", "delta"]
    events = read_events(folder / JOURNAL_NAME)
    gains, unlike = cross_site_of(summary, events), heterogeneity.heterogeneity_of(summary, events)
    if as_json:
        further = as_columns(gains) | heterogeneity.as_columns(unlike, events)
        columns += further
        rows = [(*row, *(values.get(str(row[0])) for values in further.values())) for row in rows]
    show_table(title, columns, rows, as_json=as_json)
    if not as_json:
        show_gains(gains)
    if unlike and not as_json:
        show_table("How unlike the hospitals are", heterogeneity.COLUMNS, [one.row for one in unlike])
    if worst := worst_told(test["sites"], proposal.run.task):
        note(worst)
    if noise := noise_of(test["sites"].values()):
        note(noise)
    if scores and not test["sites"]:
        note(
            "No hospital gave a score: a split of fewer patients than its policy's min-held-out leaves none. "
            "The reason of each stands in report.html."
        )


def show_gains(phases: Sequence[CrossSite]) -> None:
    """What each hospital gains, a table for each phase; nothing where the run does not ask for it."""
    for one in phases:
        show_table(f"What each hospital gains: {one.score}, {one.phase}", one.columns, one.rows)
        for sentence in one.notes:
            note(sentence)


def _write_evidence(home: Home, proposal: Proposal, folder: Path) -> None:
    from server.evidence import folder as documents  # noqa: PLC0415 - loads jinja2
    from server.evidence import sbom  # noqa: PLC0415 - likewise

    digest = documents.write(facts_of(home, proposal), folder)
    open_log(home).append("export", {"what": "report", "hash": digest})
    note(
        f"SHA-256 of {folder / documents.INDEX_NAME}, which names that of each other file: {digest}. It stands in the "
        "audit log (export), which `wardround-server audit verify` checks."
    )
    if not (folder / sbom.NAME).exists():
        note(f"Without a list of software components: {sbom.EXTRA} writes it.")
