"""Records that only one site can open and alter, each kind under keys of its own derived from the site key.

    key    = HKDF-SHA256(site key, salt, "wardround PURPOSE v1: USE")     RFC 5869
    sealed = nonce (12, random) | AES-256-GCM ciphertext | tag (16)       RFC 5116

A context, which says where the bytes belong, is authenticated with them: they open nowhere else. Random nonces are
good for 2^32 messages under one key, and also where a folder is put back from a copy; a counter would then repeat.
"""

import hashlib
import hmac
import json
import secrets

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from common.crypto.derivation import derived

NONCE_BYTES = 12
TAG_BYTES = 16


class RecordBox:
    """Seals and opens for one purpose. What another site, or the same for another purpose, has sealed does not open."""

    def __init__(self, site_key: bytes, purpose: str) -> None:
        self._key = derived(site_key, purpose, "encryption")
        self._naming_key = derived(site_key, purpose, "names")

    def seal(self, data: bytes, context: bytes) -> bytes:
        """Seal bytes for the place that the context names; 28 bytes longer than they are."""
        return seal(self._key, data, context)

    def unseal(self, sealed: bytes, context: bytes) -> bytes:
        """Inverse of `seal`.

        Raises:
            ValueError: sealed with another key or for another place, or altered; which of these is not known.
        """
        return unseal(self._key, sealed, context)

    def name(self, *parts: str | int) -> bytes:
        """HMAC-SHA256 of the parts: 32 bytes that are the same for the same parts, and tell nothing about them."""
        return hmac.new(self._naming_key, json.dumps(parts).encode(), hashlib.sha256).digest()


def seal(key: bytes, data: bytes, context: bytes) -> bytes:
    """`RecordBox.seal` under a key of 32 bytes that is derived for this alone."""
    nonce = secrets.token_bytes(NONCE_BYTES)
    return nonce + AESGCM(key).encrypt(nonce, data, context)


def unseal(key: bytes, sealed: bytes, context: bytes) -> bytes:
    """Inverse of `seal`.

    Raises:
        ValueError: sealed with another key or for another place, or altered.
    """
    try:
        return AESGCM(key).decrypt(sealed[:NONCE_BYTES], sealed[NONCE_BYTES:], context)
    except InvalidTag as error:
        raise ValueError("the sealed bytes do not open") from error


__all__ = ["NONCE_BYTES", "TAG_BYTES", "RecordBox", "seal", "unseal"]
