"""run.toml, site.toml and policy.toml: what is accepted, what is refused, and what identifies a run."""

import hashlib
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.config import (
    PolicyConfig,
    RunConfig,
    SiteConfig,
    canonical,
    from_canonical,
    load,
    parse,
    sha256_of,
    validate,
)
from common.config.statistics import statistic_names
from common.errors import ConfigError
from server.federation.checks import MAX_METRICS
from tests.patience import PATIENCE_S

RUN = """
name = "liver"
[data]
modality = "CT"
classes = ["lesion"]
[training]
patch-size = [64, 64]
[federation]
rounds = 3
"""


def test_minimal_run_is_accepted_with_defaults() -> None:
    run = parse(RunConfig, RUN)
    assert run.federation.quorum == 2
    assert run.privacy is None
    assert run.weighting == "patients"


def test_private_run_weights_sites_equally() -> None:
    run = parse(RunConfig, RUN + "[privacy]\ntarget-epsilon = 3.0\n")
    assert run.weighting == "equal"


@pytest.mark.parametrize(
    ("wrong", "right"),
    [("quorom = 2", "quorum"), ("round-timeout = 3", "round-timeout-s"), ("evaluate-evry = 1", "evaluate-every")],
)
def test_unknown_key_is_refused_with_the_nearest_valid_name(wrong: str, right: str) -> None:
    with pytest.raises(ConfigError, match=f"Did you mean '{right}'"):
        parse(RunConfig, RUN + wrong)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (RUN.replace('"liver"', '"Liver Run"'), "name"),
        (RUN.replace("[64, 64]", "[60, 64]"), "multiples of 8"),
        (RUN.replace("[64, 64]", "[64, 64, 64]"), "2 entries"),
        (RUN.replace("rounds = 3", "rounds = 0"), "rounds"),
        (RUN + "[privacy]\ntarget-epsilon = nan\n", "target-epsilon"),
        (RUN + "[privacy]\ntarget-epsilon = -1\n", "target-epsilon"),
        (RUN + "[model]\nnorm = 'batch'\n", "norm"),
        (RUN + "[preprocessing]\nintensity = 'window'\n", "window"),
        (RUN + "[preprocessing]\nintensity = 'window'\nwindow = [40, -40]\n", "low < high"),
        (RUN + "[preprocessing]\nrows = 64\nspacing-mm = [1, 1]\n", "not both"),
        (RUN.replace('"lesion"', '"lesion", "lesion"'), "distinct"),
        (RUN.replace("rounds = 3", 'rounds = 3\nweighting = "patients"') + "[privacy]\ntarget-epsilon = 1\n", "equal"),
        (RUN.replace('classes = ["lesion"]', 'classes = ["lesion"]\ntest-fraction = 0.9'), "training"),
        (RUN.replace("[training]", "folds = 1\n[training]"), "folds"),
        (RUN.replace("[training]", "folds = 21\n[training]"), "folds"),
        (RUN.replace("[training]", "folds = 5\nfold = 5\n[training]"), "below folds"),
        (RUN.replace("[training]", "folds = 5\nfold = -1\n[training]"), "fold"),
        (RUN.replace("[training]", "fold = 1\n[training]"), "below folds"),
        (RUN.replace("[training]", "folds = 4\nvalidation-fraction = 0.75\n[training]"), "1/folds"),
        ("name = ", "not valid TOML"),
    ],
)
def test_wrong_run_is_refused_and_the_message_names_the_cause(text: str, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        parse(RunConfig, text)


def test_test_fraction_is_not_used_where_folds_are() -> None:
    text = "folds = 5\nfold = 4\nvalidation-fraction = 0.5\ntest-fraction = 0.9\n[training]"
    assert parse(RunConfig, RUN.replace("[training]", text)).data.folds == 5


def test_every_fold_is_a_run_of_its_own() -> None:
    runs = [RUN, *(RUN.replace("[training]", f"folds = 3\nfold = {fold}\n[training]") for fold in range(3))]
    assert len({sha256_of(parse(RunConfig, text)) for text in runs}) == 4


def test_missing_file_is_refused_with_its_path(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"absent\.toml cannot be read: it is not there\. Give the path"):
        load(RunConfig, tmp_path / "absent.toml")


def test_binary_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "run.toml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="UTF-8"):
        load(RunConfig, tmp_path / "run.toml")


def test_hash_is_sha256_of_sorted_compact_json() -> None:
    run = parse(RunConfig, RUN)
    document = json.loads(canonical(run))
    again = json.dumps(document, sort_keys=True, separators=(",", ":"))
    assert sha256_of(run) == hashlib.sha256(again.encode()).hexdigest()


def test_writing_a_default_out_does_not_change_the_hash() -> None:
    assert sha256_of(parse(RunConfig, RUN)) == sha256_of(parse(RunConfig, RUN + "quorum = 2\n"))


@given(st.integers(0, 2**32 - 1), st.integers(1, 10_000), st.floats(1e-6, 1e3))
def test_canonical_is_inverted_and_hash_changes_with_any_value(seed: int, rounds: int, epsilon: float) -> None:
    text = RUN.replace("rounds = 3", f"rounds = {rounds}") + f"[privacy]\ntarget-epsilon = {epsilon}\n"
    run = parse(RunConfig, f"seed = {seed}\n" + text)
    assert from_canonical(RunConfig, canonical(run)) == run
    other = parse(RunConfig, f"seed = {(seed + 1) % 2**32}\n" + text)
    assert sha256_of(other) != sha256_of(run)


def test_configuration_cannot_be_changed_after_it_was_read() -> None:
    run = parse(RunConfig, RUN)
    with pytest.raises(ValueError, match="frozen"):
        run.seed = 3


def test_shipped_policy_is_strict() -> None:
    policy = PolicyConfig()
    assert not policy.auto_approve
    assert policy.require_privacy


def test_site_sources_keep_the_names_written_by_the_site() -> None:
    site = parse(SiteConfig, 'name = "north"\n[[data]]\npath = "scans"\nlabel-map = { "Tumor L" = "lesion" }\n')
    assert site.data[0].label_map == {"Tumor L": "lesion"}


@pytest.mark.parametrize("text", ["a = " + "[" * 30_000, "a = " + "{b = " * 5_000, "a = 1" + "0" * 20_000, "a = \x00"])
def test_hostile_toml_is_refused_like_any_other_mistake(text: str) -> None:
    with pytest.raises(ConfigError):
        parse(RunConfig, text)


@pytest.mark.parametrize("text", ["[" * 100_000, '{"a":' * 50_000, "1" + "0" * 20_000, "", "\x00"])
def test_hostile_json_is_refused_like_any_other_mistake(text: str) -> None:
    with pytest.raises(ConfigError):
        from_canonical(RunConfig, text)


@pytest.mark.parametrize("rounds", [1, 3, 9, 10])
@pytest.mark.parametrize("every", [1, 3, 4, 20])
def test_evaluations_are_those_that_a_count_over_the_rounds_finds(rounds: int, every: int) -> None:
    run = parse(RunConfig, RUN.replace("rounds = 3", f"rounds = {rounds}\nevaluate-every = {every}"))
    for over in range(rounds + 1):
        due = [one for one in range(over + 1, rounds + 1) if one % every == 0 or one == rounds]
        assert run.evaluations_after(over) == len(due) + 1
    assert run.evaluations == run.evaluations_after(0)


@pytest.mark.timeout(PATIENCE_S)
@pytest.mark.parametrize("key", ['keep = "best"', "patience = 5"])
def test_document_of_very_many_rounds_is_read_at_once(key: str) -> None:
    """An agent reads it before anybody has looked at it: counting round by round would take days."""
    many = RUN.replace("rounds = 3", f"rounds = {10**13}\nevaluate-every = 1000\n{key}")
    assert parse(RunConfig, f"format = 2\n{many}").evaluations == 10**10 + 1


ASKS = RUN.replace("rounds = 3", "rounds = 3\nstatistics = true").replace("name =", "format = 2\nname =", 1)


def test_a_private_run_may_not_ask_for_statistics_and_is_told_what_to_do() -> None:
    assert parse(RunConfig, ASKS).federation.statistics
    with pytest.raises(ConfigError, match=r"federation\.statistics .* take it out, and ask for it in a run without"):
        parse(RunConfig, ASKS + "[privacy]\ntarget-epsilon = 1\n")


def test_statistics_are_of_so_many_classes_as_an_update_can_tell() -> None:
    values = parse(RunConfig, ASKS).model_dump(by_alias=True)
    most = {**values, "data": {**values["data"], "channels": 3, "classes": [f"c{n}".ljust(40, "x") for n in range(60)]}}
    names = statistic_names(validate(RunConfig, most))
    assert len(names) + 10 <= MAX_METRICS
    assert max(map(len, names)) <= 64
    for classes in ([f"c{number}" for number in range(61)], ["x" * 41]):
        with pytest.raises(ConfigError, match="of 60 at most, with names of up to 40"):
            validate(RunConfig, {**values, "data": {**values["data"], "classes": classes}})
