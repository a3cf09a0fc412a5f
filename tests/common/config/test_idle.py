"""A setting that changes nothing is refused where that breaks no earlier run, and said otherwise."""

from typing import Any

import pytest

from common.config import RunConfig, validate
from common.errors import ConfigError


def run_of(training: dict[str, Any], **tables: Any) -> RunConfig:
    values = {
        "name": "lesions",
        "format": 2,
        "data": {"modality": "CT", "classes": ["lesion"]},
        "training": {"patch-size": [16, 16], **training},
        "federation": {"rounds": 2},
    }
    return validate(RunConfig, values | tables)


@pytest.mark.parametrize(
    ("training", "tables", "said"),
    [
        ({"momentum": 0.5}, {}, ["training.momentum"]),
        ({"momentum": 0.5, "optimizer": "sgd"}, {}, []),
        ({"batch-size": 2}, {"privacy": {"target-epsilon": 1.0}}, ["training.batch-size"]),
        ({"batch-size": 2}, {}, []),
        ({}, {"privacy": {"target-epsilon": 1.0}}, []),
    ],
)
def test_what_changes_nothing_is_named(training: dict[str, Any], tables: dict[str, Any], said: list[str]) -> None:
    assert [sentence.partition(" ")[0] for sentence in run_of(training, **tables).idle] == said


@pytest.mark.parametrize(
    ("seconds", "tables", "told"),
    [
        (59.0, {}, False),
        (60.0, {}, True),
        (600.0, {}, True),
        (29.0, {"strategy": {"kind": "ditto"}}, False),
        (31.0, {"strategy": {"kind": "ditto"}}, True),
        (31.0, {"federation": {"cross-site": True}}, True),
        (21.0, {"strategy": {"kind": "ditto"}, "federation": {"cross-site": True}}, True),
        (None, {}, False),
    ],
)
def test_a_round_that_ends_before_its_sites_do_is_told(
    seconds: float | None, tables: dict[str, Any], told: bool
) -> None:
    federation = {"rounds": 2, "round-timeout-s": 60.0, **tables.get("federation", {})}
    training = {} if seconds is None else {"local-seconds": seconds}
    said = [one for one in run_of(training, **{**tables, "federation": federation}).idle if "round-timeout-s" in one]
    assert bool(said) == told


@pytest.mark.parametrize("choice", [{"keep": "best"}, {"patience": 2}])
@pytest.mark.parametrize("kind", ["segmentation", "classification"])
@pytest.mark.parametrize("private", [False, True])
def test_a_private_run_is_told_that_scores_which_cannot_be_noised_choose_nothing_by_default(
    choice: dict[str, Any], kind: str, private: bool
) -> None:
    tables = {"federation": {"rounds": 4, "evaluate-every": 1, **choice}, "task": {"kind": kind}}
    run = run_of({}, **tables, **({"privacy": {"target-epsilon": 1.0}} if private else {}))
    said = [sentence for sentence in run.idle if "scores = 'exact'" in sentence]
    assert len(said) == (private and kind == "classification")
    assert all(sentence.startswith(f"federation.{next(iter(choice))} ") for sentence in said)


def test_a_constant_rate_has_no_cycles_but_may_warm_up() -> None:
    with pytest.raises(ConfigError, match="cycles is for a schedule that runs down"):
        run_of({"schedule": "constant", "cycles": 2})
    assert run_of({"schedule": "constant", "warmup-steps": 3}).training.warmup_steps == 3
