"""The tables in docs/privacy-engine.md, "What leaves, and what it depends on", against the code."""

import re
from collections.abc import Iterable, Iterator

import numpy as np
import pytest
from safetensors.numpy import save

from client.rules import exit_gate
from common.audit.entries import RECEIPT
from common.config import ALL_METRICS, RunConfig, Scores, parse, validate
from common.config.statistics import statistic_names
from common.errors import ErrorCode
from common.privacy.scores import NOISE_NAMES
from common.wire import versions
from common.wire.at_work import AtWork, stamp
from common.wire.messages import EvaluateReply, EvaluateRequest, Refusal, TrainReply, TrainRequest, reply_to_frame
from common.wire.wardround_pb2 import AnswerProposalRequest
from tests import ROOT
from tests.client.agent.test_loop import PRIVATE_TOML, RUN_TOML

PAGE = ROOT / "docs" / "privacy-engine.md"
WEIGHTS = save({"w": np.arange(6, dtype=np.float32).reshape(2, 3)})
SCORES: tuple[Scores, ...] = ("noised", "exact")
PLAIN, PRIVATE = parse(RunConfig, RUN_TOML), parse(RunConfig, PRIVATE_TOML)
# Whose sites train a model alone, too.
COMPARES, PRIVATE_COMPARES = (
    validate(
        RunConfig,
        {**(values := one.model_dump(by_alias=True)), "format": 2}
        | {"federation": values["federation"] | {"cross-site": True}},
    )
    for one in (PLAIN, PRIVATE)
)
# Which asks for statistics of the training patients.
ASKS = validate(
    RunConfig,
    {**(values := PLAIN.model_dump(by_alias=True)), "format": 2}
    | {"federation": values["federation"] | {"statistics": True}},
)
# Whose sites have models of their own.
PERSONAL, PRIVATE_PERSONAL = (
    validate(RunConfig, one.model_dump(by_alias=True) | {"format": 2, "strategy": {"kind": "ditto"}})
    for one in (PLAIN, PRIVATE)
)


def tables() -> tuple[list[list[str]], list[list[str]]]:
    """The rows of both tables, cell by cell."""
    text = PAGE.read_text(encoding="utf-8").split("## What leaves, and what it depends on\n")[1].split("\n## ")[0]
    found: list[list[list[str]]] = []
    for block in re.findall(r"(?:^\|.*\n)+", text, flags=re.MULTILINE):
        rows = [[cell.strip() for cell in line.strip("|\n ").split("|")] for line in block.splitlines()]
        found.append(rows[2:])
    values, codes = found
    return values, codes


def named(cell: str) -> list[str]:
    return re.findall(r"`([^`]+)`", cell)


def listed() -> list[str]:
    return [name for row in tables()[0] for name in named(row[0])]


def classless(names: Iterable[str]) -> set[str]:
    """Those of a class, a channel and a quantity under one name."""
    stems = (*(f"{stem}-CLASS" for stem in ("dice", "class-share", "foreground-share", "foreground-spread")),)
    found = {next((one for one in stems if name.startswith(one.removesuffix("CLASS"))), name) for name in names}
    return {
        re.sub("-(mean|deviation|p05|p50|p95)(-spread)?-1$", r"-QUANTITY\2-CHANNEL", name)
        if name.startswith("intensity-")
        else name
        for name in found
    }


def told() -> Iterator[str]:
    """Every name under which a value leaves in a message, an answer or a receipt."""
    for run in (PLAIN, PRIVATE, PERSONAL, PRIVATE_PERSONAL, COMPARES, PRIVATE_COMPARES):
        yield from exit_gate.train_metrics(run)
        assert not classless(exit_gate.train_metrics(run, ALL_METRICS)) & classless(STATISTIC_NAMES)
        for scores in SCORES:
            yield from classless(exit_gate.score_names(run, scores=scores))
    yield from classless(exit_gate.train_metrics(ASKS, ALL_METRICS))
    replies = (
        TrainReply("ab" * 32, 1, {"weights": WEIGHTS}, 10),
        EvaluateReply("ab" * 32, 1, "test", 10),
        Refusal("ab" * 32, 1, ErrorCode.INTERNAL),
    )
    for reply in replies:
        header = dict(reply_to_frame(reply).header)
        assert header.pop("metrics", {}) == {}  # whose names stand above
        yield from header
    yield "weights"
    yield from (key for key, _ in stamp(AtWork("ab" * 32, 1)))
    yield versions.AGENT
    yield from (name.lstrip("?") for name in RECEIPT.split())
    yield from (field.name.replace("_", "-") for field in AnswerProposalRequest.DESCRIPTOR.fields)
    yield from ("clientapp_runtime_list", "created_at", "ttl")  # of Flower's envelope, held by test_spending.py


def test_every_value_that_leaves_is_in_the_table_and_nothing_else() -> None:
    names = listed()
    assert len(names) == len(set(names)), "a value stands in two rows"
    assert set(names) == set(told())


STATISTIC_NAMES = statistic_names(ASKS)


def test_statistics_leave_only_where_they_are_named() -> None:
    by_row = {name: row[2] for row in tables()[0] for name in named(row[0])}
    assert exit_gate.train_metrics(ASKS) == exit_gate.train_metrics(PLAIN)
    assert exit_gate.train_metrics(ASKS, ALL_METRICS) == exit_gate.train_metrics(PLAIN) | STATISTIC_NAMES
    assert all("without noise" in by_row[name] for name in classless(STATISTIC_NAMES) - {"counted-patients"})


def test_under_privacy_no_scalar_of_an_update_depends_on_a_patient() -> None:
    by_row = {name: row[2] for row in tables()[0] for name in named(row[0])}
    assert all("no patient" in by_row[name] for name in exit_gate.train_metrics(PRIVATE))
    free = exit_gate.train_metrics(PLAIN) - exit_gate.train_metrics(PRIVATE)
    assert free == {"train-loss", "seconds"}
    assert all("neither leaves under privacy" in by_row[name] for name in free)


def test_scores_without_noise_are_named_as_such() -> None:
    by_row = {name: row[2] for row in tables()[0] for name in named(row[0])}
    exact = classless(exit_gate.score_names(PRIVATE, scores="exact")) - classless(exit_gate.score_names(PRIVATE))
    assert exact == {"foreground-dice", "iou", "sensitivity", "specificity", "precision", "recall"}
    assert all("without noise" in by_row[name] for name in exact)
    assert all("no patient" in by_row[name] for name in NOISE_NAMES)


def test_a_score_of_a_model_of_a_sites_own_leaves_no_private_run_and_only_where_the_score_may() -> None:
    assert exit_gate.score_names(PERSONAL) == exit_gate.score_names(PLAIN) | {"personal-dice"}
    assert exit_gate.score_names(COMPARES) == exit_gate.score_names(PLAIN) | {"local-dice"}
    for run, name in ((PERSONAL, "personal-dice"), (COMPARES, "local-dice")):
        assert name not in exit_gate.score_names(run, ("dice", "iou"))
        assert exit_gate.score_names(run, (name,)) == {name}
        assert not exit_gate.score_names(run, scores="none")
    for scores in SCORES:
        assert exit_gate.score_names(PRIVATE_PERSONAL, scores=scores) == exit_gate.score_names(PRIVATE, scores=scores)
        assert exit_gate.score_names(PRIVATE_COMPARES, scores=scores) == exit_gate.score_names(PRIVATE, scores=scores)


def test_every_code_is_in_the_table_with_the_time_when_it_can_be_given() -> None:
    rows = [(name, {word.strip() for word in row[1].split(",")}) for row in tables()[1] for name in named(row[0])]
    assert sorted(name for name, _ in rows) == sorted(ErrorCode)
    assert {name for name, when in rows if "before" in when} == exit_gate.BEFORE_CHARGE
    assert {name for name, when in rows if "after" in when} == exit_gate.AFTER_CHARGE
    assert all(when <= {"before", "after", "never"} for _, when in rows)
    assert all(row[2].startswith("the machine") for row in tables()[1] if "after" in row[1])


@pytest.mark.parametrize("code", list(ErrorCode))
def test_gate_gives_each_code_only_when_the_table_says_so(code: ErrorCode) -> None:
    train, evaluate = (
        TrainRequest("ab" * 32, 1, {"weights": WEIGHTS}),
        EvaluateRequest("ab" * 32, 1, "test", {"weights": WEIGHTS}),
    )
    said = Refusal("x", 7, code)
    after = exit_gate.release(said, train, PRIVATE)
    assert isinstance(after, Refusal)
    assert after.code in exit_gate.AFTER_CHARGE
    scored = exit_gate.release(said, evaluate, PRIVATE)
    assert isinstance(scored, Refusal)
    assert scored.code in exit_gate.BEFORE_CHARGE - {ErrorCode.NOT_FINITE, ErrorCode.OUT_OF_MEMORY, ErrorCode.INTERNAL}
    assert exit_gate.before_charge(code) in exit_gate.BEFORE_CHARGE
