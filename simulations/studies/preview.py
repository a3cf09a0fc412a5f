"""What each site of a scenario gets, before anything trains: patients by part, labels, sizes and intensities.

The patients are dealt as a run would deal them, and each site is looked at as `wardround-client data check --run` looks
at a hospital; nothing of a run is kept but what it would read again. Shares are of the voxels of the studies that show
a class; intensities are in the source's units, of percentiles the median over the studies.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

from client.data.check.checkup import check_site
from client.data.check.tables import document as as_document
from client.data.study.labels import BACKGROUND
from client.site import Site
from common.config import RunConfig
from common.config.rundocument import issue
from common.errors import DataError, ErrorCode
from common.pages.html import picture, render
from common.system.files import write_atomically

PAGE_NAME = "preview.html"
_PARTS = ("train", "validation", "test")
_LOW, _MIDDLE, _HIGH = "1", "50", "99"  # percentiles that are shown


@dataclass(frozen=True)
class OfClass:
    """studies: those that show it. share: of their voxels; None where images are classed as a whole."""

    studies: int
    share: float | None


@dataclass(frozen=True)
class Dealt:
    """What one site gets.

    patients: those who train, validate and test. set_aside: studies by the code of what is wrong with them. classes: by
    name. images: of each modality and number of axes "modality", "studies", "size" and "spacing-mm" as [least, most]
    along each axis, and "intensities" by percentile. shifts: what the scenario did to them, in order. marked: of each
    study the share of its voxels in any class. middles: of each study the median intensity.
    """

    site: str
    studies: int
    patients: Mapping[str, int]
    set_aside: Mapping[str, int]
    classes: Mapping[str, OfClass]
    images: Sequence[Mapping[str, Any]]
    shifts: Sequence[str] = ()
    marked: Sequence[float] = field(repr=False, default=())
    middles: Sequence[float] = field(repr=False, default=())


def preview(
    run: RunConfig,
    sites: Sequence[Site],
    *,
    readers: int,
    shifts: Mapping[str, Sequence[str]] = MappingProxyType({}),
    progress: Callable[[int, str], None] = lambda _done, _text: None,
) -> list[Dealt]:
    """Look at every site as a run would.

    Args:
        run: whose classes, modality and split count.
        sites: of the scenario, as `prepare` makes them.
        readers: processes that parse; see `client.data.isolate`.
        shifts: what was done to the studies of some sites.
        progress: called with the number of sites done, and the last one.

    Raises:
        DataError: a site has no study that can be used.
    """
    told = []
    for number, site in enumerate(sites, start=1):
        told.append(_dealt(site, run, readers, shifts.get(site.config.name, ())))
        progress(number, site.config.name)
    return told


def patient_rows(told: Sequence[Dealt]) -> tuple[list[str], list[list[object]]]:
    """Columns and rows: patients by part, and studies, of each site."""
    rows = [
        [one.site, sum(one.patients.values()), *(one.patients[part] for part in _PARTS), one.studies, one.set_aside]
        for one in told
    ]
    return ["site", "patients", *_PARTS, "studies", "set aside"], [list(row) for row in rows]


def label_rows(told: Sequence[Dealt]) -> tuple[list[str], list[list[object]]]:
    """Columns and rows: of each class and site, the studies that show it and its share of their voxels."""
    names = dict.fromkeys(name for one in told for name in one.classes)
    none = OfClass(0, None)
    return ["class", "site", "studies with it", "of all", "share of their voxels"], [
        [name, one.site, found.studies, found.studies / one.studies, found.share]
        for name in names
        for one in told
        for found in [one.classes.get(name, none)]
    ]


def image_rows(told: Sequence[Dealt]) -> tuple[list[str], list[list[object]]]:
    """Columns and rows: sizes, spacings and intensities of each site."""
    columns = ["site", "modality", "studies", "size", "spacing (mm)", "intensity, 1 %", "50 %", "99 %"]
    return columns, [
        [
            *(one.site, group["modality"], group["studies"], _ranges(group["size"])),
            None if group["spacing-mm"] is None else _ranges(group["spacing-mm"]),
            *(group["intensities"][at] for at in (_LOW, _MIDDLE, _HIGH)),
        ]
        for one in told
        for group in one.images
    ]


def shift_rows(told: Sequence[Dealt]) -> tuple[list[str], list[list[object]]]:
    """Columns and rows: what was done to the studies of each site, in order; none where there is no shift."""
    return ["site", "shift"], [[one.site, shift] for one in told for shift in one.shifts]


def as_data(told: Sequence[Dealt]) -> list[dict[str, Any]]:
    """All of it as plain values."""
    return [
        {
            "site": one.site,
            "studies": one.studies,
            "patients": dict(one.patients),
            "set-aside": dict(one.set_aside),
            "classes": {name: {"studies": two.studies, "share": two.share} for name, two in one.classes.items()},
            "images": list(one.images),
            "shifts": list(one.shifts),
            "marked": list(one.marked),
            "medians": list(one.middles),
        }
        for one in told
    ]


def write(out: Path, name: str, told: Sequence[Dealt]) -> Path:
    """Write preview.html, .png and .svg into a folder; the page's path."""
    out.mkdir(parents=True, exist_ok=True)
    _plot(out, told)
    columns, rows = patient_rows(told)
    tables = (shift_rows(told), label_rows(told), image_rows(told))
    page = render(
        "simulations/studies/study.html",
        title=f"Preview {name}",
        headline=f"{name}: what each site gets",
        above="",
        columns=columns,
        rows=[[_words(cell) for cell in row] for row in rows],
        below=("Nothing has been trained.",),
        further=[{"columns": head, "rows": cells} for head, cells in tables if cells],
        plots=[picture(out / "preview.png")],
    )
    write_atomically(out / PAGE_NAME, page.encode())
    return out / PAGE_NAME


def _dealt(site: Site, run: RunConfig, readers: int, shifts: Sequence[str]) -> Dealt:
    values = as_document(check_site(site.home, site.config, site.key, issue(run), readers=readers))
    usable = [study for study in values["studies"] if study["usable"]]
    aside = Counter(study["code"] for study in values["studies"] if not study["usable"])
    if not usable:
        codes = ", ".join(f"{count} {code}" for code, count in sorted(aside.items())) or "none was found"
        raise DataError(
            f"site {site.config.name} has no study that can be used ({codes}). What is wrong with each: "
            "`wardround-sim run` with --verbose, or `wardround-client data check`.",
            ErrorCode.NO_DATA,
        )
    parts = {part: len({study["patient"] for study in usable if study["split"] == part}) for part in _PARTS}
    shares = {one["class"]: OfClass(one["studies"], one["share"]) for one in values["classes"]}
    classes = {name: found for name, found in shares.items() if name != BACKGROUND}
    found = {one["class"]: OfClass(one["studies"], None) for one in values["findings"]}
    return Dealt(
        site.config.name,
        len(usable),
        parts,
        dict(aside),
        classes or found,
        values["images"],
        shifts,
        [_marked(study["voxels"]) for study in usable if study["voxels"]],
        [study["intensities"][_MIDDLE] for study in usable],
    )


def _marked(voxels: Mapping[str, int]) -> float:
    return 1 - voxels.get(BACKGROUND, 0) / sum(voxels.values())


def _ranges(ends: Sequence[Sequence[float]]) -> str:
    """Per axis the smallest and the largest: "12-40 x 512 x 512"."""
    return " x ".join(f"{low:.4g}" if low == high else f"{low:.4g}-{high:.4g}" for low, high in ends)


def _words(cell: object) -> object:
    return (", ".join(f"{count} {code}" for code, count in cell.items()) or None) if isinstance(cell, dict) else cell


def _plot(out: Path, told: Sequence[Dealt]) -> None:
    """Three panels: patients by part, the share of each study that is marked, the median intensity of each study."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # noqa: PLC0415 - 0.5 s, needed once
    from matplotlib.figure import Figure  # noqa: PLC0415

    names, places = [one.site for one in told], range(len(told))
    figure = Figure(figsize=(max(9.0, 1.2 * len(told) + 6), 3.6), layout="constrained")
    FigureCanvasAgg(figure)
    patients, marked, middles = figure.subplots(1, 3)
    below = [0] * len(told)
    for part, colour in zip(_PARTS, ("#0072b2", "#e69f00", "#009e73"), strict=True):
        counts = [one.patients[part] for one in told]
        patients.bar(places, counts, bottom=below, color=colour, width=0.7, label=part)
        below = [before + count for before, count in zip(below, counts, strict=True)]
    patients.legend(frameon=False, fontsize=8)
    for axes, values, title in (
        (marked, [one.marked for one in told], "share of each study that is marked"),
        (middles, [one.middles for one in told], "median intensity of each study"),
    ):
        for place, several in zip(places, values, strict=True):
            axes.plot([place] * len(several), several, "o", color="#0072b2", markersize=4, alpha=0.4)
        axes.set_title(title, loc="left", fontsize=9)
        axes.set_xlim(-0.6, len(told) - 0.4)
    patients.set_title("patients", loc="left", fontsize=9)
    for axes in (patients, marked, middles):
        axes.set_xticks(places, names, rotation=30, ha="right", fontsize=8)
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(out / "preview.png", dpi=130)
    figure.savefig(out / "preview.svg")


__all__ = ["Dealt", "OfClass", "as_data", "image_rows", "label_rows", "patient_rows", "preview", "shift_rows", "write"]
