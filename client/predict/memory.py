"""A study that is too large for this machine is told by code, and the next one goes on."""

from collections.abc import Iterator
from contextlib import contextmanager

from common.errors import DataError, ErrorCode


@contextmanager
def within_memory() -> Iterator[None]:
    """What a study is computed in.

    Raises:
        DataError: OUT_OF_MEMORY, it does not fit.
    """
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        # On a CPU torch says so in the text only.
        if isinstance(error, RuntimeError) and "memory" not in str(error):
            raise
        raise DataError(
            "the study does not fit into memory. Free memory, or use the device cpu.", ErrorCode.OUT_OF_MEMORY
        ) from error


__all__ = ["within_memory"]
