"""One look at all the studies of a site, of which training and `data check` each read the result.

Sources are searched, the forgotten left out, the studies numbered; what is remembered of a study is taken, and the rest
is read in child processes and remembered; the same image twice is set aside; patients are dealt to training, validation
and test. What is made of a study that was read is all that the two differ in: what the check says of a study for a run
is what training does with it. No torch here: a look at the data does without.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Generic, Protocol, TypeVar

from client.data.deidentify.pseudonym import pseudonym
from client.data.isolate.isolation import Job, Readers
from client.data.keep.entry import Entry
from client.data.keep.forgotten import Forgotten
from client.data.keep.index import Index
from client.data.keep.split import KeptSplits, Split
from client.data.quality.quality import without_duplicates
from client.data.study.labels import Vocabulary
from client.data.study.study import Found, Reference
from common.config import RunConfig, SiteConfig, SourceConfig
from common.errors import DataError, ErrorCode

T = TypeVar("T")  # what is made of a study that is usable


class Kept(Protocol[T]):
    """What is remembered of studies from one look to the next."""

    def entry(self, job: Job) -> Entry | None:
        """The study's, made before it is read; None where it cannot be read at all."""

    def read(self, entry: Entry) -> T | DataError | None:
        """What was kept; None when nothing was, or the study has changed since."""

    def write(self, entry: Entry, result: T | DataError) -> None:
        """Keep it, by best effort."""

    def keep_only(self, jobs: Sequence[Job]) -> None:
        """Drop what belongs to no study of the site any more."""


@dataclass(frozen=True, eq=False)
class Surveyed(Generic[T]):
    """A study, and what became of it.

    number: from 1, in the order of sources, patients and keys. source: from 1. name, patient: pseudonyms. reference:
    raw, for who sorts, splits or shows paths.
    """

    number: int
    source: int
    name: str
    patient: str
    reference: Reference = field(repr=False)
    result: T | DataError = field(repr=False)


@dataclass(frozen=True, eq=False)
class Survey(Generic[T]):
    """All that was found. remembered: studies of which what is told was known from before."""

    sources: tuple[Found, ...] = field(repr=False)
    studies: tuple[Surveyed[T], ...]
    remembered: int

    @property
    def usable(self) -> list[tuple[Surveyed[T], T]]:
        """The studies that can be used, with what was made of them."""
        return [(study, study.result) for study in self.studies if not isinstance(study.result, DataError)]

    @property
    def refused(self) -> list[tuple[Surveyed[T], DataError]]:
        """The studies that were set aside, and why."""
        return [(study, study.result) for study in self.studies if isinstance(study.result, DataError)]

    def deal(self, run: RunConfig, splits: KeptSplits, *, keep: bool) -> dict[str, Split]:
        """The split of every patient with a usable study, by raw id; see `KeptSplits.split`."""
        groups: list[list[str]] = [[] for _ in self.sources]
        for study, _ in self.usable:
            groups[study.source - 1].append(study.reference.patient)
        return splits.split(run, groups, keep=keep)


def survey(
    site: SiteConfig,
    run: RunConfig | None,
    read: Callable[[Readers, Sequence[Job]], Iterator[T | DataError]],
    *,
    digest: Callable[[T], str],
    label_digest: Callable[[T], str] = lambda _: "",
    refusal: Callable[[T], DataError | None] = lambda _: None,
    kept: Kept[T] | None,
    root: Path,
    site_key: bytes,
    index: Index | None,
    forgotten: Path | None,
    readers: int | Readers,
    labels: bool = True,
    progress: Callable[[int, int], None] = lambda _done, _total: None,
) -> Survey[T]:
    """Look at every study of a site.

    Args:
        site: its sources.
        run: whose classes and modality count; None: labels as found.
        read: what is made of studies that are read from their files, in order.
        digest: of the image of a study.
        label_digest: of what its label says; "" for all: labels are not compared.
        refusal: why the run cannot take a study that could be read, or was remembered.
        kept: what is remembered; None: every study is read from its files.
        root: folder that relative paths in `site` start from.
        site_key: secret key of the pseudonyms.
        index: what headers told earlier; None: they are all read.
        forgotten: list of the patients who take no part; None: all do.
        readers: most processes that parse files; 0: parse them in this one, see `Readers`; or such processes, which
            stay for others. Changes no result.
        labels: False: look at the images alone.
        progress: called with (studies done, studies in all).

    Raises:
        ConfigError: a source is described wrongly (folder, CSV or column that is not there).
        ReaderError: no process that parses could be started.
    """
    left_out = Forgotten(forgotten, site_key)
    with _parsers(readers) as parsers:
        found = tuple(left_out.without(parsers.find(source, root, memory=index)) for source in site.data)
        if index is not None:
            index.save()
        owners = [number for number, one in enumerate(found) for _ in one.references]
        references = (reference for one in found for reference in one.references)
        jobs = [
            job_of(reference, site.data[owner], run, labels=labels)
            for reference, owner in zip(references, owners, strict=True)
        ]
        results, remembered = _results(jobs, partial(read, parsers), kept, progress)
    taken = (result if isinstance(result, DataError) else refusal(result) or result for result in results)
    results = without_duplicates(list(taken), digest, label_digest)
    studies = tuple(
        Surveyed(
            number,
            owner + 1,
            pseudonym(site_key, job.reference.key),
            pseudonym(site_key, job.reference.patient),
            job.reference,
            result,
        )
        for number, (owner, job, result) in enumerate(zip(owners, jobs, results, strict=True), start=1)
    )
    return Survey(found, studies, remembered)


def _parsers(readers: int | Readers) -> AbstractContextManager[Readers]:
    return Readers(readers) if isinstance(readers, int) else nullcontext(readers)


def job_of(reference: Reference, source: SourceConfig, run: RunConfig | None, *, labels: bool) -> Job:
    """How a study is read: in the classes of a run, else as found, or the image alone."""
    wanted: Vocabulary | None = None
    if not labels:
        reference = replace(reference, labels=(), problem=_of_image(reference.problem))
    elif run is None:
        wanted = Vocabulary.as_found(reference.label_map)
    else:
        task = run.task
        wanted = Vocabulary.of_run(run.data, reference.label_map, whole=task.whole, overlap=task.overlaps)
    return Job(
        reference,
        wanted,
        source.empty_labels_are_negative,
        0.0 if run is None else run.preprocessing.most_missing,
    )


def _of_image(problem: DataError | None) -> DataError | None:
    return None if problem is not None and problem.code is ErrorCode.NO_LABEL else problem


def _results(
    jobs: Sequence[Job],
    read: Callable[[Sequence[Job]], Iterator[T | DataError]],
    kept: Kept[T] | None,
    progress: Callable[[int, int], None],
) -> tuple[list[T | DataError], int]:
    """The result of each job, and how many were known from before; what found its problem already is not read."""
    results: dict[int, T | DataError] = {
        index: job.reference.problem for index, job in enumerate(jobs) if job.reference.problem is not None
    }
    entries: dict[int, Entry] = {}
    remembered = 0
    if kept is not None:
        kept.keep_only(jobs)
        entries = {index: entry for index, job in enumerate(jobs) if (entry := kept.entry(job)) is not None}
        known = {index: result for index, entry in entries.items() if (result := kept.read(entry)) is not None}
        results |= known
        remembered = len(known)
    if jobs:
        progress(len(results), len(jobs))
    unknown = [index for index in range(len(jobs)) if index not in results]
    for index, result in zip(unknown, read([jobs[index] for index in unknown]), strict=True):
        results[index] = result
        if kept is not None and index in entries:
            kept.write(entries[index], result)
        progress(len(results), len(jobs))
    return [results[index] for index in range(len(jobs))], remembered


__all__ = ["Kept", "Survey", "Surveyed", "job_of", "survey"]
