"""docs/install.md: what it says to type is what install.py and the programs take, and names what the units name.

The commands themselves are run by tests/deploy/airgap_at_length.py (`make airgap`).
"""

import re
import shlex

import pytest

from deploy.installation.commands import parser
from deploy.installation.places import ROLES
from tests import ROOT
from tests.test_docs import _commands

PAGE = (ROOT / "docs/install.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE)
LINES = [line for kind, block in BLOCKS if not kind for line in block.splitlines()]
CALLS = re.findall(r"sudo python3 \S+/install\.py ([^`\n]+)", PAGE)
# What belongs to the system, by its first word.
OTHERS = ("make", "install", "systemctl", "echo", "journalctl")


@pytest.mark.parametrize("call", CALLS)
def test_install_py_takes_the_call(call: str) -> None:
    parser().parse_args(shlex.split(call))


@pytest.mark.parametrize("line", LINES)
def test_a_line_is_a_command_that_there_is(line: str) -> None:
    words = shlex.split(line.removeprefix("sudo "))
    if words[0].startswith("wardround-"):
        commands = _commands(words[0])
        name = next(name for count in (2, 1) if (name := " ".join(words[1 : 1 + count])) in commands)
        known = {option for parameter in commands[name].params for option in parameter.opts}
        assert {word for word in words if word.startswith("--")} <= known
    elif words[0] == "python3":
        assert " ".join(words[2:]) in CALLS
    else:
        assert words[0] in OTHERS
        named = set(re.findall(r"wardround-(?!client|server)[a-z]+", line))
        assert named <= {role.account for role in ROLES.values()}


def test_every_command_is_on_the_page() -> None:
    assert {call.split()[0] for call in CALLS} == {"install", "upgrade", "rollback", "uninstall"}
