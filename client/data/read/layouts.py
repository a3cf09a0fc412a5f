"""Which files are images and which are labels, and what they are called without that: from names alone.

Four ways to lay out a folder are known, beside a table (client/data/read/images.py):

- two sub-folders, images/a/1.jpg and labels/a/1.png, under these or other usual names (imagesTr and labelsTr, masks);
- names, 1.nii.gz and 1_seg.nii.gz, or mask_1.png, in one folder or a folder per patient;
- by patterns that a source gives, for names that tell in none of these ways;
- BIDS, sub-1/anat/sub-1_T1w.nii.gz and derivatives/X/sub-1/anat/sub-1_T1w_seg.nii.gz (client/data/read/bids.py).

Whatever was not written in site.toml but taken from names is told as an assumption.
"""

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from common.config import SourceConfig
from common.errors import ConfigError

_DEFAULTS = tuple(SourceConfig.model_fields[name].default for name in ("images", "labels"))
# nnU-Net and the Medical Segmentation Decathlon keep images without labels there.
_TEST_FOLDERS = ("imagests",)
_IMAGE_FOLDERS = ("images", "imagestr", "image", "img", "imgs")
_LABEL_FOLDERS = (
    *("labels", "labelstr", "masks", "label", "mask", "seg", "segs", "segmentation", "segmentations"),
    *("annotation", "annotations", "gt", "groundtruth", "ground_truth", "ground-truth"),
)
_WORDS = "seg|segs|segmentation|mask|masks|label|labels|labelmap|gt|groundtruth|annotation|manual"
_AFTER = re.compile(rf"(?:(.+)[_\-. ])?({_WORDS})", re.IGNORECASE)
_BEFORE = re.compile(rf"({_WORDS})[_\-. ](.+)", re.IGNORECASE)


@dataclass(frozen=True)
class Named:
    """A file. bases: what it may share with its partner, the best first: the path without suffix, folder and word."""

    path: Path
    bases: tuple[str, ...]


@dataclass(frozen=True)
class Roles:
    """others: files that are neither. beside: those that could be, outside of the sub-folders. assumed: see `Found`.
    test: images of a test set.
    """

    images: tuple[Named, ...]
    labels: tuple[Named, ...]
    others: int
    beside: int
    assumed: Mapping[str, int]
    test: int = 0


def roles_of(
    files: Sequence[Path], folder: Path, source: SourceConfig, suffixes: Collection[str], of_labels: Collection[str]
) -> Roles:
    """Sort files into images and labels.

    Args:
        files: all of the folder.
        folder: of the source.
        source: may name the sub-folders.
        suffixes: of images.
        of_labels: of labels.

    Raises:
        ConfigError: a sub-folder that site.toml names is missing.
    """
    pair = _sub_folders(files, folder, source)
    if pair is None:
        return _by_names(files, folder, suffixes, of_labels)
    return _by_folders(files, folder, pair, suffixes, of_labels, told=pair != _DEFAULTS)


def roles_of_patterns(
    files: Sequence[Path],
    folder: Path,
    source: SourceConfig,
    suffixes: Collection[str],
    of_labels: Collection[str],
) -> Roles:
    """Sort files by the patterns of a source; a file of neither is no image and no label.

    Raises:
        ConfigError: a pattern is none, or only one of the two is given.
    """
    image_pattern, label_pattern = (
        _pattern(text, key)
        for text, key in ((source.image_pattern, "image-pattern"), (source.label_pattern, "label-pattern"))
    )
    images, labels, others = [], [], 0
    for path in files:
        stem, of_label = stem_of(path, folder, suffixes), stem_of(path, folder, of_labels)
        if of_label is not None and (case := _case(label_pattern, of_label)):
            labels.append(Named(path, (case, of_label)))
        elif stem is not None and (case := _case(image_pattern, stem)):
            images.append(Named(path, (case, stem)))
        else:
            others += 1
    return Roles(tuple(images), tuple(labels), others, 0, {})


def stem_of(path: Path, folder: Path, suffixes: Collection[str]) -> str | None:
    """Relative path without suffix; None where it has none of these."""
    relative = path.relative_to(folder).as_posix()
    lower = relative.lower()
    suffix = next((one for one in sorted(suffixes, key=len, reverse=True) if lower.endswith(one)), None)
    return None if suffix is None else relative[: -len(suffix)]


def is_label_name(stem: str) -> bool:
    """Whether a name, or a folder that it lies in, says that it is a label."""
    *folders, name = stem.split("/")
    kinds = {_kind(folder) for folder in folders}
    return "label" in kinds or ("image" not in kinds and next(_without_words(name), None) is not None)


def bases_of_label(stem: str) -> tuple[str, ...]:
    """What a label may share with its image, the best first; see `Named`."""
    base = outside(stem)
    within = any(_kind(name) == "label" for name in stem.split("/")[:-1])
    return (*((base,) if within else ()), *_stripped(base))


def outside(stem: str) -> str:
    """A path without the folders that only say what lies in them."""
    *folders, name = stem.split("/")
    return "/".join([*(folder for folder in folders if not _kind(folder)), name])


def without_labels(files: Sequence[Path], folder: Path, suffixes: Collection[str]) -> list[Path]:
    """The files with a suffix that a model is to be applied to: where there are images, not what is named a label."""
    roles = _by_names(files, folder, suffixes, suffixes)
    return [named.path for named in roles.images or roles.labels]


def _case(pattern: re.Pattern[str], stem: str) -> str | None:
    """The first group, which may be of an alternative that was not taken."""
    found = pattern.fullmatch(stem)
    return None if found is None else found[1]


def _pattern(text: str | None, key: str) -> re.Pattern[str]:
    if text is None:
        raise ConfigError(f"{key} is missing: image-pattern and label-pattern go together. Give both in the source.")
    try:
        pattern = re.compile(text)
    except re.error as error:
        raise ConfigError(f"{key} {text!r} is no regular expression ({error}). Correct it.") from error
    if not pattern.groups:
        raise ConfigError(f"{key} {text!r} has no group. Put the part that names the case in ( ).")
    return pattern


def _sub_folders(files: Sequence[Path], folder: Path, source: SourceConfig) -> tuple[str, str] | None:
    """The two sub-folders; None where names tell."""
    pair = (source.images, source.labels)
    if pair != _DEFAULTS:
        for name, key in zip(pair, ("images", "labels"), strict=True):
            if not (folder / name).is_dir():
                raise ConfigError(
                    f"the data source has no sub-folder {name!r}. Set {key} in site.toml to the sub-folder's name, "
                    "or csv to a table of images and masks."
                )
        return None if (folder / pair[0]).samefile(folder / pair[1]) else pair
    first = dict.fromkeys(parts[0] for path in files if len(parts := path.relative_to(folder).parts) > 1)
    if all(name in first for name in pair):
        return pair
    images, labels = ([name for name in first if _kind(name) == kind] for kind in ("image", "label"))
    training = [name for name in (*images, *labels) if name.lower().endswith("tr")]
    if len(training) == 2:
        images, labels = [training[0]], [training[1]]
    if len(labels) == 1 and len(images) <= 1:
        return images[0] if images else ".", labels[0]
    return None


def _by_folders(
    files: Sequence[Path],
    folder: Path,
    pair: tuple[str, str],
    suffixes: Collection[str],
    of_labels: Collection[str],
    *,
    told: bool,
) -> Roles:
    images, labels, others, beside, test = [], [], 0, 0, 0
    image_folder, label_folder = (folder / name for name in pair)
    for path in files:
        if path.is_relative_to(label_folder):
            stem = stem_of(path, label_folder, of_labels)
            if stem is not None:
                labels.append(Named(path, (stem, *_stripped(stem))))
        elif path.is_relative_to(image_folder):
            stem = stem_of(path, image_folder, suffixes)
            if stem is not None:
                images.append(Named(path, (stem,)))
        else:
            stem = stem_of(path, folder, of_labels)
            of_test = path.relative_to(folder).parts[0].lower() in _TEST_FOLDERS
            test += stem is not None and of_test
            beside += stem is not None and not of_test
        others += stem is None
    where = "beside them" if pair[0] == "." else f"in {pair[0]}/"
    assumed = {f"labels taken from {pair[1]}/, with their images {where}": len(labels)} if told else {}
    return Roles(tuple(images), tuple(labels), others, beside, assumed, test)


def _by_names(files: Sequence[Path], folder: Path, suffixes: Collection[str], of_labels: Collection[str]) -> Roles:
    images, labels, others = [], [], 0
    for path in files:
        stem = stem_of(path, folder, of_labels)
        if stem is not None and is_label_name(stem):
            labels.append(Named(path, bases_of_label(stem)))
        elif stem is not None and stem_of(path, folder, suffixes) is not None:
            images.append(Named(path, (outside(stem),)))
        else:
            others += 1
    assumed = (
        {"labels known by words in the names of files or folders (seg, mask, label)": len(labels)} if labels else {}
    )
    return Roles(tuple(images), tuple(labels), others, 0, assumed)


def _kind(folder: str) -> str:
    lower = folder.lower()
    return "image" if lower in _IMAGE_FOLDERS else "label" if lower in _LABEL_FOLDERS else ""


def _stripped(stem: str) -> Iterator[str]:
    """The same place, without the words that say label; the place alone where there is nothing else."""
    *folders, name = stem.split("/")
    return ("/".join([*folders, rest] if rest else folders) for rest in _without_words(name))


def _without_words(name: str) -> Iterator[str]:
    while True:
        if (found := _AFTER.fullmatch(name)) is not None:
            name = found[1] or ""
        elif (found := _BEFORE.fullmatch(name)) is not None:
            name = found[2]
        else:
            return
        yield name


__all__ = [
    "Named",
    "Roles",
    "bases_of_label",
    "is_label_name",
    "outside",
    "roles_of",
    "stem_of",
    "without_labels",
]
