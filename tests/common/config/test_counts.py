"""Whole numbers that no machine could work with are refused when run.toml is read, and not in training."""

from typing import Any

import pytest

from common.config import RunConfig, SiteConfig, validate
from common.errors import ConfigError
from common.learning.schedule import learning_rate

PRIVATE = {"privacy": {"target-epsilon": 1.0}}


def run_of(patch: list[int], training: dict[str, Any] | None = None, **tables: Any) -> RunConfig:
    values = {
        "name": "lesions",
        "model": {"dims": len(patch), "channels": [4, 8]},
        "data": {"modality": "CT", "classes": ["lesion"]},
        "training": {"patch-size": patch, **(training or {})},
        "federation": {"rounds": 2},
    }
    return validate(RunConfig, values | tables)


@pytest.mark.parametrize("many", [65537, 10**15, 10**400])
@pytest.mark.parametrize(
    ("training", "tables"),
    [
        ("batch-size", {}),
        ("", {"privacy": "crops-per-patient"}),
        ("", {"preprocessing": "rows"}),
    ],
)
def test_counts_that_fill_memory_are_refused(many: int, training: str, tables: dict[str, str]) -> None:
    changed = {table: {key: many, **PRIVATE.get(table, {})} for table, key in tables.items()}
    with pytest.raises(ConfigError, match=training or next(iter(tables.values()))):
        run_of([16, 16], {training: many} if training else None, **changed)


@pytest.mark.parametrize(
    "changes",
    [
        {"federation": {"rounds": 10**400}},
        {"federation": {"rounds": 2, "quorum": 10**400}},
        {"training": {"patch-size": [16, 16], "local-steps": 10**400}},
        {"training": {"patch-size": [16, 16], "warmup-steps": 10**400}, "format": 2},
    ],
)
def test_numbers_that_are_no_floats_are_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=r"at most 1e\+15"):
        learning_rate(run_of([16, 16], **changes), 0)


@pytest.mark.parametrize("private", [False, True])
def test_crops_that_no_memory_holds_together_are_refused(private: bool) -> None:
    """By hand: 4 crops of 1024 x 1024 x 1024 float32 are 16 GiB."""
    key = "crops-per-patient" if private else "batch-size"
    tables: dict[str, Any] = PRIVATE if private else {}
    assert run_of([1024, 1024, 1024], **tables).training.patch_size == (1024, 1024, 1024)
    with pytest.raises(ConfigError, match=f"{key} = 4 crops .* are 32 GiB .* at most 16 GiB"):
        run_of([2048, 1024, 1024], **tables)
    with pytest.raises(ConfigError, match="2,048 GiB"):
        run_of(
            [8192, 8192, 8192],
            {"batch-size": 1},
            **({"privacy": {**PRIVATE["privacy"], "crops-per-patient": 1}} if private else {}),
        )


def test_a_batch_size_that_privacy_does_not_use_is_not_held_against_it() -> None:
    assert run_of([1024, 1024, 1024], {"batch-size": 64}, **PRIVATE).training.batch_size == 64


def test_threads_are_as_many_as_a_machine_may_have() -> None:
    assert validate(SiteConfig, {"name": "north", "threads": 4096}).threads == 4096
    with pytest.raises(ConfigError, match="threads"):
        validate(SiteConfig, {"name": "north", "threads": 10**15})


@pytest.mark.parametrize(
    ("patch", "fits"),
    [
        ([2048, 2048], True),
        ([4096, 2048], False),
        ([8192, 8192], False),
        ([128, 128, 128], True),
        ([256, 128, 128], False),
    ],
)
def test_regions_have_windows_that_a_site_can_keep(patch: list[int], fits: bool) -> None:
    """By hand: 2048 x 2048 doubled along each edge is 16.8 million values, 64 MiB."""
    regions: dict[str, Any] = {
        "format": 2,
        "data": {"modality": "CT", "classes": ["benign", "malignant"]},
        "task": {"kind": "classification", "of": "region"},
    }
    assert run_of(patch, {"batch-size": 1}).training.patch_size == tuple(patch)
    if fits:
        assert run_of(patch, {"batch-size": 1}, **regions).task.of_regions
        return
    with pytest.raises(ConfigError, match="at most 64 MiB"):
        run_of(patch, {"batch-size": 1}, **regions)
