"""wardround-server: what a person at the coordinator types.

The home folder (server.toml, keys, registry, runs, logs) is --home, or WARDROUND_SERVER_HOME, or ./wardround-server.
Commands write their wish into the registry, signed by the operator who gives it (--as); the processes behind `start`
carry it out. Who may do what stands in common/identity/operators.py.
"""

import datetime
from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path
from typing import Annotated, TypeAlias

import typer

from common.config import RunConfig, rundocument
from common.console.cli import Digest, JsonFlag, configure_logging, new_app, note, say, show_table
from common.console.doctor import tell
from common.crypto.stream import SUFFIX
from common.errors import ConfigError, FederationError
from common.identity.operators import Act
from common.system.files import write_atomically, write_private
from server.commands.audit import audit_app
from server.commands.doctor import examine
from server.commands.keys import (
    AsOption,
    HomeOption,
    KeyOption,
    asked,
    key_app,
    new_passphrase,
    opened_home,
    operator_app,
    root_app,
    root_passphrase,
)
from server.commands.template import TEMPLATE
from server.coordinator import supervisor
from server.coordinator.doors import doors as look_at_doors
from server.federation.events import INITIAL_NAME, JOURNAL_NAME
from server.gateway import enrolment
from server.home import checkpoints
from server.home import folder as homes
from server.home.checkpoints import MODEL_FILES
from server.home.folder import Home, ServerConfig
from server.home.root import ROOT_PASSPHRASE, create
from server.registry import operators
from server.registry.audit_trail import open_log
from server.registry.proposals import Proposal
from server.registry.registry import Registry
from server.views.progress import duration, progress_of, summary_of

# The document that hospitals approve, in a run's folder: its bytes are what the run's hash is of.
ISSUED_NAME = "run.json"

SitesArgument: TypeAlias = Annotated[list[str], typer.Argument(metavar="SITE...", help="Names, such as st-mary.")]
SiteArgument: TypeAlias = Annotated[str, typer.Argument(help="The site's name, such as st-mary.")]
RunArgument: TypeAlias = Annotated[str, typer.Argument(help="The run's name, or the first digits of its hash.")]
WatchFlag: TypeAlias = Annotated[bool, typer.Option("--watch", help="Stay, and show the run until it ends.")]

app = new_app("Coordinate a federation: enrol hospitals, propose runs, collect the model. No image ever comes here.")
app.add_typer(operator_app, name="operator")
app.add_typer(root_app, name="root")
app.add_typer(key_app, name="key")
app.add_typer(audit_app, name="audit")


@app.command()
def init(
    *,
    home: HomeOption = None,
    host: Annotated[list[str] | None, typer.Option(help="Name or address by which sites reach this host.")] = None,
    listen: Annotated[str | None, typer.Option(help="Address to listen on; without --host only this machine.")] = None,
    gateway_port: Annotated[int, typer.Option(min=1, max=65535, help="Where sites work (mutual TLS).")] = 9443,
    enrolment_port: Annotated[int, typer.Option(min=1, max=65535, help="Where sites enrol (TLS).")] = 9444,
    superlink_port: Annotated[int, typer.Option(min=1, max=65535, help="Flower's, on loopback.")] = 9445,
    private_network: Annotated[
        bool, typer.Option(help="Give Flower a network of its own, which no other account of this host reaches.")
    ] = True,
    sealed: Annotated[bool, typer.Option("--passphrase", help="Keep the root key under a passphrase.")] = False,
    protected: Annotated[bool, typer.Option("--protect", help="Keep the coordinator's key under another one.")] = False,
    invited: Annotated[
        list[str] | None, typer.Option("--invite", metavar="SITE", help="Then invite this site; repeatable.")
    ] = None,
    start_now: Annotated[bool, typer.Option("--start", help="Then run the coordinator.")] = False,
) -> None:
    """Make the coordinator's folder, its keys and its certificate.

    Example: `wardround-server init --host fl.example.org`
    """
    config = ServerConfig(
        hosts=tuple(dict.fromkeys([*(host or ()), *homes.default_hosts()])),
        listen=listen or ("0.0.0.0" if host else "127.0.0.1"),  # noqa: S104 - asked for by --host
        gateway_port=gateway_port,
        enrolment_port=enrolment_port,
        superlink_port=superlink_port,
        private_network=private_network,
    )
    if len({gateway_port, enrolment_port, superlink_port}) < 3:
        raise ConfigError("the three ports must differ. Set --gateway-port, --enrolment-port and --superlink-port.")
    chosen = new_passphrase(ROOT_PASSPHRASE, "Passphrase for the root key") if sealed else None
    kept = new_passphrase(homes.KEY_PASSPHRASE, "Passphrase for the coordinator's key") if protected else None
    created = create(homes.resolve(home), config, chosen, kept)
    operators.add(created, Registry(created.registry), operators.FIRST, "admin", root_passphrase=chosen)
    say(f"Initialised {created.path}")
    note(f"Back up {created.path / 'pki' / 'root.key'}, the federation's identity, and apart {created.key_file.path}.")
    if invited:
        _invite(*asked(created.path, "invite", operators.FIRST, None), invited)
    if start_now:
        _start(created)
    else:
        note(f"Next: {homes.typed('start', created)}")


@app.command()
def invite(
    sites: SitesArgument,
    home: HomeOption = None,
    out: Annotated[Path | None, typer.Option(help="Write the invitations to this folder.")] = None,
    by: AsOption = operators.FIRST,
    key: KeyOption = None,
) -> None:
    """Invite sites. Each file is good for one site, once, for 24 hours: send it on a trusted channel.

    Example: `wardround-server invite st-mary st-john`
    """
    _invite(*asked(home, "invite", by, key), sites, out)


@app.command()
def enrol(
    request: Annotated[Path, typer.Argument(help="The file a site made with join --request.")],
    home: HomeOption = None,
    by: AsOption = operators.FIRST,
    key: KeyOption = None,
) -> None:
    """Take a site's request that came by mail; it then waits under `requests` like any other.

    Example: `wardround-server enrol st-mary.request`
    """
    opened, registry, signer = asked(home, "enrol", by, key)
    try:
        site = enrolment.redeem_file(opened, registry, request.read_bytes(), signer)
    except OSError as error:
        raise ConfigError(f"{request} cannot be read ({error.strerror}). Give the file that the site sent.") from error
    say(f"{site} asks to join. Compare the phrase ({homes.typed('requests', opened)}), then approve --out FILE.")


@app.command()
def requests(
    home: HomeOption = None, json: JsonFlag = False, by: AsOption = operators.FIRST, key: KeyOption = None
) -> None:
    """Sites that wait for approval. Compare the phrase with the one the site shows, on the telephone say.

    Example: `wardround-server requests`
    """
    _, registry, _ = asked(home, "requests", by, key)
    rows: list[tuple[str, str, str | None]] = [
        (site.name, "joins", enrolment.phrase_of(site)) for site in registry.sites() if site.state == "pending"
    ]
    rows += [(site.name, "renews", None) for site in registry.sites() if site.renewal is not None]
    show_table("Requests", ("site", "wish", "phrase"), rows, as_json=json)


@app.command()
def approve(
    sites: SitesArgument,
    *,
    home: HomeOption = None,
    out: Annotated[Path | None, typer.Option(help="Write the certificates to this folder too, to be mailed.")] = None,
    wait: Annotated[
        bool, typer.Option("--wait", help="Wait for invited sites that have not asked, and compare phrases afterwards.")
    ] = False,
    by: AsOption = operators.FIRST,
    key: KeyOption = None,
) -> None:
    """Let sites in: sign their certificate requests. Compare the phrases first.

    Example: `wardround-server approve st-mary st-john`
    """
    opened, registry, signer = asked(home, "approve", by, key)
    passphrase = root_passphrase(opened)
    for name in sites:
        if wait:
            enrolment.await_request(registry, name, note)
        phrase = enrolment.phrase_of(registry.site(name))
        enrolment.approve(opened, registry, name, passphrase, signer)
        site = registry.site(name)
        say(f"{name} is active until {_day(site.expires)}. Phrase: {phrase}")
        if out is not None:
            write_atomically(out / f"{name}.pem", (site.certificate or b"") + opened.root_pem)
            registry.collected(name)


@app.command()
def revoke(site: SiteArgument, home: HomeOption = None, by: AsOption = operators.FIRST, key: KeyOption = None) -> None:
    """Shut a site out, at once.

    Example: `wardround-server revoke st-mary`
    """
    opened, registry, signer = asked(home, "revoke", by, key)
    enrolment.revoke(opened, registry, site, signer)
    say(f"{site} is revoked. To let it back in, invite it again.")


@app.command()
def sites(
    home: HomeOption = None, json: JsonFlag = False, by: AsOption = operators.FIRST, key: KeyOption = None
) -> None:
    """All sites and how they are.

    Example: `wardround-server sites`
    """
    _, registry, _ = asked(home, "sites", by, key)
    rows = [(site.name, site.state, site.connected, _moment(site.expires)) for site in registry.sites()]
    show_table("Sites", ("site", "state", "connected", "certificate until"), rows, as_json=json)


@app.command()
def start(home: HomeOption = None) -> None:
    """Run the coordinator until Ctrl-C or SIGTERM.

    Where its key is under a passphrase, that is asked for, or comes from WARDROUND_COORDINATOR_PASSPHRASE or the file
    that WARDROUND_COORDINATOR_PASSPHRASE_FILE names.

    Example: `wardround-server start --home /srv/wardround`
    """
    _start(homes.open_home(home))


@app.command()
def status(home: HomeOption = None, json: JsonFlag = False) -> None:
    """What runs, who is here, which runs are open. Exit code 1 when the coordinator, or a part of it, is not up.

    Example: `wardround-server status`
    """
    opened, registry = opened_home(home)
    running = supervisor.is_running(opened)
    members = [site for site in registry.sites() if site.state == "active"]
    rows: list[tuple[str, str, str | None]] = [("coordinator", "running" if running else "stopped", str(opened.path))]
    doors = look_at_doors(opened)
    rows += [(door.name, door.state, f"port {door.port}" if door.port else "starts the runs") for door in doors]
    rows += [("site " + one.name, "connected" if one.connected and running else "away", None) for one in members]
    rows += [(f"run {one.name}", one.state, _where(opened, one)) for one in registry.proposals() if one.open]
    show_table("Status", ("what", "state", "detail"), rows, as_json=json)
    if not running:
        raise FederationError("the coordinator is not running. Start it with `wardround-server start`.")
    if wrong := [door for door in doors if not door.ok]:
        raise FederationError(
            "; ".join(f"{door.name}: {door.state}" for door in wrong)
            + f". See the files in {opened.logs}, and `wardround-server doctor`."
        )


@app.command()
def doctor(home: HomeOption = None, json: JsonFlag = False) -> None:
    """Check the installation and say what to do. Exit code 1 when something is wrong.

    Example: `wardround-server doctor`
    """
    tell(examine(homes.open_home(home)), as_json=json)


@app.command()
def new(document: Annotated[Path, typer.Argument(metavar="RUN.toml", help="The file to write.")]) -> None:
    """Write a run.toml to begin with: every setting, its default and its choices.

    Example: `wardround-server new run.toml`
    """
    if document.exists():
        raise ConfigError(f"{document} is there already. Give the name of a new file.")
    write_atomically(document, TEMPLATE.encode())
    say(document)
    note(f"Look through it: data, spacing, classes, privacy. Then: wardround-server run {document}")


@app.command()
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
    _require_running(opened)
    registry.must_be_new(run.hash)
    folder = opened.run_folder(run)
    weights = _initial_weights(run.config, initial, folder)
    endorsements = [operators.endorse(signer, run.hash, run.bundle) for signer in acting]

    def publish(_act: Act) -> Proposal:
        if weights is not None:
            write_private(folder / INITIAL_NAME, weights)
        proposed = registry.propose(run, endorsements)
        open_log(opened).append("proposed", {"run": run.hash})
        return proposed

    proposal = operators.carry_out(opened, acting, "run", (run.hash,), publish)
    issued = folder / ISSUED_NAME
    write_private(issued, run.text.encode())
    say(f"Proposed {run.name} {run.hash}")
    note(f"Issued as {issued}, of which that is the SHA-256")
    note(f"At each site: wardround-client approve {proposal.run_hash[:8]}")
    _follow(opened, registry, proposal, watch=watch)


@app.command()
def runs(
    home: HomeOption = None, json: JsonFlag = False, by: AsOption = operators.FIRST, key: KeyOption = None
) -> None:
    """All runs, the latest first.

    Example: `wardround-server runs --json`
    """
    opened, registry, _ = asked(home, "runs", by, key)
    rows = []
    for one in registry.proposals():
        done = progress_of(opened.run_folder(one.document), one)
        left = done.seconds_left
        shown = (f"{done.round} of {done.rounds}", done.scored, None if left is None else duration(left))
        how_far = (done.round, done.rounds, done.headline, done.score, left) if json else shown
        answers = (sorted(one.approved), sorted(one.denied), one.reason or None)
        rows.append((one.name, Digest(one.run_hash), one.state, *how_far, *answers))
    how_far_columns = (
        ("round", "rounds", "headline", "score", "seconds-left") if json else ("round", "score", "time left")
    )
    show_table("Runs", ("run", "hash", "state", *how_far_columns, "approved", "denied", "reason"), rows, as_json=json)


@app.command()
def stop(run: RunArgument, home: HomeOption = None, by: AsOption = operators.FIRST, key: KeyOption = None) -> None:
    """Withdraw a run. What it has learned stays in its folder; `resume` goes on from there.

    Example: `wardround-server stop lesions`
    """
    opened, registry, signer = asked(home, "stop", by, key)
    proposal = registry.proposal(run)

    def close(act: Act) -> None:
        if not registry.close(proposal.run_hash, "stopped", "withdrawn at the coordinator", act):
            raise ConfigError(f"{proposal.name} {proposal.run_hash[:8]} is {proposal.state} already.")

    operators.carry_out(opened, signer, "stop", (proposal.run_hash,), close)
    open_log(opened).append("closed", {"run": proposal.run_hash})
    say(f"{proposal.name} {proposal.run_hash[:8]} is stopped.")


@app.command()
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
    _require_running(opened)

    def reopen(act: Act) -> None:
        registry.reopen(proposal.run_hash, act, operators.endorse(signer, proposal.run_hash, proposal.bundle))
        open_log(opened).append("proposed", {"run": proposal.run_hash})

    operators.carry_out(opened, signer, "resume", (proposal.run_hash,), reopen)
    say(f"{proposal.name} {proposal.run_hash[:8]} goes on.")
    _follow(opened, registry, proposal, watch=watch)


@app.command()
def watch(run: RunArgument, home: HomeOption = None, by: AsOption = operators.FIRST, key: KeyOption = None) -> None:
    """Show a run until it ends; one that has ended is shown as it was. Exit code 0 only if it is completed.

    Example: `wardround-server watch lesions`
    """
    opened, registry, _ = asked(home, "watch", by, key)
    proposal = registry.proposal(run)
    _follow(opened, registry, proposal, watch=True)


@app.command()
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
        opened, signer, "report", (proposal.run_hash,), lambda _act: write_report(folder, summary_of(folder, proposal))
    )
    _show_scores(opened, proposal, as_json=json)
    # A table as JSON is all that goes to stdout.
    (note if json else say)(f"Report: {path}")


@app.command()
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

    operators.carry_out(opened, signer, "export", (proposal.run_hash,), write)
    say(model)


def _invite(
    home: Home, registry: Registry, signer: operators.Signer, sites: Sequence[str], out: Path | None = None
) -> None:
    for site in sites:
        invitation = enrolment.invite(home, registry, site, signer)
        path = home.invitation(site)
        if out is not None:
            path = out / path.name
            write_private(path, invitation.to_text().encode())
        say(path)
    note(f"There: wardround-client join FILE. Then here: {homes.typed('requests', home)}")


def _start(home: Home) -> None:
    configure_logging()
    supervisor.start(home, say)


def _require_running(home: Home) -> None:
    if not supervisor.is_running(home):
        raise FederationError("the coordinator is not running. Start it with `wardround-server start`, then try again.")


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


def _follow(home: Home, registry: Registry, proposal: Proposal, *, watch: bool) -> None:
    if not watch:
        note(f"Follow it with: {homes.typed(f'watch {proposal.run_hash[:8]}', home)}")
        return
    from server.views.watch import watch as watch_run  # noqa: PLC0415 - loads jinja2

    ended = watch_run(home, registry, proposal.run_hash)
    if ended.state != "completed":
        why = f": {ended.reason}" if ended.reason else ""
        raise FederationError(f"{ended.name} {ended.run_hash[:8]} is {ended.state}{why}")
    _show_scores(home, ended, as_json=False)
    say(f"Results: {home.run_folder(ended.document)}")


def _where(home: Home, proposal: Proposal) -> str:
    """A run's hash, and how far it is."""
    begun = proposal.state != "proposed"
    return proposal.run_hash[:8] + (f", {progress_of(home.run_folder(proposal.document), proposal)}" if begun else "")


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


def _show_scores(home: Home, proposal: Proposal, *, as_json: bool) -> None:
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
    if scores and not test["sites"]:
        note(
            "No hospital gave a score: a split of fewer patients than its policy's min-held-out leaves none. "
            "The reason of each stands in report.html."
        )


def _moment(text: str | None) -> datetime.datetime | None:
    return None if text is None else datetime.datetime.fromisoformat(text)


def _day(moment: str | None) -> str:
    return (moment or "")[:10]


if __name__ == "__main__":
    app()
