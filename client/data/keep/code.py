"""Which code this is: what it made before counts only while it is the same."""

import hashlib
import importlib.metadata
from functools import lru_cache
from pathlib import Path

import client.data
import common.preparation

# Everything that reads and prepares studies, in whatever folder of it.
READING_AND_PREPARING = Path(client.data.__path__[0])
PREPARATION_STEPS = Path(common.preparation.__path__[0])
# What decides what a file holds, beside that code, and what a step makes of it.
_LIBRARIES = (
    *("numpy", "pydicom", "nibabel", "pillow", "python-gdcm", "pylibjpeg-openjpeg", "pyjpegls"),
    *("scipy", "scikit-image", "simpleitk"),
)

# Of an installed distribution; its metadata are parsed once, and not for each site that a process opens.
version = lru_cache(importlib.metadata.version)


def reading_program() -> tuple[str, ...]:
    """What reads, judges and prepares the studies: the code of these packages, and the versions of their libraries."""
    return (code_digest(), code_digest(PREPARATION_STEPS), *map(version, _LIBRARIES))


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


__all__ = ["code_digest", "reading_program", "version"]
