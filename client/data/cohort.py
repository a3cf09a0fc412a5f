"""A site's studies as training sees them: preprocessed, split by patient, pseudonymous.

They are read first and dealt to training, validation and test then: a run that is only looked at keeps no patient's
place, and the same studies are dealt anew, and for good, when it trains. A study that cannot be used is quarantined
with a code and a reason; it never stops the others. How studies are found and judged: `client.data.survey`.
"""

import logging
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import TypeAlias

import torch
from torch import Tensor

from client.data.deidentify.pseudonym import cohort_id
from client.data.isolate.isolation import Job, Readers, Reading
from client.data.keep.cache import Cache, Prepared
from client.data.keep.index import Index
from client.data.keep.split import KeptSplits, Split
from client.data.prepare.preprocess import as_samples, preprocess
from client.data.quality.quality import no_region
from client.data.regions import cut_regions, too_many
from client.data.survey import Survey, survey
from client.home.declared import declared_size
from client.home.folder import INDEX_NAME
from common.config import RunConfig, SiteConfig
from common.errors import DataError, ErrorCode

Studies: TypeAlias = Survey[Prepared]  # all that was read for a run, before anybody is dealt a place

_log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Case:
    """One study, ready for the network.

    images: (S, C, *sp) float32; labels: (S, *sp) uint8, 0 background, 1..K the classes. *sp has as many axes as
    the model: with a 2D model S counts the slices of a series (1 for a photograph), with a 3D model S is 1. Where the
    label is of the image as a whole it is the same at every voxel, what the task's `mark` says; of several classes
    int32. Where regions are classified S counts the study's regions: `client.data.regions`.
    patient and key are pseudonyms.
    """

    patient: str
    key: str
    split: Split
    images: Tensor
    labels: Tensor


@dataclass(frozen=True)
class Quarantined:
    """A study that was left out. Only the code may leave the site. number: as in `data check`; key: a pseudonym."""

    number: int
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


def read_studies(
    site: SiteConfig,
    run: RunConfig,
    *,
    root: Path,
    site_key: bytes,
    cache: Path | None = None,
    forgotten: Path | None = None,
    readers: int | Readers = 0,
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
        readers: most processes that parse files; 0: parse them in this one, see `Readers`; or such processes, which
            stay for others. Changes no result.

    Raises:
        ConfigError: a source is described wrongly (folder, CSV or column that is not there).
        DataError: NO_DATA, no study is usable; the message says what was found.
        ReaderError: no process that parses could be started.
    """
    found = survey(
        site,
        run,
        partial(_read, run),
        digest=lambda prepared: prepared.digest,
        label_digest=lambda prepared: prepared.label_digest,
        kept=None if cache is None else Cache(cache, site_key, run),
        root=root,
        site_key=site_key,
        index=None if cache is None else Index(cache / INDEX_NAME, site_key),
        forgotten=forgotten,
        readers=readers,
    )
    for study, problem in found.refused:
        _log.warning("study %d of %d is left out (%s): %s", study.number, len(found.studies), problem.code, problem)
    if not found.usable:
        raise DataError(_nothing(site, found), ErrorCode.NO_DATA)
    return found


def deal(
    studies: Studies,
    site: SiteConfig,
    run: RunConfig,
    *,
    site_key: bytes,
    splits: Path | None,
    keep: bool = True,
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
    split_of = studies.deal(run, KeptSplits(splits, site_key), keep=keep)
    ordered = sorted(studies.usable, key=lambda study: (study[0].reference.patient, study[0].reference.key))
    cases = tuple(
        _case(study.patient, study.name, split_of[study.reference.patient], prepared, run)
        for study, prepared in ordered
    )
    quarantined = tuple(
        Quarantined(study.number, study.name, problem.code, str(problem)) for study, problem in studies.refused
    )
    size = declared_size(site, run, len({case.patient for case in cases}), None)
    return Cohort(cases, quarantined, cohort_id(site_key), size)


def _case(patient: str, key: str, split: Split, prepared: Prepared, run: RunConfig) -> Case:
    images, labels = prepared.images, prepared.labels
    if run.task.of_regions:
        images, labels = cut_regions(images, labels, run, held_out=split != "train")
    return Case(patient, key, split, images, labels)


def _read(run: RunConfig, readers: Readers, jobs: Sequence[Job]) -> Iterator[Prepared | DataError]:
    for reading in readers.read(jobs):
        yield reading if isinstance(reading, DataError) else prepared(reading, run)


def prepared(reading: Reading, run: RunConfig) -> Prepared | DataError:
    """A study that was read, as the network takes it; or why the run cannot take it."""
    try:
        image, label, _ = preprocess(reading.study, run)
        images = as_samples(image, run.model.dims)
        if run.task.whole:
            labels = _constant(run, reading.study.findings, images)
        elif label is None:
            raise ValueError("a study was read for training without its label")
        else:
            labels = as_samples(label[None], run.model.dims)[:, 0]
        if run.task.of_regions and (problem := too_many(images, labels, run) if labels.any() else no_region()):
            return problem
    except DataError as error:
        return error
    return Prepared(images, labels, reading.digest, reading.label_digest)


def _constant(run: RunConfig, findings: tuple[int, ...] | None, images: Tensor) -> Tensor:
    """(S, *sp): the label of images as a whole; it takes no memory."""
    if findings is None:
        raise ValueError("a study was read for training without its class")
    dtype = torch.int32 if run.task.label == "classes" else torch.uint8
    return torch.tensor(run.task.mark(findings), dtype=dtype).expand(len(images), *images.shape[2:])


def _nothing(site: SiteConfig, found: Studies) -> str:
    if not site.data:
        return "the site has no data source. Add one: `wardround-client data add FOLDER`."
    counts = Counter(problem.code for _, problem in found.refused)
    codes = f" ({', '.join(f'{count} {code}' for code, count in counts.items())})" if counts else ""
    return (
        f"no study is usable: {len(found.studies)} found in {len(site.data)} source(s){codes}, "
        f"{sum(source.ignored for source in found.sources)} other file(s) ignored. Expected DICOM series with DICOM "
        "SEG, NIfTI pairs, or pictures with masks; see `wardround-client data check`."
    )


__all__ = ["Case", "Cohort", "Quarantined", "Studies", "deal", "prepared", "read_studies"]
