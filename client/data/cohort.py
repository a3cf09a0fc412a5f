"""A site's studies as training sees them: preprocessed, split by patient, pseudonymous.

They are read first and dealt to training, validation and test then: a run that is only looked at keeps no patient's
place, and the same studies are dealt anew, and for good, when it trains. A study that cannot be used is quarantined
with a code and a reason; it never stops the others.
"""

import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from torch import Tensor

from client.data.deidentify.pseudonym import cohort_id, pseudonym
from client.data.isolate.isolation import Job, Readers, Reading
from client.data.keep.cache import Cache, Entry, Prepared
from client.data.keep.forgotten import Forgotten
from client.data.keep.index import Index
from client.data.keep.split import KeptSplits, Split
from client.data.prepare.preprocess import as_samples, preprocess
from client.data.quality.quality import without_duplicates
from client.data.study.labels import Vocabulary
from client.data.study.study import Found, Reference
from client.home.declared import declared_size
from client.home.folder import INDEX_NAME
from common.config import RunConfig, SiteConfig
from common.errors import DataError, ErrorCode

_log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Case:
    """One study, ready for the network.

    images: (S, C, *sp) float32; labels: (S, *sp) uint8, 0 background, 1..K the classes. *sp has as many axes as
    the model: with a 2D model S counts the slices of a series (1 for a photograph), with a 3D model S is 1.
    patient and key are pseudonyms.
    """

    patient: str
    key: str
    split: Split
    images: Tensor
    labels: Tensor


@dataclass(frozen=True)
class Quarantined:
    """A study that was left out. Only the code may leave the site."""

    key: str
    code: ErrorCode
    reason: str


@dataclass(frozen=True, eq=False)
class Cohort:
    """All that a site brings to a run. Cases are ordered by raw patient id, then by raw study key."""

    cases: tuple[Case, ...]
    quarantined: tuple[Quarantined, ...]
    cohort_id: str
    declared_size: (
        int  # the number of patients that may be told to others; a site's is set once, see client/home/declared.py
    )
    ignored: int = 0  # files that were no study and no label

    def patients(self, split: Split) -> tuple[str, ...]:
        """Pseudonyms of the patients of a split, in the order of the cases."""
        return tuple(dict.fromkeys(case.patient for case in self.cases if case.split == split))

    def cases_of(self, patient: str) -> tuple[Case, ...]:
        """The cases of one patient."""
        return self._by_patient[patient]

    @property
    def size(self) -> int:
        """The number of patients, over all splits."""
        return len(self._by_patient)

    @cached_property
    def _by_patient(self) -> dict[str, tuple[Case, ...]]:
        groups: dict[str, list[Case]] = {}
        for case in self.cases:
            groups.setdefault(case.patient, []).append(case)
        return {patient: tuple(cases) for patient, cases in groups.items()}


@dataclass(frozen=True, eq=False)
class Studies:
    """All that was read for a run, before anybody is dealt a place.

    usable: (number of the source from 0, reference, study as the network takes it); references hold raw ids, which
    decide the places and go no further than this.
    """

    usable: tuple[tuple[int, Reference, Prepared], ...] = field(repr=False)
    quarantined: tuple[Quarantined, ...]
    ignored: int


def load_cohort(
    site: SiteConfig,
    run: RunConfig,
    *,
    root: Path,
    site_key: bytes,
    cache: Path | None = None,
    splits: Path | None = None,
    readers: int = 0,
) -> Cohort:
    """Read, preprocess and split everything a site has for a run, and keep the places: `read_studies` and `deal`."""
    studies = read_studies(site, run, root=root, site_key=site_key, cache=cache, readers=readers)
    return deal(studies, site, run, site_key=site_key, splits=splits)


def read_studies(
    site: SiteConfig,
    run: RunConfig,
    *,
    root: Path,
    site_key: bytes,
    cache: Path | None = None,
    forgotten: Path | None = None,
    readers: int = 0,
) -> Studies:
    """Read and preprocess everything a site has for a run.

    Args:
        site: its sources.
        run: the data contract and the preprocessing.
        root: folder that relative paths in `site` start from.
        site_key: secret key of the pseudonyms.
        cache: folder of the encrypted working set, which spares a second load the decoding and changes nothing else;
            None: everything is read from its files.
        forgotten: list of the patients who take no part; None: all do.
        readers: most processes that parse files; 0: parse them in this one, see `Readers`. Changes no result.

    Raises:
        ConfigError: a source is described wrongly (folder, CSV or column that is not there).
        DataError: NO_DATA, no study is usable; the message says what was found.
        ReaderError: no process that parses could be started.
    """
    with Readers(readers) as parsers:
        left_out = Forgotten(forgotten, site_key)
        memory = None if cache is None else Index(cache / INDEX_NAME, site_key)
        found = [left_out.without(one) for one in _find(site, root, parsers, memory)]
        jobs = [
            Job(reference, Vocabulary.of_run(run.data, reference.label_map), source.empty_labels_are_negative)
            for source, one in zip(site.data, found, strict=True)
            for reference in one.references
        ]
        working_set = None if cache is None else Cache(cache, site_key, run)
        prepared = _prepare(jobs, run, parsers, working_set)
        outcomes = without_duplicates(prepared, lambda one: one.digest)
    quarantined = []
    for number, (job, outcome) in enumerate(zip(jobs, outcomes, strict=True), start=1):
        if isinstance(outcome, DataError):
            name = pseudonym(site_key, job.reference.key)
            quarantined.append(Quarantined(name, outcome.code, f"study {number} of {len(jobs)}: {outcome}"))
            _log.warning("study %d of %d is left out (%s): %s", number, len(jobs), outcome.code, outcome)
    ignored = sum(one.ignored for one in found)
    owners = [number for number, one in enumerate(found) for _ in one.references]
    usable = tuple(
        (owner, job.reference, outcome)
        for owner, job, outcome in zip(owners, jobs, outcomes, strict=True)
        if isinstance(outcome, Prepared)
    )
    if not usable:
        raise DataError(_nothing(site, len(jobs), quarantined, ignored), ErrorCode.NO_DATA)
    return Studies(usable, tuple(quarantined), ignored)


def deal(
    studies: Studies, site: SiteConfig, run: RunConfig, *, site_key: bytes, splits: Path | None, keep: bool = True
) -> Cohort:
    """Split what was read for a run by patient.

    Args:
        studies: what `read_studies` gave for this run.
        site: its sources.
        run: seed, fractions and fold.
        site_key: secret key of the pseudonyms.
        splits: file of the patients' places in earlier runs; None: every split is a first one.
        keep: False only looks: new patients get these places when they are still new, and nothing is written.

    Raises:
        ConfigError: the file of places is damaged.
    """
    by_source = [
        [reference.patient for owner, reference, _ in studies.usable if owner == number]
        for number in range(len(site.data))
    ]
    split_of = KeptSplits(splits, site_key).split(run, by_source, keep=keep)
    ordered = sorted(studies.usable, key=lambda study: (study[1].patient, study[1].key))
    cases = tuple(
        Case(
            pseudonym(site_key, reference.patient),
            pseudonym(site_key, reference.key),
            split_of[reference.patient],
            prepared.images,
            prepared.labels,
        )
        for _, reference, prepared in ordered
    )
    size = declared_size(site, run, len({case.patient for case in cases}), None)
    return Cohort(cases, studies.quarantined, cohort_id(site_key), size, studies.ignored)


def _find(site: SiteConfig, root: Path, parsers: Readers, index: Index | None) -> list[Found]:
    """What each source has."""
    found = [parsers.find(source, root, memory=index) for source in site.data]
    if index is not None:
        index.save()
    return found


def _prepare(jobs: Sequence[Job], run: RunConfig, parsers: Readers, cache: Cache | None) -> list[Prepared | DataError]:
    """Each study as the network takes it, from the cache or from its files."""
    outcomes: dict[int, Prepared | DataError] = {}
    entries: list[Entry | None] = [None] * len(jobs)
    if cache is not None:
        cache.keep_only(job.reference for job in jobs)
        for index, job in enumerate(jobs):
            entries[index] = entry = cache.entry(job.reference, empty_is_negative=job.empty_is_negative)
            kept = None if entry is None else cache.read(entry)
            if kept is not None:
                outcomes[index] = kept
    missing = [index for index in range(len(jobs)) if index not in outcomes]
    for index, reading in zip(missing, parsers.read([jobs[index] for index in missing]), strict=True):
        outcomes[index] = outcome = reading if isinstance(reading, DataError) else _preprocessed(reading, run)
        entry = entries[index]
        if cache is not None and entry is not None and isinstance(outcome, Prepared):
            cache.write(entry, outcome)
    return [outcomes[index] for index in range(len(jobs))]


def _preprocessed(reading: Reading, run: RunConfig) -> Prepared | DataError:
    try:
        image, label = preprocess(reading.study, run)
    except DataError as error:
        return error
    if label is None:
        return DataError("the study has no label. Add it, or take the study out.", ErrorCode.NO_LABEL)
    images, labels = as_samples(image, run.model.dims), as_samples(label[None], run.model.dims)[:, 0]
    return Prepared(images, labels, reading.digest)


def _nothing(site: SiteConfig, total: int, quarantined: list[Quarantined], ignored: int) -> str:
    if not site.data:
        return "the site has no data source. Add one: wardround-client data add FOLDER."
    codes = ", ".join(f"{count} {code}" for code, count in Counter(study.code for study in quarantined).items())
    return (
        f"no study is usable: {total} found in {len(site.data)} source(s){f' ({codes})' if codes else ''}, "
        f"{ignored} other file(s) ignored. Expected DICOM series with DICOM SEG, NIfTI pairs, or pictures with masks; "
        "see wardround-client data check."
    )
