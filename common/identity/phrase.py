"""Fingerprints as people compare them: pronounceable five-letter words of 16 bits each.

Wilkerson, "A Proposal for Proquints", arXiv:0901.4016.
"""

# 64 bits: enough that nobody finds a second key with the same phrase while two people compare it.
PHRASE_WORDS = 4

_CONSONANTS = "bdfghjklmnprstvz"
_VOWELS = "aiou"


def as_phrase(fingerprint_hex: str) -> str:
    """The first 64 bits of a fingerprint as four words two people can read to each other."""
    digest = bytes.fromhex(fingerprint_hex)
    words = (int.from_bytes(digest[2 * i : 2 * i + 2], "big") for i in range(PHRASE_WORDS))
    return "-".join(_proquint(word) for word in words)


def _proquint(word: int) -> str:
    return (
        _CONSONANTS[word >> 12 & 15]
        + _VOWELS[word >> 10 & 3]
        + _CONSONANTS[word >> 6 & 15]
        + _VOWELS[word >> 4 & 3]
        + _CONSONANTS[word & 15]
    )


__all__ = ["PHRASE_WORDS", "as_phrase"]
