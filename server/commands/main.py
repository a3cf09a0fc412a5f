"""wardround-server: what a person at the coordinator types.

The home folder (server.toml, keys, registry, runs, logs) is --home, or WARDROUND_SERVER_HOME, or ./wardround-server.
Commands write their wish into the registry, signed by the operator who gives it (--as); the processes behind `start`
carry it out. Who may do what stands in common/identity/operators.py.

Here: the whole, and what starts the coordinator and looks at it. Hospitals are in sites.py, runs in runs.py and
results.py, operators and keys in keys.py, the log in audit.py; what they share is in options.py.
"""

import datetime
from collections.abc import Mapping
from typing import Annotated

import typer

from common.console.cli import TAKES_NO_RUN, JsonFlag, configure_logging, new_app, no_run, note, say, show_table
from common.console.doctor import tell
from common.errors import ConfigError, FederationError
from server.commands.audit import audit_app
from server.commands.dashboard import dashboard
from server.commands.doctor import examine
from server.commands.export import export
from server.commands.keys import key_app, operator_app, root_app
from server.commands.metrics import metrics
from server.commands.options import HomeOption, asked, new_passphrase, opened_home
from server.commands.rescue import backup, purge, restore
from server.commands.results import report
from server.commands.runs import new, resume, run, runs_app, stop, watch
from server.commands.sites import approve, enrol, invite, requests, revoke, sites, write_invitations
from server.coordinator import supervisor
from server.coordinator.doors import doors as look_at_doors
from server.home import folder as homes
from server.home.folder import Home, ServerConfig
from server.home.root import ROOT_PASSPHRASE, create
from server.home.seen import read_seen
from server.registry import operators
from server.registry.proposals import Proposal
from server.registry.registry import Registry
from server.views.progress import Progress, progress_of
from server.views.sentences import last_seen

app = new_app("Coordinate a federation: enrol hospitals, propose runs, collect the model. No image ever comes here.")
app.add_typer(runs_app, name="runs")
app.add_typer(operator_app, name="operator")
app.add_typer(root_app, name="root")
app.add_typer(key_app, name="key")
app.add_typer(audit_app, name="audit")


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
    if not host:
        note(
            "Only this machine reaches it, and invitations say so. For hospitals elsewhere set hosts, first the name "
            f"by which they reach this host, and listen in {created.path / 'server.toml'} before you invite them; init "
            "--host NAME sets both."
        )
    if invited:
        write_invitations(*asked(created.path, "invite", operators.FIRST, None), invited)
    if start_now:
        _start(created)
    else:
        note("Next: `wardround-server start`")


def start(home: HomeOption = None) -> None:
    """Run the coordinator until Ctrl-C or SIGTERM.

    Where its key is under a passphrase, that is asked for, or comes from WARDROUND_COORDINATOR_PASSPHRASE or the file
    that WARDROUND_COORDINATOR_PASSPHRASE_FILE names.

    Example: `wardround-server start --home /srv/wardround`
    """
    _start(homes.open_home(home))


def status(context: typer.Context, home: HomeOption = None, json: JsonFlag = False) -> None:
    """What runs, who is here, which runs are open. Exit code 1 when the coordinator, or a part of it, is not up.

    Example: `wardround-server status`
    """
    no_run(context, "`wardround-server watch RUN`", "`wardround-server report RUN`")
    opened, registry = opened_home(home)
    running = supervisor.is_running(opened)
    members = [site for site in registry.sites() if site.state == "active"]
    rows: list[tuple[str, str, str | None]] = [("coordinator", "running" if running else "stopped", str(opened.path))]
    doors = look_at_doors(opened)
    rows += [(door.name, door.state, f"port {door.port}" if door.port else "starts the runs") for door in doors]
    runs = [one for one in registry.proposals() if one.open]
    here, seen = supervisor.present(opened, registry), read_seen(opened.path)
    rows += [("site " + one.name, *_presence(one.name, here, seen)) for one in members]
    progress = [progress_of(opened.run_folder(one.document), one, here) for one in runs]
    rows += [(f"run {one.name}", one.state, _where(one, far)) for one, far in zip(runs, progress, strict=True)]
    show_table("Status", ("what", "state", "detail"), rows, as_json=json)
    for noise in {far.noise for far in progress} - {None}:
        note(noise)
    if not running:
        raise FederationError("the coordinator is not running. Start it with `wardround-server start`.")
    if wrong := [door for door in doors if not door.ok]:
        raise FederationError(
            "; ".join(f"{door.name}: {door.state}" for door in wrong)
            + f". See the files in {opened.logs}, and `wardround-server doctor`."
        )


def doctor(home: HomeOption = None, json: JsonFlag = False) -> None:
    """Check the installation and say what to do. Exit code 1 when something is wrong.

    Example: `wardround-server doctor`
    """
    tell(examine(homes.open_home(home)), as_json=json)


def _start(home: Home) -> None:
    configure_logging()
    supervisor.start(home, say)


def _presence(site: str, here: frozenset[str] | None, seen: Mapping[str, datetime.datetime]) -> tuple[str, str | None]:
    """Whether a site is there, and if not, since when as far as that is known."""
    return ("connected", None) if site in (here or ()) else ("away", last_seen(seen.get(site)))


def _where(proposal: Proposal, progress: Progress) -> str:
    """A run's hash, and how far it is."""
    return proposal.run_hash[:8] + (f", {progress}" if proposal.state != "proposed" else "")


# In the order in which --help lists them.
for _command in (
    init,
    invite,
    enrol,
    requests,
    approve,
    revoke,
    sites,
    start,
    status,
    doctor,
    dashboard,
    metrics,
    new,
    run,
    stop,
    resume,
    watch,
    report,
    export,
    backup,
    restore,
    purge,
):
    app.command(context_settings=TAKES_NO_RUN if _command is status else None)(_command)


if __name__ == "__main__":
    app()
