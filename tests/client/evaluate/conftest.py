"""Intervals by fewer draws: what they are is tested beside the measures."""

from functools import partial

import pytest

from client.evaluate import classification, segmentation
from common.measures import intervals


@pytest.fixture(autouse=True)
def _few_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    few = {name: partial(getattr(intervals, name), resamples=100) for name in ("bootstrap", "bootstrap_each")}
    monkeypatch.setattr(segmentation, "bootstrap", few["bootstrap"])
    for module in (segmentation, classification):
        monkeypatch.setattr(module, "bootstrap_each", few["bootstrap_each"])
