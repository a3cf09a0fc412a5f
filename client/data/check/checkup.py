"""`data check`: every study of a site, read once and judged. It says what is usable, what is not and why.

Without a run the labels are taken as found, each name or value a class of its own; with one, everything is as that run
would see it. Raw ids and paths stay in `Outcome.path`, which is left out of its `repr` and of every report.
"""

import os
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from client.data.deidentify.pseudonym import pseudonym
from client.data.isolate.isolation import Job, Readers
from client.data.keep.catalogue import Catalogue
from client.data.keep.forgotten import Forgotten
from client.data.keep.index import Index
from client.data.keep.split import KeptSplits, Split
from client.data.prepare import Geometry
from client.data.prepare.preprocess import refusal
from client.data.quality.quality import Checked, Facts, without_duplicates
from client.data.study.labels import BACKGROUND, Vocabulary
from client.data.study.study import Found, Reference
from client.home.folder import CACHE_NAME, CHECK_NAME, FORGOTTEN_NAME, INDEX_NAME, SPLITS_NAME
from common.config import RunConfig, SiteConfig, SourceConfig
from common.config.rundocument import RunDocument
from common.errors import DataError, ErrorCode

EMPTY_FOLDER = "empty folder"


@dataclass(frozen=True)
class Outcome:
    """One study, and what became of it: usable with facts and thumbnail, or set aside for a problem.

    number: from 1, in the order of sources, patients and keys; the logs of training number likewise. name, patient:
    pseudonyms; the patient is None where it is not known. path: file or folder, relative to the source; it may name the
    patient.
    """

    number: int
    source: int
    name: str
    patient: str | None
    path: str = field(repr=False)
    problem: DataError | None = None
    checked: Checked | None = field(default=None, repr=False)
    split: Split | None = None

    @property
    def facts(self) -> Facts | None:
        """Of a usable study."""
        return None if self.checked is None else self.checked.facts


@dataclass(frozen=True)
class Looked:
    """One source as a whole. left_out: files and folders that are part of no study, counted by reason; assumed: see
    `Found`.
    """

    number: int
    kinds: tuple[str, ...]
    left_out: Mapping[str, int]
    assumed: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Checkup:
    """All that a check found out.

    remembered: studies that were taken from an earlier check. own_words: class names that site.toml or the run give,
    and that may be shown; others are free text from the files.
    """

    site: str
    document: RunDocument | None
    sources: tuple[Looked, ...]
    studies: tuple[Outcome, ...]
    remembered: int
    own_words: frozenset[str]

    @property
    def run(self) -> RunConfig | None:
        """Settings of the run that was asked for."""
        return None if self.document is None else self.document.config

    @property
    def usable(self) -> tuple[Outcome, ...]:
        """The studies that passed."""
        return tuple(study for study in self.studies if study.problem is None)

    @property
    def quarantined(self) -> tuple[Outcome, ...]:
        """The studies that were set aside."""
        return tuple(study for study in self.studies if study.problem is not None)

    @property
    def left_out(self) -> Counter[str]:
        """Files and folders that are part of no study, counted by reason, over all sources."""
        return sum((Counter(source.left_out) for source in self.sources), Counter())


def check_site(
    home: Path,
    site: SiteConfig,
    site_key: bytes,
    document: RunDocument | None,
    *,
    labels: bool = True,
    readers: int,
    progress: Callable[[int, int], None] | None = None,
) -> Checkup:
    """Look at every study of a site; what earlier checks found out, and nothing has changed since, is taken from them.

    Args:
        home: folder of the site; relative paths in `site` start from there.
        site: its sources.
        site_key: secret key of the pseudonyms and of what is kept.
        document: of the run whose classes, modality and splits count; None: labels as found, no splits.
        labels: False: look at the images alone.
        readers: processes that parse; see `Readers`.
        progress: called with (studies done, studies in all).

    Raises:
        ConfigError: a source is described wrongly.
    """
    run = None if document is None else document.config
    headers = Index(home / CACHE_NAME / INDEX_NAME, site_key)  # shared with training
    catalogue = Catalogue(home / CHECK_NAME / "catalogue", site_key)
    with Readers(readers) as parsers:
        left_out = Forgotten(home / FORGOTTEN_NAME, site_key)
        found = [left_out.without(parsers.find(source, root=home, memory=headers)) for source in site.data]
        headers.save()
        numbers = [number for number, one in enumerate(found) for _ in one.references]
        references = [reference for one in found for reference in one.references]
        jobs = [
            _job(reference, site.data[number], run, labels=labels)
            for reference, number in zip(references, numbers, strict=True)
        ]
        results, remembered = _results(jobs, parsers, catalogue, progress)
    results = without_duplicates([_fit(result, run) for result in results], lambda one: one.facts.digest)
    splits: Mapping[str, Split] = {}
    if run is not None:
        splits = KeptSplits(home / SPLITS_NAME, site_key).split(run, _patients(jobs, numbers, results), keep=False)
    folders = [home / Path(source.path).expanduser() for source in site.data]
    outcomes = tuple(
        _outcome(place, number + 1, reference, result, folder=folders[number], site_key=site_key, splits=splits)
        for place, (number, reference, result) in enumerate(zip(numbers, references, results, strict=True), start=1)
    )
    looked = tuple(_looked(number, *pair) for number, pair in enumerate(zip(found, folders, strict=True), start=1))
    own_words = {BACKGROUND, *(name for source in site.data for name in source.label_map.values())}
    own_words |= set() if run is None else set(run.data.classes)
    return Checkup(site.name, document, looked, outcomes, remembered, frozenset(own_words))


def _job(reference: Reference, source: SourceConfig, run: RunConfig | None, *, labels: bool) -> Job:
    wanted: Vocabulary | None = None
    if not labels:
        reference = replace(reference, labels=(), problem=_of_image(reference.problem))
    elif run is None:
        wanted = Vocabulary.as_found(reference.label_map)
    else:
        wanted = Vocabulary.of_run(run.data, reference.label_map)
    return Job(reference, wanted, source.empty_labels_are_negative)


def _of_image(problem: DataError | None) -> DataError | None:
    return None if problem is not None and problem.code is ErrorCode.NO_LABEL else problem


def _results(
    jobs: Sequence[Job], readers: Readers, catalogue: Catalogue, progress: Callable[[int, int], None] | None
) -> tuple[list[Checked | DataError], int]:
    """The result of each job, and how many were known from before."""
    catalogue.keep_only(jobs)
    results: dict[int, Checked | DataError] = {
        index: job.reference.problem for index, job in enumerate(jobs) if job.reference.problem is not None
    }
    places = [catalogue.place(job) for job in jobs]
    for index, place in enumerate(places):
        if place is not None and (known := catalogue.read(place)) is not None:
            results[index] = known
    remembered = sum(index in results for index, place in enumerate(places) if place is not None)
    new = [index for index in range(len(jobs)) if index not in results]
    if progress is not None and jobs:
        progress(len(results), len(jobs))
    for index, result in zip(new, readers.check([jobs[index] for index in new]), strict=True):
        results[index] = result
        if (place := places[index]) is not None:
            catalogue.write(place, result)
        if progress is not None:
            progress(len(results), len(jobs))
    return [results[index] for index in range(len(jobs))], remembered


def _fit(result: Checked | DataError, run: RunConfig | None) -> Checked | DataError:
    """What preparing would refuse, told from the facts."""
    if run is None or isinstance(result, DataError):
        return result
    facts = result.facts
    return refusal(Geometry(facts.shape, facts.channels, facts.spacing_mm), run) or result


def _patients(
    jobs: Sequence[Job], numbers: Sequence[int], results: Sequence[Checked | DataError]
) -> Iterable[list[str]]:
    """Raw ids of the patients with a usable study, by source."""
    groups: dict[int, list[str]] = {}
    for job, number, result in zip(jobs, numbers, results, strict=True):
        if isinstance(result, Checked):
            groups.setdefault(number, []).append(job.reference.patient)
    return groups.values()


def _outcome(
    number: int,
    source: int,
    reference: Reference,
    result: Checked | DataError,
    *,
    folder: Path,
    site_key: bytes,
    splits: Mapping[str, Split],
) -> Outcome:
    name, path = pseudonym(site_key, reference.key), _path(reference, folder)
    patient = pseudonym(site_key, reference.patient) if reference.patient else None
    if isinstance(result, DataError):
        return Outcome(number, source, name, patient, path, problem=result)
    return Outcome(number, source, name, patient, path, checked=result, split=splits.get(reference.patient))


def _path(reference: Reference, folder: Path) -> str:
    # A CSV may name files outside of its folder.
    return os.path.relpath(os.path.commonpath(reference.images), folder)


def _looked(number: int, found: Found, folder: Path) -> Looked:
    empty = _empty_folders(folder)
    left_out = dict(found.left_out) | ({EMPTY_FOLDER: empty} if empty else {})
    return Looked(number, tuple(sorted({reference.kind for reference in found.references})), left_out, found.assumed)


def _empty_folders(folder: Path) -> int:
    """Folders without a file, hidden ones aside; one that holds nothing but empty folders counts once."""
    empty: set[Path] = set()
    count = 0
    for name, folders, files in os.walk(folder, topdown=False):
        path = Path(name)
        seen = [entry for entry in (*folders, *files) if not entry.startswith(".")]
        within = sum(path / entry in empty for entry in seen)
        if within == len(seen):
            empty.add(path)
        else:
            count += within
    return count + (folder in empty)


__all__ = ["CHECK_NAME", "Checkup", "Looked", "Outcome", "check_site"]
