"""`data check`: every study of a site, read once and judged. It says what is usable, what is not and why.

Without a run the labels are taken as found, each name or value a class of its own; with one, everything is as training
would see it, because both read one survey (`client.data.survey`). Raw ids and paths stay in `Outcome.path`, which is
left out of its `repr` and of every report.
"""

import os
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np

from client.data.isolate.isolation import Readers
from client.data.keep.catalogue import Catalogue
from client.data.keep.index import Index
from client.data.keep.split import KeptSplits, Split
from client.data.prepare.preprocess import refusal
from client.data.quality.quality import Checked, Facts, no_region
from client.data.study.labels import BACKGROUND
from client.data.study.study import Found
from client.data.survey import Surveyed, survey
from client.home.folder import CACHE_NAME, CHECK_NAME, FORGOTTEN_NAME, INDEX_NAME, SPLITS_NAME
from common.config import RunConfig, SiteConfig
from common.config.rundocument import RunDocument
from common.errors import DataError
from common.preparation import Geometry

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
    progress: Callable[[int, int], None] = lambda _done, _total: None,
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
    found = survey(
        site,
        run,
        Readers.check,
        digest=lambda checked: checked.facts.digest,
        label_digest=lambda checked: checked.facts.label_digest,
        refusal=partial(_refusal, run),
        kept=Catalogue(home / CHECK_NAME / "catalogue", site_key),
        root=home,
        site_key=site_key,
        index=Index(home / CACHE_NAME / INDEX_NAME, site_key),  # shared with training
        forgotten=home / FORGOTTEN_NAME,
        readers=readers,
        labels=labels,
        progress=progress,
    )
    splits: Mapping[str, Split] = {}
    if run is not None:
        splits = found.deal(run, KeptSplits(home / SPLITS_NAME, site_key), keep=False)
    folders = [home / Path(source.path).expanduser() for source in site.data]
    outcomes = tuple(_outcome(study, folders[study.source - 1], splits) for study in found.studies)
    sources = enumerate(zip(found.sources, folders, strict=True), start=1)
    looked = tuple(_looked(number, *source) for number, source in sources)
    own_words = {BACKGROUND, *(name for source in site.data for name in source.label_map.values())}
    own_words |= set() if run is None else set(run.data.classes)
    return Checkup(site.name, document, looked, outcomes, found.remembered, frozenset(own_words))


def _refusal(run: RunConfig | None, checked: Checked) -> DataError | None:
    """What preparing would refuse, told from the facts."""
    if run is None:
        return None
    facts = checked.facts
    affine = None if facts.affine is None else np.array(facts.affine)
    problem = refusal(Geometry(facts.shape, facts.channels, facts.spacing_mm, affine), run)
    return problem or _refused_label(run, facts)


def _refused_label(run: RunConfig, facts: Facts) -> DataError | None:
    if run.task.of_regions and not facts.has_foreground:
        return no_region()
    if run.task.whole and facts.findings is not None:
        try:
            run.task.mark([1 + run.data.classes.index(name) for name in facts.findings])
        except DataError as error:
            return error
    return None


def _outcome(study: Surveyed[Checked], folder: Path, splits: Mapping[str, Split]) -> Outcome:
    result, reference = study.result, study.reference
    checked = None if isinstance(result, DataError) else result
    return Outcome(
        study.number,
        study.source,
        study.name,
        study.patient if reference.patient else None,
        # A CSV may name files outside of its folder.
        os.path.relpath(os.path.commonpath(reference.images), folder),
        problem=result if isinstance(result, DataError) else None,
        checked=checked,
        split=None if checked is None else splits.get(reference.patient),
    )


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
