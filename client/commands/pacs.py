"""wardround-client pacs and data pull: the hospital's PACS by name, whether they answer, and studies from them."""

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from client.commands.options.site import HOME, FirstHome, Home, counted_progress, forgotten_of, site_file
from client.home.folder import SITE_NAME
from client.home.sitekey import check_outside
from client.home.templates import prepare_home
from client.pacs import pulling
from client.pacs.caller import Caller
from client.pacs.problems import PacsError
from client.pacs.pulling import Estimate, Hours, Pulled
from client.pacs.query import query_of
from client.pacs.settings import (
    PACS_NAME,
    DicomWeb,
    Dimse,
    Peer,
    add_peer,
    check_files,
    peer_of,
    read_peers,
    remove_peer,
)
from client.trail import audit_trail
from common.config import validate
from common.console.cli import JsonFlag, confirm, new_app, note, pairs, say, show_json, show_table
from common.errors import ConfigError, DataError
from common.text import counted

pacs_app = new_app("The PACS of this hospital, from which studies can be pulled.")

_STEPS = {"dimse": ("connection", "association", "C-ECHO", "C-FIND"), "dicomweb": ("connection", "QIDO-RS")}
_GB = 10**9


@pacs_app.command("add")
def pacs_add(  # noqa: PLR0917 - one parameter an option
    name: Annotated[str, typer.Argument(help="What to call it here: lower-case letters, digits, dashes.")],
    home: FirstHome = HOME,
    host: Annotated[
        str | None, typer.Option(help="DIMSE: its name or address. Without --ca names travel in the clear.")
    ] = None,
    port: Annotated[int | None, typer.Option(min=1, max=65535, help="DIMSE: its port, often 104 or 11112.")] = None,
    called: Annotated[str | None, typer.Option(help="DIMSE: its AE title.")] = None,
    calling: Annotated[
        str | None, typer.Option(help="DIMSE: our AE title, as it is registered there.  [default: WARDROUND]")
    ] = None,
    retrieve: Annotated[
        str | None,
        typer.Option(help="DIMSE: c-get, c-move or auto: C-MOVE where there is no C-GET.  [default: auto]"),
    ] = None,
    move_address: Annotated[
        str | None, typer.Option(help="C-MOVE: the address of this machine that the PACS sends to, in numbers.")
    ] = None,
    move_port: Annotated[
        int | None, typer.Option(min=1, max=65535, help="C-MOVE: the port that is opened there while a study comes.")
    ] = None,
    url: Annotated[
        str | None,
        typer.Option(help="DICOMweb: the address of its service. Without https:// names travel in the clear."),
    ] = None,
    token_file: Annotated[Path | None, typer.Option(help="DICOMweb: a file with a bearer token in it.")] = None,
    login_file: Annotated[Path | None, typer.Option(help="DICOMweb: a file with user:password in it.")] = None,
    ca: Annotated[
        Path | None, typer.Option(help="PEM file that the PACS's certificate is checked with; over DIMSE it means TLS.")
    ] = None,
    certificate: Annotated[Path | None, typer.Option(help="PEM file of ours, where the PACS asks for it.")] = None,
    key: Annotated[Path | None, typer.Option(help="PEM file with its key, without a passphrase.")] = None,
    timeout: Annotated[float | None, typer.Option(help="Seconds in which it must answer.  [default: 30]")] = None,
) -> None:
    """Write down how a PACS is reached, in pacs.toml. Nothing is sent yet.

    Example: `wardround-client pacs add main --host pacs.example --port 104 --called PACS --calling WARDROUND`
    """
    if (url is None) == (host is None):
        raise ConfigError("give --host, --port and --called for DIMSE, or --url for DICOMweb. Nothing was added.")
    files = {"ca": ca, "certificate": certificate, "key": key, "token": token_file, "login": login_file}
    given: dict[str, Any] = {"host": host, "port": port, "called": called, "calling": calling, "url": url}
    given |= {"retrieve": retrieve, "move_address": move_address, "move_port": move_port}
    given |= {what: None if path is None else str(path.expanduser().resolve()) for what, path in files.items()}
    values = {key: value for key, value in (given | {"timeout": timeout}).items() if value is not None}
    values["name"] = name
    peer: Peer = validate(Dimse, values, "pacs add") if url is None else validate(DicomWeb, values, "pacs add")
    check_files(peer)
    if not (home / SITE_NAME).exists():
        prepare_home(home)
        note(f"A new site's folder: {home}. Its name comes with the invitation (`wardround-client join`).")
    add_peer(home, peer)
    say(f"Added: {peer.name}, {peer.address}. Written in {home / PACS_NAME}.")
    if not peer.is_encrypted:
        note("What is sent is not encrypted: images with names, for who listens on that network.")
    note(f"Next: `wardround-client pacs test {peer.name}`")


@pacs_app.command("list")
def pacs_list(home: Home = HOME, as_json: JsonFlag = False) -> None:
    """The PACS in pacs.toml.

    Example: `wardround-client pacs list`
    """
    rows = [(peer.name, peer.protocol, peer.address, peer.is_encrypted) for peer in read_peers(home)]
    show_table("PACS", ("name", "protocol", "address", "encrypted"), rows, as_json=as_json)
    if not rows:
        note("None yet. Next: `wardround-client pacs add NAME --host HOST --port PORT --called TITLE --ca FILE`")


@pacs_app.command("remove")
def pacs_remove(name: Annotated[str, typer.Argument(help="As in `pacs list`.")], home: Home = HOME) -> None:
    """Take a PACS out of pacs.toml. What was pulled stays where it is.

    Example: `wardround-client pacs remove main`
    """
    site_file(home)
    remove_peer(home, name)
    say(f"Removed: {name}.")


@pacs_app.command("test")
def pacs_test(
    name: Annotated[str, typer.Argument(help="As in `pacs list`.")], home: Home = HOME, as_json: JsonFlag = False
) -> None:
    """Ask a PACS whether it answers us (C-ECHO, C-FIND and C-GET or C-MOVE, or QIDO-RS). No patient is asked for.

    Example: `wardround-client pacs test main`
    """
    peer = peer_of(home, name)
    rows: list[tuple[str, str, str]] = []

    def checked(header: Mapping[str, Any]) -> None:
        if header["kind"] == "checked":
            rows.append((str(header["what"]), "ok", str(header["detail"])))

    problem: PacsError | None = None
    with Caller(home, peer) as caller:
        try:
            caller.ask("check", checked)
        except PacsError as error:
            problem = error
            steps = _steps_of(peer)
            rows.append((steps[min(len(rows), len(steps) - 1)], "WRONG", str(error)))
    show_table(f"PACS {peer.name}", ("check", "result", "detail"), rows, as_json=as_json)
    if problem is not None:
        raise ConfigError(f"the PACS {peer.name} cannot be used so. See the detail of what is WRONG.")


def _steps_of(peer: Peer) -> tuple[str, ...]:
    """What is tried, in its order."""
    if isinstance(peer, DicomWeb):
        return _STEPS["dicomweb"]
    gets = ("C-GET",) if peer.retrieve != "c-move" else ()
    return (*_STEPS["dimse"], *gets, *(("C-MOVE",) if peer.moves else ()))


def data_pull(  # noqa: PLR0917 - one parameter an option
    name: Annotated[str, typer.Argument(help="As in `pacs list`.")],
    query: Annotated[
        list[str] | None,
        typer.Option(
            "--query",
            help="Which studies, KEY=VALUE: dates=2024-01-01..2024-06-30, modality=CT, description=LIVER, "
            "body-part=LIVER, accessions=FILE.csv; repeatable, and all must fit.",
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            help="The folder to pull into, outside of the site's; studies that are there are not asked for.",
        ),
    ] = None,
    home: Home = HOME,
    rate: Annotated[float | None, typer.Option(help="MiB a second at most.")] = None,
    hours: Annotated[str | None, typer.Option(help="When a study may be begun, local time, such as 19-06.")] = None,
    patience: Annotated[float, typer.Option(min=0, help="Minutes to try again while the PACS does not answer.")] = 60.0,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Ask and tell; pull nothing.")] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask again.")] = False,
    as_json: JsonFlag = False,
) -> None:
    """Pull studies with their labels from a PACS into a folder, after an estimate: each whole or not at all.

    Stopped at any time, the same command goes on where it was. The files are as the PACS has them, with names.

    Example: `wardround-client data pull main --query modality=CT --query dates=2024-01-01.. --out /data/pulled`
    """
    peer = peer_of(home, name)
    asked = query_of(pairs(query, "--query"))
    if out is None:
        raise ConfigError("say where the studies shall lie, such as --out /data/pulled. Nothing was asked for.")
    if rate is not None and rate <= 0:
        raise ConfigError(f"--rate is {rate:g}, must be above 0: MiB a second.")
    when = None if hours is None else Hours.read(hours)
    out = out.expanduser().resolve()
    check_outside(home, [out])
    note("Asking the PACS ...")
    with Caller(home, peer) as caller:
        wanted = pulling.estimate(caller, asked, out, forgotten_of(home))
    if not as_json:
        show_table("To pull", ("what", "how much"), _estimated(wanted, rate))
    pulled = Pulled()
    if wanted.studies and not dry_run:
        confirm(f"Pull {counted(len(wanted.studies), 'study', 'studies')} into {out}?", yes=yes)
        staging = pulling.staging_of(out)
        audit_trail.note(home, "data-pulled", audit_trail.count_fields(wanted.patients))
        with Caller(home, peer, staging) as caller, counted_progress("studies") as advance:
            pulled = pulling.pull(
                caller,
                wanted,
                out,
                rate=rate,
                hours=when,
                patience_s=60 * patience,
                advance=lambda done: advance(done, len(wanted.studies)),
                tell=note,
            )
    if as_json:
        show_json(_as_data(wanted, pulled, out))
    elif pulled.studies or pulled.failed:
        show_table("Pulled", ("what", "how much"), _came(pulled))
    _close(wanted, pulled, out, dry_run=dry_run)


def _close(wanted: Estimate, pulled: Pulled, out: Path, *, dry_run: bool) -> None:
    """What to do next.

    Raises:
        DataError: not all that was asked for is there.
    """
    if not wanted.studies and not wanted.here:
        raise DataError("the PACS has no such study for us. See what was left out, and widen the query.")
    if pulled.failed:
        raise DataError(
            f"{counted(pulled.failed.total(), 'study', 'studies')} did not come whole, and nothing of them is kept. "
            "The table says why. The same command asks for them again."
        )
    if not dry_run:
        note(f"The files lie in {out} as the PACS has them, with names. Nothing here removes them.")
        note(f"Next: `wardround-client data add {shlex.quote(str(out))} --kind dicom`")


def _estimated(wanted: Estimate, rate: float | None) -> list[tuple[str, object]]:
    images, labels = wanted.series
    size = None if wanted.size is None else f"{wanted.size / _GB:.2f} GB, from some studies"
    hours = None if rate is None or wanted.size is None else f"{wanted.size / rate / (1 << 20) / 3600:.1f}"
    rows: list[tuple[str, object]] = [
        ("studies", len(wanted.studies)),
        ("of patients", wanted.patients),
        ("with labels beside them", wanted.labelled),
        ("series of images", images),
        ("series of labels", labels),
        ("objects", "not told" if wanted.objects is None else wanted.objects),
        ("pixels, unpacked", size or "not told"),
        *([] if hours is None else [("hours at --rate", hours)]),
        ("studies that are here already", wanted.here),
    ]
    return [*rows, *((f"left out: {reason}", count) for reason, count in sorted(wanted.left_out.items()))]


def _came(pulled: Pulled) -> list[tuple[str, object]]:
    rows: list[tuple[str, object]] = [
        ("studies", pulled.studies),
        ("files", pulled.files),
        ("GB", pulled.size / _GB),
        ("objects that came twice", pulled.repeated),
    ]
    return [*rows, *((f"not whole: {reason}", count) for reason, count in sorted(pulled.failed.items()))]


def _as_data(wanted: Estimate, pulled: Pulled, out: Path) -> dict[str, object]:
    images, labels = wanted.series
    return {
        "folder": str(out),
        "found": {
            "studies": len(wanted.studies),
            "patients": wanted.patients,
            "labelled": wanted.labelled,
            "image-series": images,
            "label-series": labels,
            "objects": wanted.objects,
            "bytes": wanted.size,
            "here": wanted.here,
        },
        "left-out": dict(wanted.left_out),
        "pulled": {
            "studies": pulled.studies, "files": pulled.files, "bytes": pulled.size, "repeated": pulled.repeated,
        },
        "failed": dict(pulled.failed),
    }  # fmt: skip


__all__ = ["data_pull", "pacs_app"]
