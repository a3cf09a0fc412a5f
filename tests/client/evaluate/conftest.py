"""Intervals by fewer draws: what they are is tested beside the measures."""

from functools import partial

import pytest

from client.evaluate import segmentation
from common.measures import intervals


@pytest.fixture(autouse=True)
def _few_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("bootstrap", "bootstrap_each"):
        monkeypatch.setattr(segmentation, name, partial(getattr(intervals, name), resamples=100))
