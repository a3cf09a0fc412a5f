"""wardround-client data: the images a hospital offers; what is usable, and copies without names."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from client.shell import HOME, Home, counted_progress, run_of, site_file
from client.site import open_site
from client.sitefile import add_source
from common.cli import JsonFlag, new_app, note, show_table
from common.config import RunConfig, SiteConfig, SourceConfig, load, validate
from common.errors import ConfigError, DataError

data_app = new_app("The images this hospital offers.")


@data_app.command("add")
def data_add(  # noqa: PLR0917 - one parameter an option
    path: Annotated[Path, typer.Argument(help="A folder of DICOM, NIfTI or pictures.")],
    home: Home = HOME,
    kind: Annotated[str | None, typer.Option(help="dicom, nifti, images or mias; default: by looking.")] = None,
    csv: Annotated[str | None, typer.Option(help="images: CSV with a row per image, relative to the folder.")] = None,
    image_column: str = "image",
    mask_column: str = "mask",
    patient_column: str = "id",
    where: Annotated[list[str] | None, typer.Option(help="CSV rows to use: COLUMN=VALUE; repeatable.")] = None,
    images: Annotated[str, typer.Option(help="Sub-folder of the images (NIfTI, pictures without CSV).")] = "images",
    labels: Annotated[str, typer.Option(help="Sub-folder of the labels.")] = "labels",
    patient_pattern: Annotated[
        str | None, typer.Option(help="Regular expression; its first group is the patient.")
    ] = None,
    label_map: Annotated[list[str] | None, typer.Option(help="LOCAL=CLASS, such as 1=lesion; repeatable.")] = None,
) -> None:
    """Offer a folder of images to runs. Nothing is copied or changed.

    Example: `wardround-client data add /data/ct --label-map 1=lesion`
    """
    from client.data import sources  # noqa: PLC0415 - image libraries

    values = {
        "path": str(path.expanduser().resolve()),
        "kind": kind,
        "csv": csv,
        "image_column": image_column,
        "mask_column": mask_column,
        "patient_column": patient_column,
        "where": _pairs(where, "--where"),
        "images": images,
        "labels": labels,
        "patient_pattern": patient_pattern,
        "label_map": _pairs(label_map, "--label-map"),
    }
    source = validate(SourceConfig, values, "data add")
    found = sources.find(source, home)
    if not found.references:
        raise DataError(
            f"no study was found in {path} ({found.ignored} other files). Expected DICOM series with DICOM SEG, "
            "NIfTI in images/ and labels/, or pictures with --csv or in images/ and labels/. Nothing was added."
        )
    site = add_source(site_file(home), source)
    patients = len({reference.patient for reference in found.references})
    typer.echo(f"Added: {len(found.references)} studies of {patients} patients. Sources: {len(site.data)}.")
    note("Next: wardround-client data check")


@data_app.command("list")
def data_list(home: Home = HOME, as_json: JsonFlag = False) -> None:
    """The sources in site.toml.

    Example: `wardround-client data list`
    """
    site = load(SiteConfig, site_file(home))
    rows = [
        (number, source.path, source.kind or "by looking", source.csv, ", ".join(source.label_map) or None)
        for number, source in enumerate(site.data, start=1)
    ]
    show_table("Data", ("source", "path", "kind", "csv", "labels mapped"), rows, as_json=as_json)


@data_app.command("check")
def data_check(
    home: Home = HOME,
    run: Annotated[str | None, typer.Option(help="A run.toml, or the name or hash of a proposed run.")] = None,
    as_json: JsonFlag = False,
) -> None:
    """What is usable. With --run every study is read as that run would; without, only headers are looked at.

    Example: `wardround-client data check --run run.toml`
    """
    site = open_site(home)
    if not site.config.data:
        raise ConfigError("this site has no data yet. Add a folder with 'wardround-client data add PATH'.")
    if run is None:
        _check_headers(home, site.config, as_json=as_json)
    else:
        _check_studies(home, run_of(home, run), as_json=as_json)


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
    as_json: JsonFlag = False,
) -> None:
    """Write pseudonymised copies of DICOM files by PS3.15's Basic Profile. Faces in head scans are not removed.

    Example: `wardround-client data export ct/ --out shared --profile retain-long-modified-dates`
    """
    from client.data import deidentify  # noqa: PLC0415 - image libraries

    options = deidentify.options_of(profile or (), safe_private or ())
    with counted_progress("files") as advance:
        done = deidentify.export(
            study,
            out,
            open_site(home).key,
            options,
            allow_burned_in=allow_burned_in,
            allow_captures=allow_captures,
            progress=advance,
        )
    rows = [("written", done.files), ("patients", done.patients), ("ignored: not DICOM", done.ignored)]
    rows += [(f"skipped: {code}", count) for code, count in sorted(done.skipped.items())]
    show_table("Export", ("what", "count"), rows, as_json=as_json)
    if not done.files:
        raise DataError("no file was written. Expected readable DICOM images; see what was skipped above.")
    note("Pseudonymised, not anonymised: this site's key links the copies to the patients.")


def _pairs(entries: Sequence[str] | None, option: str) -> dict[str, str]:
    pairs = [entry.partition("=") for entry in entries or ()]
    if bad := [key for key, equals, value in pairs if not (key and equals and value)]:
        raise ConfigError(f"{option} {bad[0]!r} is not of the form KEY=VALUE. Write for example {option} 1=lesion.")
    return {key.strip(): value.strip() for key, _, value in pairs}


def _check_headers(home: Path, site: SiteConfig, *, as_json: bool) -> None:
    from client.data import sources  # noqa: PLC0415 - image libraries

    rows = []
    for number, source in enumerate(site.data, start=1):
        found = sources.find(source, home)
        problems = Counter(str(one.problem.code) for one in found.references if one.problem is not None)
        patients = len({one.patient for one in found.references if one.problem is None})
        kinds = ", ".join(sorted({one.kind for one in found.references})) or None
        usable = len(found.references) - sum(problems.values())
        rows.append((number, kinds, patients, usable, _counts(problems), found.ignored))
    show_table("Data", ("source", "kind", "patients", "studies", "problems", "files ignored"), rows, as_json=as_json)
    if not any(row[3] for row in rows):
        raise DataError("no usable study was found. See the problems above.")


def _check_studies(home: Path, run: RunConfig, *, as_json: bool) -> None:
    from client.data.cohort import load_cohort  # noqa: PLC0415 - torch

    site = open_site(home)
    with counted_progress("studies") as advance:
        cohort = load_cohort(site.config, run, root=home, site_key=site.key, progress=advance)
    rows: list[tuple[str, int | None, int]] = [
        (split, len(cohort.patients(split)), sum(case.split == split for case in cohort.cases))
        for split in ("train", "validation", "test")
    ]
    quarantined = Counter(str(study.code) for study in cohort.quarantined)
    rows += [(f"quarantined: {code}", None, count) for code, count in sorted(quarantined.items())]
    show_table(f"Data for {run.name}", ("part", "patients", "studies"), rows, as_json=as_json)
    for study in cohort.quarantined:
        note(f"{study.code}: {study.reason}")


def _counts(counter: Counter[str]) -> str | None:
    return ", ".join(f"{code} {count}" for code, count in sorted(counter.items())) or None
