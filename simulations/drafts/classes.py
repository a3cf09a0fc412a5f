"""The classes of a run, from what a folder's labels hold: values, names of segments, or words for whole images.

A value has no name where no dataset.json gives one; then it is called by what is known, "foreground" where it is the
only one, else "class-" and the value. Larger structures come first, as an organ comes before what lies in it.
"""

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from client.data.study.labels import BACKGROUND
from common.errors import ConfigError
from common.text import as_name
from simulations.drafts.folder import Look

_LONGEST = 63
# More than these in pictures are no classes: edges that a program smoothed, or an image taken for a mask.
_MOST_OF_PICTURES = 24
# Words for an image that shows none of what is looked for.
_NOTHING = ("normal", "none", "negative", "neg", "no", "0", "clear", "healthy", "no-finding", "background")
# Both are usual for the one class of a mask.
_ANY_VALUE = {"1", "255"}


@dataclass(frozen=True)
class Classes:
    """names: in the order of the run. label_map: local label -> class. whole: they are of images as a whole."""

    names: tuple[str, ...]
    label_map: Mapping[str, str]
    said: str
    whole: bool = False
    unknown: Sequence[str] = ()


def classes_of(look: Look) -> Classes:
    """The classes of all labels.

    Raises:
        ConfigError: the labels mark nothing, or hold too many values.
    """
    voxels: Counter[str] = Counter()
    for study in look.studies:
        voxels.update({name: count for name, count in study.facts.voxels.items() if name != BACKGROUND})
    marked = Counter({name: count for name, count in voxels.items() if count})
    given = look.source.label_map
    if not marked:
        return _of_whole(look)
    _check_given(given, marked)
    alone = all(sum(map(bool, _marks(study.facts.voxels))) < 2 for study in look.studies)
    if set(marked) == _ANY_VALUE and alone and not given:
        return Classes(("foreground",), {}, "Masks of 1 and of 255: each marks the one class.", unknown=[_names(1)])
    if look.source.kind == "images" and len(marked) > _MOST_OF_PICTURES:
        raise ConfigError(
            f"the masks hold {len(marked)} values beside 0, and each would be a class. Where edges were smoothed, "
            "export them with one value a class; else join values: --label-map VALUE=CLASS, repeatable."
        )
    by_value = all(name.isdecimal() for name in marked)
    order = sorted(marked, key=int) if by_value else [name for name, _ in marked.most_common()]
    called = {name: _called(name, look, alone=len(order) == 1) for name in order}
    names = tuple(dict.fromkeys(called.values()))
    label_map = dict(given) | {name: to for name, to in called.items() if name != to}
    told = ", ".join(f"{to} is {name}" for name, to in called.items() if name != to)
    unnamed = by_value and any(name not in look.told.labels and name not in given.values() for name in order)
    said = f"{'Label values' if by_value else 'Labels'}: {told}." if told else "As the labels are called."
    return Classes(names, label_map, said, unknown=[_names(len(names))] if unnamed else [])


def _of_whole(look: Look) -> Classes:
    words = Counter(word for study in look.studies for word in study.facts.findings or ())
    given = look.source.label_map
    if not words:
        raise ConfigError(
            "the labels mark nothing in any image. Where that is so, there is nothing to learn; else export them again."
        )
    _check_given(given, words)
    nothing = [word for word in words if as_name(word) in _NOTHING and word not in given.values()]
    shown = [word for word in sorted(words) if word not in nothing]
    called = {word: word if word in given.values() else _plain(word) or f"class-{n}" for n, word in enumerate(shown, 1)}
    label_map = dict(given) | dict.fromkeys(nothing, BACKGROUND) | {w: to for w, to in called.items() if w != to}
    counts = ", ".join(f"{count} {word}" for word, count in sorted(words.items()))
    unknown = [] if nothing or given else ["whether one of the words says that an image shows nothing: it is no class"]
    return Classes(tuple(dict.fromkeys(called.values())), label_map, f"Images: {counts}.", True, unknown)


def _check_given(given: Mapping[str, str], found: Collection[str]) -> None:
    """Refuse an entry of a person's label map that no label of the folder has: it would do nothing, without a word.

    Args:
        found: names of labels; those that the map names are called by its classes already.
    """
    for name, to in given.items():
        if to != BACKGROUND and to not in found:
            there = ", ".join(sorted(found, key=lambda one: (len(one), one) if one.isdecimal() else (0, one)))
            raise ConfigError(
                f"--label-map {name}={to} names no label of the folder, whose labels "
                f"are {there}. Correct it, or leave it out."
            )


def _called(name: str, look: Look, *, alone: bool) -> str:
    if name in look.source.label_map.values():
        return name
    if name.isdecimal():
        return look.told.labels.get(name) or ("foreground" if alone else f"class-{name}")
    return _plain(name) or "foreground"


def _plain(word: str) -> str:
    return as_name(word)[:_LONGEST].strip("-")


def _marks(voxels: Mapping[str, int]) -> list[int]:
    return [count for name, count in voxels.items() if name != BACKGROUND]


def _names(count: int) -> str:
    return "what the class is called" if count == 1 else "what the classes are called"


__all__ = ["Classes", "classes_of"]
