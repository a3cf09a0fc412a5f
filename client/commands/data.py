"""wardround-client data check, preview, export and forget: what is usable of the images offered; nameless copies."""

import itertools
import os
from collections.abc import Sequence
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Annotated

import typer

from client.commands.options.site import HOME, Home, counted_progress, run_of
from client.commands.pacs import data_pull
from client.commands.sources import data_add, data_list, data_remove
from client.commands.verdict import verdict_after
from client.home.folder import CHECK_NAME, SPLITS_NAME
from client.home.kept import personal_models
from client.site import open_site
from client.trail import audit_trail
from client.trail import certificate as certificates
from client.trail.usage import uses
from common.console.cli import Digest, JsonFlag, new_app, note, say, show_json, show_table
from common.errors import ConfigError, DataError, ErrorCode
from common.text import counted

data_app = new_app("The images this hospital offers.")


data_app.command("add")(data_add)
data_app.command("remove")(data_remove)
data_app.command("list")(data_list)
data_app.command("pull")(data_pull)


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
    The exit code is 0 only if a study is usable, and the run allowed.

    Example: `wardround-client data check --run run.toml`
    """
    from client.data.check.checkup import check_site  # noqa: PLC0415 - image libraries
    from client.data.check.report import write_reports  # noqa: PLC0415 - image libraries
    from client.data.check.tables import document, shown_names, tables  # noqa: PLC0415 - image libraries

    if without_labels and run is not None:
        raise ConfigError("a run needs labels: --without-labels does not go with --run.")
    site = open_site(home)
    if not site.config.data:
        raise ConfigError("this site has no data yet. Add a folder with `wardround-client data add PATH`.")
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
        hint = " Whether the images can be read: `wardround-client data check --without-labels`." if unlabelled else ""
        raise DataError(f"no study is usable. See the reasons above.{hint}", ErrorCode.NO_DATA)
    if verdict is not None:
        verdict.enforce()  # as `policy check` ends, and `approve`


@data_app.command("preview")
def data_preview(
    *,
    out: Annotated[Path, typer.Option("--out", help="A new or empty folder for pictures and numbers.")],
    home: Home = HOME,
    run: Annotated[str | None, typer.Option(help="A run.toml, or the name or hash of a proposed run.")] = None,
    studies: Annotated[int, typer.Option("--studies", min=1, max=200, help="How many, from the first.")] = 5,
    as_json: JsonFlag = False,
) -> None:
    """Show what a run's preparation makes of the first studies, before and after each step.

    Writes pictures, index.html and numbers.json. They show patients, and stay at the site.

    Example: `wardround-client data preview --run run.toml --out preview`
    """
    from client.data.check.preview import COLUMNS, numbers, preview_site, write_preview  # noqa: PLC0415 - torch

    site = open_site(home)
    if not site.config.data:
        raise ConfigError("this site has no data yet. Add a folder with `wardround-client data add PATH`.")
    _check_new(out, [home / Path(source.path).expanduser() for source in site.config.data])
    config = None if run is None else run_of(home, run).config
    with counted_progress("studies") as advance:
        shown = preview_site(site.home, site.config, site.key, config, studies=studies, progress=advance)
    page = write_preview(out, shown, config)
    show_table("Preparation", COLUMNS, list(numbers(shown)), as_json=as_json)
    for study in shown:
        if study.problem is not None:
            note(f"study {study.number} is set aside: {study.problem}")
    note(f"{counted(len(shown), 'study', 'studies')}. Pictures, to look at here and not to send: {page}")
    if all(study.problem is not None for study in shown):
        raise DataError("none of these studies can be prepared. See the reasons above.", ErrorCode.NO_DATA)


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
    *,
    home: Home = HOME,
    absent: Annotated[bool, typer.Option("--absent", help="Also when no study of the patient is there now.")] = False,
    certificate: Annotated[
        Path | None, typer.Option("--certificate", help="A new file for the patient, who is named in it.")
    ] = None,
    as_json: JsonFlag = False,
) -> None:
    """Leave a patient out from now on, remove what was kept of the images, and list the runs that may have used them.

    The certificate is kept under certificates/ by the patient's pseudonym, and stays at the site.

    Example: `wardround-client data forget 4711 --certificate 4711.txt`
    """
    from client.data.deidentify.pseudonym import pseudonym  # noqa: PLC0415 - an agent loads no reader of images
    from client.data.forget import forget  # noqa: PLC0415
    from client.data.keep.split import KeptSplits  # noqa: PLC0415

    if certificate is not None and certificate.exists():
        raise ConfigError(f"{certificate.name} is there already. Give the name of a new file with --certificate.")
    site = open_site(home)
    splits = KeptSplits(home / SPLITS_NAME, site.key)
    used = uses(home, lambda run: splits.place_of(run, patient))  # before the places are gone
    removed = forget(home, site.key, site.config.data, patient, absent=absent)
    if removed is None:
        raise DataError(
            "no study of that patient is found, and nothing was changed. Give the id as the images have it, or "
            "--absent to leave out what may come later.",
            ErrorCode.NO_DATA,
        )
    audit_trail.note(home, "data-forgotten")
    numbers = {
        "studies that are left out": removed.studies,
        "prepared copies": removed.copies,
        "places in splits": removed.places,
        "reports of data check": removed.looks,
    }
    name = site.config.name if audit_trail.has_joined(home) else None
    told = certificates.certificate(home, pseudonym(site.key, patient), numbers, used, site=name)
    path = certificates.keep(home, told)
    if certificate is not None:
        certificates.hand_over(certificate, patient, told)
    if as_json:
        show_json(told)
    else:
        say(
            f"Forgotten: {counted(removed.studies, 'study is', 'studies are')} left out from now on; "
            "what was kept of them is removed."
        )
        rows = [
            (one.name, Digest(one.run_hash), one.place, one.certain, one.private, len(one.rounds), _last(one.scored))
            for one in used
        ]
        columns = ("run", "hash", "place", "place kept", "private", "rounds", "last model seen")
        show_table("Runs that may have used the patient", columns, rows)
    note(f"Certificate, by the patient's pseudonym, to stay at this site: {path}")
    note(
        "The images themselves are untouched. So is what commands wrote elsewhere: exported copies and models, "
        "predictions, and the folders of evaluate, explain and data preview."
    )
    if own := personal_models(home):
        runs = ", ".join(held.run_hash[:8] for held in own)
        note(
            f"{counted(len(own), 'personal model is', 'personal models are')} kept here ({runs}), and may have been "
            "trained on the patient. `wardround-client personal remove RUN` takes one away."
        )
    note(
        "Models trained already cannot forget. Of a run with privacy, what its global model may tell of a patient is "
        "bounded by 'ledger'; of another run, and of a personal model, nothing bounds it."
    )


def _last(models: Sequence[str]) -> Digest | None:
    return Digest(models[-1]) if models else None


def _digest(folder: Path) -> str:
    """SHA-256 over all files of a folder: each one's own digest, in the order of their names."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return sha256(b"".join(sha256(path.read_bytes()).digest() for path in files)).hexdigest()


def _check_new(out: Path, sources: list[Path]) -> None:
    """Refuse a folder that holds something, or lies among the images, where pictures would be taken for studies."""
    if out.exists() and (not out.is_dir() or any(itertools.islice(out.iterdir(), 1))):
        raise ConfigError("--out is there and not empty. Give a new folder.")
    if any(out.resolve().is_relative_to(source.resolve()) for source in sources):
        raise ConfigError("the pictures would lie among the images. Choose an --out outside of the site's sources.")
