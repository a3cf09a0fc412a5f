"""From a model and the sites' homes to what was found: the task says how studies are scored.

With several sites, as a simulation has, each is scored by itself; beside the mean of the sites stands the worst one,
and the patients of all are taken together. What can be added up (counts, histograms) then gives what one hospital with
all patients would have found; a mean of sites of an AUROC or a precision is called that, and nothing else.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

from client.data.isolate.isolation import Reading
from client.evaluate import classification, classification_page, scoring, segmentation_page
from client.evaluate.evaluation import Cases, Wanted, score_site
from client.evaluate.findings import Findings, Table
from client.predict.personal import Personal
from client.predict.prediction import Segmenter, load_segmenter
from client.rules import approvals, purged
from client.site import Site
from common.config import RunConfig
from common.errors import ConfigError
from common.learning.checkpoint import Manifest, load_model
from common.tasks import Task
from common.tasks.classification import Classification
from common.tasks.segmentation import Segmentation

ALL_SITES = "all sites"


@dataclass(frozen=True, eq=False)
class Evaluated:
    """What was found at one site, or at all of them together; of whom, as `Cases` says."""

    site: str
    wanted: Wanted
    took_part: bool
    seen: dict[str, int]  # patients scored that the model was trained or chosen on, by split
    patients: int
    studies: int
    left_out: dict[str, int]
    reasons: tuple[str, ...]
    findings: Findings


@dataclass(frozen=True, eq=False)
class Evaluation:
    """A model on some sites. together: of several sites."""

    run: RunConfig
    manifest: Manifest
    sites: tuple[Evaluated, ...]
    together: Evaluated | None


def evaluate(
    model: Path,
    sites: Sequence[Site],
    *,
    wanted: Wanted | None = None,
    tolerance: float = 1.0,
    device: str = "auto",
    readers: int = 1,
    personal: Personal | None = None,
    progress: Callable[[str, int, int], None] = lambda _site, _done, _total: None,
) -> Evaluation:
    """Score a model on the labelled studies of sites.

    Args:
        model: a run's folder, or its model.safetensors with model.json beside it.
        sites: whose patients.
        wanted: which patients; None: at a site where the model was trained the test patients, elsewhere all.
        tolerance: of the surface Dice, mm, or pixels where lengths are in pixels.
        device: where the network runs: "cpu", "cuda" or "auto".
        readers: most processes that parse files; 0: parse them in this one.
        personal: what a site keeps of its own, which is scored instead; None: the model as it is.
        progress: called with (site, studies done, studies).

    Raises:
        ConfigError: the model cannot be loaded, or a source is described wrongly.
        DataError: a site has no study to be scored.
    """
    _, _, manifest = load_model(model)
    segmenter = load_segmenter(model, device, must_draw=False, personal=personal)
    run, several = segmenter.run, []
    score, digest, found = _way(segmenter, tolerance)
    for site in sites:
        here = took_part(site, manifest)
        several.append(
            score_site(
                site,
                run,
                score,
                digest,
                wanted=wanted or ("test" if here else "all"),
                took_part=here,
                readers=readers,
                progress=partial(progress, site.config.name),
            )
        )
    each = tuple(_evaluated(cases, found(cases)) for cases in several)
    if len(several) < 2:
        return Evaluation(run, manifest, each, None)
    joined = _joined(several)
    together = _evaluated(joined, found(joined))
    return Evaluation(run, manifest, each, replace(together, findings=_with_sites(together.findings, each, run.task)))


def beside(own: Evaluated, shared: Evaluated, task: Task) -> Evaluated:
    """What was found of a site's own model, headed by the scores of the shared one on the same patients."""
    figures = "mean-of-patients" if "mean-of-patients" in own.findings.summary else "scores"
    ours, theirs = own.findings.summary[figures], shared.findings.summary[figures]
    values = {
        name: ((ours[name] or {}).get("value"), (theirs[name] or {}).get("value"))
        for name in task.SHOWN
        if name in ours and name in theirs
    }
    rows = tuple(
        (name, mine, other, None if mine is None or other is None else mine - other)
        for name, (mine, other) in values.items()
    )
    table = Table(
        "Personal and shared model",
        ("score", "personal", "shared", "difference"),
        rows,
        "On the same patients. What follows is of the personal model.",
    )
    summary = {"shared": theirs, **own.findings.summary}
    return replace(own, findings=replace(own.findings, summary=summary, tables=(table, *own.findings.tables)))


def took_part(site: Site, manifest: Manifest) -> bool:
    """Whether a model was trained at a site: its manifest names the site, or the site has approved its run.

    Of a run that was purged nobody knows what was answered: it is taken for approved.
    """
    answers = [one.answer for one in approvals.load_all(site.home) if one.run_hash == manifest.run_hash]
    if purged.is_purged(site.home, manifest.run_hash):
        return True
    return site.config.name in manifest.sites or any(one is not None and one.approved for one in answers)


def _way(
    segmenter: Segmenter, tolerance: float
) -> tuple[Callable[[Reading], Any], Callable[[Any], str], Callable[[Cases[Any]], Findings]]:
    """How a study of the model's task is scored, the digest of what comes of it, and what all of them amount to.

    Raises:
        ConfigError: of this task there are no measures.
    """
    task, classes = segmenter.run.task, segmenter.run.data.classes
    if isinstance(task, Segmentation):
        return (
            partial(scoring.score, segmenter=segmenter, tolerance=tolerance),
            lambda one: str(one.digest),
            partial(segmentation_page.findings, task=task, classes=classes, tolerance=tolerance),
        )
    if isinstance(task, Classification):
        return (
            partial(classification.score, segmenter=segmenter),
            lambda one: str(one.digest),
            partial(classification_page.findings, task=task, classes=classes),
        )
    raise ConfigError(f"the model answers {task.kind}, of which there are no measures. Segment, or classify.")


def _evaluated(cases: Cases[Any], found: Findings) -> Evaluated:
    return Evaluated(
        cases.site,
        cases.wanted,
        cases.took_part,
        {str(split): count for split, count in cases.seen.items()},
        len(cases.patients),
        len(cases.cases),
        {str(code): count for code, count in cases.left_out.items()},
        cases.reasons,
        found,
    )


def _joined(several: Sequence[Cases[Any]]) -> Cases[Any]:
    left_out: dict[Any, int] = {}
    for cases in several:
        for code, count in cases.left_out.items():
            left_out[code] = left_out.get(code, 0) + count
    splits = {cases.wanted for cases in several}
    return Cases(
        ALL_SITES,
        splits.pop() if len(splits) == 1 else "all",
        any(cases.took_part for cases in several),
        tuple(chain.from_iterable(cases.cases for cases in several)),
        tuple(chain.from_iterable(cases.validation for cases in several)),
        left_out,
        tuple(f"{cases.site}: {reason}" for cases in several for reason in cases.reasons),
    )


def _with_sites(found: Findings, sites: Sequence[Evaluated], task: Task) -> Findings:
    """The findings of all patients, headed by a row for each site, their mean, and the worst of them."""
    figures = "mean-of-patients" if "mean-of-patients" in found.summary else "scores"
    whole = "mean of all patients" if figures == "mean-of-patients" else "score of all images"
    scores = {one.site: one.findings.summary[figures] for one in sites}
    names = [name for name in task.SHOWN if name in found.summary[figures]]
    values = {site: {name: (own.get(name) or {}).get("value") for name in names} for site, own in scores.items()}
    headline = names[0]
    scored = [(own[headline], site) for site, own in values.items() if own[headline] is not None]
    worst = min(scored)[1] if scored else next(iter(values))
    mean = {name: _mean([own[name] for own in values.values()]) for name in names}
    pooled = {name: found.summary[figures][name]["value"] for name in names}
    rows = [
        (site, one.patients, *(values[site][name] for name in names)) for site, one in zip(values, sites, strict=True)
    ]
    rows.append(("mean of sites", None, *mean.values()))
    rows.append((f"worst site: {worst}", None, *values[worst].values()))
    rows.append((whole, sum(one.patients for one in sites), *pooled.values()))
    table = Table(
        "Sites",
        ("site", "patients", *names),
        tuple(rows),
        f"The {whole} is what one hospital with all of them would find. The mean of sites counts each hospital the "
        "same; of an area or a precision it is nothing that all patients together would give.",
    )
    summary = {"sites": values, "mean-of-sites": mean, "worst-site": worst, **found.summary}
    return replace(found, summary=summary, tables=(table, *found.tables))


def _mean(values: Sequence[float | None]) -> float | None:
    some = [value for value in values if value is not None]
    return sum(some) / len(some) if some else None


__all__ = ["ALL_SITES", "Evaluated", "Evaluation", "beside", "evaluate", "took_part"]
