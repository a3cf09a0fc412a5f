"""A study that does not fit into memory has a code of its own; any other failure stays what it is."""

import pytest
import torch

from client.predict.memory import within_memory
from common.errors import DataError, ErrorCode


@pytest.mark.parametrize(
    "error", [MemoryError(), torch.OutOfMemoryError("CUDA out of memory"), RuntimeError("not enough memory: 4 TiB")]
)
def test_too_little_memory_is_told_by_its_code(error: Exception) -> None:
    with pytest.raises(DataError, match="does not fit into memory") as told, within_memory():
        raise error
    assert told.value.code is ErrorCode.OUT_OF_MEMORY
    assert told.value.__cause__ is error


@pytest.mark.parametrize("error", [RuntimeError("sizes do not match"), ValueError("memory")])
def test_other_failures_pass(error: Exception) -> None:
    with pytest.raises(type(error)) as told, within_memory():
        raise error
    assert told.value is error
