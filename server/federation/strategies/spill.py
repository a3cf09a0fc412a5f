"""Updates of a round until the mean is made: as many as fit in memory, the others in a file without a name.

What an update weighs is known only when all are here: who lies far beyond the others is left out, and who outweighs
them is capped. So they have to be kept, and what looks at them goes block by block. Those in the file are mapped: the
kernel reads what is looked at, and lets it go again where memory is short. Many lie in one mapping: each holds a
descriptor, and of a thousand a process may have no more. The file belongs to the coordinator's user
alone, has no name from its first moment, and is gone with the round, or with the process however it ends. It is not
sealed, and what was on a disk may be found there later: where checkpoints are sealed no update goes into such a file.
"""

import mmap
import tempfile
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Self

from common.learning.tensor_bytes import views_of
from common.wire.messages import Parts
from server.federation.strategies.blocks import State

MOST_BYTES = 256 << 20
_MAPPED_BYTES = 1 << 28  # at once, of which the disk holds what is written
_APART = 64  # bytes, of whose multiples updates begin at one


class Spill:
    """The updates of one round. A context: nothing is added to the file after it."""

    def __init__(self, folder: Path | None, most_bytes: int = MOST_BYTES) -> None:
        """Nothing is written yet.

        Args:
            folder: where the file would lie; it is there. None: all updates stay in memory.
            most_bytes: of updates that stay in memory.
        """
        self._folder, self._room = folder, most_bytes
        self._file: BinaryIO | None = None
        self._map, self._begin = memoryview(b""), 0  # the last mapping, and where in the file it begins
        self._end = 0  # of what is written there

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._map = memoryview(b"")
        if self._file is not None:
            self._file.close()

    def keep(self, parts: Mapping[str, State], packed: Parts) -> Mapping[str, State]:
        """The same parts: as they are while there is room, and else of what is written to the file.

        Args:
            parts: of an update.
            packed: the bytes that they are views of.
        """
        if self._folder is None:
            return parts
        if (size := sum(map(len, packed.values()))) <= self._room:
            self._room -= size
            return parts
        return {name: views_of(self._mapped(part, self._folder)) for name, part in packed.items()}

    def _mapped(self, part: bytes | memoryview, folder: Path) -> memoryview:
        if self._file is None:
            self._file = tempfile.TemporaryFile(buffering=0, dir=folder)  # noqa: SIM115 - closed with the round
        if len(part) > len(self._map) - self._end:
            self._begin, self._end = self._begin + len(self._map), 0
            size = _up_to(max(len(part), _MAPPED_BYTES), mmap.ALLOCATIONGRANULARITY)
            self._file.truncate(self._begin + size)
            self._map = memoryview(mmap.mmap(self._file.fileno(), size, access=mmap.ACCESS_READ, offset=self._begin))
        start, self._end = self._end, _up_to(self._end + len(part), _APART)
        self._file.seek(self._begin + start)
        left = memoryview(part)
        while left:  # a single call writes 2 GB at most
            left = left[self._file.write(left) :]
        return self._map[start : start + len(part)]


def _up_to(size: int, of: int) -> int:
    """The next multiple."""
    return -(-size // of) * of


__all__ = ["MOST_BYTES", "Spill"]
