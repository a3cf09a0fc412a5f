"""Images and labels as BIDS lays them out: raw data in sub-<label>/, labels of people and programs in derivatives/.

A label belongs to the image of its subject and session whose entities (acq-, run- and so on) it repeats; where it names
a suffix (T1w), to the image of that suffix. What cannot be told is left alone: a label of another space than the
image's, one that two images could own, a mask of the brain. Source: https://bids-specification.readthedocs.io,
"Imaging data types" of derivatives.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

from client.data.read.layouts import Named, Roles, stem_of

# Entities that a label adds to its source's.
_OF_LABELS = frozenset({"space", "desc", "label", "res", "den", "atlas", "seg"})
_OWN_SPACES = frozenset({"orig", "individual", "native", "scanner"})
_LABEL_SUFFIXES = frozenset({"seg", "dseg", "mask", "roi", "lesion"})
_ASSUMED = "images whose patients and labels are told by the rules of BIDS"


@dataclass(frozen=True)
class _Name:
    entities: frozenset[str]  # such as "sub-1"
    suffixes: tuple[str, ...]  # such as T1w; a label may repeat its image's before its own

    def of_image(self) -> frozenset[str]:
        return frozenset(entity for entity in self.entities if entity.partition("-")[0] not in _OF_LABELS)

    def value(self, key: str) -> str | None:
        return next((entity.partition("-")[2] for entity in self.entities if entity.partition("-")[0] == key), None)


def is_bids(files: Sequence[Path], folder: Path) -> bool:
    """Whether a folder has subjects, and derivatives of subjects."""
    parts = [path.relative_to(folder).parts for path in files]
    return any(one[0].startswith("sub-") and len(one) > 1 for one in parts) and any(
        one[0] == "derivatives" and any(name.startswith("sub-") for name in one[1:-1]) for one in parts
    )


def subject_of(key: str) -> str:
    """The subject that an image's key names."""
    return key.partition("/")[0]


def roles_of(files: Sequence[Path], folder: Path, suffixes: Collection[str]) -> Roles:
    """See `client.data.read.layouts.roles_of`."""
    images: list[tuple[Named, _Name]] = []
    labels: list[tuple[Path, _Name]] = []
    others = beside = 0
    for path in files:
        parts = path.relative_to(folder).parts
        stem = stem_of(path, folder, suffixes)
        if stem is None:
            others += 1
            continue
        name = _parsed(stem.split("/")[-1])
        if _is_label(name):
            labels.append((path, name))
        elif parts[0].startswith("sub-"):
            images.append((Named(path, (stem,)), name))
        else:
            beside += 1
    named = tuple(Named(path, _image_of(name, images)) for path, name in labels)
    return Roles(tuple(image for image, _ in images), named, others, beside, {_ASSUMED: len(images)})


def _parsed(name: str) -> _Name:
    tokens = name.split("_")
    return _Name(
        frozenset(token for token in tokens if "-" in token), tuple(token for token in tokens if "-" not in token)
    )


def _is_label(name: _Name) -> bool:
    return bool(name.suffixes) and name.suffixes[-1].lower() in _LABEL_SUFFIXES and name.value("sub") is not None


def _image_of(label: _Name, images: Sequence[tuple[Named, _Name]]) -> tuple[str, ...]:
    """The key of the one image that a label can be of; else nothing."""
    if label.value("desc") in ("brain", "brainmask"):
        return ()
    of = label.suffixes[:-1]
    found = [
        (image, name)
        for image, name in images
        if name.entities == label.of_image() and (not of or of[-1:] == name.suffixes[-1:])
    ]
    if len(found) != 1:
        return ()
    ((image, name),) = found
    space = label.value("space")
    return image.bases if space is None or space in {*_OWN_SPACES, *name.suffixes} else ()


__all__ = ["is_bids", "roles_of", "subject_of"]
