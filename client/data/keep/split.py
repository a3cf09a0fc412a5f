"""Which patients train, validate and test: by patient, from a seed, and for good.

SHA-256 of seed and raw id decides: no order of files, no key and no library version enters, so a first split is the
same on every machine. There are two ways.

- independent, the one with differential privacy: the digest is a number in [0, 1), and the fractions are thresholds.
  Nobody's place depends on who else is there, so a patient more or less changes one split by one patient, and the
  others not at all. Shares are met on average only. Nothing needs to be kept.
- proportional: patients are ranked by the digest, and counts follow the fractions. Later splits are not made anew: a
  patient who once trained must not become a test patient because others joined. Whoever was placed before keeps the
  place, and new patients fill what the fractions lack. What follows is about this way.

A place is the patient's split under each fold number: one split without cross-validation; with k folds k of them, of
which exactly one is "test". So one record of places serves all the folds of a cross-validation.

    home/state/splits.sealed   {"format": 1, "splits": {request: {pseudonym: "train test validation"}}}

The file is sealed as a whole (client/home/sealed_table.py). A request is seed and fractions: another one is another
split, and the two know nothing of each other.
"""

import hashlib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Literal, TypeAlias, get_args

from client.data.deidentify.pseudonym import pseudonym
from client.home.sealed_table import read_table, write_table
from common.config import DataConfig, RunConfig, Table
from common.errors import ConfigError
from common.system.locks import locked

Split = Literal["train", "validation", "test"]
Place: TypeAlias = tuple[Split, ...]  # by fold number; one entry without cross-validation

_PURPOSE = "splits"
_SPLITS: tuple[Split, ...] = get_args(Split)


class _File(Table):
    format: Literal[1] = 1
    splits: dict[str, dict[str, str]]


@dataclass(frozen=True)
class KeptSplits:
    """The places a site has given out. `path` None: none are kept, every split is a first one."""

    path: Path | None
    site_key: bytes = field(repr=False)

    def split(self, run: RunConfig, groups: Iterable[Iterable[str]], *, keep: bool = True) -> dict[str, Split]:
        """The split of every patient for a run; new patients are placed, and kept.

        Args:
            run: seed, fractions and fold.
            groups: raw patient ids by source. Each source is split on its own, so that a site holding several archives
                splits each as a site holding one would; a patient in two sources has the place from the first.
            keep: False only looks: nothing is written, and the new patients get these places when they are still new.

        Raises:
            ConfigError: the file is damaged, or made under another site key: every pseudonym would be a stranger, and
                all patients dealt anew.
        """
        if self.path is None or run.split == "independent":
            return _splits(_assign_all(groups, run, {}), run)
        # One at a time: of two processes that meet the same new patients, the second must see where the first put them.
        with locked(self.path.with_suffix(".lock")) if keep else nullcontext():
            file = self._read(self.path)
            request = _request(run)
            record = file.splits.get(request, {})
            names = [list(ids) for ids in groups]
            pseudonyms = {name: pseudonym(self.site_key, name) for name in chain(*names)}
            kept = {name: _place(record[key], run.data) for name, key in pseudonyms.items() if key in record}
            places = _assign_all(names, run, kept)
            if keep and len(kept) < len(places):
                grown = record | {pseudonyms[name]: " ".join(place) for name, place in places.items()}
                self._write(self.path, file.splits | {request: grown})
        return _splits(places, run)

    def place_of(self, run: RunConfig, patient: str) -> Split | None:
        """Where a patient stands, or would, in a run; None: no run of this seed and these fractions placed them.

        Where places are independent they follow from the seed for anybody, and do not say that the patient was there.
        """
        if run.split == "independent":
            return assign([patient], run, {})[patient][run.data.fold]
        record = {} if self.path is None else self._read(self.path).splits.get(_request(run), {})
        text = record.get(pseudonym(self.site_key, patient))
        return None if text is None else _place(text, run.data)[run.data.fold]

    def forget(self, patient: str) -> int:
        """Take a patient's places away, in all splits; in how many there was one."""
        if self.path is None:
            return 0
        with locked(self.path.with_suffix(".lock")):
            file, name = self._read(self.path), pseudonym(self.site_key, patient)
            splits = {
                request: {key: at for key, at in kept.items() if key != name} for request, kept in file.splits.items()
            }
            if splits != file.splits:
                self._write(self.path, splits)
            return sum(name in kept for kept in file.splits.values())

    def _read(self, path: Path) -> _File:
        try:
            return read_table(path, _File, self.site_key, _PURPOSE) or _File(splits={})
        except ValueError as error:
            raise _damaged(str(error)) from error

    def _write(self, path: Path, splits: dict[str, dict[str, str]]) -> None:
        write_table(path, _File(splits=splits), self.site_key, _PURPOSE)


def assign(ids: Iterable[str], run: RunConfig, kept: Mapping[str, Place]) -> dict[str, Place]:
    """Place each patient.

    Independent: by the patient's own digest. Proportional: without folds, counts are rounded to the nearest patient; a
    split whose fraction is not 0 gets at least one when there are enough: training first, then test, then validation.
    With folds, patients are dealt out in turn; the validation patients of a fold come from the folds after it, so that
    they change from fold to fold.

    Args:
        ids: raw patient ids of one source; repeated ones count once.
        run: seed, fractions and folds.
        kept: where patients were placed before; those not among the ids do not count.

    Returns:
        Place of each id, in the order of the ids' rank.
    """
    ranked = sorted(set(ids), key=lambda name: (_digest(run, name), name))
    if run.split == "independent":
        return {name: _independent(int.from_bytes(_digest(run, name)[:8], "big") / 2**64, run.data) for name in ranked}
    old = {name: kept[name] for name in ranked if name in kept}
    new = [name for name in ranked if name not in old]
    folds, fraction = run.data.folds, run.data.validation_fraction
    tests = _first_ones(new, old, run.data.test_fraction) if folds is None else _dealt(new, old, folds)
    columns = [_column(number, tests, old, fraction) for number in range(folds or 1)]
    return {name: old[name] if name in old else tuple(column[name] for column in columns) for name in ranked}


def _digest(run: RunConfig, name: str) -> bytes:
    return hashlib.sha256(f"{run.seed}|{name}".encode()).digest()


def _independent(position: float, data: DataConfig) -> Place:
    """The place of a patient whose digest is at this position of [0, 1).

    With k folds the unit circle is cut into k arcs. Fold number f tests the f-th arc, and validates on what lies within
    the validation fraction after it.
    """
    if data.folds is None:
        held_out = data.test_fraction + data.validation_fraction
        return ("test" if position < data.test_fraction else "validation" if position < held_out else "train",)
    own = min(int(position * data.folds), data.folds - 1)
    ends = [(position - (number + 1) / data.folds) % 1 for number in range(data.folds)]
    return tuple(
        "test" if number == own else "validation" if after < data.validation_fraction else "train"
        for number, after in enumerate(ends)
    )


def _first_ones(new: Sequence[str], old: Mapping[str, Place], fraction: float) -> list[Sequence[str]]:
    """New test patients, and the others."""
    held = Counter(place[0] for place in old.values())
    count = len(old) + len(new)
    test = _missing(_share(count, fraction, available=count - 1), "test", held, len(new))
    return [new[:test], new[test:]]


def _dealt(new: Sequence[str], old: Mapping[str, Place], folds: int) -> list[Sequence[str]]:
    """New test patients of each fold: one at a time to the smallest."""
    sizes = Counter(place.index("test") for place in old.values())
    tests: list[list[str]] = [[] for _ in range(folds)]
    for name in new:
        fold = min(range(folds), key=sizes.__getitem__)  # the first of the smallest
        tests[fold].append(name)
        sizes[fold] += 1
    return list(tests)


def _column(
    number: int, tests: Sequence[Sequence[str]], old: Mapping[str, Place], validation_fraction: float
) -> dict[str, Split]:
    """New patients' splits under one fold number; validation takes from the groups after the test patients."""
    test = tests[number]
    rest = list(chain(*tests[number + 1 :], *tests[:number]))
    held = Counter(place[number] for place in old.values())
    count = len(old) + len(test) + len(rest)
    wanted = _share(count, validation_fraction, available=count - held["test"] - len(test) - 1)
    validation = _missing(wanted, "validation", held, len(rest))
    sizes: tuple[tuple[Split, int], ...] = (
        ("test", len(test)),
        ("validation", validation),
        ("train", len(rest) - validation),
    )
    return dict(zip((*test, *rest), (split for split, size in sizes for _ in range(size)), strict=True))


def _share(count: int, fraction: float, available: int) -> int:
    if fraction == 0 or available <= 0:
        return 0
    return min(available, max(1, int(count * fraction + 0.5)))


def _missing(wanted: int, split: Split, held: Mapping[Split, int], new: int) -> int:
    """How many of the new patients go to a split; one is left for training while nobody trains."""
    return max(0, min(wanted - held[split], new - (held["train"] == 0)))


def _assign_all(groups: Iterable[Iterable[str]], run: RunConfig, kept: Mapping[str, Place]) -> dict[str, Place]:
    places: dict[str, Place] = {}
    for ids in groups:
        places = assign(ids, run, kept) | places
    return places


def _splits(places: Mapping[str, Place], run: RunConfig) -> dict[str, Split]:
    return {name: place[run.data.fold] for name, place in places.items()}


def _request(run: RunConfig) -> str:
    data = run.data
    rest = f"test {data.test_fraction}" if data.folds is None else f"folds {data.folds}"
    return f"seed {run.seed}, validation {data.validation_fraction}, {rest}"


def _place(text: str, data: DataConfig) -> Place:
    words = text.split()
    place = tuple(split for word in words for split in _SPLITS if split == word)
    expected = len(words) == (data.folds or 1) and (data.folds is None or words.count("test") == 1)
    if len(place) != len(words) or not expected:
        raise _damaged("it places a patient where no split of this run is")
    return place


def _damaged(what: str) -> ConfigError:
    return ConfigError(
        f"splits.sealed in the site's home cannot be used: {what}. It says which patients train and which test, and "
        "must not be made anew by itself. Restore it, and site.key, from a backup. If there is none, remove the file: "
        "patients are then split again, and test scores of models trained before no longer hold."
    )


__all__ = ["KeptSplits", "Place", "Split", "assign"]
