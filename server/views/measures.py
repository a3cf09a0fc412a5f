"""Every number that a run's journal has, by round and site: what a curve, TensorBoard, MLflow and Prometheus are given.

Where a run guarantees nothing, what it would have cost is no number of it (common/privacy/guarantee.py).
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from common.pages.chart import Points
from common.privacy.scores import SCORES_DELTA, SCORES_EPSILON
from server.federation.events import NOT_ASKED, OVERALL, Event, scores_of

TRAIN, EXCHANGE = "train", "round"

_PRICES = ("epsilon", "delta", SCORES_EPSILON, SCORES_DELTA)


@dataclass(frozen=True)
class Measure:
    """One number of a run over its rounds."""

    phase: str  # train, validation, test; round: of the exchange itself
    name: str
    series: Mapping[str, Points]  # by site, or "overall"; (round, value)


def measures_of(events: Sequence[Event], *, priced: bool) -> list[Measure]:
    """The numbers of a run.

    Args:
        events: of its journal.
        priced: whether what the sites state of their privacy is one of them.
    """
    found: dict[tuple[str, str], dict[str, dict[float, float]]] = {}
    for event in events:
        for phase, name, site, value in _numbers(event):
            if math.isfinite(value) and (priced or name not in _PRICES):
                found.setdefault((phase, name), {}).setdefault(site, {})[event["round"]] = value
    return [
        Measure(phase, name, {site: sorted(points.items()) for site, points in series.items()})
        for (phase, name), series in found.items()
    ]


def moments_of(events: Sequence[Event]) -> dict[int, float]:
    """When each round, or the last evaluation after it, ended; Unix s."""
    return {
        event["round"]: event["time"]
        for event in events
        if event["event"] in ("round", "evaluate") and "time" in event and event.get("site", OVERALL) == OVERALL
    }


def latest(measures: Sequence[Measure], phase: str, name: str) -> dict[str, float]:
    """The last value of each site."""
    series = next((one.series for one in measures if (one.phase, one.name) == (phase, name)), {})
    return {site: points[-1][1] for site, points in series.items()}


def _numbers(event: Event) -> Iterator[tuple[str, str, str, float]]:
    """Phase, name, site and value of each number in an event."""
    if event["event"] == "round":
        counts = ("sites", "refused", "missing", *((NOT_ASKED,) if NOT_ASKED in event else ()))
        yield from ((EXCHANGE, name, OVERALL, float(len(event[name]))) for name in counts)
        yield from ((EXCHANGE, name, OVERALL, float(event[name])) for name in ("seconds", "bytes-down", "bytes-up"))
    elif event["event"] in ("train", "evaluate"):
        phase = event.get("phase", TRAIN)
        for name, value in scores_of(event).items():
            if isinstance(value, int | float) and not isinstance(value, bool):
                yield phase, name, event["site"], float(value)


__all__ = ["EXCHANGE", "TRAIN", "Measure", "latest", "measures_of", "moments_of"]
