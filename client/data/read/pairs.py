"""Image and label files that belong together, found by their names. Shared by the readers of pictures and of NIfTI.

Names say who belongs to whom, and nothing is chosen where they say two things: an image with two labels is set aside,
and an image is never its own label. The same holds for two images of one name.
"""

import re
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from client.data.read import bids, dataset_json, layouts
from client.data.read.layouts import Roles
from client.data.study.listing import files_under
from client.data.study.study import BESIDE, LONELY_LABEL, NO_IMAGE, TEST_SET, Found, Kind, Reference
from common.config import SourceConfig
from common.errors import ConfigError, DataError, ErrorCode
from common.text import counted

# nnU-Net's way to keep the channels of an image: case_0000, case_0001.
_CHANNEL = re.compile(r"(.+)_(\d{4})")
_OWN_PATIENT = "images taken for a patient each; where several are of one person, set patient-pattern"


@dataclass
class _Pair:
    """channels: how many files its image is made of."""

    images: list[Path] = field(default_factory=list)
    labels: list[Path] = field(default_factory=list)
    channels: int = 1


def find_pairs(
    kind: Kind, source: SourceConfig, folder: Path, suffixes: Collection[str], of_labels: Collection[str] = ()
) -> Found:
    """Pair the files of a folder; `client.data.read.layouts` tells how it may be laid out.

    An image without label is found nevertheless: reading it says NO_LABEL.

    Args:
        kind: of the references.
        source: may name sub-folders, and says whose an image is.
        folder: of the source.
        suffixes: of images and labels.
        of_labels: of labels alone, beside those.

    Raises:
        ConfigError: a sub-folder that site.toml names is missing, or patient-pattern is no pattern.
    """
    described = folder / dataset_json.NAME
    # Its names are offered for a label map, and that it is there says how channels are kept.
    files = [path for path in files_under(folder) if path != described]
    by_pattern = (source.image_pattern, source.label_pattern) != (None, None)
    as_bids = not by_pattern and bids.is_bids(files, folder) and (source.images, source.labels) == ("images", "labels")
    if by_pattern:
        roles = layouts.roles_of_patterns(files, folder, source, suffixes, {*suffixes, *of_labels})
    elif as_bids:
        roles = bids.roles_of(files, folder, suffixes)
    else:
        roles = layouts.roles_of(files, folder, source, suffixes, {*suffixes, *of_labels})
    pairs, lonely, assumed = _cases(roles) if by_pattern else _matched(roles, whole_cases=described.is_file())
    # Of two numbers that are as usual the larger: what is missing is likelier than what is too much.
    usual = max(
        Counter(pair.channels for pair in pairs.values()).items(), key=lambda one: (one[1], one[0]), default=(1,)
    )
    references = []
    for key, pair in sorted(pairs.items()):
        if as_bids and source.patient_pattern is None:
            patient, problem = bids.subject_of(key), None
        else:
            patient, problem = patient_of(key, source.patient_pattern)
        problem = problem or _doubt(pair)
        if problem is None and pair.channels != usual[0] and by_pattern:
            problem = DataError(
                f"image-pattern finds {pair.channels} files of this image, and {usual[0]} of others. Add what is "
                "missing, take out what is too much, or narrow image-pattern.",
                ErrorCode.UNSUPPORTED,
            )
        images, labels = tuple(pair.images), tuple(pair.labels)
        if problem is None and pair.channels > 1 and source.channel is not None:
            problem = lacking(source.channel, pair.channels)
            images = images[source.channel :][:1] or images
        within = source.channel if pair.channels == 1 else None
        references.append(Reference(kind, patient, key, images, labels, source.label_map, problem, channel=within))
    told = {**roles.assumed, **assumed}
    if not as_bids and source.patient_pattern is None and len(references) > 1:
        told[_OWN_PATIENT] = len(references)
    left_out = +Counter({NO_IMAGE: roles.others, BESIDE: roles.beside, TEST_SET: roles.test, LONELY_LABEL: lonely})
    return Found(tuple(references), left_out, told)


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


def has_suffix(path: Path, suffixes: Collection[str]) -> bool:
    """Whether the name ends in one of the suffixes, whatever the case."""
    return path.name.lower().endswith(tuple(suffixes))


def own_label(images: Sequence[Path], labels: Sequence[Path]) -> DataError | None:
    """Why an image has no label of its own where a label is the very file of an image."""
    if any(_same_file(image, label) for image in images for label in labels):
        return DataError(
            "the label of this image is the image itself. Name its own label, or take it out.", ErrorCode.NO_LABEL
        )
    return None


def _matched(roles: Roles, *, whole_cases: bool) -> tuple[dict[str, _Pair], int, dict[str, int]]:
    """Pairs by key, the number of labels without an image, and what was assumed.

    whole_cases: whether images called case_0000 are channels also where they have no label.
    """
    pairs: dict[str, _Pair] = {}
    for image in roles.images:
        pairs.setdefault(image.bases[0], _Pair()).images.append(image.path)
    exact = {base for label in roles.labels for base in label.bases[:1]} & pairs.keys()
    channels = _channels(pairs, exact)
    wanted = {base for label in roles.labels for base in label.bases if base in channels and base not in pairs}
    cases = channels if whole_cases else wanted
    for case in cases:
        parts = [pairs.pop(name).images for name in channels[case]]
        pairs[case] = _Pair([path for paths in parts for path in paths], channels=len(parts))
    left = []
    for label in roles.labels:
        base = next((base for base in label.bases if base in pairs), None)
        if base is None:
            left.append(label)
        else:
            pairs[base].labels.append(label.path)
    assumed = {"images put together from their channels, NAME_0000 and so on": len(cases)} if cases else {}
    alone = _alone_in_their_folders(pairs, [(label.path, label.bases) for label in left])
    for key, path in alone.items():
        pairs[key].labels.append(path)
    if alone:
        assumed["labels taken for those of the only image in their folder"] = len(alone)
    return pairs, len(left) - len(alone), assumed


def _cases(roles: Roles) -> tuple[dict[str, _Pair], int, dict[str, int]]:
    """As `_matched`, of files whose cases are known."""
    pairs: dict[str, _Pair] = {}
    named: dict[str, set[str]] = {}
    for image in roles.images:
        case, stem = image.bases
        named.setdefault(case, set()).add(stem)
        pairs.setdefault(case, _Pair()).images.append(image.path)
    for case, stems in named.items():  # one image with two endings is no two channels
        pairs[case].channels = len(stems)
    lonely = 0
    for label in roles.labels:
        if label.bases[0] in pairs:
            pairs[label.bases[0]].labels.append(label.path)
        else:
            lonely += 1
    return pairs, lonely, {}


def _channels(pairs: Mapping[str, _Pair], exact: Collection[str]) -> dict[str, list[str]]:
    """Names of images by the case that they may be channels of, in order; not those that have labels of their own."""
    found: dict[str, list[str]] = {}
    for name in sorted(pairs):
        if name not in exact and (numbered := _CHANNEL.fullmatch(name)) is not None:
            found.setdefault(numbered[1], []).append(name)
    whole = {case: [f"{case}_{number:04}" for number in range(len(names))] for case, names in found.items()}
    return {case: names for case, names in found.items() if case not in pairs and names == whole[case]}


def _alone_in_their_folders(
    pairs: Mapping[str, _Pair], labels: Sequence[tuple[Path, tuple[str, ...]]]
) -> dict[str, Path]:
    """Labels by the key of an image, where a sub-folder holds nothing but the two."""
    images: dict[str, list[str]] = {}
    for key in pairs:
        images.setdefault(str(PurePosixPath(key).parent), []).append(key)
    owners: dict[str, list[Path]] = {}
    for path, bases in labels:
        if bases:
            # The bare word's base is the folder itself.
            place = bases[-1] if bases[-1] in images else str(PurePosixPath(bases[-1]).parent)
            owners.setdefault(place, []).append(path)
    return {
        images[place][0]: paths[0]
        for place, paths in owners.items()
        if place != "." and len(paths) == len(images.get(place, ())) == 1 and not pairs[images[place][0]].labels
    }


def _doubt(pair: _Pair) -> DataError | None:
    """Why nobody can tell which files belong together."""
    if len(pair.images) > pair.channels:
        return DataError(
            f"{len(pair.images)} images have the same name, with different endings or in different folders. Keep one.",
            ErrorCode.UNSUPPORTED,
        )
    if len(pair.labels) > 1:
        return DataError(
            f"{len(pair.labels)} label files go by the name of this image, and they may differ. Keep the one that is "
            "right, or name the folder of the right ones with labels in site.toml.",
            ErrorCode.UNSUPPORTED,
        )
    return own_label(pair.images, pair.labels)


def lacking(channel: int, channels: int) -> DataError | None:
    """What is wrong where an image of so many channels has not the one that its source names; None: nothing."""
    if channel < channels:
        return None
    return DataError(
        f"site.toml asks for channel {channel} of each image, counted from 0, and this one has "
        f"{counted(channels, 'channel')}. Name one that each image has, or take channel out.",
        ErrorCode.UNSUPPORTED,
    )


def _same_file(first: Path, second: Path) -> bool:
    try:
        return first.samefile(second)
    except OSError:
        return False


__all__ = ["find_pairs", "has_suffix", "own_label", "patient_of"]
