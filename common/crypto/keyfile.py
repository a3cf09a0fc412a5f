"""A key of 32 random bytes in a file of its own: plain, mode 0600, or under a passphrase (common/crypto/passphrase.py).

The passphrase comes from VARIABLE, from the file that VARIABLE_FILE names, or is asked for on a terminal. Taking a
passphrase on or off leaves the key, and so all that is sealed with it, as it is.
"""

import getpass
import secrets
import stat
import sys
from dataclasses import dataclass
from pathlib import Path

from common.crypto.derivation import KEY_BYTES
from common.crypto.passphrase import is_sealed, passphrase_from, seal, unseal
from common.errors import ConfigError
from common.system.files import create_private, write_private


@dataclass(frozen=True)
class KeyFile:
    """Where a key lies, and how it is asked for."""

    path: Path
    what: str  # in messages, and authenticated under a passphrase: such as "coordinator key"
    variable: str  # of the passphrase
    advice: str = ""  # beside chmod, where others may read the file

    @property
    def is_protected(self) -> bool:
        """Whether the key is under a passphrase."""
        return self.path.exists() and is_sealed(self.path.read_bytes())

    def make(self, passphrase: str | None = None) -> bytes:
        """A new key, written.

        Raises:
            ConfigError: there is a file already, or the passphrase is too short.
        """
        key = secrets.token_bytes(KEY_BYTES)
        if not create_private(self.path, self._content(key, passphrase)):
            raise ConfigError(f"{self.path} is there already. A new key would open nothing that it has sealed.")
        return key

    def ensure(self) -> None:
        """Make a key, plain, where there is none. Two processes that come at the same time get the same one."""
        create_private(self.path, secrets.token_bytes(KEY_BYTES))

    def write(self, key: bytes, passphrase: str | None) -> None:
        """Write a key, under a passphrase or, without one, plain.

        Raises:
            ConfigError: the passphrase is too short.
        """
        write_private(self.path, self._content(key, passphrase))

    def open(self) -> bytes:
        """The key.

        Raises:
            ConfigError: it is missing or damaged, lies open to others, or no passphrase, or another one, was given.
        """
        try:
            content, mode = self.path.read_bytes(), stat.S_IMODE(self.path.stat().st_mode)
        except OSError as error:
            raise ConfigError(
                f"{self.path} cannot be read ({error.strerror}), and nothing that it has sealed opens without it. "
                "Restore it from a backup."
            ) from error
        if mode & 0o077:
            advice = f". {self.advice}" if self.advice else ""
            raise ConfigError(f"other users may read {self.path}. Run: chmod 600 {self.path}{advice}")
        key = unseal(content, self._passphrase(), self.what) if is_sealed(content) else content
        if len(key) != KEY_BYTES:
            raise ConfigError(
                f"{self.path} holds {len(key)} bytes, expected {KEY_BYTES}. Restore it from a backup: with a new key "
                "nothing opens that the old one has sealed."
            )
        return key

    def _content(self, key: bytes, passphrase: str | None) -> bytes:
        return key if passphrase is None else seal(key, passphrase, self.what)

    def _passphrase(self) -> str:
        given = passphrase_from(self.variable)
        if given is None and sys.stdin is not None and sys.stdin.isatty():
            given = getpass.getpass(f"Passphrase of the {self.what}: ")
        if given is None:
            raise ConfigError(
                f"the {self.what} is under a passphrase. Set {self.variable}, let {self.variable}_FILE name a file "
                "that holds it, or use a terminal to be asked."
            )
        return given


__all__ = ["KeyFile"]
