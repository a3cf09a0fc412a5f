"""The images of a simulated site written once more, as its shifts make them, and the site described anew.

    OUT/shifted/SITE/N/images.csv         a row for each study of its N-th source; ids are the source's own
                      000001-image.nii    volumes (x, y, z, channel) float32, on the grid that they had
                      000002-image.png    pictures of 8 bits; .tif of float32 where they are deeper
                      000002-mask-0.png   labels

The ids and the order of the studies stay, and what a site would set aside is left out, so every patient has the place
in training and testing that they have without a shift; a warning says how many were left out. Labels are written in the
classes of the run. The folder holds images of patients, as the source does, and is its owner's alone; it goes with OUT.
"""

import csv
import hashlib
import io
import json
import logging
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from client.data.quality.quality import examine
from client.data.read import images as pictures
from client.data.read.pairs import has_suffix
from client.data.read.sources import find, read
from client.data.study.labels import BACKGROUND, Vocabulary
from client.data.study.study import Reference, Study
from common import labelmap
from common.config import RunConfig, SiteConfig, SourceConfig
from common.errors import ConfigError, DataError, ErrorCode
from common.system.files import write_private
from simulations.shifts import Shift, shifted

_TABLE, _DONE = "images.csv", ".complete"
_COLUMNS = ("id", "image", "mask", "class", "region")
_FORMAT = 2  # of what is written; another one is written anew
_LPS = np.diag([-1.0, -1.0, 1.0, 1.0])
_REVERSED = np.eye(4)[[2, 1, 0, 3]]
_COLOURS = 3
_SHALLOW = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "YCbCr")  # modes of pictures that are read as 8 bits

_log = logging.getLogger(__name__)


def shifted_site(site: SiteConfig, shifts: Sequence[Shift], run: RunConfig, folder: Path) -> SiteConfig:
    """The site over its shifted images, which are written where they are not there yet; as it is without shifts.

    Args:
        site: with absolute paths.
        shifts: applied in their order.
        run: names the classes.
        folder: of the images of all shifted sites.

    Raises:
        ConfigError: the site has no study that can be used, or pictures of neither one nor three channels.
    """
    if not shifts:
        return site
    home = folder.absolute() / site.name
    found = [find(source, home).references for source in site.data]
    asked, done = _digest(site, shifts, run, found), home / _DONE
    if not done.exists() or done.read_text(encoding="utf-8") != asked:
        _clear(home)
        _write(site, found, shifts, run, home)
        write_private(done, asked.encode())
    data = tuple(_described(source, home / str(number), run) for number, source in enumerate(site.data, start=1))
    return site.model_copy(update={"data": data, "format": SiteConfig.LATEST})


def _described(source: SourceConfig, folder: Path, run: RunConfig) -> SourceConfig:
    return SourceConfig(
        path=str(folder),
        kind="images",
        csv=_TABLE,
        class_column="class" if run.task.whole else None,
        region_column="region" if source.region_column is not None else None,
        empty_labels_are_negative=source.empty_labels_are_negative,
        labels_checked=True,  # what was doubtful in the source is not written
    )


def _digest(site: SiteConfig, shifts: Sequence[Shift], run: RunConfig, found: Sequence[tuple[Reference, ...]]) -> str:
    """What the images follow from: settings, and the files as they are now."""
    references = [one for several in found for one in several]
    files = [
        (str(path), path.stat().st_size, path.stat().st_mtime_ns)
        for one in references
        if one.problem is None
        for path in one.files
    ]
    told = [one.model_dump(mode="json") for one in (*site.data, *shifts, run.data, run.task, run.preprocessing)]
    return hashlib.sha256(json.dumps([_FORMAT, told, files, len(references)]).encode()).hexdigest()


def _clear(home: Path) -> None:
    """Remove what was written before, which may be of patients whom the source has no more."""
    (home / _DONE).unlink(missing_ok=True)
    for path in home.glob("[0-9]*/[0-9]*-*"):
        path.unlink()


def _write(
    site: SiteConfig, found: Sequence[tuple[Reference, ...]], shifts: Sequence[Shift], run: RunConfig, home: Path
) -> None:
    rows: list[list[dict[str, str]]] = [[] for _ in found]
    left_out: Counter[str] = Counter()
    seen: set[str] = set()  # digests of the images that are written
    for source, references, written, place in zip(site.data, found, rows, range(1, 1 + len(found)), strict=True):
        for number, reference in enumerate(references, start=1):
            study = _used(source, reference, run, seen)
            if isinstance(study, DataError):
                left_out[str(study.code)] += 1
                continue
            made = shifted(study, shifts)
            image, mask, region = _files(made, home / str(place) / f"{number:06}", deep=_is_deep(study))
            classes = None if made.findings is None else [made.classes[one - 1] for one in made.findings]
            told = "" if classes is None else "|".join(classes or [BACKGROUND])
            written.append({"id": reference.patient, "image": image, "mask": mask, "class": told, "region": region})
    total = sum(map(len, found))
    if left_out:
        told = ", ".join(f"{count} {code}" for code, count in sorted(left_out.items()))
        _log.warning("of %d studies that are shifted some cannot be used and are left out: %s", total, told)
    if not any(rows):
        raise ConfigError(
            f"none of the {total} studies of a shifted site can be used ({dict(left_out)}). Preview the scenario "
            "without [[shifts]], which says what is wrong."
        )
    for place, written in enumerate(rows, start=1):
        sheet = io.StringIO()
        writer = csv.DictWriter(sheet, _COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(written)
        write_private(home / str(place) / _TABLE, sheet.getvalue().encode())


def _used(source: SourceConfig, reference: Reference, run: RunConfig, seen: set[str]) -> Study | DataError:
    """The study as a site would use it, or why it sets it aside; of a duplicate in the copy nothing would show."""
    task = run.task
    wanted = Vocabulary.of_run(run.data, source.label_map, whole=task.whole, overlap=task.overlaps)
    try:
        study = read(reference, wanted)
        facts = examine(
            study,
            empty_is_negative=source.empty_labels_are_negative,
            labels_checked=source.labels_checked,
            most_missing=run.preprocessing.most_missing,
        )
    except DataError as error:
        return error
    if facts.digest in seen:
        return DataError(
            "the image is pixel for pixel that of a study above. Take one of them out.", ErrorCode.DUPLICATE
        )
    seen.add(facts.digest)
    return study


def _is_deep(study: Study) -> bool:
    """Whether an image has more than 8 bits: a picture by its file, any other by its values."""
    from PIL import Image  # noqa: PLC0415 - only here

    if has_suffix(study.files[0], pictures.SUFFIXES):
        with Image.open(study.files[0]) as opened:
            return opened.mode not in _SHALLOW
    image = study.image
    return bool(image.min() < 0 or image.max() > 255 or (image != image.round()).any())


def _files(study: Study, base: Path, *, deep: bool) -> tuple[str, str, str]:
    """Write the image, the masks and the field of view of a study; what the table says of them."""
    maps: dict[str, NDArray[np.uint8]] = {}
    if study.label is not None and study.overlap:  # a mask of each class
        for number, name in enumerate(study.classes, start=1):
            maps[name] = labelmap.marks(study.label, number, overlap=True).astype(np.uint8)
    elif study.label is not None:
        maps[""] = study.label
    if study.spacing_mm is None:
        image = _picture(base, study.image.reshape(len(study.image), *study.image.shape[-2:]), deep=deep)
        masks = {
            name: _stored(base, f"mask-{number}.png", values.reshape(values.shape[-2:]))
            for number, (name, values) in enumerate(maps.items())
        }
    else:
        affine = _affine(study.spacing_mm) if study.affine is None else study.affine
        image = _volume(base, "image.nii", study.image, affine)
        masks = {
            name: _volume(base, f"mask-{number}.nii", values[None], affine)
            for number, (name, values) in enumerate(maps.items())
        }
    region = "" if study.region is None else _stored(base, "region.png", study.region)
    return image, "|".join(f"{name}={path}" if name else path for name, path in masks.items()), region


def _picture(base: Path, image: NDArray[np.float32], *, deep: bool) -> str:
    """(C, Y, X); of 8 bits values are rounded and cut off, what is deeper stays float32."""
    if len(image) not in (1, _COLOURS) or (deep and len(image) > 1):
        depth = " of more than 8 bits" if deep else ""
        raise ConfigError(
            f"pictures of {len(image)} channels{depth} cannot be written for a shifted site; expected grey, or red, "
            "green and blue of 8 bits. Name one with channel in its source, or take the site out of [[shifts]]."
        )
    if deep:
        return _stored(base, "image.tif", image[0])
    pixels = image[0] if len(image) == 1 else np.moveaxis(image, 0, -1)
    return _stored(base, "image.png", pixels.round().clip(0, 255).astype(np.uint8))


def _stored(base: Path, name: str, pixels: NDArray[Any]) -> str:
    from PIL import Image  # noqa: PLC0415 - only here

    stored = io.BytesIO()
    Image.fromarray(pixels).save(stored, "TIFF" if name.endswith(".tif") else "PNG")
    path = base.with_name(f"{base.name}-{name}")
    write_private(path, stored.getvalue())
    return path.name


def _volume(base: Path, name: str, voxels: NDArray[Any], affine: NDArray[np.float64]) -> str:
    """(C, Z, Y, X), or (C, Y, X) of one slice; affine: of (z, y, x) to LPS mm."""
    import nibabel as nib  # noqa: PLC0415 - only here

    stack = voxels if voxels.ndim == 4 else voxels[:, None]
    stored = stack[0].transpose() if len(stack) == 1 else stack.transpose(3, 2, 1, 0)
    file: Any = nib.Nifti1Image(  # type: ignore[no-untyped-call]  # nibabel types its base class only
        np.ascontiguousarray(stored), _LPS @ affine @ _REVERSED
    )
    file.header.set_xyzt_units("mm")
    path = base.with_name(f"{base.name}-{name}")
    write_private(path, file.to_bytes())
    return path.name


def _affine(spacing_mm: tuple[float, ...]) -> NDArray[np.float64]:
    """Of an image without a place of its own: slices along z, from the origin on."""
    edges = (1.0,) * (3 - len(spacing_mm)) + spacing_mm
    return _REVERSED @ np.diag([*edges, 1.0])


__all__ = ["shifted_site"]
