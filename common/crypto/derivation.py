"""From one secret a key for each use: HKDF-SHA256 (RFC 5869). The secret itself seals nothing."""

from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

KEY_BYTES = 32


def derived(secret: bytes, purpose: str, use: str = "", salt: bytes = b"") -> bytes:
    """32 bytes for one use of one purpose.

    Args:
        secret: 32 secret bytes, such as the site key.
        purpose: what the key is for.
        use: what for within that; "" where there is only one.
        salt: random, where each thing has a key of its own.
    """
    info = f"wardround {purpose} v1" + (f": {use}" if use else "")
    return HKDF(SHA256(), length=KEY_BYTES, salt=salt, info=info.encode()).derive(secret)


__all__ = ["KEY_BYTES", "derived"]
