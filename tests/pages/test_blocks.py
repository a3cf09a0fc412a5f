"""Each block of the README, the start page, the tutorials and the contributor's guide says how it is tested, and is."""

import re
import shlex
from functools import cache

import pytest

from tests import ROOT
from tests.pages.blocks import PAGES, TUTORIALS, Block, blocks
from tests.test_docs import APPS, _commands

ALL = [block for page in PAGES for block in blocks(page)]
COMMANDS = [(str(block), line) for block in ALL for line in block.lines if line.startswith("wardround-")]
# Only where tests/test_examples.py takes them from.
RUN_HERE = {page.stem for page in TUTORIALS.values()}
commands = cache(_commands)


@pytest.mark.parametrize("block", ALL, ids=str)
def test_a_block_says_how_it_is_tested(block: Block) -> None:
    kind, _, more = block.mark.partition(":")
    if kind == "run":
        assert block.page in RUN_HERE
    elif kind == "file":
        assert block.page in RUN_HERE
        assert re.fullmatch(r" [\w.-]+", more)
    elif kind == "not run":
        assert len(more.split()) >= 4, "no reason is given"
    else:
        (path,) = re.findall(r"^run by (tests/[\w/]+\.py)$", block.mark)
        test = (ROOT / path).read_text(encoding="utf-8")
        named = [word for line in block.lines for word in _command_of(line) if word not in test]
        assert block.lines
        assert named == [], f"{path} runs no {named}"


def _command_of(line: str) -> list[str]:
    """The words that say what is done: `data forget` of a command with that name, `demo` of `make demo`."""
    words = shlex.split(line.removesuffix("&"))
    if words[0] in APPS:
        known = commands(words[0])
        return next(words[1 : 1 + count] for count in (2, 1) if " ".join(words[1 : 1 + count]) in known)
    return words[1:2]


@pytest.mark.parametrize(("place", "line"), COMMANDS, ids=lambda value: value)
def test_a_command_is_one_with_these_options(place: str, line: str) -> None:
    program, *words = shlex.split(line.removesuffix("&"))
    known = commands(program)
    name = " ".join(_command_of(line))
    options = {option for parameter in known[name].params for option in parameter.opts}
    assert {word for word in words if word.startswith("--")} <= options


def test_no_fence_of_a_page_is_overlooked() -> None:
    for page in PAGES:
        fences = page.read_text(encoding="utf-8").count("\n```")
        assert fences == 2 * len(list(blocks(page))), page
