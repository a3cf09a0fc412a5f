"""Image and label files that belong together because they share a name: images/a/1.jpg and labels/a/1.png.

Shared by the readers of pictures and of NIfTI.
"""

import os
import re
from collections import Counter
from collections.abc import Collection
from pathlib import Path

from client.data.study import LONELY_LABEL, NO_IMAGE, Found, Kind, Reference
from common.config import SourceConfig
from common.errors import ConfigError, DataError, ErrorCode

# Marks the folder of a site: its key, its cache, its results.
_SITE_FILE = "site.toml"


def find_pairs(kind: Kind, source: SourceConfig, folder: Path, suffixes: Collection[str]) -> Found:
    """Pair the files of the source's two sub-folders by relative path without suffix.

    An image without label is found nevertheless: reading it says NO_LABEL.

    Raises:
        ConfigError: a sub-folder is missing, or patient-pattern is no pattern.
    """
    images, other_images = _named_files(_subfolder(folder, source.images, "images"), suffixes)
    labels, other_labels = _named_files(_subfolder(folder, source.labels, "labels"), suffixes)
    references = []
    for key, path in images:
        patient, problem = patient_of(key, source.patient_pattern)
        matching = tuple(label for name, label in labels if name == key)
        references.append(Reference(kind, patient, key, (path,), matching, source.label_map, problem))
    names = {key for key, _ in images}
    lonely = sum(name not in names for name, _ in labels)
    return Found(tuple(references), +Counter({NO_IMAGE: other_images + other_labels, LONELY_LABEL: lonely}))


def patient_of(name: str, pattern: str | None) -> tuple[str, DataError | None]:
    """The patient a file or row belongs to, and the problem when the pattern does not find one.

    Guessing would put one person's images on both sides of a split, so there is no fallback.

    Raises:
        ConfigError: the pattern is no regular expression with a group.
    """
    if pattern is None:
        return name, None
    try:
        expression = re.compile(pattern)
    except re.error as error:
        raise ConfigError(f"patient-pattern {pattern!r} is no regular expression ({error}). Correct it.") from error
    if not expression.groups:
        raise ConfigError(f"patient-pattern {pattern!r} has no group. Put the part that names the patient in ( ).")
    found = expression.search(name)
    if found is None or not found.group(1):
        return "", DataError(
            "patient-pattern does not match, so its patient is not known. Correct patient-pattern in site.toml.",
            ErrorCode.UNSUPPORTED,
        )
    return found.group(1), None


def files_under(folder: Path) -> list[Path]:
    """All files in a folder and below, sorted.

    Hidden ones (such as ._ and .DS_Store) are left out, and so is a site's own folder when it lies in its data.
    """
    paths = []
    for where, folders, names in os.walk(folder):
        if _SITE_FILE in names and Path(where) != folder:
            folders.clear()
            continue
        folders[:] = [name for name in folders if not name.startswith(".")]
        paths += [Path(where, name) for name in names if not name.startswith(".")]
    return sorted(path for path in paths if path.is_file())


def has_suffix(path: Path, suffixes: Collection[str]) -> bool:
    """Whether the name ends in one of the suffixes, whatever the case."""
    return path.name.lower().endswith(tuple(suffixes))


def _subfolder(folder: Path, name: str, key: str) -> Path:
    path = folder / name
    if not path.is_dir():
        raise ConfigError(
            f"the data source has no sub-folder {name!r}. Set {key} in site.toml to the sub-folder's name, "
            "or csv to a table of images and masks."
        )
    return path


def _named_files(folder: Path, suffixes: Collection[str]) -> tuple[list[tuple[str, Path]], int]:
    """(relative path without suffix, path) of the files with a suffix, and the number of others."""
    files = files_under(folder)
    longest_first = sorted(suffixes, key=len, reverse=True)
    named = []
    for path in files:
        relative = path.relative_to(folder).as_posix()
        suffix = next((suffix for suffix in longest_first if relative.lower().endswith(suffix)), None)
        if suffix is not None:
            named.append((relative[: -len(suffix)], path))
    return named, len(files) - len(named)
