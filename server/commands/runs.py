"""wardround-server new, run, runs, stop, resume and watch: a run, from its document to its end."""

from hashlib import sha256
from pathlib import Path
from typing import Annotated, TypeAlias

import typer

from common.config import RunConfig, rundocument
from common.console.cli import Digest, JsonFlag, new_app, note, say, show_table
from common.errors import ConfigError, FederationError
from common.system.files import write_atomically
from server.commands.compare import runs_compare, runs_diff
from server.commands.options import AsOption, HomeOption, KeyOption, RunArgument, asked
from server.commands.results import show_scores
from server.commands.template import TEMPLATE
from server.coordinator import supervisor, wishes
from server.federation.events import INITIAL_NAME
from server.home import purged
from server.home.checkpoints import MODEL_FILES
from server.home.folder import Home
from server.registry import operators
from server.registry.proposals import Proposal
from server.registry.registry import Registry
from server.views.progress import duration, progress_of

_ANSWERED = ("approved", "denied", "refused")

WatchFlag: TypeAlias = Annotated[bool, typer.Option("--watch", help="Stay, and show the run until it ends.")]

runs_app = new_app("All runs, the latest first.\n\nExample: `wardround-server runs --json`")
runs_app.info.no_args_is_help = False
runs_app.command("compare")(runs_compare)
runs_app.command("diff")(runs_diff)


def new(document: Annotated[Path, typer.Argument(metavar="RUN.toml", help="The file to write.")]) -> None:
    """Write a run.toml to begin with: every setting, its default and its choices.

    Example: `wardround-server new run.toml`
    """
    if document.exists():
        raise ConfigError(f"{document} is there already. Give the name of a new file.")
    write_atomically(document, TEMPLATE.encode())
    say(document)
    note(f"Look through it: data, spacing, classes, privacy. Then: `wardround-server run {document}`")


def run(
    document: Annotated[Path, typer.Argument(metavar="RUN.toml", help="What to train, and how.")],
    *,
    home: HomeOption = None,
    watch: WatchFlag = False,
    signers: Annotated[
        list[str] | None,
        typer.Option("--as", envvar="WARDROUND_OPERATOR", help="Operator who signs; repeatable [default: admin]."),
    ] = None,
    key: KeyOption = None,
    initial: Annotated[
        Path | None, typer.Option("--initial", help="Folder of the model that [initial] in RUN.toml names.")
    ] = None,
) -> None:
    """Propose a run to the sites, signed by an operator; it starts when its quorum has approved.

    Example: `wardround-server run lesions.toml --watch`
    """
    several = [asked(home, "run", name, key) for name in signers or [operators.FIRST]]
    opened, registry, _ = several[0]
    acting = [signer for *_, signer in several]
    run = rundocument.from_file(document)
    wishes.require_running(opened)
    registry.must_be_new(run.hash)
    folder = opened.run_folder(run)
    weights = _initial_weights(run.config, initial, folder)
    proposal = wishes.propose(opened, registry, acting, run, weights)
    issued = folder / wishes.ISSUED_NAME
    say(f"Proposed {run.name} {run.hash}")
    for sentence in run.config.idle:
        note(f"Note: {sentence}.")
    note(f"Issued as {issued}, of which that is the SHA-256")
    note(f"At each site: `wardround-client approve {proposal.run_hash[:8]}`")
    _follow(opened, registry, proposal, watch=watch)


@runs_app.callback(invoke_without_command=True)
def runs(
    context: typer.Context,
    *,
    home: HomeOption = None,
    json: JsonFlag = False,
    by: AsOption = operators.FIRST,
    key: KeyOption = None,
) -> None:
    """All runs, or what is asked about some of them."""
    if context.invoked_subcommand is not None:
        return
    opened, registry, _ = asked(home, "runs", by, key)
    rows, noises = [], set[str | None]()
    here = supervisor.present(opened, registry)
    for one in registry.proposals():
        done = progress_of(opened.run_folder(one.document), one, here)
        left = done.seconds_left
        noises.add(done.noise)
        shown = (f"{done.round} of {done.rounds}", done.scored, done.waits if left is None else duration(left))
        how_far = (
            (done.round, done.rounds, done.headline, done.score, done.score_noise, left, done.waiting_for)
            if json
            else shown
        )
        refused = dict(sorted(one.refused.items()))  # by a policy; with the code
        answers = (sorted(one.approved), sorted(one.denied - refused.keys()), refused, one.reason or None)
        rows.append((one.name, Digest(one.run_hash), one.state, *how_far, *answers))
    how_far_columns = (
        ("round", "rounds", "headline", "score", "score-noise", "seconds-left", "waiting-for")
        if json
        else ("round", "score", "time left")
    )
    show_table("Runs", ("run", "hash", "state", *how_far_columns, *_ANSWERED, "reason"), rows, as_json=json)
    for noise in filter(None, noises):
        note(noise)
    if here is None and any(one.open for one in registry.proposals()):
        note(f"Note: {supervisor.IDLE}.")


def stop(run: RunArgument, home: HomeOption = None, by: AsOption = operators.FIRST, key: KeyOption = None) -> None:
    """Withdraw a run. What it has learned stays in its folder; `resume` goes on from there.

    Example: `wardround-server stop lesions`
    """
    opened, registry, signer = asked(home, "stop", by, key)
    proposal = registry.proposal(run)
    say(wishes.stop(opened, registry, signer, proposal))


def resume(
    run: RunArgument,
    home: HomeOption = None,
    watch: WatchFlag = False,
    by: AsOption = operators.FIRST,
    key: KeyOption = None,
) -> None:
    """Go on with a failed or stopped run, from its last checkpoint.

    Example: `wardround-server resume lesions --watch`
    """
    opened, registry, signer = asked(home, "resume", by, key)
    proposal = registry.proposal(run)
    say(wishes.resume(opened, registry, signer, proposal))
    if proposal.refusals:
        note(f"Note: {'; '.join(proposal.refusals)}. While that stands, they take no part.")
    _follow(opened, registry, proposal, watch=watch)


def watch(
    run: RunArgument,
    tensorboard: Annotated[
        Path | None, typer.Option(help="A new folder for the curves as they grow, as TensorBoard's event files.")
    ] = None,
    home: HomeOption = None,
    by: AsOption = operators.FIRST,
    key: KeyOption = None,
) -> None:
    """Show a run until it ends; one that has ended is shown as it was. Exit code 0 only if it is completed.

    Example: `wardround-server watch lesions`
    """
    opened, registry, _ = asked(home, "watch", by, key)
    proposal = registry.proposal(run)
    purged.check(opened.run_folder(proposal.document))
    _follow(opened, registry, proposal, watch=True, curves=tensorboard)


def _initial_weights(config: RunConfig, model: Path | None, folder: Path) -> bytes | None:
    """The weights that a run starts from, if it names any; its ServerApp looks for them in the run's folder."""
    if config.initial is None:
        if model is not None:
            raise ConfigError("RUN.toml names no initial weights. Add an [initial] table, or leave --initial out.")
        return None
    source = folder / INITIAL_NAME if model is None else model / MODEL_FILES[0]
    data = source.read_bytes() if source.exists() else b""
    if sha256(data).hexdigest() != config.initial.sha256:
        fault = "has another SHA-256 than" if data else "is not there; it must hold the weights that"
        raise ConfigError(
            f"{source} {fault} RUN.toml's [initial] names ({config.initial.sha256[:8]}). Give the model's folder with "
            "--initial."
        )
    return data


def _follow(home: Home, registry: Registry, proposal: Proposal, *, watch: bool, curves: Path | None = None) -> None:
    if not watch:
        note(f"Follow it with: `wardround-server watch {proposal.run_hash[:8]}`")
        return
    from server.views.watch import watch as watch_run  # noqa: PLC0415 - loads jinja2

    def idle() -> str | None:
        return None if supervisor.is_running(home) else supervisor.IDLE

    if curves is None:
        ended = watch_run(home, registry, proposal.run_hash, idle=idle)
    else:
        from server.monitoring.tensorboard import curves_in  # noqa: PLC0415 - loads jinja2

        with curves_in(curves, home.run_folder(proposal.document)) as told:
            ended = watch_run(home, registry, proposal.run_hash, idle=idle, told=told)
    if ended.state != "completed":
        why = f": {ended.reason}" if ended.reason else ""
        raise FederationError(f"{ended.name} {ended.run_hash[:8]} is {ended.state}{why}")
    show_scores(home, ended, as_json=False)
    say(f"Results: {home.run_folder(ended.document)}")
    command = f"`wardround-server export {ended.run_hash[:8]} --out MODEL`"
    note(f"The model, and its MONAI bundle and ONNX when they are made: {command}")
