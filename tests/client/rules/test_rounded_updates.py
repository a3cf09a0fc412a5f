"""Of a run whose updates travel in fewer bits the exit gate lets out moves in its precision, and nothing else."""

import dataclasses

import numpy as np
import pytest
from safetensors.numpy import save

from client.rules import exit_gate
from common.config import RunConfig
from common.errors import ErrorCode, UpdateError
from common.wire.encoding import Encoding, encode
from common.wire.messages import TrainReply, TrainRequest
from tests.client.rules.test_exit_gate import RUN_HASH, Drift, a_run
from tests.common.wire.test_encoding import HOSTILE, NOT_FINITE, SHAPES

TENSORS = {name: np.full(size, 0.5, np.float32) for name, size in SHAPES.items()}
REQUEST = TrainRequest(RUN_HASH, 2, {"weights": save(TENSORS)})


def rounded_run(encoding: str, **changes: object) -> RunConfig:
    return a_run(format=2, federation={"rounds": 3, "update-precision": encoding}, **changes)


def released(part: bytes, run: RunConfig) -> TrainReply:
    reply = exit_gate.release(TrainReply(RUN_HASH, 2, {"weights": part}, 15, {"steps": 20.0}), REQUEST, run)
    assert isinstance(reply, TrainReply)
    return reply


@pytest.mark.parametrize("encoding", ["bfloat16", "int8"])
def test_moves_of_the_models_weights_leave_as_they_are(encoding: Encoding) -> None:
    part = encode(TENSORS, encoding)
    assert released(part, rounded_run(encoding)).parts == {"weights": part}


@pytest.mark.parametrize("name", HOSTILE)
def test_anything_else_does_not(name: str) -> None:
    encoding, part = HOSTILE[name]
    with pytest.raises(UpdateError) as caught:
        released(part, rounded_run(encoding))
    assert caught.value.code is (ErrorCode.NOT_FINITE if name in NOT_FINITE else ErrorCode.WRONG_TENSORS)


def test_weights_do_not_leave_where_moves_are_wanted_nor_moves_where_weights_are() -> None:
    for part, precision in ((save(TENSORS), "int8"), (encode(TENSORS, "int8"), "float32")):
        with pytest.raises(UpdateError, match=r"nothing is sent|federation\.update-precision"):
            released(part, rounded_run(precision))


def test_other_parts_leave_as_float32_alone() -> None:
    run = rounded_run("int8").model_copy(update={"strategy": Drift()})
    request = dataclasses.replace(REQUEST, parts={"weights": save(TENSORS), "control": save(TENSORS)})
    moves = encode(TENSORS, "int8")
    reply = TrainReply(RUN_HASH, 2, {"weights": moves, "control": save(TENSORS)}, 15)
    left = exit_gate.release(reply, request, run)
    assert isinstance(left, TrainReply)
    assert left.parts == reply.parts
    with pytest.raises(UpdateError, match="nothing is sent"):
        exit_gate.release(dataclasses.replace(reply, parts={"weights": moves, "control": moves}), request, run)
