"""wardround-server export: a run's model, unsealed; its curves for TensorBoard; the whole of it for MLflow."""

from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path
from shlex import quote
from typing import Annotated

import typer

from common.console.cli import note, say
from common.crypto.stream import SUFFIX
from common.errors import ConfigError
from common.identity.operators import Act
from common.system.files import write_atomically
from server.archive.forms import BUNDLE, LEFT_OUT, ONNX
from server.commands.options import AsOption, HomeOption, KeyOption, RunArgument, asked
from server.federation.events import JOURNAL_NAME, read_events
from server.home import checkpoints
from server.home.checkpoints import MODEL_FILES
from server.home.folder import Home
from server.registry import operators
from server.registry.audit_trail import open_log
from server.registry.proposals import Proposal
from server.views.progress import summary_of

# The document that a run's hash is of, and the report, as MLflow has them.
_DOCUMENT, _REPORT = "run.json", "report.html"


def export(
    run: RunArgument,
    *,
    out: Annotated[Path | None, typer.Option(help="The folder to write the model to.")] = None,
    round_: Annotated[
        int | None, typer.Option("--round", min=1, help="Of a run that is not completed: its last round.")
    ] = None,
    tensorboard: Annotated[
        Path | None, typer.Option(help="A new folder for the curves, as TensorBoard's event files.")
    ] = None,
    mlflow: Annotated[
        str | None, typer.Option(help="MLflow's tracking server, https://..., or a file, sqlite:///FILE.")
    ] = None,
    home: HomeOption = None,
    by: AsOption = operators.FIRST,
    key: KeyOption = None,
) -> None:
    """Copy a completed run's model, unsealed: model.safetensors, model.json, a MONAI bundle and ONNX.

    With --round, that of its checkpoint, without the latter two. The folder is to be new or empty: the forms of two
    models in one folder could not be told apart.

    To TensorBoard goes what the report has in curves. To MLflow go settings, curves, report and run document, and of a
    completed run the model.

    Example: `wardround-server export lesions --out model/`
    """
    opened, registry, signer = asked(home, "export", by, key)
    if out is None and tensorboard is None and mlflow is None:
        raise ConfigError("nothing is to be written. Give --out, --tensorboard or --mlflow.")
    if out is not None and out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ConfigError(f"{out} is there already, and not an empty folder. Give a new or empty one with --out.")
    if mlflow is not None:
        from server.monitoring.mlflow import check_address  # noqa: PLC0415 - loads jinja2

        check_address(mlflow)
    proposal = registry.proposal(run)
    if (tensorboard or mlflow) and not (opened.run_folder(proposal.document) / JOURNAL_NAME).exists():
        raise ConfigError(f"{proposal.name} is {proposal.state} and has not begun: there is nothing to show yet.")
    sent = mlflow is not None and proposal.state == "completed"
    files = _model_files(opened, proposal, round_) if out is not None or sent else {}
    others, notes = _forms(opened, proposal, out) if out is not None and round_ is None else ({}, [])

    def write(_act: Act) -> list[object]:
        if files:
            about = {"what": "model", "hash": sha256(files[MODEL_FILES[0]]).hexdigest()}
            open_log(opened).append("export", about)
        written: list[object] = []
        if out is not None:
            out.mkdir(parents=True, exist_ok=True)
            for name, data in {**files, **others}.items():
                write_atomically(out / name, data)
            written += [out / name for name in (MODEL_FILES[0], *sorted({one.partition("/")[0] for one in others}))]
            for sentence in notes:
                note(sentence)
        if tensorboard is not None:
            _write_curves(opened, proposal, tensorboard)
            written.append(f"TensorBoard: {tensorboard}")
        if mlflow is not None:
            written.append(f"MLflow run: {_send(opened, proposal, mlflow, files if sent else {})}")
        return written

    for told in operators.carry_out(opened, signer, (proposal.run_hash,), write):
        say(told)


def _forms(home: Home, proposal: Proposal, out: Path) -> tuple[dict[str, bytes], list[str]]:
    """The files of bundle and ONNX, opened; and what is to be said of those that are not there."""
    from server.archive import record  # noqa: PLC0415 - loads jinja2

    found = record.there(home, proposal)
    command = f"wardround-sim export {quote(str(out))} --all FOLDER"
    if found is None:
        return {}, [f"As a MONAI bundle and ONNX too, once the run's folder is made, or by: {command}"]
    sealer = home.sealer_of(proposal.run_hash)
    names = [name.removesuffix(SUFFIX) for name in found.manifest["files"] if name.endswith(SUFFIX)]
    files = {name: sealer.open(found.read(f"{name}{SUFFIX}"), name) for name in names if name not in MODEL_FILES}
    told = record.forms_in(found) or {name: {LEFT_OUT: "an earlier version made none."} for name in (BUNDLE, ONNX)}
    lacking = [f"Left out: {name}. {said[LEFT_OUT]}" for name, said in told.items() if LEFT_OUT in said]
    return files, [*lacking, *([f"Made by: {command}"] if lacking else [])]


def _write_curves(home: Home, proposal: Proposal, folder: Path) -> None:
    from server.monitoring.tensorboard import curves_in  # noqa: PLC0415 - loads jinja2

    results = home.run_folder(proposal.document)
    with curves_in(folder, results) as write:
        _note_numbers(home, proposal)
        write(proposal, read_events(results / JOURNAL_NAME))


def _send(home: Home, proposal: Proposal, uri: str, model: Mapping[str, bytes]) -> str:
    from server.monitoring.mlflow import log_run  # noqa: PLC0415 - loads jinja2
    from server.views.report import write_report  # noqa: PLC0415 - likewise
    from server.views.run import view_of  # noqa: PLC0415 - likewise

    run = home.run_folder(proposal.document)
    summary = summary_of(run, proposal)
    files = {_DOCUMENT: proposal.document.text.encode(), _REPORT: write_report(run, summary).read_bytes(), **model}
    tags = {"wardround.run-hash": proposal.run_hash, "wardround.state": proposal.state}
    tags |= {"wardround.model-sha256": str(summary["model-sha256"])} if summary["model-sha256"] else {}
    _note_numbers(home, proposal)
    view = view_of(summary, read_events(run / JOURNAL_NAME))
    if noise := next((one.noise for one in view.scores if one.noise), None):
        tags["mlflow.note.content"] = noise  # what MLflow shows as the run's description
    return log_run(view, uri, tags=tags, files=files)


def _note_numbers(home: Home, proposal: Proposal) -> None:
    """That a run's numbers are written out: those of the journal that has this hash."""
    journal = (home.run_folder(proposal.document) / JOURNAL_NAME).read_bytes()
    open_log(home).append("export", {"what": "report", "hash": sha256(journal).hexdigest()})


def _model_files(home: Home, proposal: Proposal, round_: int | None) -> dict[str, bytes]:
    """The model of a run that is completed, or of its last checkpoint, opened."""
    folder, sealer = home.run_folder(proposal.document), home.sealer_of(proposal.run_hash)
    if round_ is None and proposal.state == "completed":
        from server.archive.record import there  # noqa: PLC0415 - loads jinja2

        # A command that has not signed yet makes nothing: without that folder the run's own is read.
        found = there(home, proposal)
        sealed = {
            name: (folder / f"{name}{SUFFIX}").read_bytes() if found is None else found.read(f"{name}{SUFFIX}")
            for name in MODEL_FILES
        }
        return {name: sealer.open(data, name) for name, data in sealed.items()}
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
