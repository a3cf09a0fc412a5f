"""The version of a home: which files lie there and what they mean, in one number, and the way from an earlier one.

    home/home.json   {"version": 1, "side": "hospital", "program": "0.1.0"}

A home without that file is of version 0: it was made before there were versions. A program that finds an earlier
version brings the home up to its own, step by step, after it has copied what a step changes into `before-version-N/`,
whole and on disk; a later version is refused, because what is there may mean something else than this program knows. A
step is done again after a crash in its middle, so it must bear that. Files that have a format of their own (run.toml,
site.toml, policy.toml, the ledger, the audit log) say that themselves; this is about all the rest.
"""

import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from common.errors import ConfigError
from common.system.files import move, write_private
from common.system.locks import is_locked, locked

VERSION_NAME = "home.json"

_LOCK = "home.lock"


@dataclass(frozen=True)
class Step:
    """How a home of one version becomes one of the next."""

    what: str  # in a few words, for people
    changes: tuple[str, ...]  # files and folders that it changes or removes; copied before
    do: Callable[[Path], None]  # given the home


@dataclass(frozen=True)
class HomeVersions:
    """A kind of home, and the versions that this program knows: one more than there are steps, from 0."""

    side: str
    program: str
    busy: str  # the lock that a running program holds
    steps: Sequence[Step]

    @property
    def newest(self) -> int:
        """The version that this program works with."""
        return len(self.steps)

    def begin(self, home: Path) -> None:
        """Note the version of a home that is made now; one that has a version keeps it."""
        if not (home / VERSION_NAME).exists():
            self._write(home, self.newest)

    def open(self, home: Path, tell: Callable[[str], None] = lambda _: None) -> None:
        """Bring a home up to this program's version; costs a look at a file where it is.

        Args:
            home: the folder of a home that is there.
            tell: told in a line what is done.

        Raises:
            ConfigError: it is of a later version, in use while it would have to be changed, or cannot be changed.
        """
        if version_of(home) != self.newest:
            self._bring_up(home, tell)

    def check_version(self, found: int, program: str) -> None:
        """Refuse a version that is later than ours.

        Raises:
            ConfigError: it is.
        """
        if found > self.newest:
            raise ConfigError(
                f"the home is of version {found}, written by wardround {program}; this program "
                f"({version('wardround')}) knows versions up to {self.newest}. Update wardround to {program} or later; "
                "to stay with this version, restore a backup that it has made."
            )

    def _bring_up(self, home: Path, tell: Callable[[str], None]) -> None:
        self.check_version(version_of(home), _program_of(home))
        if is_locked(home / self.busy):
            raise ConfigError(
                f"{home} is of an earlier version, and a program of that version works with it. Stop it first: "
                f"{self.program} then brings the home up to version {self.newest}."
            )
        try:
            with locked(home / _LOCK):
                for number in range(version_of(home), self.newest):
                    step = self.steps[number]
                    copies = _copy(home, step.changes, home / f"before-version-{number + 1}")
                    step.do(home)
                    self._write(home, number + 1)
                    kept = f"; what it changed is kept in before-version-{number + 1}" if copies else ""
                    tell(f"The home is of version {number + 1} now: {step.what}{kept}.")
        except OSError as error:
            raise ConfigError(
                f"{home} is of an earlier version and cannot be brought up to version {self.newest} "
                f"({error.strerror}). Give this account the right to write there, and room on the disk."
            ) from error

    def _write(self, home: Path, number: int) -> None:
        values = {"version": number, "side": self.side, "program": version("wardround")}
        write_private(home / VERSION_NAME, f"{json.dumps(values)}\n".encode())


def version_of(home: Path) -> int:
    """The version of a home.

    Raises:
        ConfigError: its file is damaged.
    """
    values = _read(home)
    if values is None:
        return 0
    number = values.get("version")
    if type(number) is not int or number < 0:
        raise _damaged(home)
    return number


def _program_of(home: Path) -> str:
    return str((_read(home) or {}).get("program", "unknown"))[:32]


def _read(home: Path) -> dict[str, object] | None:
    try:
        values = json.loads((home / VERSION_NAME).read_bytes())
    except FileNotFoundError:
        return None
    except ValueError:
        values = None
    if not isinstance(values, dict):
        raise _damaged(home)
    return values


def _copy(home: Path, names: Sequence[str], place: Path) -> bool:
    """Copy what a step changes, whole or not at all; a copy that is there is of the same step, begun before."""
    present = [name for name in names if (home / name).exists()]
    if not present or place.exists():
        return bool(present)
    fresh = place.with_name(f".{place.name}")
    shutil.rmtree(fresh, ignore_errors=True)
    fresh.mkdir(mode=0o700)
    for name in present:
        source, copy = home / name, fresh / name
        copy.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        if source.is_dir():
            shutil.copytree(source, copy)
        else:
            write_private(copy, source.read_bytes(), durable=False)
    move(fresh, place)
    return True


def _damaged(home: Path) -> ConfigError:
    return ConfigError(
        f"{home / VERSION_NAME} is damaged: it says of which version the home is. Restore it from a backup."
    )


__all__ = ["VERSION_NAME", "HomeVersions", "Step", "version_of"]
