"""wardround-server report and export: what a run has made, its scores and its model."""

from hashlib import sha256
from pathlib import Path
from typing import Annotated

import typer

from common.console.cli import JsonFlag, note, say, show_table
from common.crypto.stream import SUFFIX
from common.errors import ConfigError
from common.identity.operators import Act
from common.system.files import write_atomically
from server.commands.options import AsOption, HomeOption, KeyOption, RunArgument, asked
from server.federation.events import JOURNAL_NAME, worst_told
from server.home import checkpoints
from server.home.checkpoints import MODEL_FILES
from server.home.folder import Home
from server.registry import operators
from server.registry.audit_trail import open_log
from server.registry.proposals import Proposal
from server.views.progress import summary_of


def report(
    run: RunArgument,
    home: HomeOption = None,
    json: JsonFlag = False,
    by: AsOption = operators.FIRST,
    key: KeyOption = None,
) -> None:
    """Print a run's scores and the path of its report.html; of one that goes on, or ended early, as far as it came.

    Example: `wardround-server report lesions`
    """
    from server.views.report import write_report  # noqa: PLC0415 - loads jinja2

    opened, registry, signer = asked(home, "report", by, key)
    proposal = registry.proposal(run)
    folder = opened.run_folder(proposal.document)
    if not (folder / JOURNAL_NAME).exists():
        raise ConfigError(f"{proposal.name} is {proposal.state} and has not begun: there is nothing to report yet.")
    path = operators.carry_out(
        opened, signer, (proposal.run_hash,), lambda _act: write_report(folder, summary_of(folder, proposal))
    )
    show_scores(opened, proposal, as_json=json)
    # A table as JSON is all that goes to stdout.
    (note if json else say)(f"Report: {path}")


def export(
    run: RunArgument,
    *,
    out: Annotated[Path, typer.Option(help="The folder to write to.")],
    round_: Annotated[
        int | None, typer.Option("--round", min=1, help="Of a run that is not completed: its last round.")
    ] = None,
    home: HomeOption = None,
    by: AsOption = operators.FIRST,
    key: KeyOption = None,
) -> None:
    """Copy a completed run's model, unsealed: model.safetensors and model.json. With --round, that of its checkpoint.

    Example: `wardround-server export lesions --out model/`
    """
    opened, registry, signer = asked(home, "export", by, key)
    proposal = registry.proposal(run)
    files = _model_files(opened, proposal, round_)
    model = out / MODEL_FILES[0]

    def write(_act: Act) -> None:
        open_log(opened).append("export", {"what": "model", "hash": sha256(files[model.name]).hexdigest()})
        out.mkdir(parents=True, exist_ok=True)
        for name, data in files.items():
            write_atomically(out / name, data)

    operators.carry_out(opened, signer, (proposal.run_hash,), write)
    say(model)


def show_scores(home: Home, proposal: Proposal, *, as_json: bool) -> None:
    """A run's scores and epsilons as a table, a row for each site."""
    summary, headline = summary_of(home.run_folder(proposal.document), proposal), proposal.run.task.headline
    scores = summary.get("scores", {})
    test = scores.get("test") or scores.get("validation") or {"sites": {}, "mean-of-sites": {}}
    privacy = (summary.get("guarantee") or {}).get("sites", {})
    names = [*sorted({*test["sites"], *privacy}), "overall"]
    of = {**test["sites"], "overall": test["mean-of-sites"]}
    rows = [
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
    show_table(title, ("site", headline, "score-noise", "epsilon", "delta"), rows, as_json=as_json)
    if worst := worst_told(test["sites"], proposal.run.task):
        note(worst)
    if scores and not test["sites"]:
        note(
            "No hospital gave a score: a split of fewer patients than its policy's min-held-out leaves none. "
            "The reason of each stands in report.html."
        )


def _model_files(home: Home, proposal: Proposal, round_: int | None) -> dict[str, bytes]:
    """The model of a run that is completed, or of its last checkpoint, opened."""
    folder, sealer = home.run_folder(proposal.document), home.sealer_of(proposal.run_hash)
    if round_ is None and proposal.state == "completed":
        return {name: sealer.open((folder / f"{name}{SUFFIX}").read_bytes(), name) for name in MODEL_FILES}
    last = checkpoints.latest(folder)
    if last is None:
        raise ConfigError(
            f"{proposal.name} is {proposal.state} and has done no round: only a completed run, or one with a "
            "checkpoint, has a model to export."
        )
    done = checkpoints.round_of(last)
    if round_ is None:
        raise ConfigError(
            f"{proposal.name} is {proposal.state}, only a completed run has its final model. The model after round "
            f"{done} is there: add --round {done}."
        )
    if round_ != done:
        raise ConfigError(f"only the last checkpoint of {proposal.name} is kept, of round {done}: give --round {done}.")
    return checkpoints.open_files(last, sealer)
