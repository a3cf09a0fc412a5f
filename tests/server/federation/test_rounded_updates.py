"""Updates that travel in fewer bits, at the coordinator: read as the weights they stand for, or refused by name."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from common.config import RunConfig, sha256_of
from common.config.rundocument import issue
from common.errors import ErrorCode, UpdateError
from common.learning.checkpoint import pack, unpack
from common.learning.network import build_model, weights_of
from common.wire.encoding import LARGEST_ERROR, Encoding, decode, encode
from common.wire.messages import TrainReply, TrainRequest
from server.federation.bounds import farthest, trained
from server.federation.checks import check_update
from server.federation.events import Event
from server.federation.rounds import federate
from server.federation.strategies.spill import Spill
from tests.common.wire.test_encoding import HOSTILE, NOT_FINITE, SHAPES
from tests.server.fakes import FakeGrid, FakeSite, a_run, trains

ENCODINGS: tuple[Encoding, ...] = ("bfloat16", "int8")
NAMES = [f"site-{number}" for number in range(7)]
SENT = {name: torch.full(size, 0.5) for name, size in SHAPES.items()}


def rounded_run(encoding: str, rounds: int = 2, quorum: int = 2, **tables: Any) -> RunConfig:
    federation = {**tables.pop("federation", {}), "update-precision": encoding}
    return a_run(rounds, quorum, format_=2, federation=federation, **tables)


def check(part: bytes, run: RunConfig, state: dict[str, Tensor] | None = None) -> dict[str, Tensor]:
    reply = TrainReply(sha256_of(run), 3, {"weights": part}, 7)
    return dict(check_update(reply, run, sha256_of(run), 3, state or SENT).parts["weights"])


def moved(number: int, encoding: str) -> FakeSite:
    """A site that moves each weight by chance, and sends it in the run's precision."""

    def change(request: TrainRequest) -> bytes:
        drawn = torch.Generator().manual_seed(100 * request.round + number)
        start = unpack(request.parts["weights"])
        moves = {name: 1e-3 * torch.randn(one.shape, generator=drawn) for name, one in start.items()}
        if encoding == "float32":
            return pack({name: one + moves[name] for name, one in start.items()})
        assert encoding in ("bfloat16", "int8")
        return encode({name: one.numpy() for name, one in moves.items()}, encoding)  # type: ignore[arg-type]  # narrowed

    return trains(change)


@pytest.mark.parametrize("name", HOSTILE)
def test_what_no_honest_site_sends_is_refused_by_name(name: str) -> None:
    encoding, part = HOSTILE[name]
    with pytest.raises(UpdateError) as caught:
        check(part, rounded_run(encoding))
    assert caught.value.code is (ErrorCode.NOT_FINITE if name in NOT_FINITE else ErrorCode.WRONG_TENSORS)


@pytest.mark.parametrize("precision", ["float32", *ENCODINGS])
def test_an_update_in_another_precision_than_the_runs_is_refused(precision: str) -> None:
    """Also of a site that has an earlier version, which would send its weights."""
    for encoding in ENCODINGS:
        part = encode({name: one.numpy() for name, one in SENT.items()}, encoding)
        if precision != encoding:
            with pytest.raises(UpdateError) as caught:
                check(part, rounded_run(precision))
            assert caught.value.code is ErrorCode.WRONG_TENSORS


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_it_is_read_as_the_model_that_was_sent_and_what_was_added(encoding: Encoding) -> None:
    moves = {name: torch.randn(size, generator=torch.Generator().manual_seed(1)) for name, size in SHAPES.items()}
    part = encode({name: one.numpy() for name, one in moves.items()}, encoding)
    read = check(part, rounded_run(encoding))
    for name, one in decode(part, SHAPES, encoding).items():
        assert read[name].dtype == torch.float32
        assert torch.equal(read[name], SENT[name] + torch.from_numpy(one))


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_rules_for_updates_hold_for_what_it_stands_for(encoding: Encoding) -> None:
    """The norm by hand: 300 weights that move by 1 lie sqrt(300) away; and a sum beyond float32 is not finite."""
    one = {"bias": torch.zeros(3), "weight": torch.cat([torch.ones(1, 300), torch.zeros(1, 300)])}
    part = encode({name: tensor.numpy() for name, tensor in one.items()}, encoding)
    check(part, rounded_run(encoding, federation={"max-update-norm": math.sqrt(300) * 1.001}))
    with pytest.raises(UpdateError) as caught:
        check(part, rounded_run(encoding, federation={"max-update-norm": math.sqrt(300) * 0.999}))
    assert caught.value.code is ErrorCode.UPDATE_TOO_LARGE
    huge = {name: torch.full(size, 3e38) for name, size in SHAPES.items()}
    part = encode({name: tensor.numpy() for name, tensor in huge.items()}, encoding)
    with pytest.raises(UpdateError) as caught:
        check(part, rounded_run(encoding), huge)
    assert caught.value.code is ErrorCode.NOT_FINITE


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_a_weight_that_the_run_does_not_train_may_not_move(encoding: Encoding) -> None:
    run = rounded_run(encoding, training={"trainable": "norm-and-head"}, model={"norm": "instance"})
    start = weights_of(build_model(run))
    frozen = min(trained(run)[1])
    for step, refused in ((0.0, False), (1e-3, True)):
        moves = {name: torch.full(one.shape, step if name == frozen else 0.0) for name, one in start.items()}
        part = encode({name: one.numpy() for name, one in moves.items()}, encoding)
        if refused:
            with pytest.raises(UpdateError, match="does not share"):
                check(part, run, dict(start))
        else:
            check(part, run, dict(start))


@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize("kind", ["fedavg", "fedadam", "trimmed-mean", "multi-krum", "norm-clipping", "feddyn"])
def test_a_rounds_model_is_near_that_of_float32_and_the_same_wherever_updates_wait(
    kind: str, encoding: Encoding, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two runs of three rounds, in memory and on the disk, whatever order the answers come in."""
    models, told = {}, []
    for name, precision, most, order in (
        ("plain", "float32", 1 << 30, NAMES),
        ("memory", encoding, 1 << 30, NAMES),
        ("file", encoding, 0, NAMES[::-1]),
    ):
        monkeypatch.setattr(Spill.__init__, "__defaults__", (most,))
        run = rounded_run(precision, rounds=3, quorum=5, strategy={"kind": kind})
        grid = FakeGrid({site: moved(number, precision) for number, site in enumerate(NAMES)}, order=order)
        events: list[Event] = []
        summary = federate(grid, issue(run), tmp_path / name, wake=lambda _: None, observe=events.append)
        models[name] = unpack((tmp_path / name / "model.safetensors").read_bytes())
        told.append((summary.model_sha256, [one["bytes-up"] for one in events if one["event"] == "round"]))
    assert told[1] == told[2]
    start = weights_of(build_model(a_run()))
    walked = math.sqrt(sum(float((models["plain"][name] - one).square().sum()) for name, one in start.items()))
    apart = math.sqrt(sum(float((models["plain"][name] - one).square().sum()) for name, one in models["file"].items()))
    assert 0 < apart < 0.05 * walked
    share = {"bfloat16": 0.5, "int8": 0.27}[encoding]  # of a network of 700 weights
    assert all(small <= share * large for small, large in zip(told[1][1], told[0][1], strict=True))


@pytest.mark.parametrize("name", ["int8: scale negative", "bfloat16: NaN", "int8: no values"])
def test_a_run_goes_on_without_the_site_that_sends_it(name: str, tmp_path: Path) -> None:
    encoding, part = HOSTILE[name]
    run = rounded_run(encoding, rounds=1)
    grid = FakeGrid({"a": moved(0, encoding), "b": moved(1, encoding), "c": trains(lambda _: part)})
    summary = federate(grid, issue(run), tmp_path, wake=lambda _: None)
    assert summary.sites_by_round[0]["sites"] == ["a", "b"]
    assert summary.sites_by_round[0]["refused"] == {"c": "wrong-tensors"}


@pytest.mark.parametrize("training", [{"optimizer": "adamw"}, {"gradient-clipping": 0.5, "momentum": 0.0}], ids=str)
@pytest.mark.parametrize("encoding", ENCODINGS)
def test_an_honest_update_with_the_largest_residual_lies_within_the_bound(
    encoding: Encoding, training: dict[str, Any]
) -> None:
    """By recursion, as a site could have it at worst: r' = d s, s = (R + r) / (1 - d), from the first round on."""
    plain, run = (rounded_run(one, rounds=30, training=training) for one in ("float32", encoding))
    share, held = LARGEST_ERROR[encoding], 0.0
    for number in range(1, 31):
        sent = (farthest(plain, number, 3.0) + held) / (1 - share)
        assert sent <= farthest(run, number, 3.0) * (1 + 1e-12)
        held = share * sent
    assert farthest(run, 1, 3.0) == pytest.approx(farthest(plain, 1, 3.0) / (1 - share))
    assert farthest(run, 2, 3.0) < 1.25 * farthest(plain, 2, 3.0)


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_where_nothing_bounds_a_round_nothing_bounds_it_rounded(encoding: str) -> None:
    assert farthest(rounded_run(encoding), 2, 3.0) == math.inf
