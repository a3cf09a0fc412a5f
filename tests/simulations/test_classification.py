"""Classification end to end in a federation, plain and private; and what of its scores leaves a hospital."""

from pathlib import Path
from typing import Any

import pytest

from client.rules import exit_gate
from common.config import RunConfig
from common.config.rundocument import issue
from common.errors import UpdateError
from common.tasks.classification import Classification
from common.wire.messages import EvaluateReply, EvaluateRequest
from server.federation.rounds import federate
from simulations.backends import opened
from simulations.scenarios.homes import make_site
from tests.simulations.classed import classed_run, classed_site

SCORES = {"auroc": 0.8, "accuracy": 0.7, "f1": 0.6}


def run(folder: Path, config: RunConfig, **words: Any) -> dict[str, Any]:
    sites = [
        make_site(folder / "sites", classed_site(folder / name, name, patients=15, **words))
        for name in ("north", "south")
    ]
    document = issue(config)
    with opened(sites, document) as grid:
        return vars(federate(grid, document, folder / "model"))


@pytest.mark.parametrize("privacy", [None, {"target-epsilon": 50.0, "sampling-rate": 0.5, "crops-per-patient": 1}])
def test_a_federation_classifies(tmp_path: Path, privacy: dict[str, float] | None) -> None:
    steps = {"local-steps": 12, "batch-size": 6, "learning-rate": 1e-2} if privacy is None else {}
    tables = {} if privacy is None else {"privacy": privacy}
    summary = run(tmp_path, classed_run(training=steps, **tables))
    assert summary["status"] == "completed"
    told = summary["scores"]["test"]["mean-of-sites"]
    assert set(told) <= set(Classification.SCORES)
    assert privacy is not None or told["auroc"] > 0.9
    assert (summary["guarantee"] is None) == (privacy is None)


def test_a_federation_classifies_from_mixed_images_of_balanced_patients(tmp_path: Path) -> None:
    steps = {"local-steps": 12, "batch-size": 6, "learning-rate": 1e-2, "sampling": "balanced"}
    config = classed_run(training={**steps, "augmentation": {"preset": "guide", "mixup": 0.2}})
    summary = run(tmp_path, config)
    assert summary["status"] == "completed"
    assert summary["scores"]["test"]["mean-of-sites"]["auroc"] > 0.9


def test_sites_where_all_images_show_one_class_tell_no_ranking(tmp_path: Path) -> None:
    summary = run(tmp_path, classed_run(), words=("dark",))
    assert summary["status"] == "completed"
    told = summary["scores"]["test"]["mean-of-sites"]
    assert not {"auroc", "auprc", "balanced-accuracy"} & told.keys()
    assert 0 <= told["sensitivity"] <= 1


@pytest.mark.parametrize(("scores", "leave"), [("exact", set(SCORES)), ("noised", set()), ("none", set())])
def test_under_privacy_no_score_leaves_unless_the_policy_lets_exact_ones_go(scores: Any, leave: set[str]) -> None:
    private = classed_run(privacy={"target-epsilon": 5.0})
    assert exit_gate.score_names(private, scores=scores) & set(SCORES) == leave
    request = EvaluateRequest("hash", 2, "test", {})
    reply = EvaluateReply("hash", 2, "test", 0, {**SCORES, "auroc-dark": 0.9, "patient": 1.0})
    if scores == "noised":
        with pytest.raises(UpdateError, match="no noise"):
            exit_gate.release(reply, request, private, scores=scores)
        return
    released = exit_gate.release(reply, request, private, scores=scores)
    assert isinstance(released, EvaluateReply)
    assert set(released.metrics) == leave


def test_without_privacy_the_scores_of_the_policy_leave_and_no_others() -> None:
    names = exit_gate.score_names(classed_run(), ("auroc", "dice"))
    assert names == {"auroc"}
