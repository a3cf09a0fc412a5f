"""Label maps in NIfTI beside DICOM images: a file says nothing of whose it is, so its name and its folder do.

A label map goes to the series whose folder, or whose file, it is called after (P1/ct/ and P1/ct_seg.nii.gz, images/P1/
and labels/P1.nii.gz), else to the only series in its folder. Two on one series are set aside: nobody knows whether they
are two structures or two versions. Where on the images a label lies is told by its header (client/data/read/nifti.py).
"""

import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath

from client.data.read import layouts, nifti
from client.data.study.study import LONELY_LABEL, NO_IMAGE, Found, Reference
from common.errors import DataError, ErrorCode

_ASSUMED = "NIfTI label maps taken for those of the DICOM series that their names or folders tell"


def with_label_maps(found: Found, files: Sequence[Path], folder: Path) -> Found:
    """What was found, with each label map given to its series; those without one are counted.

    Args:
        found: DICOM series.
        files: all of the folder.
        folder: of the source.
    """
    stems = {path: layouts.stem_of(path, folder, nifti.SUFFIXES) for path in files}
    maps = {path: layouts.bases_of_label(stem) for path, stem in stems.items() if stem and layouts.is_label_name(stem)}
    places = [_places(reference, folder) for reference in found.references]
    owners = {path: _owner(bases, places) for path, bases in maps.items()}
    references = []
    for number, reference in enumerate(found.references):
        own = tuple(sorted(path for path, owner in owners.items() if owner == number))
        references.append(_with_labels(reference, own) if own else reference)
    lonely = sum(owner is None for owner in owners.values())
    left_out = Counter(found.left_out)
    left_out[NO_IMAGE] -= len(maps)
    left_out[LONELY_LABEL] += lonely
    assumed = Counter(found.assumed) + Counter({_ASSUMED: len(maps) - lonely})
    return Found(tuple(references), +left_out, assumed)


def _places(reference: Reference, folder: Path) -> tuple[str, ...]:
    """What a label may be called after: the folder of the images, and the name of a study of one file."""
    common = Path(os.path.commonpath([path.parent for path in reference.images])).relative_to(folder).as_posix()
    names = (
        [common] if len(reference.images) > 1 else [reference.images[0].relative_to(folder).with_suffix("").as_posix()]
    )
    return (layouts.outside(common), *map(layouts.outside, names))


def _owner(bases: Sequence[str], places: Sequence[Sequence[str]]) -> int | None:
    """Index of the one study whose label it is."""
    for base in bases:
        called = [number for number, own in enumerate(places) if base and base in own[1:]]
        if len(called) == 1:
            return called[0]
    for base in bases[-1:]:
        where = PurePosixPath(base) if any(own[0] == base for own in places) else PurePosixPath(base).parent
        within = [number for number, own in enumerate(places) if PurePosixPath(own[0]).is_relative_to(where)]
        if len(within) == 1:
            return within[0]
    return None


def _with_labels(reference: Reference, maps: tuple[Path, ...]) -> Reference:
    problem = reference.problem
    if problem is None and len(maps) > 1:
        problem = DataError(
            f"{len(maps)} NIfTI label maps may be of this series: two structures, or two versions of one? Join them in "
            "one file, or keep one.",
            ErrorCode.UNSUPPORTED,
        )
    return replace(reference, labels=(*reference.labels, *maps), problem=problem)


__all__ = ["with_label_maps"]
