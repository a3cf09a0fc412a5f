"""`data preview`: what a run's preparation makes of the first studies, change by change, in pictures and in numbers.

The pictures show patients. They stay at the site, in files for their owner only; no name, id or path is in them.
"""

import base64
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path

import numpy as np

from client.data.check.pictures import before_and_after, png
from client.data.deidentify.pseudonym import pseudonym
from client.data.isolate.isolation import Job, Readers, Reading
from client.data.keep.forgotten import Forgotten
from client.data.keep.index import Index
from client.data.prepare.preprocess import Stage, stages
from client.data.study.study import Study
from client.data.survey import job_of
from client.home.folder import CACHE_NAME, FORGOTTEN_NAME, INDEX_NAME
from common.config import RunConfig, SiteConfig, validate
from common.errors import DataError, ErrorCode
from common.pages.html import render
from common.system.files import write_private

PAGE_NAME = "index.html"
NUMBERS_NAME = "numbers.json"


@dataclass(frozen=True)
class Change:
    """One change of one study. changed: share of the values that it changed; None where the voxels moved."""

    name: str
    place: str
    size: tuple[int, ...]
    lowest: float | None
    highest: float | None
    mean: float | None
    changed: float | None
    picture: bytes = field(repr=False)


@dataclass(frozen=True)
class Previewed:
    """One study: its changes, up to the one that refused it, if one did. name: a pseudonym."""

    number: int
    name: str
    changes: tuple[Change, ...]
    problem: DataError | None = None


def preview_site(
    home: Path,
    site: SiteConfig,
    site_key: bytes,
    run: RunConfig | None,
    *,
    studies: int,
    progress: Callable[[int, int], None] = lambda _done, _total: None,
) -> tuple[Previewed, ...]:
    """Prepare the first studies of a site, numbered as in `data check`.

    Args:
        home: folder of the site; relative paths in `site` start from there.
        site: its sources.
        site_key: secret key of the pseudonyms.
        run: whose preparation is shown; None: that of a run without a [preprocessing] table.
        studies: how many at most.
        progress: called with (studies done, studies to do).

    Raises:
        ConfigError: a source is described wrongly.
        DataError: NO_DATA, there is no study.
    """
    left_out = Forgotten(home / FORGOTTEN_NAME, site_key)
    index = Index(home / CACHE_NAME / INDEX_NAME, site_key)
    previewed: list[Previewed] = []
    with Readers(1) as readers:
        found = [(source, left_out.without(readers.find(source, home, memory=index))) for source in site.data]
        asked = [(reference, source) for source, one in found for reference in one.references][:studies]
        if not asked:
            raise DataError("the site has no study to show. Add a folder with images first.", ErrorCode.NO_DATA)
        for number, (reference, source) in enumerate(asked, start=1):
            progress(number - 1, len(asked))
            jobs = [job_of(reference, source, run, labels=labels) for labels in (True, False)]
            outcome = _read(readers, jobs)
            name = pseudonym(site_key, reference.key)
            if isinstance(outcome, DataError):
                previewed.append(Previewed(number, name, (), outcome))
            else:
                previewed.append(_previewed(number, name, outcome.study, run))
        progress(len(asked), len(asked))
    return tuple(previewed)


def write_preview(folder: Path, previewed: Sequence[Previewed], run: RunConfig | None) -> Path:
    """Write a picture for each change, the numbers, and a page with all of it; for their owner only.

    Returns:
        The page.
    """
    shown = []
    for study in previewed:
        for place, change in enumerate(study.changes, start=1):
            write_private(folder / f"study-{study.number:03}" / f"{place:02}-{change.name}.png", change.picture)
        figures = [(change, base64.b64encode(change.picture).decode()) for change in study.changes]
        shown.append((study.number, study.name, figures, None if study.problem is None else str(study.problem)))
    values = [_as_data(study) for study in previewed]
    write_private(folder / NUMBERS_NAME, f"{json.dumps(values, indent=1)}\n".encode())
    page = render(
        "client/data/check/preview.html",
        title="Preparation, step by step",
        about="as of a run without [preprocessing]" if run is None else f"for the run {run.name}",
        version=version("wardround"),
        studies=shown,
    )
    write_private(folder / PAGE_NAME, page.encode())
    return folder / PAGE_NAME


def _as_data(study: Previewed) -> dict[str, object]:
    changes = [{key: value for key, value in asdict(change).items() if key != "picture"} for change in study.changes]
    problem = None if study.problem is None else {"code": str(study.problem.code), "reason": str(study.problem)}
    return {"study": study.number, "pseudonym": study.name, "changes": changes, "problem": problem}


def _read(readers: Readers, jobs: Sequence[Job]) -> Reading | DataError:
    """The study with its label, and without where it has none."""
    outcome: Reading | DataError = DataError("", ErrorCode.NO_LABEL)
    for job in jobs:
        if not (isinstance(outcome, DataError) and outcome.code is ErrorCode.NO_LABEL):
            break
        outcome = job.reference.problem or next(readers.read([job]))
    return outcome


def _previewed(number: int, name: str, study: Study, run: RunConfig | None) -> Previewed:
    changes: list[Change] = []
    try:
        for stage in stages(study, _usual(study) if run is None else run):
            changes.append(_change(stage))
    except DataError as error:
        return Previewed(number, name, tuple(changes), error)
    return Previewed(number, name, tuple(changes))


def _usual(study: Study) -> RunConfig:
    """A run that says nothing of its preparation, and takes the study."""
    values = {
        "name": "preview",
        "data": {"modality": "photo", "classes": ["any"], "channels": 3 if len(study.image) == 3 else 1},
        "training": {"patch_size": [16, 16]},
        "federation": {"rounds": 1},
    }
    return validate(RunConfig, values)


def _change(stage: Stage) -> Change:
    given, made = stage.given.image, stage.made.image
    kind = getattr(stage.asked, "kind", None)
    place = "always" if kind is None else str(getattr(stage.asked, "PLACE", ""))
    name = type(stage.asked).__name__.lower() if kind is None else str(kind)
    finite = made[np.isfinite(made)]
    low, high, mean = (
        (float(finite.min()), float(finite.max()), float(finite.mean(dtype=np.float64)))
        if finite.size
        else (None, None, None)
    )
    same_grid = stage.before.shape == stage.after.shape and given.shape == made.shape
    alike = (given == made) | (np.isnan(given) & np.isnan(made)) if same_grid else None
    picture = before_and_after(stage.given, stage.before, stage.made, stage.after, same_units=name != "intensity")
    share = None if alike is None else float(1 - alike.mean())
    return Change(name, place, stage.after.shape, low, high, mean, share, png(picture))


def numbers(previewed: Sequence[Previewed]) -> Iterator[tuple[object, ...]]:
    """A row for each change: study, step, place, size, lowest, highest, mean, share changed."""
    for study in previewed:
        for one in study.changes:
            yield study.number, one.name, one.place, list(one.size), one.lowest, one.highest, one.mean, one.changed


COLUMNS = ("study", "step", "place", "size", "lowest", "highest", "mean", "changed")

__all__ = ["COLUMNS", "NUMBERS_NAME", "PAGE_NAME", "Previewed", "numbers", "preview_site", "write_preview"]
