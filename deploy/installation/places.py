"""Where an installation lies, and what a machine can be in a federation."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

PREFIX = "/opt/wardround"  # as the units name it
UNITS = "deploy/systemd"


class InstallError(Exception):
    """Nothing was done, or not all; the text says what to do."""


@dataclass(frozen=True)
class Role:
    """What a machine does in a federation."""

    name: str
    program: str
    variable: str  # of the environment, that names its home
    begin: str  # the command before its first start

    @property
    def account(self) -> str:
        """Of its service, and the service's name."""
        return f"wardround-{self.name}"

    @property
    def unit(self) -> str:
        """File of its service."""
        return f"{self.account}.service"

    @property
    def home(self) -> str:
        """Folder of all that it keeps."""
        return f"/var/lib/{self.account}"


ROLES = {
    "site": Role("site", "wardround-client", "WARDROUND_HOME", "wardround-client join INVITATION"),
    "coordinator": Role(
        "coordinator", "wardround-server", "WARDROUND_SERVER_HOME", "wardround-server init --host NAME"
    ),
}


@dataclass(frozen=True)
class Machine:
    """Where things lie.

    root: "/"; with another folder, for trying out, systemd is told nothing and no account is made.
    prefix: folder of the versions.
    """

    root: Path
    prefix: Path

    @property
    def units(self) -> Path:
        """Folder of the units, and of the drop-ins beside them."""
        return self.root / "etc/systemd/system"

    @property
    def settings(self) -> Path:
        """Folder of NAME.env."""
        return self.root / "etc/wardround"

    @property
    def is_real(self) -> bool:
        """Whether it is this machine itself."""
        return self.root == Path("/")

    @property
    def lock(self) -> Path:
        """Held while a command is at work."""
        return self.prefix / ".lock"

    def command(self, role: Role) -> Path:
        """What people type."""
        return self.root / "usr/local/bin" / role.program

    def drop_ins(self, role: Role) -> Path:
        """Folder of what this machine changes in the role's unit."""
        return self.units / f"{role.unit}.d"

    def home(self, role: Role) -> Path:
        """Folder of all that the role keeps."""
        return self.root / role.home.lstrip("/")

    def roles(self) -> list[Role]:
        """Those that are installed."""
        return [role for role in ROLES.values() if (self.units / role.unit).exists()]

    def version(self, link: str) -> Path | None:
        """The folder that `current` or `previous` leads to."""
        path = self.prefix / link
        return path.resolve() if path.is_symlink() and path.exists() else None

    def versions(self) -> list[Path]:
        """Folders of versions, unfinished ones too."""
        return sorted(path.parent for path in self.prefix.glob("*/pyvenv.cfg") if not path.parent.is_symlink())
