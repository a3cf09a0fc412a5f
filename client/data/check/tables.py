"""What a check found out, as tables and as plain JSON values.

The same tables stand in the terminal and in the page. Studies have a number and a pseudonym there, and a label whose
name is free text from the files is called "name 1" and so on: such text may name a patient, as a path may. Both are
given only to who asks for them, which is for the terminal.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from itertools import chain
from statistics import median
from typing import Any

from client.data.check.checkup import Checkup, Outcome
from client.data.quality.quality import PERCENTILES, Facts
from common.text import counted


@dataclass(frozen=True)
class Table:
    """Rows under a title; None stands for what is not known."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[object, ...], ...]


def tables(checkup: Checkup, *, names: bool = False, paths: bool = False) -> list[Table]:
    """The tables of a check, those without rows left out.

    Args:
        checkup: what was found out.
        names: show labels' names as the files have them.
        paths: show where a study that was set aside lies. For a terminal only, like `names`.
    """
    shown = shown_names(checkup, all_of_them=names)
    made = [
        _sources(checkup),
        _quarantined(checkup, paths=paths),
        _left_out(checkup),
        _assumed(checkup),
        _splits(checkup),
        _images(checkup),
        _missing(checkup),
        _classes(checkup, shown),
        _findings(checkup, shown),
        _labels(checkup),
    ]
    if paths:
        made.append(
            Table("Where the studies lie", ("study", "path"), tuple((s.number, s.path) for s in checkup.studies))
        )
    return [table for table in made if table.rows]


def document(checkup: Checkup) -> dict[str, Any]:
    """All of it in plain JSON values, without pictures, paths and free text."""
    shown, run = shown_names(checkup), checkup.document
    return {
        "site": checkup.site,
        "program": version("wardround"),
        "checked": datetime.now(UTC).isoformat(timespec="seconds"),
        "run": None if run is None else {"name": run.name, "sha256": run.hash},
        "counts": counts(checkup),
        "sources": [
            {
                "source": source.number,
                "kinds": list(source.kinds),
                "ignored": dict(source.left_out),
                "assumed": dict(source.assumed),
            }
            for source in checkup.sources
        ],
        "studies": [_study(study, shown) for study in checkup.studies],
        "classes": [
            {"class": name, "studies": studies, "share": share} for name, studies, share in _shares(checkup, shown)
        ],
        "findings": [{"class": name, "studies": studies} for name, studies in _found(checkup, shown)],
        "images": [_group(modality, group) for modality, group in _groups(checkup)],
        "labels": [{"what": what, "studies": count, "most": most} for what, count, most, _ in _handled(checkup)],
    }


def counts(checkup: Checkup) -> dict[str, int]:
    """The numbers that come first."""
    return {
        "usable": len(checkup.usable),
        "quarantined": len(checkup.quarantined),
        "ignored": checkup.left_out.total(),
        "patients": len({study.patient for study in checkup.usable}),
        "without-foreground": sum(facts.is_empty for facts in _facts(checkup)),
    }


def shown_names(checkup: Checkup, *, all_of_them: bool = False) -> dict[str, str]:
    """What each class is called: its own name where that is the site's word, the run's or a number."""
    found = dict.fromkeys(chain.from_iterable((*facts.voxels, *(facts.findings or ())) for facts in _facts(checkup)))
    free = [name for name in found if not (name.isdecimal() or name in checkup.own_words)]
    numbered = {name: f"name {number}" for number, name in enumerate(free, start=1)}
    return {name: name if all_of_them else numbered.get(name, name) for name in found}


def _sources(checkup: Checkup) -> Table:
    rows = []
    for source in checkup.sources:
        usable = [study for study in checkup.usable if study.source == source.number]
        aside = sum(study.source == source.number for study in checkup.quarantined)
        patients = len({study.patient for study in usable})
        kinds = ", ".join(source.kinds) or None
        rows.append((source.number, kinds, len(usable), aside, sum(source.left_out.values()), patients))
    columns = ("source", "kind", "usable", "set aside", "ignored", "patients")
    return Table("Sources", columns, tuple(rows))


def _quarantined(checkup: Checkup, *, paths: bool) -> Table:
    rows = [
        (study.number, *((study.path,) if paths else (study.name,)), str(study.problem.code), str(study.problem))
        for study in checkup.quarantined
        if study.problem is not None
    ]
    second = "path" if paths else "pseudonym"
    return Table("Set aside", ("study", second, "code", "what is wrong, and what to do"), tuple(rows))


def _left_out(checkup: Checkup) -> Table:
    rows = [
        (source.number, count, reason)
        for source in checkup.sources
        for reason, count in sorted(source.left_out.items())
    ]
    return Table("Ignored", ("source", "count", "why"), tuple(rows))


def _assumed(checkup: Checkup) -> Table:
    rows = [
        (source.number, count, what) for source in checkup.sources for what, count in sorted(source.assumed.items())
    ]
    return Table("Assumed", ("source", "count", "what"), tuple(rows))


def _splits(checkup: Checkup) -> Table:
    if checkup.run is None:
        return Table("", (), ())
    rows = []
    for split in ("train", "validation", "test"):
        studies = [study for study in checkup.usable if study.split == split]
        rows.append((split, len({study.patient for study in studies}), len(studies)))
    return Table(f"Splits for {checkup.run.name}", ("part", "patients", "studies"), tuple(rows))


def _images(checkup: Checkup) -> Table:
    """A row per modality and number of axes; of percentiles the median over its studies, of the ends the outermost."""
    rows = []
    for modality, group in _groups(checkup):
        spacings = [facts.spacing_mm for facts in group if facts.spacing_mm is not None]
        values = _intensities(group)
        rows.append(
            (
                modality or None,
                len(group),
                _ranges([facts.shape for facts in group]),
                _ranges(spacings) if spacings else None,
                *(f"{value:.4g}" for value in values),
            )
        )
    ends = ("lowest", *(f"{percent:g} %" for percent in PERCENTILES[1:-1]), "highest")
    return Table("Images", ("modality", "studies", "size", "spacing mm", *ends), tuple(rows))


def _missing(checkup: Checkup) -> Table:
    """Studies that the run takes although some of their values are no numbers."""
    shares = [facts.missing for facts in _facts(checkup) if facts.missing]
    rows = [(len(shares), f"{max(shares):.2%}")] if shares else []
    return Table("Values that are no numbers, filled in for the run", ("studies", "at most"), tuple(rows))


def _groups(checkup: Checkup) -> list[tuple[str, list[Facts]]]:
    """The usable studies by modality and number of axes."""
    groups: dict[tuple[str, int], list[Facts]] = {}
    for facts in _facts(checkup):
        groups.setdefault((facts.modality, len(facts.shape)), []).append(facts)
    return [(modality, group) for (modality, _), group in sorted(groups.items())]


def _intensities(group: Sequence[Facts]) -> tuple[float, ...]:
    """At each of PERCENTILES: the lowest of all studies, medians over them, the highest of all."""
    low, *middle, high = zip(*(facts.intensities for facts in group), strict=True)
    return (min(low), *(median(column) for column in middle), max(high))


def _group(modality: str, group: Sequence[Facts]) -> dict[str, object]:
    """A group of studies as numbers: sizes and spacings as [smallest, largest] of each axis."""
    spacings = [facts.spacing_mm for facts in group if facts.spacing_mm is not None]

    def ends(sizes: Sequence[Sequence[float]]) -> list[list[float]]:
        return [[min(axis), max(axis)] for axis in zip(*sizes, strict=True)]

    return {
        "modality": modality or None,
        "studies": len(group),
        "size": ends([facts.shape for facts in group]),
        "spacing-mm": ends(spacings) if spacings else None,
        "intensities": dict(zip(map("{:g}".format, PERCENTILES), _intensities(group), strict=True)),
    }


def _shares(checkup: Checkup, shown: Mapping[str, str]) -> list[tuple[str, int, float | None]]:
    """Each class: its name, the studies that have it, and its share of their voxels."""
    shares: dict[str, tuple[int, int, int]] = {}
    for facts in _facts(checkup):
        total = sum(facts.voxels.values())
        for name, count in facts.voxels.items():
            studies, marked, voxels = shares.get(name, (0, 0, 0))
            shares[name] = (studies + 1, marked + count, voxels + total) if count else (studies, marked, voxels)
    return [
        (shown[name], studies, marked / voxels if voxels else None)
        for name, (studies, marked, voxels) in shares.items()
    ]


def _classes(checkup: Checkup, shown: Mapping[str, str]) -> Table:
    rows: list[tuple[object, ...]] = [
        (name, studies, None if share is None else f"{100 * share:.3g} %")
        for name, studies, share in _shares(checkup, shown)
    ]
    nothing = sum(facts.is_empty for facts in _facts(checkup))
    rows += [("no foreground at all", nothing, None)] if nothing else []
    return Table("Classes", ("class", "studies with it", "share of their voxels"), tuple(rows))


def _findings(checkup: Checkup, shown: Mapping[str, str]) -> Table:
    return Table("Classes of whole images", ("class", "studies with it"), tuple(_found(checkup, shown)))


def _found(checkup: Checkup, shown: Mapping[str, str]) -> list[tuple[str, int]]:
    """Each class of an image as a whole, with the number of its studies; last the studies that show none of them."""
    told = [facts.findings for facts in _facts(checkup) if facts.findings is not None]
    counted = Counter(chain.from_iterable(told))
    rows = [(shown[name], count) for name, count in sorted(counted.items())]
    return [*rows, ("none of them", sum(not names for names in told))] if told else []


def _labels(checkup: Checkup) -> Table:
    rows = tuple((what, count, form(most)) for what, count, most, form in _handled(checkup))
    return Table("Labels", ("what happened to them", "studies", "at most"), rows)


def _handled(checkup: Checkup) -> list[tuple[str, int, float, Callable[[float], str]]]:
    """What labels went through that were not drawn on their image as they are: studies, the most, and its form."""
    found = _facts(checkup)
    told: list[tuple[str, list[float], Callable[[float], str]]] = [
        ("drawn from several label files", [facts.labels for facts in found if facts.labels > 1], _files),
        ("name no image, placed by the frame of reference", [facts.by_place for facts in found], _files),
        ("resampled to the image's grid", [facts.resampled for facts in found], _files),
        ("lost a part outside of the image, or too small", [facts.lost for facts in found], "{:.1%} of a class".format),
        (
            "holes: empty slices between drawn",
            [facts.holes for facts in found],
            "{:.0%} of a class's slices".format,
        ),
    ]
    happened = [(what, [value for value in values if value > 0], form) for what, values, form in told]
    return [(what, len(values), max(values), form) for what, values, form in happened if values]


def _files(count: float) -> str:
    return counted(int(count), "file")


def _ranges(sizes: Sequence[Sequence[float]]) -> str:
    """Per axis the smallest and the largest: "12-40 x 512 x 512"."""
    ends = [(f"{min(axis):.4g}", f"{max(axis):.4g}") for axis in zip(*sizes, strict=True)]
    return " x ".join(low if low == high else f"{low}-{high}" for low, high in ends)


def _facts(checkup: Checkup) -> list[Facts]:
    return [study.facts for study in checkup.usable if study.facts is not None]


def _study(study: Outcome, shown: Mapping[str, str]) -> dict[str, Any]:
    values: dict[str, Any] = {
        "study": study.number,
        "source": study.source,
        "pseudonym": study.name,
        "patient": study.patient,
        "usable": study.problem is None,
    }
    if study.problem is not None:
        return values | {"code": str(study.problem.code), "reason": str(study.problem)}
    if study.split is not None:
        values["split"] = study.split
    if study.facts is not None:
        facts = study.facts
        values |= {
            "modality": facts.modality or None,
            "shape": list(facts.shape),
            "channels": facts.channels,
            "missing": facts.missing,
            "spacing-mm": None if facts.spacing_mm is None else list(facts.spacing_mm),
            "intensities": dict(zip(map("{:g}".format, PERCENTILES), facts.intensities, strict=True)),
            "voxels": {shown[name]: count for name, count in facts.voxels.items()},
            "findings": None if facts.findings is None else [shown[name] for name in facts.findings],
            "labels": {
                "files": facts.labels,
                "by-place": facts.by_place,
                "resampled": facts.resampled,
                "lost": facts.lost,
                "holes": facts.holes,
            },
        }
    return values


__all__ = ["Table", "counts", "document", "shown_names", "tables"]
