"""Two runs beside each other: what differs in their results, and what differs in what they were asked.

An interval is given where a spread is known: hospitals that add noise to a score say its standard deviation, so that a
difference of two scores is known up to the noise of both (normal, 95 %). What other patients would have given is not in
it, and of exact scores no spread is known here.

Scores of two runs tell which model is the better one only if they are of the same hospitals, the same patients and the
same classes. Where they are not, a row says so, and stands before all others.
"""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from common.config import RunConfig
from common.privacy.scores import CLASS_NOISE, NOISE_NAMES, SCORE_NOISE
from common.tasks import task_of
from server.archive.folder import Kept
from server.federation.events import JOURNAL_NAME, SUMMARY_NAME
from server.views.sentences import first_asked

# Of the normal distribution: 95 % lie within so many standard deviations.
_NORMAL_95 = 1.959963984540054

# Keys by which other patients are held out, from the same data.
_HOLDS_OUT = frozenset(
    {"seed", *(f"data.{name}" for name in ("validation-fraction", "test-fraction", "folds", "fold", "split"))}
)

# A run scores a study where its voxels lie once they are prepared (docs/evaluation.md).
_GRIDS = frozenset({"preprocessing.spacing-mm", "preprocessing.rows"})
_STEPS = "preprocessing.steps"
_ELSEWHERE = (
    "Each run scored its images as it prepared them: {} differs. `wardround-client evaluate` compares both models on "
    "the images' own voxels."
)

OVERALL = "mean of sites"


@dataclass(frozen=True)
class Difference:
    """One thing of two runs. low, high: 95 % interval of the difference by the noise; None: not known."""

    what: str
    site: str
    first: Any
    second: Any
    low: float | None = None
    high: float | None = None
    noised: bool = False  # whether hospitals added noise to one of the two
    warning: str | None = None  # why what differs else may not come from what was changed

    @property
    def by(self) -> float | None:
        """The second less the first; None where one is no number."""
        values = (self.first, self.second)
        return self.second - self.first if all(isinstance(one, int | float) for one in values) else None


def compare(first: Kept, second: Kept, runs: tuple[RunConfig, RunConfig]) -> list[Difference]:
    """What differs, and scores and epsilons of the same site also where they do not; what forbids a comparison first.

    Args:
        first: the folder of the one run.
        second: of the other.
        runs: their documents.
    """
    one, other = (json.loads(kept.read(SUMMARY_NAME)) for kept in (first, second))
    found = [Difference("rounds", "", one["rounds"], other["rounds"])] if one["rounds"] != other["rounds"] else []
    unlike = [*_hospitals(one, other), *_data(*runs), *_counts(_patients(first), _patients(second))]
    return [*unlike, *found, *_sites(one, other), *_epsilons(one, other), *_scores(one, other)]


def diff(first: RunConfig, second: RunConfig) -> list[tuple[str, Any, Any]]:
    """Keys in which two run documents differ: dotted key, value in each; None: it is not there."""
    one, other = map(_settings, (first, second))
    keys = [*one, *(key for key in other if key not in one)]
    return [(key, one.get(key), other.get(key)) for key in keys if one.get(key) != other.get(key)]


def _hospitals(one: Mapping[str, Any], other: Mapping[str, Any]) -> Iterator[Difference]:
    """Who trained and who gave scores, where they are not the same."""
    trained = [sorted(_rounds_of(summary)) for summary in (one, other)]
    yield from _unlike("hospitals", trained, "The models learned from other hospitals")
    for phase in ("test", "validation"):
        scored = [sorted((summary["scores"].get(phase) or {"sites": {}})["sites"]) for summary in (one, other)]
        if scored != trained:
            yield from _unlike(f"hospitals with {phase} scores", scored, "The mean of sites is of other hospitals")


def _unlike(what: str, sites_of: Sequence[Sequence[str]], so: str) -> Iterator[Difference]:
    first, second = sites_of
    only = [(name, sorted({*these} - {*those})) for name, these, those in (("A", first, second), ("B", second, first))]
    if told := [f"only in {name}: {', '.join(sites)}" for name, sites in only if sites]:
        yield Difference(what, "", list(first), list(second), warning=f"{so}; {'; '.join(told)}.")


def _data(first: RunConfig, second: RunConfig) -> Iterator[Difference]:
    """Settings by which the scores are of other things, or of other patients."""
    for key, one, other in diff(first, second):
        if key in ("task.kind", "seed") or key.startswith("data."):
            what = "held-out patients" if key in _HOLDS_OUT else "images or classes"
            yield Difference(key, "", one, other, warning=f"The scores are of other {what}: {key} differs.")
        elif key in _GRIDS or (key == _STEPS and _moving(first) != _moving(second)):
            yield Difference(key, "", one, other, warning=_ELSEWHERE.format(key))


def _moving(run: RunConfig) -> list[object]:
    """The steps after which voxels lie elsewhere."""
    return [step for step in run.preprocessing.steps if step.moves]


def _settings(run: RunConfig) -> dict[str, Any]:
    """What holds in a run, by dotted key: also how patients are held out, which follows from the privacy too."""
    return {**dict(_flat(run.model_dump(mode="json", by_alias=True), "")), "data.split": run.split}


def _patients(kept: Kept) -> dict[str, int]:
    """How many patients each hospital said last that it trains with; nothing of one that did not say."""
    lines = [json.loads(line) for line in kept.read(JOURNAL_NAME).splitlines()]
    return {one["site"]: one["patients"] for one in lines if one["event"] == "train" and one["patients"]}


def _counts(first: Mapping[str, int], second: Mapping[str, int]) -> Iterator[Difference]:
    for site in sorted(first.keys() & second.keys()):
        if first[site] != second[site]:
            said = f"The patients of {site} are others: it told {first[site]} in A and {second[site]} in B."
            yield Difference("patients", site, first[site], second[site], warning=said)


def _sites(one: Mapping[str, Any], other: Mapping[str, Any]) -> Iterator[Difference]:
    """In how many rounds each site's update entered."""
    counts = [_rounds_of(summary) for summary in (one, other)]
    joined = [first_asked(summary["sites-by-round"]) for summary in (one, other)]
    for site in sorted(joined[0].keys() & joined[1].keys()):
        if joined[0][site] != joined[1][site]:
            yield Difference("first round that asked it", site, joined[0][site], joined[1][site])
    for site in sorted({*counts[0], *counts[1]}):
        first, second = (count.get(site, 0) for count in counts)
        if first != second:
            yield Difference("rounds with its update", site, first, second)


def _rounds_of(summary: Mapping[str, Any]) -> dict[str, int]:
    named = [site for event in summary["sites-by-round"] for site in event["sites"]]
    return {site: named.count(site) for site in dict.fromkeys(named)}


def _epsilons(one: Mapping[str, Any], other: Mapping[str, Any]) -> Iterator[Difference]:
    stated = [(summary["guarantee"] or {}).get("sites", {}) for summary in (one, other)]
    for site in sorted({*stated[0], *stated[1]}):
        for key in ("epsilon", "delta"):
            yield Difference(key, site, *(sites.get(site, {}).get(key) for sites in stated))


def _scores(one: Mapping[str, Any], other: Mapping[str, Any]) -> Iterator[Difference]:
    headlines = [task_of(summary["settings"]) for summary in (one, other)]
    for phase in ("test", "validation"):
        by_site = []
        for summary in (one, other):
            scores = summary["scores"].get(phase) or {"sites": {}, "mean-of-sites": {}}
            by_site.append({**scores["sites"], OVERALL: scores["mean-of-sites"]})
        for site in [*sorted({*by_site[0], *by_site[1]} - {OVERALL}), OVERALL]:
            values = [scores.get(site, {}) for scores in by_site]
            for name in [name for name in values[0] | values[1] if name not in NOISE_NAMES and "loss" not in name]:
                spreads = [
                    one.get(SCORE_NOISE if name == task.headline else CLASS_NOISE)
                    for one, task in zip(values, headlines, strict=True)
                ]
                yield _scored(f"{phase} {name}", site, values[0].get(name), values[1].get(name), spreads)


def _scored(what: str, site: str, first: Any, second: Any, spreads: list[float | None]) -> Difference:
    known = [spread for spread in spreads if spread is not None]
    if first is None or second is None or len(known) < 2:
        return Difference(what, site, first, second, noised=bool(known))
    half = _NORMAL_95 * math.hypot(*known)
    return Difference(what, site, first, second, second - first - half, second - first + half, noised=True)


def _flat(values: Mapping[str, Any], above: str) -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{above}{key}.")
        else:
            yield f"{above}{key}", value


__all__ = ["Difference", "compare", "diff"]
