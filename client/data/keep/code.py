"""Which code this is: what it made before counts only while it is the same."""

import hashlib
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path

import client.data

# Everything that reads and prepares studies, in whatever folder of it.
READING_AND_PREPARING = Path(client.data.__path__[0])
# What decides what a file holds, beside that code.
_LIBRARIES = ("numpy", "pydicom", "nibabel", "pillow", "python-gdcm", "pylibjpeg-openjpeg", "pyjpegls")


def reading_program() -> tuple[str, ...]:
    """What reads and judges the studies: this package's code, and the versions of its libraries."""
    return (code_digest(), *map(version, _LIBRARIES))


@lru_cache
def code_digest(package: Path = READING_AND_PREPARING) -> str:
    """SHA-256 of a package's modules with those of its folders, and of their places.

    An update of Wardround that leaves them alone keeps what they made.
    """
    digest = hashlib.sha256()
    for path in sorted(package.rglob("*.py")):
        digest.update(hashlib.sha256(path.relative_to(package).as_posix().encode()).digest())
        digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()


__all__ = ["code_digest", "reading_program"]
