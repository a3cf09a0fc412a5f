"""AUROC and average precision; scikit-learn is the oracle."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score, roc_auc_score

from common.measures.ranking import auroc, average_precision


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 5), st.booleans()), min_size=2, max_size=40))
def test_areas_are_those_of_scikit_learn_with_ties(pairs: list[tuple[int, bool]]) -> None:
    scores = torch.tensor([score / 5 for score, _ in pairs], dtype=torch.float64)
    truth = torch.tensor([one for _, one in pairs])
    if truth.all() or not truth.any():
        assert auroc(scores, truth) is average_precision(scores, truth) is None
        return
    assert auroc(scores, truth) == pytest.approx(roc_auc_score(truth, scores), abs=1e-12)
    assert average_precision(scores, truth) == pytest.approx(average_precision_score(truth, scores), abs=1e-12)


def test_the_ends_and_the_middle() -> None:
    truth = torch.tensor([False, False, True, True])
    assert auroc(torch.tensor([0.1, 0.2, 0.3, 0.4]), truth) == 1.0
    assert auroc(torch.tensor([0.4, 0.3, 0.2, 0.1]), truth) == 0.0
    assert auroc(torch.full((4,), 0.7), truth) == 0.5
