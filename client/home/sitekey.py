"""The site key: 32 random bytes that key a hospital's pseudonyms, its cohort's name and all that it seals (its cache,
ledger, splits, list of the forgotten, unsent updates). Who keeps them:

    the file        home/site.key holds the bytes, mode 0600; made on first use
    a passphrase    home/site.key holds them sealed (common/crypto/passphrase.py); the passphrase is in
                    WARDROUND_SITE_PASSPHRASE, in the file that WARDROUND_SITE_PASSPHRASE_FILE names, or asked for on a
                    terminal
    the environment WARDROUND_SITE_KEY, 64 hex digits, and there is no file

A process opens the key once. The agent hands it to its worker by their pipe: nothing of it stands in a child's
environment or command line. The key is in no message, log or repr.
"""

import os
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path

from common.crypto.derivation import KEY_BYTES
from common.crypto.keyfile import KeyFile
from common.crypto.passphrase import passphrase_from
from common.errors import ConfigError

KEY_NAME = "site.key"
KEY_VARIABLE = "WARDROUND_SITE_KEY"
PASSPHRASE_VARIABLE = "WARDROUND_SITE_PASSPHRASE"  # noqa: S105 - a name

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
    file, given = _file(home), os.environ.get(KEY_VARIABLE)
    if given is None:
        file.ensure()
    state = (given, file.path.stat().st_mtime_ns if file.path.exists() else 0)
    if state not in held:
        held.clear()
        held[state] = file.open() if given is None else _from_environment(given, file.path)
    return held[state]


def opens_unasked(home: Path) -> bool:
    """Whether the key is there for a command that asks nobody for a passphrase."""
    file = _file(home.resolve())
    given = (KEY_VARIABLE in os.environ, passphrase_from(PASSPHRASE_VARIABLE) is not None, bool(_held(home.resolve())))
    return any(given) or (file.path.exists() and not file.is_protected)


def hold(home: Path, key: bytes) -> None:
    """Take the key as handed over: from now on this process looks at no file and no variable for it."""
    _held(home.resolve())[None] = key


def protect(home: Path, passphrase: str) -> None:
    """Seal the key's file with a passphrase. The key itself stays the same, and so does all that depends on it.

    Raises:
        ConfigError: the key is not in a file, is sealed already, or the passphrase is too short.
    """
    file, key = _file(home), _key_in_file(home)
    if file.is_protected:
        raise ConfigError(
            "the site key is under a passphrase already. For a new one, take this one off with "
            "`wardround-client key unprotect`."
        )
    file.write(key, passphrase)


def unprotect(home: Path) -> None:
    """Write the key back as plain bytes, mode 0600.

    Raises:
        ConfigError: the key is not in a file, not sealed, or the passphrase does not open it.
    """
    file, key = _file(home), _key_in_file(home)
    if not file.is_protected:
        raise ConfigError("the site key is not under a passphrase.")
    file.write(key, None)


def custody(home: Path) -> str:
    """Who keeps the key, in words; nothing is opened."""
    if os.environ.get(KEY_VARIABLE) is not None:
        return f"from {KEY_VARIABLE}"
    file = _file(home)
    if not file.path.exists():
        return "none yet: it is made on first use"
    return f"{KEY_NAME}, under a passphrase" if file.is_protected else f"{KEY_NAME}, mode 0600"


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


def _file(home: Path) -> KeyFile:
    advice = (
        "Who has the key can undo the pseudonyms. Where the file system has no modes, give the key in "
        f"{KEY_VARIABLE} instead."
    )
    return KeyFile(home / KEY_NAME, "site key", PASSPHRASE_VARIABLE, advice)


def _key_in_file(home: Path) -> bytes:
    """The key, which must be one that is kept in a file."""
    if os.environ.get(KEY_VARIABLE) is not None:
        raise ConfigError(f"the site key comes from {KEY_VARIABLE}; there is no file to seal or open.")
    return site_key(home)


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


__all__ = ["check_outside", "custody", "hold", "opens_unasked", "protect", "site_key", "unprotect"]
