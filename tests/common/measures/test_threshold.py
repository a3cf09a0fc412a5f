"""A threshold against a search over all of them, and kept apart from the test patients."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import f1_score, recall_score

from common.errors import ConfigError
from common.measures.histogram import histogram
from common.measures.threshold import Rule, chosen, chosen_by_bins


def worth(rule: Rule, outcomes: np.ndarray, answers: np.ndarray) -> float:
    if rule == "f1":
        return float(f1_score(outcomes, answers))
    return float(recall_score(outcomes, answers) + recall_score(~outcomes, ~answers) - 1)


@given(st.integers(0, 2**20), st.sampled_from(["youden", "f1"]))
@settings(max_examples=40, deadline=None)
def test_no_other_threshold_is_better(seed: int, rule: Rule) -> None:
    rng = np.random.default_rng(seed)
    scores, outcomes = rng.integers(0, 9, 25) / 8, rng.random(25) < 0.4
    outcomes[:2] = [True, False]
    best = chosen(scores, outcomes, rule)
    every = {at: worth(rule, outcomes, scores >= at) for at in np.unique(scores)}
    assert best.on_validation == pytest.approx(max(every.values()))
    assert every[best.value] == pytest.approx(best.on_validation)
    assert best.value == max(at for at, value in every.items() if value == pytest.approx(best.on_validation))


def test_bins_give_what_scores_on_their_edges_give() -> None:
    rng = np.random.default_rng(0)
    scores, outcomes = rng.integers(0, 16, 200) / 16, rng.random(200) < 0.3
    scores = np.where(outcomes, np.minimum(scores + 0.25, 15 / 16), scores)
    assert chosen_by_bins(histogram(scores, outcomes, 16)) == chosen(scores, outcomes, "f1")


def test_validation_patients_of_one_kind_give_no_threshold() -> None:
    with pytest.raises(ConfigError, match="one kind"):
        chosen([0.2, 0.7], [True, True])
    with pytest.raises(ConfigError, match="one kind"):
        chosen_by_bins(histogram([0.2], [False], 4))
