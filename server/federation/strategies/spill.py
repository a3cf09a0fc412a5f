"""Updates of a round until the mean is made: as many as fit in memory, the others in a file without a name.

What an update weighs is known only when all are here: who lies far beyond the others is left out, and who outweighs
them is capped. So they have to be kept, and what looks at them goes block by block. Those in the file are mapped: the
kernel reads what is looked at, and lets it go again where memory is short. The file belongs to the coordinator's user
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
        self._end = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
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
        start = self._end
        self._file.seek(start)
        left = memoryview(part)
        while left:  # a single call writes 2 GB at most
            left = left[self._file.write(left) :]
        self._end = start + -(-len(part) // mmap.ALLOCATIONGRANULARITY) * mmap.ALLOCATIONGRANULARITY
        return memoryview(mmap.mmap(self._file.fileno(), len(part), access=mmap.ACCESS_READ, offset=start))


__all__ = ["MOST_BYTES", "Spill"]
