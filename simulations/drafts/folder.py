"""A folder, looked at as a site would: every study read once, by the survey that `data check` and training read.

What cannot be used is an error that counts and names it: who drafts a scenario wants to know before the first round,
and is at home with the names. How folders are laid out is known to client/data/read alone.
"""

import os
import re
import secrets
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from client.data.isolate.isolation import Readers
from client.data.quality.quality import Facts
from client.data.read import dataset_json, dicom_header, images, layouts, nifti
from client.data.read.pairs import has_suffix
from client.data.read.sources import folder_of
from client.data.study.listing import files_under
from client.data.study.study import Reference
from client.data.survey import Surveyed, survey
from common.config import SiteConfig, SourceConfig
from common.errors import ConfigError, DataError, ErrorCode
from common.text import counted
from simulations.drafts.tables import with_table

_MOST_NAMED = 5
_LAYOUTS = (
    "Expected DICOM series with DICOM SEG or RTSTRUCT; NIfTI or pictures with labels in images/ and labels/, in "
    "imagesTr/ and labelsTr/, beside them (NAME_seg, NAME_mask), or in BIDS derivatives; or a CSV that names them "
    "(--csv). Folders of other names are told by --images and --labels. docs/folders.md has each."
)
# Settings of a source that are options of the command as well.
_OPTIONS = (
    *("kind", "csv", "image-column", "mask-column", "patient-column", "class-column", "class-attribute", "where"),
    *("images", "labels", "patient-pattern", "image-pattern", "label-pattern", "label-map", "labels-checked"),
    *("pixel-text-checked", "channel"),
)
_SETTING = re.compile(rf"(?<![\w-])({'|'.join(_OPTIONS)}) in site\.toml")


@dataclass(frozen=True)
class Study:
    """One that can be used. name: its image, relative to the folder; it may name the patient."""

    patient: str = field(repr=False)
    key: str = field(repr=False)
    name: str = field(repr=False)
    facts: Facts


@dataclass(frozen=True)
class Look:
    """What lies in a folder.

    source: how it is read, its kind included. aside: studies left out, counted by what is wrong. left_out: files that
    are part of no study, by reason; assumed: what was taken for granted, see `Found`; told: what dataset.json says.
    """

    source: SourceConfig
    studies: tuple[Study, ...]
    aside: Mapping[str, int]
    left_out: Mapping[str, int]
    assumed: Mapping[str, int]
    told: dataset_json.Names
    by_table: tuple[str, ...] = ()
    site_column: str | None = None


def look(
    source: SourceConfig,
    *,
    leave_out: bool = False,
    progress: Callable[[int, int], None] = lambda _done, _total: None,
) -> Look:
    """Read every study of a folder.

    Args:
        source: the folder, by its absolute path, with what a person said of it.
        leave_out: go on without studies that cannot be used.
        progress: called with (studies done, studies in all).

    Raises:
        ConfigError: no such folder, one of several kinds of images, or a table that does not say what is what.
        DataError: no study, no label, or some that cannot be used; they are counted and named.
    """
    root = Path(source.path)
    folder = folder_of(source, root)
    table = with_table(source, folder)
    source = table.source
    if source.kind is None and source.csv is None:
        _check_one_kind(folder)
    try:
        found = survey(
            SiteConfig(format=SiteConfig.LATEST, name="draft", data=(source,)),
            None,
            Readers.check,
            digest=lambda checked: checked.facts.digest,
            label_digest=lambda checked: checked.facts.label_digest,
            kept=None,
            root=root,
            site_key=secrets.token_bytes(32),
            index=None,
            forgotten=None,
            readers=os.cpu_count() or 1,
            progress=progress,
        )
    except ConfigError as error:
        raise ConfigError(_by_options(str(error))) from error
    (of_source,) = found.sources
    _check_found([study.reference for study in found.studies], of_source.left_out, folder, source)
    refused = [(study, study.result) for study in found.studies if isinstance(study.result, DataError)]
    if refused and not (leave_out and found.usable):
        raise DataError(_refused(refused, len(found.studies), folder), ErrorCode.NO_DATA)
    (kind,) = {"images" if source.csv is not None else study.reference.kind for study in found.studies}
    return Look(
        source.model_copy(update={"kind": kind}),
        tuple(
            Study(study.reference.patient, study.reference.key, _name(study.reference, folder), checked.facts)
            for study, checked in found.usable
        ),
        Counter(f"{problem.code}: {problem}" for _, problem in refused),
        dict(of_source.left_out),
        dict(of_source.assumed),
        dataset_json.names_in(folder),
        table.guessed,
        table.site_column,
    )


def _check_one_kind(folder: Path) -> None:
    """Refuse images of several kinds: which are meant, and which are others' previews, the folder does not say."""
    kinds: Counter[str] = Counter()
    for path in files_under(folder):
        stem = layouts.stem_of(path, folder, (*nifti.SUFFIXES, *images.SUFFIXES, *images.MASK_SUFFIXES))
        if stem is not None and layouts.is_label_name(stem):
            continue
        if has_suffix(path, nifti.SUFFIXES):
            kinds["nifti"] += 1
        elif has_suffix(path, images.SUFFIXES):
            kinds["images"] += 1
        elif dicom_header.is_dicom(path):
            kinds["dicom"] += 1
    if len(kinds) > 1:
        files = {"dicom": "DICOM file", "images": "picture", "nifti": "NIfTI volume"}
        there = " and ".join(counted(count, files[kind]) for kind, count in sorted(kinds.items()))
        ways = " or ".join(f"--kind {kind}" for kind in sorted(kinds))
        raise ConfigError(
            f"the folder holds {there}, and a scenario is of one kind of image. Say which are meant, and the others "
            f"are left out: {ways}; or give the folder of one kind alone."
        )


def _check_found(
    references: Sequence[Reference], left_out: Mapping[str, int], folder: Path, source: SourceConfig
) -> None:
    beside = ", ".join(f"{count} {reason}" for reason, count in sorted(left_out.items()))
    if not references and source.where:
        asked = " and ".join(f"{column}={value}" for column, value in source.where.items())
        raise DataError(f"no row of {source.csv} has {asked}. Correct --where.", ErrorCode.NO_DATA)
    if not references:
        raise DataError(f"no image was found in {folder} ({beside or 'it is empty'}). {_LAYOUTS}", ErrorCode.NO_DATA)
    if not any(reference.is_labelled for reference in references):
        raise DataError(
            f"no label was found: {counted(len(references), 'image')} in {folder}, and none has one"
            f"{f' (beside them {beside})' if beside else ''}. {_LAYOUTS}",
            ErrorCode.NO_LABEL,
        )


def _refused(refused: Sequence[tuple[Surveyed[Any], DataError]], studies: int, folder: Path) -> str:
    """What cannot be used: how many, which, why, and what to do."""
    by_reason: dict[str, list[str]] = {}
    for study, problem in refused:
        by_reason.setdefault(f"({problem.code}) {problem}", []).append(_name(study.reference, folder))
    said = [f"{_some(names)}: {reason}" for reason, names in by_reason.items()]
    return (
        f"{len(refused)} of {counted(studies, 'study', 'studies')} cannot be used. {_by_options(' '.join(said))} Mend "
        "these studies, take them out, or go on without them: --leave-out."
    )


def _by_options(message: str) -> str:
    """A message on site.toml in this command's own words; what is no setting there stays, and is explained."""
    said = _SETTING.sub(r"--\1", message)
    if "site.toml" in said:
        said += " What is said of site.toml goes for the options of this command, which have the same names."
    return said


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - _MOST_NAMED} more" if len(names) > _MOST_NAMED else ""
    return f"{', '.join(names[:_MOST_NAMED])}{more}"


def _name(reference: Reference, folder: Path) -> str:
    """Of one image its file, of several their folder; a table may name files outside of the folder."""
    return os.path.relpath(os.path.commonpath(reference.images), folder)


__all__ = ["Look", "Study", "look"]
