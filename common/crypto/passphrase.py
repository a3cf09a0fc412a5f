"""Secrets under a passphrase: scrypt makes the key, AES-256-GCM seals.

    {"format": "wardround sealed 1", "n": ..., "r": ..., "p": ..., "salt": hex, "nonce": hex, "sealed": hex}

The parameters and the purpose are authenticated with the secret, so a file cannot be weakened or used in another's
place. Parameters beyond the limits below are refused before any work is done.
Source: RFC 7914 (scrypt); RFC 5116 (AES-GCM). n = 2^17, r = 8 takes 128 MiB and about half a second.
"""

import json
import os
import secrets
from collections.abc import Mapping
from pathlib import Path

from cryptography.hazmat.primitives.kdf.scrypt import Scrypt

from common.crypto import record_box
from common.crypto.derivation import KEY_BYTES
from common.crypto.record_box import NONCE_BYTES
from common.errors import ConfigError

FORMAT = "wardround sealed 1"
SHORTEST_PASSPHRASE = 12

_N, _R, _P = 2**17, 8, 1
_LARGEST_N = 2**20
_SALT_BYTES = 16


def seal(secret: bytes, passphrase: str, purpose: str) -> bytes:
    """Seal a secret.

    Args:
        secret: what to keep.
        passphrase: at least 12 characters.
        purpose: what it is; the same is needed to open it.

    Raises:
        ConfigError: the passphrase is too short.
    """
    if len(passphrase) < SHORTEST_PASSPHRASE:
        raise ConfigError(
            f"the passphrase has {len(passphrase)} characters, expected at least {SHORTEST_PASSPHRASE}. "
            "Take a longer one, such as five random words."
        )
    salt = secrets.token_bytes(_SALT_BYTES)
    sealed = record_box.seal(_key(passphrase, salt, _N, _R, _P), secret, _context(purpose, _N, _R, _P))
    nonce, sealed = sealed[:NONCE_BYTES], sealed[NONCE_BYTES:]
    values = {"n": _N, "r": _R, "p": _P, "salt": salt.hex(), "nonce": nonce.hex(), "sealed": sealed.hex()}
    return (json.dumps({"format": FORMAT} | values) + "\n").encode()


def unseal(data: bytes, passphrase: str, purpose: str) -> bytes:
    """Inverse of `seal`.

    Raises:
        ConfigError: another passphrase or purpose, or the file is damaged; which of these is not said.
    """
    try:
        values = json.loads(data)
        n, r, p = (int(values[name]) for name in ("n", "r", "p"))
        if values["format"] != FORMAT or not 2 <= n <= _LARGEST_N or (r, p) != (_R, _P):
            raise ValueError("unknown format")
        salt, nonce, sealed = (bytes.fromhex(values[name]) for name in ("salt", "nonce", "sealed"))
        return record_box.unseal(_key(passphrase, salt, n, r, p), nonce + sealed, _context(purpose, n, r, p))
    except (ValueError, KeyError, TypeError) as error:
        raise ConfigError(
            f"the {purpose} does not open: the passphrase is another, or the file is damaged. Try again, or restore "
            "the file from a backup."
        ) from error


def is_sealed(data: bytes) -> bool:
    """Whether bytes are what `seal` makes."""
    return data.lstrip().startswith(b'{"format": "' + FORMAT.encode() + b'"')


def passphrase_from(variable: str, environment: Mapping[str, str] = os.environ) -> str | None:
    """A passphrase from the environment, or from the file that VARIABLE_FILE names; None where neither is set.

    Raises:
        ConfigError: the file cannot be read.
    """
    if (given := environment.get(variable)) is not None:
        return given
    if (name := environment.get(f"{variable}_FILE")) is None:
        return None
    try:
        return Path(name).read_text(encoding="utf-8").rstrip("\r\n")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"the file that {variable}_FILE names cannot be read. Correct the variable.") from error


def _key(passphrase: str, salt: bytes, n: int, r: int, p: int) -> bytes:
    return Scrypt(salt=salt, length=KEY_BYTES, n=n, r=r, p=p).derive(passphrase.encode())


def _context(purpose: str, n: int, r: int, p: int) -> bytes:
    return f"{FORMAT}|{purpose}|{n}|{r}|{p}".encode()
