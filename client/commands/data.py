"""wardround-client data check, export and forget: what is usable of the images offered, and copies without names."""

import os
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Annotated

import typer

from client.commands.options import HOME, Home, counted_progress, run_of
from client.commands.sources import data_add, data_list, data_remove
from client.commands.verdict import verdict_after
from client.home.folder import CHECK_NAME
from client.site import open_site
from client.trail import audit_trail
from common.console.cli import JsonFlag, new_app, note, say, show_json, show_table
from common.errors import ConfigError, DataError, ErrorCode
from common.text import counted

data_app = new_app("The images this hospital offers.")


data_app.command("add")(data_add)
data_app.command("remove")(data_remove)
data_app.command("list")(data_list)


@data_app.command("check")
def data_check(  # noqa: PLR0917 - one parameter an option
    home: Home = HOME,
    run: Annotated[str | None, typer.Option(help="A run.toml, or the name or hash of a proposed run.")] = None,
    paths: Annotated[bool, typer.Option("--paths", help="Also print where studies lie; may name patients.")] = False,
    names: Annotated[
        bool, typer.Option("--names", help="Also print labels' own names, free text that may name patients.")
    ] = False,
    without_labels: Annotated[
        bool, typer.Option("--without-labels", help="Look at the images alone, such as before there are labels.")
    ] = False,
    as_json: JsonFlag = False,
) -> None:
    """Read every study and say what is usable; with --run, as that run would, and whether policy.toml allows it.

    Writes check/report.html, with pictures, into the site's folder. A later check reads only what is new or changed.

    Example: `wardround-client data check --run run.toml`
    """
    from client.data.check.checkup import check_site  # noqa: PLC0415 - image libraries
    from client.data.check.report import write_reports  # noqa: PLC0415 - image libraries
    from client.data.check.tables import document, shown_names, tables  # noqa: PLC0415 - image libraries

    if without_labels and run is not None:
        raise ConfigError("a run needs labels: --without-labels does not go with --run.")
    site = open_site(home)
    if not site.config.data:
        raise ConfigError("this site has no data yet. Add a folder with 'wardround-client data add PATH'.")
    note("Looking for studies ...")
    with counted_progress("studies") as advance:
        checkup = check_site(
            site.home,
            site.config,
            site.key,
            None if run is None else run_of(home, run),
            labels=not without_labels,
            readers=site.config.threads or os.cpu_count() or 1,
            progress=advance,
        )
    report = write_reports(site.home / CHECK_NAME, checkup)
    verdict = None if checkup.run is None else verdict_after(checkup, site)
    if as_json:
        show_json(document(checkup) | {"policy": None if verdict is None else verdict.as_data()})
    else:
        for table in tables(checkup, names=names, paths=paths):
            show_table(table.title, table.columns, table.rows)
        if checkup.quarantined and not paths:
            note("Where the studies that were set aside lie: --paths, which may name patients.")
        if not names and shown_names(checkup) != shown_names(checkup, all_of_them=True):
            note("What the labels call 'name 1' and so on: --names, free text that may name patients.")
        if verdict is not None:
            verdict.show()
    note(
        f"{counted(len(checkup.studies), 'study', 'studies')}, {checkup.remembered} of them "
        "known from an earlier check."
    )
    note(f"With pictures, to look at here and not to send: {report}")
    if without_labels:
        note("The labels were not looked at: what can be read is not yet what can be trained on.")
    if not checkup.usable:
        unlabelled = any(study.problem.code is ErrorCode.NO_LABEL for study in checkup.quarantined if study.problem)
        hint = " Whether the images can be read: wardround-client data check --without-labels." if unlabelled else ""
        raise DataError(f"no study is usable. See the reasons above.{hint}", ErrorCode.NO_DATA)


@data_app.command("export")
def data_export(  # noqa: PLR0917 - one parameter an option
    study: Annotated[Path, typer.Argument(help="A DICOM file, or a folder with DICOM files in it.")],
    out: Annotated[Path, typer.Option("--out", help="A new or empty folder for the copies.")],
    home: Home = HOME,
    profile: Annotated[
        list[str] | None, typer.Option(help="What may stay beyond the basic profile, such as retain-uids; repeatable.")
    ] = None,
    safe_private: Annotated[
        list[str] | None, typer.Option(help="Private attribute that may stay: GGGG,CREATOR,EE in hex; repeatable.")
    ] = None,
    allow_burned_in: Annotated[bool, typer.Option("--allow-burned-in", help="Images said to show text.")] = False,
    allow_captures: Annotated[bool, typer.Option("--allow-captures", help="Secondary captures, screenshots.")] = False,
    minimal: Annotated[
        bool, typer.Option("--minimal", help="Only what training needs; names of labels as in the label maps.")
    ] = False,
    as_json: JsonFlag = False,
) -> None:
    """Write pseudonymised copies of DICOM files by PS3.15's Basic Profile. Faces in head scans are not removed.

    Example: `wardround-client data export ct/ --out shared --profile retain-long-modified-dates`
    """
    from client.data.deidentify import deidentify  # noqa: PLC0415 - image libraries

    if minimal and (profile or safe_private):
        raise ConfigError("--minimal keeps a list of its own: --profile and --safe-private do not go with it.")
    options = deidentify.options_of(profile or (), safe_private or ())
    site = open_site(home)
    names = [name for source in site.config.data for name in source.label_map]
    with counted_progress("files") as advance:
        done = deidentify.export(
            study,
            out,
            partial(deidentify.minimal_copy, key=site.key, names=names)
            if minimal
            else partial(deidentify.basic_profile, key=site.key, options=options),
            site.key,
            allow_burned_in=allow_burned_in,
            allow_captures=allow_captures,
            progress=advance,
        )
    rows = [("written", done.files), ("patients", done.patients), ("ignored: not DICOM", done.ignored)]
    rows += [(f"skipped: {code}", count) for code, count in sorted(done.skipped.items())]
    rows += [(f"not seen: {reason}", count) for reason, count in sorted(done.unseen.items())]
    show_table("Export", ("what", "count"), rows, as_json=as_json)
    if not done.files:
        raise DataError("no file was written. Expected readable DICOM images; see what was skipped above.")
    audit_trail.note(home, "export", {"what": "images", "hash": _digest(out)})
    note("Pseudonymised, not anonymised: this site's key links the copies to the patients.")


@data_app.command("forget")
def data_forget(
    patient: Annotated[str, typer.Argument(help="The id, as the images or their table have it.")],
    home: Home = HOME,
    absent: Annotated[bool, typer.Option("--absent", help="Also when no study of the patient is there now.")] = False,
) -> None:
    """Leave a patient out from now on, and remove what was kept of the patient's images.

    Example: `wardround-client data forget 4711`
    """
    from client.data.forget import forget  # noqa: PLC0415 - image libraries

    site = open_site(home)
    studies = forget(home, site.key, site.config.data, patient, absent=absent)
    if not studies and not absent:
        raise DataError(
            "no study of that patient is found, and nothing was changed. Give the id as the images have it, or "
            "--absent to leave out what may come later.",
            ErrorCode.NO_DATA,
        )
    audit_trail.note(home, "data-forgotten")
    say(
        f"Forgotten: {counted(studies, 'study is', 'studies are')} left out from now on; "
        "what was kept of them is removed."
    )
    note("The images themselves are untouched. So are copies that were exported, and predictions.")
    note("Models trained already cannot forget; what they may tell of a patient is what 'ledger' bounds.")


def _digest(folder: Path) -> str:
    """SHA-256 over all files of a folder: each one's own digest, in the order of their names."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return sha256(b"".join(sha256(path.read_bytes()).digest() for path in files)).hexdigest()
