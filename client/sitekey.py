"""The site key: 32 random bytes that key a hospital's pseudonyms, its cohort's name and all that it seals (its cache,
ledger, splits, list of the forgotten, unsent updates). Who keeps them:

    the file        home/site.key holds the bytes, mode 0600; made on first use
    a passphrase    home/site.key holds them sealed (common/sealed.py); the passphrase is in WARDROUND_SITE_PASSPHRASE,
                    in the file that WARDROUND_SITE_PASSPHRASE_FILE names, or asked for on a terminal
    the environment WARDROUND_SITE_KEY, 64 hex digits, and there is no file

A process opens the key once. The agent hands it to its worker by their pipe: nothing of it stands in a child's
environment or command line. The key is in no message, log or repr.
"""

import getpass
import os
import secrets
import sys
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path

from common.errors import ConfigError
from common.files import write_private
from common.sealed import is_sealed, passphrase_from, seal, unseal

KEY_NAME = "site.key"
KEY_BYTES = 32
KEY_VARIABLE = "WARDROUND_SITE_KEY"
PASSPHRASE_VARIABLE = "WARDROUND_SITE_PASSPHRASE"  # noqa: S105 - a name

_PURPOSE = "site key"
_OPEN_TO_OTHERS = 0o077
# A simulation opens this many sites at once.
_HELD_KEYS = 256


def site_key(home: Path) -> bytes:
    """The key of a site; made first where there is none.

    Raises:
        ConfigError: the key is damaged, does not open, lies open to others, or there are two.
    """
    home = home.resolve()
    held = _held(home)
    if (handed := held.get(None)) is not None:
        return handed
    path, given = home / KEY_NAME, os.environ.get(KEY_VARIABLE)
    if given is None and not path.exists():
        _make(path)
    state = (given, path.stat().st_mtime_ns if path.exists() else 0)
    if state not in held:
        held.clear()
        held[state] = _from_file(path) if given is None else _from_environment(given, path)
    return held[state]


def hold(home: Path, key: bytes) -> None:
    """Take the key as handed over: from now on this process looks at no file and no variable for it."""
    _held(home.resolve())[None] = key


def protect(home: Path, passphrase: str) -> None:
    """Seal the key's file with a passphrase. The key itself stays the same, and so does all that depends on it.

    Raises:
        ConfigError: the key is not in a file, is sealed already, or the passphrase is too short.
    """
    path = _file(home)
    if is_sealed(path.read_bytes()):
        raise ConfigError(
            "the site key is under a passphrase already. For a new one, take this one off with 'wardround-client key "
            "unprotect'."
        )
    write_private(path, seal(site_key(home), passphrase, _PURPOSE))


def unprotect(home: Path) -> None:
    """Write the key back as plain bytes, mode 0600.

    Raises:
        ConfigError: the key is not in a file, not sealed, or the passphrase does not open it.
    """
    path = _file(home)
    if not is_sealed(path.read_bytes()):
        raise ConfigError("the site key is not under a passphrase.")
    write_private(path, site_key(home))


def custody(home: Path) -> str:
    """Who keeps the key, in words; nothing is opened."""
    if os.environ.get(KEY_VARIABLE) is not None:
        return f"from {KEY_VARIABLE}"
    path = home / KEY_NAME
    if not path.exists():
        return "none yet: it is made on first use"
    return f"{KEY_NAME}, under a passphrase" if is_sealed(path.read_bytes()) else f"{KEY_NAME}, mode 0600"


def check_outside(home: Path, folders: Iterable[Path]) -> None:
    """Key, ledger and cache must not lie among the images: who may read or copy those must not get the key.

    Raises:
        ConfigError: the home folder lies in one of the folders.
    """
    if any(home.resolve().is_relative_to(folder.expanduser().resolve()) for folder in folders):
        raise ConfigError(
            "the site's folder, with its key and its ledger, lies inside a data folder. Whoever may read the images "
            "could then link pseudonyms to patients. Move it elsewhere, or name another data folder."
        )


@lru_cache(maxsize=_HELD_KEYS)
def _held(_home: Path) -> dict[tuple[str | None, int] | None, bytes]:
    """The key that this process has opened, by the state of what it came from; under None when it was handed over."""
    return {}


def _file(home: Path) -> Path:
    """The key's file, made where there is none."""
    if os.environ.get(KEY_VARIABLE) is not None:
        raise ConfigError(f"the site key comes from {KEY_VARIABLE}; there is no file to seal or open.")
    site_key(home)
    return home / KEY_NAME


def _make(path: Path) -> None:
    """Two processes that come at the same time end up with the same key."""
    fresh = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    write_private(fresh, secrets.token_bytes(KEY_BYTES))
    try:
        os.link(fresh, path)  # fails where another process was first; then its key counts
    except FileExistsError:
        pass
    finally:
        fresh.unlink()


def _from_environment(given: str, path: Path) -> bytes:
    if path.exists():
        raise ConfigError(
            f"{KEY_VARIABLE} is set, and {path} is there too. Two keys would make two cohorts: unset the one, or move "
            "the other away."
        )
    try:
        key = bytes.fromhex(given)
    except ValueError:
        key = b""
    if len(key) != KEY_BYTES:
        raise ConfigError(f"{KEY_VARIABLE} is no key: expected {2 * KEY_BYTES} hex digits.")
    return key


def _from_file(path: Path) -> bytes:
    if path.stat().st_mode & _OPEN_TO_OTHERS:
        raise ConfigError(
            f"other users may read {path}, and who has it can undo the pseudonyms. Run: chmod 600 {path}. Where the "
            f"file system has no modes, give the key in {KEY_VARIABLE} instead."
        )
    content = path.read_bytes()
    key = unseal(content, _passphrase(), _PURPOSE) if is_sealed(content) else content
    if len(key) != KEY_BYTES:
        raise ConfigError(
            f"{path} holds {len(key)} bytes, expected {KEY_BYTES}. Restore it from a backup: with a new key "
            "the site's pseudonyms change, and its privacy ledger and all else that is sealed do not open."
        )
    return key


def _passphrase() -> str:
    given = passphrase_from(PASSPHRASE_VARIABLE)
    if given is None and sys.stdin is not None and sys.stdin.isatty():
        given = getpass.getpass("Passphrase of the site key: ")
    if given is None:
        raise ConfigError(
            f"the site key is under a passphrase. Set {PASSPHRASE_VARIABLE}, let {PASSPHRASE_VARIABLE}_FILE name a "
            "file that holds it, or start from a terminal to be asked."
        )
    return given


__all__ = ["check_outside", "custody", "hold", "protect", "site_key", "unprotect"]
