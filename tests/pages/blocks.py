"""The blocks of a page, and the comment before each of them that says how it is tested.

<!-- run -->              as it stands, by tests/test_examples.py
<!-- run by tests/... -->  by another test, which names the command
<!-- not run: why -->
<!-- file: NAME -->       a file that the commands after it read
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests import ROOT

TUTORIALS = {name: ROOT / "docs" / "tutorials" / f"{name}.md" for name in ("researcher", "coordinator", "hospital")}
# What people begin with. The other pages' commands are held to the programs' parsers, in tests of their own.
PAGES = (
    ROOT / "README.md",
    ROOT / "docs" / "index.md",
    *(ROOT / "docs" / "project" / f"{name}.md" for name in ("contributing", "releasing")),
    *TUTORIALS.values(),
)
_BLOCK = re.compile(r"^(?:<!-- ([^\n]+) -->\n)?```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)


@dataclass(frozen=True)
class Block:
    """A block between two fences."""

    page: str
    number: int
    mark: str  # "" where there is no comment
    language: str
    text: str

    @property
    def lines(self) -> tuple[str, ...]:
        """Its commands, without what is said beside them; none of a program or a file."""
        if self.language:
            return ()
        return tuple(filter(None, (line.partition(" #")[0].strip() for line in self.text.splitlines())))

    def __str__(self) -> str:
        return f"{self.page}-{self.number}"


def blocks(page: Path) -> Iterator[Block]:
    """All of a page, in their order."""
    for number, (mark, language, text) in enumerate(_BLOCK.findall(page.read_text(encoding="utf-8")), start=1):
        yield Block(page.stem, number, mark, language, text)
