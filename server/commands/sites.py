"""wardround-server invite, enrol, requests, approve, revoke and sites: the hospitals of a federation."""

import datetime
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, TypeAlias

import typer

from common.console.cli import JsonFlag, note, say, show_table
from common.errors import ConfigError
from common.system.files import write_atomically, write_private
from server.commands.options import AsOption, HomeOption, KeyOption, asked, root_passphrase
from server.coordinator import supervisor
from server.gateway import enrolment
from server.home.folder import Home
from server.home.seen import read_seen
from server.registry import operators
from server.registry.registry import Registry

SitesArgument: TypeAlias = Annotated[list[str], typer.Argument(metavar="SITE...", help="Names, such as st-mary.")]
SiteArgument: TypeAlias = Annotated[str, typer.Argument(help="The site's name, such as st-mary.")]


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
    write_invitations(*asked(home, "invite", by, key), sites, out)


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
    then = f"`wardround-server approve {site} --out FILE`"
    say(f"{site} asks to join. Compare the phrase (`wardround-server requests`), then {then}.")


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


def revoke(site: SiteArgument, home: HomeOption = None, by: AsOption = operators.FIRST, key: KeyOption = None) -> None:
    """Shut a site out, at once.

    Example: `wardround-server revoke st-mary`
    """
    opened, registry, signer = asked(home, "revoke", by, key)
    enrolment.revoke(opened, registry, site, signer)
    say(f"{site} is revoked. To let it back in, invite it again.")


def sites(
    home: HomeOption = None, json: JsonFlag = False, by: AsOption = operators.FIRST, key: KeyOption = None
) -> None:
    """All sites and how they are.

    Example: `wardround-server sites`
    """
    opened, registry, _ = asked(home, "sites", by, key)
    here, seen = supervisor.present(opened, registry), read_seen(opened.path)
    rows = [
        (site.name, site.state, site.name in (here or ()), seen.get(site.name), _moment(site.expires))
        for site in registry.sites()
    ]
    show_table("Sites", ("site", "state", "connected", "last seen", "certificate until"), rows, as_json=json)
    if here is None:
        note(f"Note: {supervisor.IDLE}.")


def write_invitations(
    home: Home, registry: Registry, signer: operators.Signer, sites: Sequence[str], out: Path | None = None
) -> None:
    """An invitation for each of these sites, in the home or in the folder `out`; says where they are."""
    for site in sites:
        invitation = enrolment.invite(home, registry, site, signer)
        path = home.invitation(site)
        if out is not None:
            path = out / path.name
            write_private(path, invitation.to_text().encode())
        say(path)
    note("There: `wardround-client join FILE`. Then here: `wardround-server requests`")


def _moment(text: str | None) -> datetime.datetime | None:
    return None if text is None else datetime.datetime.fromisoformat(text)


def _day(moment: str | None) -> str:
    return (moment or "")[:10]
