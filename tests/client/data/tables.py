"""Sealed tables opened and made as their docstrings say, with `cryptography` alone: the oracle outside the code."""

import json
import secrets
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

MAGIC, NONCE = b"WRTABLE1", 12


def opened_table(path: Path, key: bytes, purpose: str) -> dict[str, Any]:
    """What a sealed file holds."""
    data = path.read_bytes()
    assert data.startswith(MAGIC)
    sealed = data[len(MAGIC) :]
    text = _cipher(key, purpose).decrypt(sealed[:NONCE], sealed[NONCE:], MAGIC)
    assert len(text) % 4096 == 0
    values: dict[str, Any] = json.loads(text)
    return values


def make_table(path: Path, key: bytes, purpose: str, text: bytes) -> None:
    """A sealed file that holds this text."""
    nonce = secrets.token_bytes(NONCE)
    path.write_bytes(MAGIC + nonce + _cipher(key, purpose).encrypt(nonce, text, MAGIC))


def _cipher(key: bytes, purpose: str) -> AESGCM:
    info = f"wardround {purpose} v1: encryption".encode()
    return AESGCM(HKDF(SHA256(), length=32, salt=None, info=info).derive(key))
