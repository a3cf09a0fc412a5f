"""DICOM series: from a tree of files to references, by their headers alone.

Files that are no image and no label (reports, plans, PDFs, the DICOMDIR of a disc) are ignored and counted. What joins
files is stated, never empty: slices whose Series Instance UID is empty are one series only where folder, patient, study
and frame of reference are the same, and that this was assumed is told. A second file with the SOP Instance UID of
another is a copy only where its content is the same; else nobody knows which is meant, and its series is refused.

A label is drawn on the series that it names. One that names nothing that is here (writers leave it out, anonymisers
change it) is drawn on the only series in its frame of reference. Its patient binds it in any case.

A file that cannot be opened may be a slice, or a label, of any series in its folder: they are refused, for a volume
without its last slice looks whole. One whose header is broken refuses the series where its folder holds no other.
Source: DICOM PS3.3 C.7.3 (series), C.12.1 (SOP common), C.7.6.16 (multi-frame).
"""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeAlias

from client.data.read.dicom_header import LABELS, REPORTS, SINGLES, SLICES, Entry, look_at_all, same_content
from client.data.read.pairs import patient_of
from client.data.study.listing import LINK_TO_NOTHING, list_folder
from client.data.study.study import (
    AMBIGUOUS_LABEL,
    DISC_CONTENTS,
    LONELY_LABEL,
    NO_IMAGE,
    NO_IMAGE_INSIDE,
    OTHER_PATIENTS_LABEL,
    SECOND_COPY,
    Found,
    Reference,
    parsing,
)
from common.config import SourceConfig
from common.errors import DataError, ErrorCode

_DISC_CONTENTS = "1.2.840.10008.1.3.10"  # Media Storage Directory, the class of a DICOMDIR

# What was assumed where a de-identifier emptied a name.
FROM_META = "DICOM files whose SOP Class or Instance UID is empty: taken from their file meta information"
BY_FOLDER = "slices whose Series Instance UID (0020,000E) is empty: those of a folder, patient and study are one series"

# Headers of files, in order: what `look` says of each.
Looker: TypeAlias = Callable[[Sequence[Path]], Iterable[Entry | DataError | None]]


@dataclass(eq=False)
class _Group:
    """The files of one series, or of one image that is a study of its own. key: what they have in common."""

    key: str
    entries: list[Entry] = field(default_factory=list)
    labels: list[Entry] = field(default_factory=list)
    reports: list[Entry] = field(default_factory=list)
    patients: set[str] = field(default_factory=set)  # as patient-pattern finds them
    problem: DataError | None = None
    beside: list[Path] = field(default_factory=list)  # files that cannot be seen and may belong to it

    @property
    def patient(self) -> str:
        """As the headers say, all alike."""
        return self.entries[0].patient


def find(source: SourceConfig, folder: Path, looker: Looker = look_at_all) -> Found:
    """The series of a source and the segmentations and structure sets that refer to them; reads headers only.

    The patient is the Patient ID, or what patient-pattern finds in the paths of the series' files.
    """
    listing = list_folder(folder)
    return find_among(listing.files, folder, source, looker, lost=listing.lost)


def find_among(
    files: Sequence[Path],
    folder: Path,
    source: SourceConfig | None,
    looker: Looker = look_at_all,
    *,
    lost: Sequence[tuple[str, Path]] = (),
) -> Found:
    """See `find`; without a source (for prediction) labels and patients are left out.

    Args:
        files: to look at.
        folder: they lie in it or below.
        source: whose patients and labels count.
        looker: reads the headers.
        lost: reason and path of names beside the files that are no files; see `client.data.study.listing`.
    """
    entries, broken, left_out = _scan(files, folder, looker)
    entries, repeated = _without_copies(entries, left_out)
    pattern = None if source is None else source.patient_pattern
    groups: dict[tuple[str, ...], _Group] = {}
    labels: list[Entry] = []
    reports: list[Entry] = []
    for entry in entries:
        if entry.sop_class in LABELS:
            labels += [] if source is None else [entry]
        elif entry.sop_class in REPORTS and source is not None and source.class_reports:
            reports.append(entry)
        elif entry.sop_class in SLICES | SINGLES:
            names = _names(entry, folder)
            group = groups.setdefault((entry.patient, *names), _Group(" ".join(names)))
            group.entries.append(entry)
            if pattern is not None:
                group.patients.add(_patient_by_path(entry, folder, pattern))
        else:
            left_out[DISC_CONTENTS if entry.sop_class == _DISC_CONTENTS else NO_IMAGE_INSIDE] += 1
    studies = list(groups.values())
    left_out += _draw(labels, studies, folder, pattern)
    left_out += _hand_out(reports, studies, folder, pattern)
    _mark_repeated(studies, repeated)
    unseen = [(one.images[0], one.problem) for one in broken if one.problem is not None]
    unseen += [(path, _nothing_there()) for reason, path in lost if reason == LINK_TO_NOTHING]
    _mark_incomplete(studies, unseen)
    _make_keys_unique(studies)
    references = [_reference(group, folder, source) for group in studies]
    return Found((*references, *broken), +left_out, _assumed(studies))


def _scan(files: Sequence[Path], folder: Path, looker: Looker) -> tuple[list[Entry], list[Reference], Counter[str]]:
    entries, broken, left_out = [], [], Counter[str]()
    for path, seen in zip(files, looker(files), strict=True):
        if seen is None:
            left_out[NO_IMAGE] += 1
        elif isinstance(seen, DataError):
            broken.append(Reference("dicom", "", path.relative_to(folder).as_posix(), (path,), problem=seen))
        else:
            entries.append(seen)
    return entries, broken, left_out


def _without_copies(entries: Sequence[Entry], left_out: Counter[str]) -> tuple[list[Entry], set[Path]]:
    """The entries without copies of others, and the files that say they are the same instance and are not."""
    instances: dict[tuple[str, str], list[Entry]] = {}
    kept, repeated = [], set[Path]()
    for entry in entries:
        before = instances.setdefault((entry.patient, entry.instance), []) if entry.instance else []
        if any(_is_copy(entry, other) for other in before):
            left_out[SECOND_COPY] += 1
            continue
        if before:
            repeated |= {entry.path, *(other.path for other in before)}
        before.append(entry)
        kept.append(entry)
    return kept, repeated


def _is_copy(first: Entry, second: Entry) -> bool:
    try:
        with parsing("DICOM file"):
            return same_content(first.path, second.path)
    except DataError:
        return False  # then it is refused, and reading it says why


def _names(entry: Entry, folder: Path) -> tuple[str, ...]:
    """What an image shares with the others of its study. Where it does not say, that is at most a folder's files."""
    where = entry.path.relative_to(folder).parent.as_posix()
    if entry.sop_class in SINGLES:
        return (entry.instance or entry.path.relative_to(folder).as_posix(),)
    return (entry.series,) if entry.series else (where, entry.study, entry.frame_of_reference)


def _patient_by_path(entry: Entry, folder: Path, pattern: str) -> str:
    """What patient-pattern finds in the file's path; "" for nothing."""
    return patient_of(entry.path.relative_to(folder).as_posix(), pattern)[0]


def _draw(labels: Sequence[Entry], groups: Sequence[_Group], folder: Path, pattern: str | None) -> Counter[str]:
    """Give each label to the series that it was drawn on; those that have none are counted by reason."""
    left_out = Counter[str]()
    by_name: dict[str, list[_Group]] = {}
    by_place: dict[str, list[_Group]] = {}
    for group in groups:
        for name in {name for entry in group.entries for name in (entry.instance, entry.series) if name}:
            by_name.setdefault(name, []).append(group)
        for frame in {entry.frame_of_reference for entry in group.entries if entry.frame_of_reference}:
            by_place.setdefault(frame, []).append(group)
    for label in labels:
        named = {id(group): group for name in label.references for group in by_name.get(name, [])}
        there = list(named.values()) or by_place.get(label.frame_of_reference, [])
        path_says = "" if pattern is None else _patient_by_path(label, folder, pattern)
        own = [group for group in there if _is_of(label, path_says, group)]
        # Without a name that is here, only one place may be meant, and only one patient's.
        if own and (named or (len(own) == 1 and (label.patient or path_says or len(there) == 1))):
            for group in own:
                group.labels.append(label)
        elif own:
            left_out[AMBIGUOUS_LABEL] += 1
        else:
            left_out[OTHER_PATIENTS_LABEL if there else LONELY_LABEL] += 1
    return left_out


def _hand_out(reports: Sequence[Entry], groups: Sequence[_Group], folder: Path, pattern: str | None) -> Counter[str]:
    """Give each structured report to all series that it was made from; those that have none are counted by reason."""
    left_out = Counter[str]()
    for report in reports:
        there = [
            group
            for group in groups
            if not report.references.isdisjoint(
                uid for entry in group.entries for uid in (entry.instance, entry.series)
            )
        ]
        path_says = "" if pattern is None else _patient_by_path(report, folder, pattern)
        own = [group for group in there if _is_of(report, path_says, group)]
        for group in own:
            group.reports.append(report)
        if not own:
            left_out[OTHER_PATIENTS_LABEL if there else LONELY_LABEL] += 1
    return left_out


def _is_of(label: Entry, path_says: str, group: _Group) -> bool:
    """Whether nothing says that label and series are of two patients: neither their headers nor their paths."""
    same_id = not label.patient or not group.patient or label.patient == group.patient
    return same_id and (not path_says or group.patients <= {path_says, ""})


def _mark_repeated(groups: Sequence[_Group], repeated: set[Path]) -> None:
    for group in groups:
        count = len({entry.path for entry in (*group.entries, *group.labels, *group.reports)} & repeated)
        if count:
            group.problem = DataError(
                f"{count} files of this study, or of its labels, say by their SOP Instance UID (0008,0018) that they "
                "are the same as another file, and their content differs: which is meant, nobody knows. Give each "
                "its own UID (export the study again), or take the wrong ones out.",
                ErrorCode.UID_REPEATED,
            )


def _nothing_there() -> DataError:
    return DataError(
        "this link stands for a file that is not on this machine. Get the file, or take the link out.",
        ErrorCode.NOT_OPENED,
    )


def _mark_incomplete(groups: Sequence[_Group], unseen: Sequence[tuple[Path, DataError]]) -> None:
    """Refuse the series that a file which cannot be seen may belong to."""
    folders: dict[Path, list[_Group]] = {}
    for group in groups:
        for parent in {entry.path.parent for entry in (*group.entries, *group.labels, *group.reports)}:
            folders.setdefault(parent, []).append(group)
    for path, problem in unseen:
        beside = folders.get(path.parent, [])
        if problem.code is not ErrorCode.NOT_OPENED and len(beside) > 1:
            continue
        for group in beside:
            if group.labels or group.reports or any(one.sop_class in SLICES for one in group.entries):
                group.beside.append(path)
                group.problem = group.problem or DataError(
                    f"a file beside those of this series may belong to it, so it may not be whole: {problem}",
                    problem.code,
                )


def _make_keys_unique(groups: Sequence[_Group]) -> None:
    """Where patients share a key, because an anonymiser gave all series one UID, it is said whose it is."""
    counts = Counter(group.key for group in groups)
    for group in groups:
        if counts[group.key] > 1:
            group.key = f"{group.key} {group.patient}"


def _assumed(groups: Sequence[_Group]) -> Mapping[str, int]:
    used = {entry.path: entry for group in groups for entry in (*group.entries, *group.labels)}.values()
    return +Counter(
        {
            FROM_META: sum(entry.from_meta for entry in used),
            BY_FOLDER: sum(not entry.series and entry.sop_class in SLICES for entry in used),
        }
    )


def _reference(group: _Group, folder: Path, source: SourceConfig | None) -> Reference:
    images = tuple(entry.path for entry in group.entries)
    problem = group.problem or next((entry.problem for entry in group.entries if entry.problem is not None), None)
    if source is None:
        return Reference("dicom", "", group.key, images, problem=problem, beside=tuple(group.beside))
    patient = group.patient
    if source.patient_pattern is not None:
        patient, unknown = patient_of(images[0].relative_to(folder).as_posix(), source.patient_pattern)
        problem = unknown or problem
        if len(group.patients) > 1:
            problem = DataError(
                f"the files of this series lie under {len(group.patients)} patients, as patient-pattern in site.toml "
                "reads their paths. Correct the pattern, or give each patient's series a UID of its own.",
                ErrorCode.UNSUPPORTED,
            )
    elif not patient:
        problem = DataError(
            "Patient ID (0010,0020) is empty, so the patient of the series is not known. Fill it in, or set "
            "patient-pattern in site.toml to find the patient in the path.",
            ErrorCode.UNSUPPORTED,
        )
    if problem is None and not source.pixel_text_checked:
        problem = next((entry.pixel_text for entry in group.entries if entry.pixel_text is not None), None)
    return Reference(
        "dicom",
        patient,
        group.key,
        images,
        tuple(label.path for label in group.labels),
        source.label_map,
        problem,
        fractional_threshold=source.fractional_threshold,
        beside=tuple(group.beside),
        reports=tuple(report.path for report in group.reports) if source.class_reports else None,
    )


__all__ = ["BY_FOLDER", "FROM_META", "Looker", "find", "find_among"]
