"""The drafted scenario as a commented TOML file: what was found, assumed, and not known, and the settings.

The file is read by the same code as any other scenario before it is given away.
"""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from common.config import SourceConfig, parse
from common.document.tomlfile import to_toml
from common.text import as_name, counted, shown
from simulations.drafts.dealing import Sites, alike, deal, with_patients
from simulations.drafts.folder import Look, look
from simulations.drafts.settings import Settings, check_modality, choose
from simulations.scenarios.scenario import ScenarioConfig

_WIDTH = 118
_LONGEST = 63
_OTHER_WAYS = (
    "Other ways: `wardround-sim list partitions`, such as label-skew; or a table [[sites]] for each (docs). "
    "What each site gets, before it trains: wardround-sim preview {name}.toml"
)


@dataclass(frozen=True)
class Draft:
    """text: of the file. name: of the scenario. assumed, unknown: what the file says of itself, a sentence each."""

    text: str
    name: str
    studies: int
    sizes: Mapping[str, int]
    assumed: tuple[str, ...]
    unknown: tuple[str, ...]


def draft(
    source: SourceConfig,
    name: str,
    *,
    modality: str | None = None,
    leave_out: bool = False,
    progress: Callable[[int, int], None] = lambda _done, _total: None,
) -> Draft:
    """A scenario for a folder of images; see `look`, `deal` and `choose` for what may be wrong with it."""
    check_modality(modality)
    found = with_patients(look(source, leave_out=leave_out, progress=progress))
    sites = deal(found)
    settings = choose(found, sites, modality)
    assumed = [*_assumed(found), f"sites: {sites.said}", *_read_as(settings)]
    unknown = [*settings.unknown, *_unknown(found)]
    text = "\n".join([*_head(found, sites, name, assumed, unknown), *_tables(sites, settings, name), ""])
    parse(ScenarioConfig, text, source=f"{name}.toml")
    return Draft(text, name, len(found.studies), sites.sizes, tuple(assumed), tuple(unknown))


def name_of(folder: Path) -> str:
    """What a folder's scenario is called where nobody says it."""
    return as_name(folder.resolve().name)[:_LONGEST].strip("-") or "images"


def _assumed(found: Look) -> list[str]:
    told = [f"{count} {what}" for what, count in sorted(found.assumed.items()) if "patient-pattern" not in what]
    patients = len({study.patient for study in found.studies})
    if found.source.patient_pattern is not None:
        told.append(f"patients: {patients}, by the names of the files, patient-pattern {found.source.patient_pattern}")
    return [*found.by_table, *told]


def _read_as(settings: Settings) -> list[str]:
    data = settings.tables["data"]
    return [f"modality {data['modality']}: {settings.why['data.modality']}", f"classes: {settings.why['data.classes']}"]


def _unknown(found: Look) -> list[str]:
    patients = len({study.patient for study in found.studies})
    told = []
    if found.source.kind != "dicom" and found.source.patient_pattern is None and patients == len(found.studies):
        told.append(
            "whether several images are of one person: each is taken for a patient of its own. Where not, set "
            "patient-pattern, or one person trains and tests"
        )
    if (count := alike(found)) > 0:
        told.append(f"whether {count} images, whose names differ at the end alone, are of fewer people")
    told.append("whether the labels are right; look at some: report.html of the run shows them")
    return told


def _head(found: Look, sites: Sites, name: str, assumed: Sequence[str], unknown: Sequence[str]) -> Iterator[str]:
    patients = len({study.patient for study in found.studies})
    yield from _comment(
        f"Drafted by `wardround-sim new` from {counted(len(found.studies), 'study', 'studies')} of "
        f"{counted(patients, 'patient')}. It runs as it is: wardround-sim run {name}.toml --out out/{name}"
    )
    yield "#"
    yield "# Assumed:"
    for sentence in assumed:
        yield from _comment(sentence, "- ")
    yield "# Not known:"
    for sentence in unknown:
        yield from _comment(sentence, "- ")
    beside = [f"{count} {reason}" for reason, count in sorted(found.left_out.items())]
    beside += [f"{count} cannot be used, {reason}" for reason, count in sorted(found.aside.items())]
    beside += [
        f"{counted(count, 'patient')} of {value!r}, too few for a site" for value, count in sites.left_out.items()
    ]
    if beside:
        yield "# Left out:"
    for sentence in beside:
        yield from _comment(sentence, "- ")
    yield ""


def _tables(sites: Sites, settings: Settings, name: str) -> Iterator[str]:
    data = settings.tables["data"]
    yield to_toml(
        {"title": f"{data['modality']} images, {counted(len(sites.sizes), 'site')}, drafted from a folder"}
    ).rstrip()
    yield from _table("run", {"format": 2, "name": name, "seed": 0}, {})
    for table, values in settings.tables.items():
        yield from _table(f"run.{table}", values, {key: settings.why.get(f"{table}.{key}", "") for key in values})
    yield ""
    sizes = ", ".join(f"{site} {count}" for site, count in sites.sizes.items())
    yield from _comment(f"Patients: {sizes}; {sites.said}. {_OTHER_WAYS.format(name=name)}")
    yield from _table("partition", _plain(sites.partition), {}, above=False)
    yield from _tables_within("partition", sites.partition)
    source = settings.source.model_dump(mode="json", by_alias=True, exclude_defaults=True)
    why = {"path": "A relative path starts at this file, or at --data."}
    yield from _table("partition.source", _plain(source), why)
    yield from _tables_within("partition.source", source)


def _plain(values: Mapping[str, object]) -> dict[str, object]:
    return {key: value for key, value in values.items() if not isinstance(value, dict)}


def _tables_within(name: str, values: Mapping[str, object]) -> Iterator[str]:
    for key, value in values.items():
        if isinstance(value, dict) and value:
            yield from _table(f"{name}.{key}", value, {})


def _table(name: str, values: Mapping[str, object], why: Mapping[str, str], *, above: bool = True) -> Iterator[str]:
    if above:
        yield ""
    yield f"[{name}]"
    for key, value in values.items():
        if why.get(key):
            yield from _comment(why[key])
        yield to_toml({key: value}).rstrip()


def _comment(sentence: str, mark: str = "") -> Iterator[str]:
    """Lines of a comment; text of file names and headers is made safe."""
    line = f"# {mark}"
    indent = f"# {' ' * len(mark)}"
    for word in re.split(r" +", shown(sentence)):
        if len(line) + len(word) > _WIDTH and line.strip("# -"):
            yield line.rstrip()
            line = indent
        line += f"{word} "
    yield line.rstrip()


__all__ = ["Draft", "draft", "name_of"]
