"""A site's own label values and names to classes: 0 background, 1..K.

Two ways to read: for a run only its classes count, in the order of `DataConfig.classes`, and a label that has no place
there is LABEL_UNKNOWN; as found, every local value or name is a class of its own, in the order met.
`label_map` in site.toml comes first, then the class's own name (for named segments), then the value 1..K itself.
The target "background" in a label map says that a local label is not wanted. Nothing is ignored silently. Overlaps go
to the class with the higher number, so list a lesion after its organ; or stay, each class beside the others, where the
run has classes that may overlap. What a voxel holds for them is told by `common.labelmap`, and drawn by `Naming.draw`.
"""

import difflib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from client.data.study.label_checks import check_one_value, doubtful
from client.data.study.study import Labelling
from common import labelmap
from common.config import DataConfig
from common.errors import ConfigError, DataError, ErrorCode
from common.text import shown

BACKGROUND = "background"

_HIGHEST_VALUE = 65535
_NEARLY_WHOLE = 1e-4
_MOST_CLASSES = 254


@dataclass(frozen=True)
class Vocabulary:
    """Which labels a reader shall give.

    classes: those of a run; None: whatever is found. modality: that a study must have; None: any. whole: the classes
    of an image as a whole are wanted, and no map. overlap: whether classes of a map may overlap.
    """

    label_map: Mapping[str, str] = field(default_factory=dict)
    classes: tuple[str, ...] | None = None
    modality: str | None = None
    whole: bool = False
    overlap: bool = False

    @classmethod
    def of_run(
        cls, data: DataConfig, label_map: Mapping[str, str], *, whole: bool = False, overlap: bool = False
    ) -> Self:
        """The classes of a run, and a source's names for them."""
        return cls(label_map, data.classes, data.modality, whole, overlap)

    @classmethod
    def as_found(cls, label_map: Mapping[str, str]) -> Self:
        """Every label of a source; the label map joins and drops."""
        return cls(label_map)

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Self:
        """Inverse of `to_json`."""
        classes = values["classes"]
        named = None if classes is None else tuple(classes)
        whole, overlap = bool(values["whole"]), bool(values["overlap"])
        return cls(dict(values["label-map"]), named, values["modality"], whole, overlap)

    def to_json(self) -> dict[str, Any]:
        """Plain values, for another process."""
        return {
            "label-map": dict(self.label_map),
            "classes": None if self.classes is None else list(self.classes),
            "modality": self.modality,
            "whole": self.whole,
            "overlap": self.overlap,
        }

    def naming(self) -> "Naming":
        """A fresh start for the label of one study."""
        return Naming(self)


class Naming:
    """The classes of one study, while its label is read. Case, spaces and underscores of names do not matter.

    as_found: whether every label counts, not only a run's. overlap: whether classes may overlap.

    Raises:
        ConfigError: the label map names a class that the run does not have.
    """

    def __init__(self, wanted: Vocabulary) -> None:
        self.as_found = wanted.classes is None
        self.whole = wanted.whole
        self.overlap = wanted.overlap
        self._map = wanted.label_map
        self._classes = list(wanted.classes or ())
        self._numbers = {_plain(name): number for number, name in enumerate(self._classes, start=1)}
        self._renamed = {_plain(local): name for local, name in self._map.items()}
        self.by_word = False  # whether the label map has words for whole images as well
        self.labelling = Labelling(files=1)  # what readers found out on the way; they replace it
        self.heard: set[tuple[str, int]] = set()  # local names and their classes; readers of several files clear it
        self.drawn: set[int] = set()  # classes of which a voxel was drawn, before others were drawn over it
        if not self.as_found:
            for name in self._renamed.values():
                self._target(name)

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes 1..K: the run's, or those met so far."""
        return tuple(self._classes)

    @property
    def any_value(self) -> bool:
        """Whether a label image may use any value but 0 for its class: a run with one class, and no label map."""
        return len(self._classes) == 1 and not self._of_values and not self.as_found

    @property
    def _of_values(self) -> Mapping[str, str]:
        """The label map of label values."""
        return {local: name for local, name in self._map.items() if not self.by_word or local.isdecimal()}

    def value(self, number: int) -> int:
        """What a voxel of this class alone holds in the label."""
        return labelmap.value_of(number, overlap=self.overlap)

    def of_mask(self, mask: NDArray[Any], name: str, ordinal: int, *, checked: bool = False) -> NDArray[np.uint8]:
        """A mask, not 0 inside, of what a local name says, to a label; see `together`.

        Args:
            mask: of any number type.
            name: local.
            ordinal: of its file, for a message.
            checked: whether a person has said that it is meant as it is.

        Raises:
            DataError: LABEL_UNKNOWN; LABEL_DOUBTFUL, it has several values beside 0.
        """
        if not checked:
            check_one_value(mask)
        number, inside = self.number([name], ordinal, "mask"), np.asarray(mask != 0)
        self.drawn |= {number} if inside.any() else set()
        return inside * np.uint8(self.value(number))

    def together(self, parts: Sequence[NDArray[np.uint8]], *, checked: bool = False) -> NDArray[np.uint8]:
        """The label that several files draw, on one grid.

        Raises:
            DataError: LABEL_DOUBTFUL, a class vanished under another.
        """
        labels = parts[0].copy()
        for part in parts[1:]:
            self.draw(labels, part)
        self.labelling = replace(self.labelling, files=len(parts))
        if not checked:
            check_hidden(labels, self)
        return labels

    def draw(self, labels: NDArray[np.uint8], more: NDArray[np.uint8]) -> None:
        """Add to a label, in place, what was drawn besides; both hold what `value` says."""
        labelmap.join(labels, more, overlap=self.overlap)

    def find(self, names: Sequence[str]) -> int | None:
        """The class of the first of several names that the label map or the run has; None when none has one.

        As found, the first name is a class when the label map has none of them.
        """
        known = next((name for name in names if _plain(name) in self._renamed), None)
        if known is not None:
            found = self._target(self._renamed[_plain(known)])
        elif self.as_found:
            known, found = names[0], self._target(names[0])
        else:
            known = next((name for name in names if _plain(name) in self._numbers), None)
            if known is None:
                return None
            found = self._numbers[_plain(known)]
        self.heard.add((_plain(known), found))
        return found

    def number(self, names: Sequence[str], ordinal: int, what: str = "segment") -> int:
        """The class of a named segment or ROI; see `find`.

        Args:
            names: as the label object has them, the best first; they are free text, so they enter no message.
            ordinal: number of the segment, for the message.
            what: what is numbered.

        Raises:
            DataError: LABEL_UNKNOWN.
        """
        given = [name for name in names if _plain(name)]
        found = self.find(given or [f"{what} {ordinal}"])
        if found is None:
            raise DataError(
                f"{what} {ordinal} is labelled with a name that is no class of this run ({', '.join(self._classes)}). "
                f'Name it in label-map in site.toml, or map it to "{BACKGROUND}".',
                ErrorCode.LABEL_UNKNOWN,
            )
        return found

    def findings(self, told: Sequence[Sequence[str]]) -> tuple[int, ...]:
        """The classes that an image shows as a whole; "background" says none of them.

        Args:
            told: local names of each, the best first; they are free text, so they enter no message.

        Raises:
            DataError: NO_LABEL, there is no word; LABEL_UNKNOWN, one has no class.
        """
        given = [named for names in told if (named := [name for name in names if _plain(name)])]
        if not given:
            raise DataError(
                "the image has no class: its entry is empty. Fill it in, or take the image out; an image that shows "
                f'none of the classes needs a word of its own, mapped to "{BACKGROUND}" in label-map in site.toml.',
                ErrorCode.NO_LABEL,
            )
        found = [0 if _plain(names[0]) == BACKGROUND else self.find(names) for names in given]
        if None in found:
            raise DataError(
                f"the image is classed by a word that is no class of this run ({', '.join(self._classes)}). Name it in "
                f'label-map in site.toml, or map it to "{BACKGROUND}" where it says that none of them is there.',
                ErrorCode.LABEL_UNKNOWN,
            )
        return tuple(sorted({number for number in found if number}))

    def numbers(self, values: NDArray[Any]) -> NDArray[np.uint8]:
        """A label image (*sp) of any number type, whole numbers, one class a voxel, to what `value` says of its class.

        Keys of the label map are values as text, such as "255".

        Raises:
            DataError: LABEL_UNKNOWN, a value has no class.
            ConfigError: a key of the label map is no number.
        """
        if values.dtype.kind == "f":
            # Scale factors of a header, and programs that resample, leave 0.99999994 where 1 was meant.
            rounded = np.rint(values)
            values = np.where(np.abs(values - rounded) <= _NEARLY_WHOLE, rounded, values)
        if values.size and not (
            values.min() >= 0 and values.max() <= _HIGHEST_VALUE and (values == np.rint(values)).all()
        ):
            raise DataError(
                f"label values must be whole numbers from 0 to {_HIGHEST_VALUE}. Export the label map again as "
                "integers.",
                ErrorCode.LABEL_UNKNOWN,
            )
        whole = values.astype(np.uint8 if values.dtype in (np.bool_, np.uint8) else np.uint16)
        found = [int(value) for value in np.flatnonzero(np.bincount(whole.ravel()))]
        table = self._table(found)
        unknown = [value for value in found if value not in table]
        if unknown:
            raise DataError(
                f"the label holds the value(s) {_some(unknown)}; expected {_some(sorted(table))}. "
                f'Name them in label-map in site.toml, or map them to "{BACKGROUND}".',
                ErrorCode.LABEL_UNKNOWN,
            )
        lookup = np.zeros(_HIGHEST_VALUE + 1, np.uint8)
        for value in found:
            lookup[value] = self.value(table[value])
        return np.asarray(lookup[whole], np.uint8)

    def _table(self, found: Sequence[int]) -> dict[int, int]:
        """Class of each value."""
        if not self._of_values and not self.as_found:
            return {value: value for value in range(len(self._classes) + 1)}
        wrong = next((local for local in self._of_values if not local.isdecimal()), None)
        if wrong is not None:
            raise ConfigError(
                f"label-map key {wrong!r} is no label value; its labels are numbers. Write a number, such as 1."
            )
        renamed = {int(local): name for local, name in self._of_values.items()}
        if self.as_found:
            renamed = {value: renamed.get(value, str(value) if value else BACKGROUND) for value in found}
        return {0: 0} | {value: self._target(name) for value, name in renamed.items()}

    def _target(self, name: str) -> int:
        """The number of a class, which is a new one when everything counts."""
        if name == BACKGROUND:
            return 0
        if not self.as_found:
            return self._number_in_run(name)
        name = shown(name)
        plain = _plain(name)
        if plain not in self._numbers:
            if len(self._classes) == _MOST_CLASSES:
                raise DataError(
                    f"the label uses more than {_MOST_CLASSES} names or values. Is it an image? Join them in label-map "
                    "in site.toml, or take the study out.",
                    ErrorCode.LABEL_UNKNOWN,
                )
            self._classes.append(name.strip())
            self._numbers[plain] = len(self._classes)
        return self._numbers[plain]

    def _number_in_run(self, name: str) -> int:
        if name in self._classes:
            return self._classes.index(name) + 1
        near = difflib.get_close_matches(name, self._classes, n=1)
        raise ConfigError(
            f"label-map names the class {name!r}, which this run does not have ({', '.join(self._classes)})."
            + (f" Did you mean {near[0]!r}?" if near else f' Correct it, or write "{BACKGROUND}".')
        )


def check_hidden(labels: NDArray[np.uint8], naming: Naming) -> None:
    """Refuse a class of a run that vanished under one with a higher number; as found, the order says nothing.

    Raises:
        DataError: LABEL_DOUBTFUL.
    """
    if naming.as_found or naming.overlap:
        return
    hidden = naming.drawn - set(np.flatnonzero(labelmap.counts(labels, overlap=False)).tolist()) - {0}
    if hidden:
        raise doubtful(
            f"{naming.classes[min(hidden) - 1]} lies wholly under a class that the run names later, and none of it is "
            "left.",
            "Train with classes that name an organ before what lies in it, or with classes that may overlap",
        )


def _plain(name: str) -> str:
    return re.sub(r"[\s_-]+", "-", name.strip().casefold())


def _some(values: list[int]) -> str:
    return ", ".join(map(str, values[:8])) + (", ..." if len(values) > 8 else "")
