"""A site's studies as training sees them: preprocessed, split by patient, pseudonymous.

A study that cannot be used is quarantined with a code and a reason; it never stops the others.
"""

import logging
import math
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from client.data import sources
from client.data.cache import Cache
from client.data.preprocess import as_samples, preprocess
from client.data.pseudonym import cohort_id, pseudonym
from client.data.split import Split, split_patients
from client.data.study import Reference
from common.config import RunConfig, SiteConfig
from common.errors import ConfigError, DataError, ErrorCode

_DECLARED_STEP = 5

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
    declared_size: int  # the number of patients that may be told to others
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


def load_cohort(
    site: SiteConfig,
    run: RunConfig,
    *,
    root: Path,
    site_key: bytes,
    progress: Callable[[int, int], None] | None = None,
    cache: Path | None = None,
) -> Cohort:
    """Read, preprocess and split everything a site has for a run.

    Args:
        site: its sources.
        run: the data contract and the preprocessing.
        root: folder that relative paths in `site` start from.
        site_key: secret key of the pseudonyms.
        progress: called with (studies done, studies in all).
        cache: folder of the encrypted working set, which spares a second load the decoding and changes nothing else;
            None: everything is read from its files.

    Raises:
        ConfigError: a source is described wrongly (folder, CSV or column that is not there).
        DataError: NO_DATA, no study is usable; the message says what was found.
    """
    found = [sources.find(source, root) for source in site.data]
    working_set = None if cache is None else Cache(cache, site_key, run)
    if working_set is not None:
        working_set.keep_only(reference for one in found for reference in one.references)
    total = sum(len(one.references) for one in found)
    splits: dict[str, Split] = {}
    studies: list[tuple[Reference, Tensor, Tensor]] = []
    quarantined: list[Quarantined] = []
    done = 0
    for one in found:
        usable: list[tuple[Reference, Tensor, Tensor]] = []
        for reference in one.references:
            try:
                usable.append((reference, *_load(reference, run, working_set)))
            except DataError as error:
                name = pseudonym(site_key, reference.key)
                quarantined.append(Quarantined(name, error.code, f"study {done + 1} of {total}: {error}"))
                _log.warning("study %d of %d is left out (%s): %s", done + 1, total, error.code, error)
            done += 1
            if progress is not None:
                progress(done, total)
        # Each source is split on its own, so that a site holding several archives splits each as a site holding
        # one would; a patient in two sources keeps the first split.
        splits = _split(usable, run) | splits
        studies += usable
    ignored = sum(one.ignored for one in found)
    if not studies:
        raise DataError(_nothing(site, total, quarantined, ignored), ErrorCode.NO_DATA)
    studies.sort(key=lambda study: (study[0].patient, study[0].key))
    cases = tuple(
        Case(
            pseudonym(site_key, reference.patient),
            pseudonym(site_key, reference.key),
            splits[reference.patient],
            images,
            labels,
        )
        for reference, images, labels in studies
    )
    found_size = len({case.patient for case in cases})
    declared = _declared_size(site, found_size)
    return Cohort(cases, tuple(quarantined), cohort_id(site_key), declared, ignored)


def contract_summary(cohort: Cohort) -> dict[str, Any]:
    """What the site could deliver, for `data check`: counts, shapes and class shares, nothing identifying.

    Returns:
        studies (usable, quarantined by code, without-foreground), ignored-files, patients by split, samples,
        shape (smallest and largest per axis, of the preprocessed samples), class-share (of voxels, by label value).
    """
    shapes = [case.images.shape[2:] for case in cohort.cases]
    voxels = sum((torch.bincount(case.labels.flatten(), minlength=256) for case in cohort.cases), torch.zeros(256))
    present = range(int(voxels.nonzero().max()) + 1)
    splits: tuple[Split, ...] = ("train", "validation", "test")
    return {
        "studies": {
            "usable": len(cohort.cases),
            "quarantined": dict(Counter(str(study.code) for study in cohort.quarantined)),
            "without-foreground": sum(not bool(case.labels.any()) for case in cohort.cases),
        },
        "ignored-files": cohort.ignored,
        "patients": {split: len(cohort.patients(split)) for split in splits},
        "samples": sum(len(case.images) for case in cohort.cases),
        "shape": {
            "smallest": [min(edges) for edges in zip(*shapes, strict=True)],
            "largest": [max(edges) for edges in zip(*shapes, strict=True)],
        },
        "class-share": {str(value): float(voxels[value] / voxels.sum()) for value in present},
    }


def _load(reference: Reference, run: RunConfig, cache: Cache | None) -> tuple[Tensor, Tensor]:
    """Images (S, C, *sp) and labels (S, *sp), from the cache or from the files."""
    entry = None if cache is None else cache.entry(reference)
    if cache is None or entry is None:
        return _decode(reference, run)
    kept = cache.read(entry)
    if kept is None:
        kept = _decode(reference, run)
        cache.write(entry, *kept)
    return kept


def _decode(reference: Reference, run: RunConfig) -> tuple[Tensor, Tensor]:
    image, label = preprocess(sources.read(reference, run.data), run)
    if label is None:
        raise DataError("the study has no label. Add it, or take the study out.", ErrorCode.NO_LABEL)
    return as_samples(image, run.model.dims), as_samples(label[None], run.model.dims)[:, 0]


def _split(studies: list[tuple[Reference, Tensor, Tensor]], run: RunConfig) -> dict[str, Split]:
    return split_patients(
        (reference.patient for reference, _, _ in studies),
        seed=run.seed,
        validation_fraction=run.data.validation_fraction,
        test_fraction=run.data.test_fraction,
    )


def _declared_size(site: SiteConfig, found: int) -> int:
    """Never below the patients found: delta is at most 1 / (10 N) of the true N only then."""
    if site.cohort_size is None:
        return math.ceil(found / _DECLARED_STEP) * _DECLARED_STEP
    if site.cohort_size < found:
        raise ConfigError(
            f"cohort-size is {site.cohort_size}, and {found} patients are usable. Set cohort-size in site.toml to at "
            "least that number, or remove it: delta must not exceed 1 / (10 N)."
        )
    return site.cohort_size


def _nothing(site: SiteConfig, total: int, quarantined: list[Quarantined], ignored: int) -> str:
    if not site.data:
        return "the site has no data source. Add one: wardround-client data add FOLDER."
    codes = ", ".join(f"{count} {code}" for code, count in Counter(study.code for study in quarantined).items())
    return (
        f"no study is usable: {total} found in {len(site.data)} source(s){f' ({codes})' if codes else ''}, "
        f"{ignored} other file(s) ignored. Expected DICOM series with DICOM SEG, NIfTI pairs, or pictures with masks; "
        "see wardround-client data check."
    )
