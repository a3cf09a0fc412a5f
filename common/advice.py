"""Advice that can be copied as it stands: commands of ours, with the folder that is in use.

Whoever writes a message names a command in backquotes, `wardround-client data check`, and a template in `<code>`,
without --home: most of our code knows no folder. Whoever shows it has it completed by that folder's `Advice`: the
commands (common/console/cli.py), the log of a process (common/console/logs.py), the pages (common/pages/html.py).
tests/test_advice.py reads all our messages, and finds those that name a command otherwise.
"""

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

# They look into no folder.
WITHOUT_HOME = ("wardround-client explain", "wardround-client serve", "wardround-server new")

_TYPED = re.compile(r"(`|<code>)((wardround-\w+) [^`<]*)(`|</code>)")


@dataclass(frozen=True)
class Advice:
    """What is added to a program's commands; to nothing, without a program."""

    program: str = ""
    option: str = ""  # " --home DIR", or nothing where the program looks there by itself

    @classmethod
    def about(cls, program: str, home: Path, usual: Path) -> "Advice":
        """Of a program that works with a folder.

        Args:
            program: its name.
            home: the folder.
            usual: where it looks without being told.
        """
        here = home.absolute()
        return cls(program, "" if here == usual.absolute() else f" --home {shlex.quote(str(here))}")

    def __call__(self, text: str) -> str:
        """A message with all its commands completed."""
        return _TYPED.sub(self._completed, text) if self.option else text

    def _completed(self, found: "re.Match[str]") -> str:
        opening, words, program, closing = found.groups()
        own = program == self.program and "--home" not in words and not words.startswith(WITHOUT_HOME)
        return f"{opening}{words}{self.option if own else ''}{closing}"


__all__ = ["WITHOUT_HOME", "Advice"]
