"""How unlike the hospitals of a run are, as far as what left them tells: what differs, what that means, what to try.

Each measure has a limit that is stated beside it. For four of them nothing is asked of a site:

    size        the largest share of the patients times the number of sites: 1, all have as many
    drift       how much of what a site's move has beyond the mean comes back in the next round, mean of the sites
                (`own-way` of server/federation/drift.py), over the second half of the rounds
    direction   the lowest `with-others` of a site, over the same rounds: one that moves against the rest
    scores      best less worst site's validation score, over the second half of the evaluations

Three more are of what sites tell of their training patients, where the run asks ([federation] statistics) and their
policies let it go; server/views/shift.py says what is found, and how likely chance makes it. They are beyond the limit
where the sites lie as far apart as it says AND alike sites would in one run of a hundred at most:

    labels      shares of patients with a class
    foreground  how large a class is where there is any
    intensities of the images as training sees them

That one of these lies within its limit proves nothing: of few patients only a large shift is found. Beside the labels
stands how large; where the run asks and hardly a site tells, their row says so, without a number.

The limits are round numbers; docs/run.md has what `phantoms` shows beside the same patients dealt equally. They are no
law of other data. Of few patients each site learns its own by heart, and drift and scores are as far beyond where
patients are alike (scenario `unlike-alike`): below FEWEST_PATIENTS, or where no count is told, both are shown and not
judged. Statistics come with the number of patients that they are of, and need no such limit.
"""

import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from common.config.statistics import COUNTED, share_of
from common.tasks import task_of
from common.text import counted
from server.federation.events import MOVES, OVERALL, OWN_WAY, WITH_OTHERS, Event, statistics_of
from server.views.shift import Shift, labels_unfound, of_foreground, of_intensities, of_labels

MOST_SHARE, MOST_DRIFT, LEAST_AGREEMENT, MOST_APART = 2.0, 0.1, -0.1, 0.25
# Of shares of patients; of means, in standard deviations between patients.
MOST_UNLIKE_LABELS, MOST_UNLIKE_MEANS = 0.1, 0.5
LEAST_CHANCE = 0.01
FEWEST_PATIENTS = 50  # of the smallest site
_FEWEST = 3  # rounds with a measure, below which their mean says nothing

COLUMNS = ("what may differ", "found", "limit", "what it means, and what to try")
_ON_DRIFT = (
    "The sites pull apart, round after round (client drift): try fewer training.local-steps, or the strategy scaffold "
    "or fedprox; where each should have a model that fits it, ditto."
)
_LABELS = "labels: share of patients with a class"
_NO_PROOF = "within the limit, which is no proof: of few patients only a large shift is found"
_UNTOLD = (
    "Nothing is known of a label shift: a site tells from about 20 training patients on, and what its policy names "
    "(class-share)."
)
_OF_FEW = "Not judged: with few patients, or an untold number, it is as far beyond where patients are alike."


_OfRound = TypeVar("_OfRound")


@dataclass(frozen=True)
class Finding:
    """One measure of a run."""

    key: str  # in JSON
    what: str
    found: float | None  # None: too few sites tell
    where: str  # which site, or how many
    limit: float
    beyond: bool  # the limit: the sites are unlike by this measure
    advice: str
    within: str = "within the limit"  # said where they are not

    @property
    def row(self) -> list[object]:
        """In the order of COLUMNS."""
        about = f"{self.where}" if self.found is None else f"{self.found:.2f} ({self.where})"
        return [self.what, about, f"{self.limit:g}", self.advice if self.beyond else self.within]


def heterogeneity_of(summary: Mapping[str, Any], events: Sequence[Event]) -> list[Finding]:
    """What can be told of a run; a measure whose numbers did not leave the sites is not there.

    Args:
        summary: as `summary.json` has it, or of a run that goes on.
        events: of its journal.
    """
    measures: tuple[Callable[..., Iterator[Finding]], ...] = (_size, _drift, _against, _scores, _shifts)
    return [one for measure in measures for one in measure(summary, events)]


def as_columns(
    findings: Sequence[Finding], events: Sequence[Event], *, of_all: str = OVERALL
) -> dict[str, dict[str, float | bool | None]]:
    """Columns of JSON, each a value by site: what each tells of its patients, and in the row of all sites the measures.

    Args:
        findings: of the run.
        events: of its journal.
        of_all: name of that row.
    """
    told = statistics_of(events)
    found: dict[str, dict[str, float | bool | None]] = {}
    for name in dict.fromkeys(name for values in told.values() for name in sorted(values)):
        found[name] = {site: values.get(name) for site, values in told.items()}
    for one in findings:
        found[f"unlike-{one.key}"] = {of_all: one.found}
        found[f"unlike-{one.key}-beyond"] = {of_all: one.beyond}
    return found


def _size(_summary: Mapping[str, Any], events: Sequence[Event]) -> Iterator[Finding]:
    patients = {one["site"]: one.get("patients", 0) for one in events if one["event"] == "train"}
    if len(patients) < 2 or not all(patients.values()):  # they are 0 where sites weigh alike
        return
    site, most = max(patients.items(), key=lambda one: (one[1], one[0]))
    share = most * len(patients) / sum(patients.values())
    yield Finding(
        "size",
        "patients: the largest share, times the sites",
        share,
        f"{site}, about {most} of {sum(patients.values())}",
        MOST_SHARE,
        share >= MOST_SHARE,
        f"The mean goes by the patients of {site}: federation.weighting = 'equal' counts hospitals alike.",
    )


def _drift(_summary: Mapping[str, Any], events: Sequence[Event]) -> Iterator[Finding]:
    rounds = _later(_moves(events, OWN_WAY))
    if len(rounds) < _FEWEST:
        return
    found = statistics.fmean(statistics.fmean(one.values()) for one in rounds)
    sites = sorted({site for one in rounds for site in one})
    mean = {site: statistics.fmean(one[site] for one in rounds if site in one) for site in sites}
    most = max(sites, key=lambda site: mean[site])
    yield Finding(
        "drift",
        "updates: what returns of a site's own direction",
        found,
        f"most of {most}, {mean[most]:.2f}",
        MOST_DRIFT,
        found >= MOST_DRIFT,
        _ON_DRIFT if _have_enough(events) else _OF_FEW,
    )


def _against(_summary: Mapping[str, Any], events: Sequence[Event]) -> Iterator[Finding]:
    rounds = _later(_moves(events, WITH_OTHERS))
    sites = sorted({site for one in rounds for site in one})
    if len(rounds) < _FEWEST or len(sites) < 3:
        return
    mean = {site: statistics.fmean(one[site] for one in rounds if site in one) for site in sites}
    site = min(sites, key=lambda one: mean[one])
    yield Finding(
        "direction",
        "updates: the least cosine of a site with the others",
        mean[site],
        site,
        LEAST_AGREEMENT,
        mean[site] <= LEAST_AGREEMENT,
        f"{site} moves against the others: ask there for `wardround-client data check` first, as labels the wrong way "
        "round do this; then a strategy that bounds one site, such as fedmedian.",
    )


def _scores(summary: Mapping[str, Any], events: Sequence[Event]) -> Iterator[Finding]:
    headline = task_of(summary.get("settings")).headline
    by_round: dict[int, dict[str, float]] = {}
    for one in events:
        if one["event"] == "evaluate" and one["phase"] == "validation" and one["site"] != OVERALL and headline in one:
            by_round.setdefault(one["round"], {})[one["site"]] = one[headline]
    numbers = _later(sorted(by_round))
    rounds = [by_round[number] for number in numbers]
    sites = sorted({site for one in rounds for site in one})
    if len(sites) < 2 or (summary.get("settings") or {}).get("privacy"):  # there each has noise of its own
        return
    mean = {site: statistics.fmean(one[site] for one in rounds if site in one) for site in sites}
    worst, best = min(sites, key=lambda one: mean[one]), max(sites, key=lambda one: mean[one])
    apart = mean[best] - mean[worst]
    # The tables above it show each round's own.
    over = f", each a mean over the evaluations after rounds {numbers[0]} to {numbers[-1]}" if len(numbers) > 1 else ""
    advice = (
        f"One model does not serve all, or {worst} has the harder patients, which federation.cross-site tells apart: "
        "try strategies with models of the sites' own (ditto, mr-mtl; fedbn for other scanners), or fedpid."
    )
    yield Finding(
        "scores",
        f"validation {headline}: best less worst site",
        apart,
        f"{best} {mean[best]:.2f}, {worst} {mean[worst]:.2f}{over}",
        MOST_APART,
        apart >= MOST_APART,
        advice if _have_enough(events) else _OF_FEW,
    )


def _shifts(summary: Mapping[str, Any], events: Sequence[Event]) -> Iterator[Finding]:
    told, data = statistics_of(events), (summary.get("settings") or {}).get("data") or {}
    classes, channels = data.get("classes", ()), data.get("channels", 1)
    if (labels := of_labels(told, classes)) is not None:
        advice = (
            f"More patients of {labels.highest[0]} than of {labels.lowest[0]} have {labels.what} (label shift): the "
            "model leans to what is frequent where most patients are. Look at each site's score of the class, and try "
            "training.sampling = 'balanced', or ditto."
        )
        yield _shift("labels", _LABELS, labels, MOST_UNLIKE_LABELS, advice, within=_unfound(told, classes))
    elif told:
        tell = sum(any(share_of(label) in one for label in classes) for one in told.values())
        about = f"not told: of {counted(len(told), 'site')} that tell anything, {tell} tell a share"
        yield Finding("labels", _LABELS, None, about, MOST_UNLIKE_LABELS, False, "", _UNTOLD)
    if (size := of_foreground(told, classes)) is not None:
        advice = (
            f"{size.what} is larger at {size.highest[0]} than at {size.lowest[0]}: other patients, or others who draw. "
            "Let both look at labels with `wardround-client data preview` first; where it is the patients, try ditto."
        )
        yield _shift("foreground", "labels: size of a class's foreground", size, MOST_UNLIKE_MEANS, advice)
    if (shift := of_intensities(told, channels)) is not None:
        advice = (
            f"Images of {shift.highest[0]} are unlike those of {shift.lowest[0]} as they are prepared (scanner, "
            "protocol): the model may do worse where they stand apart. Try another preprocessing.intensity, steps such "
            "as n4 or equalisation, training.augmentation of brightness and contrast, or fedbn."
        )
        yield _shift("intensities", "intensities: prepared images, between sites", shift, MOST_UNLIKE_MEANS, advice)


def _unfound(told: Mapping[str, Mapping[str, float]], classes: Sequence[str]) -> str:
    """What the labels' row says within its limit: how much it would not find."""
    site, least = labels_unfound(told, classes, limit=MOST_UNLIKE_LABELS, chance=LEAST_CHANCE) or ("", None)
    about = f"{site} (about {told[site][COUNTED]:g} patients)"
    if least is None:
        return f"within the limit, which says nothing: with so few patients at {about} no difference there is found"
    return (
        f"within the limit, which is no proof: at {about} a difference below {least:.2f} is mostly not found, even "
        "where half of the patients have the class, and none where all but ten have it, or ten"
    )


def _shift(key: str, what: str, shift: Shift, limit: float, advice: str, *, within: str = _NO_PROOF) -> Finding:
    (low, lowest), (high, highest) = shift.lowest, shift.highest
    chance = "under 0.001" if shift.chance < 0.001 else f"{shift.chance:.3f}"
    return Finding(
        key,
        what,
        shift.found,
        f"{shift.what}: {high} {highest:g}, {low} {lowest:g}; by chance {chance}",
        limit,
        shift.found >= limit and shift.chance < LEAST_CHANCE,
        advice,
        within,
    )


def _have_enough(events: Sequence[Event]) -> bool:
    """Whether each site has told that it has enough patients for its moves to be of more than single ones."""
    patients = [one.get("patients", 0) for one in events if one["event"] == "train"]
    return bool(patients) and min(patients) >= FEWEST_PATIENTS


def _moves(events: Sequence[Event], name: str) -> list[dict[str, float]]:
    """A measure of the moves, by round and site; rounds without it are left out."""
    rounds = [
        {site: values[name] for site, values in one.get(MOVES, {}).items() if name in values}
        for one in events
        if one["event"] == "round"
    ]
    return [one for one in rounds if one]


def _later(rounds: list[_OfRound]) -> list[_OfRound]:
    """The second half: in the first rounds of a run all sites learn the same."""
    return rounds[len(rounds) // 2 :]


__all__ = ["COLUMNS", "FEWEST_PATIENTS", "Finding", "as_columns", "heterogeneity_of"]
