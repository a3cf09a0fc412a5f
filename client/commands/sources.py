"""wardround-client data add, remove and list: the folders that a hospital offers, as site.toml has them."""

import shlex
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from client.commands.options import folder_options
from client.commands.options.folder_options import source_of
from client.commands.options.site import HOME, FirstHome, Home, site_file
from client.home.folder import SITE_NAME
from client.home.sitefile import add_source, remove_source
from client.home.sitekey import check_outside
from client.home.templates import prepare_home
from client.trail import audit_trail
from common.config import SiteConfig, SourceConfig, load
from common.console.cli import JsonFlag, note, say, show_table
from common.errors import ConfigError, DataError
from common.text import counted

if TYPE_CHECKING:
    from client.data.study.study import Found

# What tells two sources of one folder apart.
_WAYS = ("csv", "where", "images", "labels", "image_pattern", "label_pattern", "channel", "patients")


def data_add(  # noqa: PLR0917 - one parameter an option
    path: Annotated[Path, typer.Argument(help="A folder of DICOM, NIfTI or pictures.")],
    home: FirstHome = HOME,
    kind: folder_options.Kind = None,
    csv: folder_options.Csv = None,
    image_column: folder_options.ImageColumn = "image",
    mask_column: folder_options.MaskColumn = "mask",
    patient_column: folder_options.PatientColumn = "id",
    class_column: folder_options.ClassColumn = None,
    region_column: folder_options.RegionColumn = None,
    class_attribute: folder_options.ClassAttribute = None,
    class_reports: folder_options.ClassReports = False,
    where: folder_options.Where = None,
    images: folder_options.Images = "images",
    labels: folder_options.Labels = "labels",
    patient_pattern: folder_options.PatientPattern = None,
    image_pattern: folder_options.ImagePattern = None,
    label_pattern: folder_options.LabelPattern = None,
    label_map: folder_options.LabelMap = None,
    fractional_threshold: folder_options.FractionalThreshold = 0.5,
    empty_labels_are_negative: folder_options.EmptyLabelsAreNegative = False,
    labels_checked: folder_options.LabelsChecked = False,
    pixel_text_checked: folder_options.PixelTextChecked = False,
    channel: folder_options.Channel = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Look and tell; add nothing.")] = False,
) -> None:
    """Offer a folder of images to runs. Nothing is copied or changed. How it was read stands in site.toml from then on.

    Example: `wardround-client data add /data/ct --label-map 1=lesion`
    """
    from client.data.isolate.isolation import Readers  # noqa: PLC0415 - image libraries

    check_data(home, [path])
    source = source_of(
        "data add",
        path.expanduser().resolve(),
        kind=kind,
        csv=csv,
        image_column=image_column,
        mask_column=mask_column,
        patient_column=patient_column,
        class_column=class_column,
        region_column=region_column,
        class_attribute=class_attribute,
        class_reports=class_reports,
        where=where,
        images=images,
        labels=labels,
        patient_pattern=patient_pattern,
        image_pattern=image_pattern,
        label_pattern=label_pattern,
        label_map=label_map,
        fractional_threshold=fractional_threshold,
        empty_labels_are_negative=empty_labels_are_negative,
        labels_checked=labels_checked,
        pixel_text_checked=pixel_text_checked,
        channel=channel,
    )
    if (home / SITE_NAME).exists():
        _check_new(load(SiteConfig, home / SITE_NAME), source, home)
    with Readers(1) as readers:
        found = readers.find(source, home)
    if not found.references:
        left_out = ", ".join(f"{count} {reason}" for reason, count in sorted(found.left_out.items()))
        raise DataError(
            f"no study was found in {path} ({left_out or 'it is empty'}). Expected DICOM series with DICOM SEG, or "
            "NIfTI or pictures with their labels beside them (NAME_seg), in images/ and labels/, or named by --csv."
            f"{_named_in_csv(path, csv)} Nothing was added."
        )
    readable = [reference for reference in found.references if reference.problem is None]
    patients = len({reference.patient for reference in readable})
    if dry_run:
        say(
            f"Found: {counted(len(readable), 'study', 'studies')} of {counted(patients, 'patient')}. Nothing was added."
        )
        _tell(found)
        _offer_names(source)
        if readable and not any(reference.is_labelled for reference in readable):
            note(f"None has a label.{_named_in_csv(path, csv)}")
        return
    if not (home / SITE_NAME).exists():
        prepare_home(home)
        note(f"A new site's folder: {home}. Its name comes with the invitation: `wardround-client join INVITATION`.")
    # As it was read now, so that a stray file that comes later does not change how the whole folder is read.
    (read_as,) = {"images" if source.csv is not None else reference.kind for reference in found.references}
    site = add_source(home / SITE_NAME, source.model_copy(update={"kind": read_as}))
    audit_trail.note(home, "data-added", audit_trail.count_fields(patients))
    say(
        f"Added: {counted(len(readable), 'study', 'studies')} of {counted(patients, 'patient')}. "
        f"Read as: {read_as}. Sources: {len(site.data)}."
    )
    _tell(found)
    _offer_names(source)
    if not readable or any(reference.is_labelled for reference in readable):
        note("Next: `wardround-client data check`")
    else:
        note(f"None has a label yet.{_named_in_csv(path, csv)}")
        note("Whether the images can be read: `wardround-client data check --without-labels`")


def check_data(home: Path, folders: Sequence[Path], *, needed: bool = False) -> None:
    """Look at folders that are to be added, before anything else is done.

    Args:
        home: the site's; it may not be there yet.
        folders: as they are typed.
        needed: whether the site is to have some data in the end.

    Raises:
        ConfigError: one is no folder, or holds the home; or the site has none and needs some.
    """
    for folder in folders:
        if not folder.expanduser().is_dir():
            raise ConfigError(
                f"{folder} is no folder that is there. Give the folder that holds the studies. Nothing was added."
            )
    check_outside(home, [folder.expanduser().resolve() for folder in folders])
    site = home / SITE_NAME
    if needed and not folders and not (site.exists() and load(SiteConfig, site).data):
        raise ConfigError("this site has no data yet to start with. Give --data FOLDER too, or leave --start out.")


def data_remove(
    source: Annotated[str, typer.Argument(help="Its number in `data list`, or its folder.")], home: Home = HOME
) -> None:
    """Offer a folder no more. Its files stay as they are; so do patients' places in train and test.

    Example: `wardround-client data remove 1`
    """
    site = load(SiteConfig, site_file(home))
    if source.isdecimal():
        number = int(source)
    else:
        wanted = Path(source).expanduser().resolve()
        same = [at for at, one in enumerate(site.data, start=1) if _folder(one, home) == wanted]
        if len(same) != 1:
            raise ConfigError(
                f"{len(same)} of the {len(site.data)} sources are that folder. Give the number: see "
                "`wardround-client data list`."
            )
        (number,) = same
    left = remove_source(home / SITE_NAME, number)
    audit_trail.note(home, "data-removed")
    say(f"Removed: source {number}. Sources: {len(left.data)}.")
    note("Cached copies of its images go when data are next read.")


def data_list(home: Home = HOME, as_json: JsonFlag = False) -> None:
    """The sources in site.toml.

    Example: `wardround-client data list`
    """
    site = load(SiteConfig, site_file(home))
    rows = [
        (number, source.path, source.kind or "by looking", source.csv, dict(source.label_map))
        for number, source in enumerate(site.data, start=1)
    ]
    show_table("Data", ("source", "path", "kind", "csv", "labels mapped"), rows, as_json=as_json)


def _tell(found: "Found") -> None:
    """What was set aside, ignored and assumed on looking at a folder."""
    problems = Counter(str(one.problem.code) for one in found.references if one.problem is not None)
    for what, counts in (("Set aside", problems), ("Ignored", found.left_out), ("Assumed", found.assumed)):
        if counts:
            say(f"{what}: {', '.join(f'{count} {reason}' for reason, count in sorted(counts.items()))}.")


def _offer_names(source: SourceConfig) -> None:
    """Tell what dataset.json calls the labels, as a label map to choose from."""
    from client.data.read.dataset_json import NAME, names_in  # noqa: PLC0415 - only here

    names = names_in(Path(source.path))
    if names.labels and not source.label_map:
        options = " ".join(f"--label-map {value}={name}" for value, name in names.labels.items())
        note(f"{NAME} has names for the labels. Where a run's classes are called so, they may be added: {options}")
    if names.regions:
        note(
            f"{NAME} has regions of several labels ({', '.join(names.regions)}): a label map joins labels to one "
            "class, such as --label-map 1=whole --label-map 2=whole; classes that overlap are not told apart."
        )


def _named_in_csv(folder: Path, given: str | None) -> str:
    """The end of a sentence, where the folder has a table that may say which label is whose and nobody has named it."""
    tables = sorted(path.name for path in folder.expanduser().glob("*.[cC][sS][vV]"))
    if given is not None or not tables:
        return ""
    return (
        f" {counted(len(tables), 'CSV table lies', 'CSV tables lie')} in the folder. If one says which mask belongs to "
        f"which image: --csv {shlex.quote(tables[0])} --image-column COLUMN --mask-column COLUMN --patient-column "
        "COLUMN."
    )


def _check_new(site: SiteConfig, source: SourceConfig, home: Path) -> None:
    """Refuse a folder that a source offers already: its patients would count twice.

    Raises:
        ConfigError: with the number of that source.
    """
    folder = _folder(source, home)
    for number, other in enumerate(site.data, start=1):
        known = _folder(other, home)
        if folder == known and all(getattr(source, way) == getattr(other, way) for way in _WAYS):
            raise ConfigError(
                f"this folder is source {number} already. Nothing was added. To have it read in another way: "
                f"`wardround-client data remove {number}`, then add it again."
            )
        if folder.is_relative_to(known) or known.is_relative_to(folder):
            note(f"This folder and that of source {number} share files: an image that is in both counts once.")


def _folder(source: SourceConfig, home: Path) -> Path:
    return (home / Path(source.path).expanduser()).resolve()


__all__ = ["check_data", "data_add", "data_list", "data_remove"]
