"""A scenario: a run, and the sites that take part in it, in one TOML file.

    title = "..."                      one line for `wardround-sim scenarios`
    images = "..."                     folder of its images in WARDROUND_DATA, where that is not the scenario's name
    [run] ...                          as in run.toml
    [[sites]] ...                      as in site.toml; relative paths start from the data folder
    [phantoms] ...                     or: one site per scanner, with generated CT series
    [partition] ...                    or: one archive, its patients shared out among sites: simulations/partitions
    [pretraining] ...                  generated images that every model starts from; see pretraining.py
    [[shifts]] ...                     what makes a site's images or labels unlike the others': simulations/shifts
    [compare] ...                      the columns of `compare`

`prepare` turns it into site homes under the output folder, the same kind of folder that a hospital has.
"""

import hashlib
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import Field, model_validator

from client.data.read.sources import list_patients
from client.site import Site
from common.config import (
    Count,
    Device,
    Fraction,
    Name,
    RunConfig,
    SiteConfig,
    SourceConfig,
    Table,
    load,
)
from common.errors import ConfigError
from common.system.files import write_atomically
from common.text import meant
from server.federation.events import JOURNAL_NAME
from simulations.generators.phantoms import SCANNERS, write_hospital
from simulations.partitions import PARTITION_CHOICE, Archive, Partition
from simulations.scenarios.compare_settings import CompareConfig
from simulations.scenarios.homes import make_site
from simulations.scenarios.pretraining_settings import PretrainingConfig
from simulations.scenarios.shifted import shifted_site
from simulations.shifts import SHIFT_CHOICE, Shift

SHIPPED = Path(__file__).parent
DATA_VARIABLE = "WARDROUND_DATA"

# Folders of an output folder; and a digest of what the sites were made of.
_SITES, _DATA, _SHIFTED = "sites", "data", "shifted"
_MADE_OF = ".made-of"

EXACT_SCORES = (
    'The scores are exact: the policy of a simulated site says scores = "exact". A hospital adds noise to those of a '
    "run with privacy, unless its own says so too."
)


class PhantomsConfig(Table):
    """One site per scanner, with generated DICOM CT series and DICOM SEG labels."""

    scanners: tuple[Name, ...] = ("a", "b", "c")
    patients: Count = 20
    slices: Count = 12
    rows: Count = 128
    # Share of the patients who have no lesion, on average; or one share for each scanner.
    healthy: Fraction | tuple[Fraction, ...] = 0.0
    seed: Annotated[int, Field(ge=0)] = 0

    @model_validator(mode="after")
    def _knows_its_scanners(self) -> Self:
        if unknown := set(self.scanners) - set(SCANNERS):
            raise ValueError(f"unknown scanners {sorted(unknown)}; there are {sorted(SCANNERS)}")
        if isinstance(self.healthy, tuple) and len(self.healthy) != len(self.scanners):
            raise ValueError(f"healthy needs one share for each of the {len(self.scanners)} scanners, or one for all")
        return self

    def healthy_at(self, number: int) -> float:
        """The share of the scanner of that place in the list, from 0."""
        return self.healthy[number] if isinstance(self.healthy, tuple) else self.healthy


class ScenarioConfig(Table):
    """A scenario file."""

    title: str = ""
    # Its images are in this folder of WARDROUND_DATA; None: in the one that is called like the scenario.
    images: Annotated[str, Field(pattern="^[a-z0-9][a-z0-9_-]*$")] | None = None
    run: RunConfig
    sites: tuple[SiteConfig, ...] = ()
    phantoms: PhantomsConfig | None = None
    partition: Annotated[Partition, PARTITION_CHOICE] | None = None
    pretraining: PretrainingConfig | None = None
    # Applied in their order to all studies of their sites.
    shifts: tuple[Annotated[Shift, SHIFT_CHOICE], ...] = ()
    compare: CompareConfig = CompareConfig()

    @model_validator(mode="before")
    @classmethod
    def _is_no_run(cls, values: Any) -> Any:
        if isinstance(values, dict) and {"federation", "training"} <= values.keys():
            raise ValueError(
                "this is a run.toml. A scenario holds a run below [run], [run.data] and so on, with its images beside "
                "it, such as [phantoms]: see docs/scenarios.md"
            )
        return values

    @model_validator(mode="after")
    def _has_one_kind_of_sites(self) -> Self:
        if sum(map(bool, (self.sites, self.phantoms, self.partition))) != 1:
            raise ValueError("give exactly one of [[sites]], [phantoms] and [partition]")
        published = self.partition.published if self.partition is not None else 0
        if self.pretraining is not None and bool(self.pretraining.published_rounds) != bool(published):
            raise ValueError("pretraining.published-rounds and partition.published go together: set both or neither")
        if self.compare.epsilons and not (self.compare.privacy or self.run.privacy):
            raise ValueError("compare.epsilons needs a table [compare.privacy] or [run.privacy]")
        names = self.site_names
        if len(set(names)) != len(names):
            raise ValueError(f"site names must be distinct, got {list(names)}")
        if self.compare.leave_one_out and len(names) < 3:
            raise ValueError("compare.leave-one-out leaves no federation of two sites: name three, or take it out")
        at_fault = {site for fault in self.compare.faults for site in fault.sites}
        if unknown := sorted(at_fault - set(names)):
            raise ValueError(f"compare.faults names sites {unknown} that the scenario has not; it has {list(names)}")
        if unknown := sorted({site for shift in self.shifts for site in shift.sites} - set(names)):
            raise ValueError(f"shifts names sites {unknown} that the scenario has not; it has {list(names)}")
        for strategy in self.compare.strategies:
            if len(names) < strategy.fewest:
                raise ValueError(f"compare.strategies: {strategy.kind} needs {strategy.fewest} sites, not {len(names)}")
            if problem := strategy.misfit(replace(self.run.asked, quorum=len(names), private=False)):
                raise ValueError(f"compare.strategies: {strategy.kind} {problem}")
        if len(names) < self.run.federation.quorum:
            raise ValueError(f"{len(names)} sites cannot reach federation.quorum {self.run.federation.quorum}")
        return self

    def shifts_at(self, site: str) -> tuple[Shift, ...]:
        """What is done to a site's studies, in order."""
        return tuple(shift for shift in self.shifts if site in shift.sites)

    @property
    def made_of(self) -> tuple[object, ...]:
        """What the sites and their images follow from, but for the folder of the images; where it is equal they are."""
        return self.sites, self.partition, self.phantoms, self.shifts

    @property
    def site_names(self) -> tuple[str, ...]:
        """Names of the sites, in the order of the file."""
        if self.phantoms is not None:
            return self.phantoms.scanners
        if self.partition is not None:
            return self.partition.sites
        return tuple(site.name for site in self.sites)


@dataclass(frozen=True)
class Scenario:
    """A scenario file and where it lies."""

    name: str
    path: Path
    config: ScenarioConfig


def shipped() -> tuple[Scenario, ...]:
    """The scenarios that come with Wardround, by name."""
    return tuple(_read(path) for path in _shipped_paths())


def load_scenario(name: str) -> Scenario:
    """A shipped scenario by its name, or any by its path.

    Raises:
        ConfigError: no such scenario, or it is not valid.
    """
    if (SHIPPED / f"{name}.toml").exists():
        return _read(SHIPPED / f"{name}.toml")
    path = Path(name)
    if path.suffix != ".toml":
        known = [path.stem for path in _shipped_paths()]
        raise ConfigError(
            f"there is no scenario {name!r}.{meant(name, known)} Give one of {', '.join(known)}, or the path of a "
            ".toml file."
        )
    return _read(path)


def prepare(
    scenario: Scenario,
    out: Path,
    *,
    data: Path | None = None,
    device: Device | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> list[Site]:
    """Make one site home per site under `out/sites`, with generated images under `out/data` where asked for.

    Images of sites with shifts are written under `out/shifted`, and the site has those.

    Args:
        scenario: what to prepare.
        out: the output folder of the simulation.
        data: folder that relative paths start from; None: WARDROUND_DATA/<scenario>, or the scenario's own folder.
        device: where every site trains; None: as the scenario says for each, and that is `auto` where it says nothing.
        progress: called with (patients generated, patients) while phantoms are written.

    Raises:
        ConfigError: data that the scenario names is not there.
    """
    config = scenario.config
    if config.phantoms is not None:
        sites = _phantom_sites(config.phantoms, out / _DATA, progress)
    else:
        root = data or _default_data(scenario)
        if not root.is_dir():
            raise ConfigError(
                f"scenario {scenario.name} needs images, and {root} is not a folder. Name their folder with --data, or "
                f"set {DATA_VARIABLE} to the folder that holds {config.images or scenario.name}/."
            )
        sites = _partition(config.partition, root) if config.partition is not None else _absolute(config.sites, root)
    sites = [shifted_site(site, config.shifts_at(site.name), config.run, out / _SHIFTED) for site in sites]
    chosen = {} if device is None else {"device": device}
    return [make_site(out / _SITES, site.model_copy(update=chosen)) for site in sites]


def refuse_others(scenario: Scenario, out: Path, *, data: Path | None = None) -> None:
    """Refuse an output folder whose models were trained on other sites or images: they would be taken for these.

    Args:
        scenario: what is to be prepared.
        out: the output folder; without models it may be prepared for anything.
        data: see `prepare`.

    Raises:
        ConfigError: there are such models.
    """
    config = scenario.config
    images = None if config.phantoms is not None else str((data or _default_data(scenario)).absolute())
    # As it is written: a later version's further keys change nothing.
    written = config.model_dump_json(include={"sites", "partition", "phantoms", "shifts"}, exclude_unset=True)
    asked = hashlib.sha256(f"{images}|{written}".encode()).hexdigest()
    told = out / _SITES / _MADE_OF
    if told.exists() and told.read_text(encoding="ascii") == asked:
        return
    if told.exists() and _has_models(out):
        raise ConfigError(
            f"{out} holds models that were trained on other sites or images than scenario {scenario.name} now names. "
            "Give another --out, or remove that folder."
        )
    write_atomically(told, asked.encode())


def _has_models(out: Path) -> bool:
    own = [one for one in out.iterdir() if one.name not in (_SITES, _DATA, _SHIFTED)]
    return any(one.name == JOURNAL_NAME or next(one.rglob(JOURNAL_NAME), None) for one in own)


def published(scenario: Scenario, *, data: Path | None = None) -> SourceConfig | None:
    """The part of a partitioned archive that plays a published one; None where there is none."""
    config = scenario.config.partition
    return _shares(config, data or _default_data(scenario))[1] if config is not None and config.published else None


def _shipped_paths() -> list[Path]:
    return sorted(SHIPPED.glob("*.toml"), key=lambda path: path.stem)


def _read(path: Path) -> Scenario:
    return Scenario(path.stem, path, load(ScenarioConfig, path))


def _default_data(scenario: Scenario) -> Path:
    folder = os.environ.get(DATA_VARIABLE)
    images = scenario.config.images or scenario.name
    if folder and (Path(folder) / images).is_dir():
        return (Path(folder) / images).absolute()
    # A shipped scenario has no images beside it; that is said by the name of a folder that is not there.
    return scenario.path.absolute().parent if scenario.path.parent != SHIPPED else Path(folder or ".") / images


def _phantom_sites(
    config: PhantomsConfig, folder: Path, progress: Callable[[int, int], None] | None
) -> list[SiteConfig]:
    sites = []
    total = len(config.scanners) * config.patients
    for number, name in enumerate(config.scanners):
        done = number * config.patients
        home = folder / name
        marker = home / ".complete"
        asked = f"{config.patients} {config.slices} {config.rows} {config.seed} {config.healthy_at(number)}\n"
        if not marker.exists() or marker.read_text(encoding="utf-8") != asked:
            write_hospital(
                home,
                scanner=SCANNERS[name],
                patients=config.patients,
                seed=config.seed,
                slices=config.slices,
                rows=config.rows,
                healthy=config.healthy_at(number),
                progress=None if progress is None else _offset(progress, done, total),
            )
            write_atomically(marker, asked.encode())
        # A short series may pass the lesions by, and its truth says so.
        source = SourceConfig(path=str(home.absolute()), kind="dicom", empty_labels_are_negative=True)
        sites.append(SiteConfig(name=name, data=(source,), cohort_size=config.patients))
    return sites


def _offset(progress: Callable[[int, int], None], before: int, total: int) -> Callable[[int, int], None]:
    return lambda done, _: progress(before + done, total)


def _partition(config: Partition, root: Path) -> list[SiteConfig]:
    shares, _ = _shares(config, root)
    (source,) = _absolute_sources((config.source,), root)
    empty = [name for name, patients in shares.items() if not patients]
    if empty:
        raise ConfigError(
            f"the archive has {sum(map(len, shares.values()))} patients, too few for {len(shares)} sites. "
            "Name fewer sites in [partition], or check its source."
        )
    return [
        SiteConfig(format=SiteConfig.LATEST, name=name, data=(source.model_copy(update={"patients": patients}),))
        for name, patients in shares.items()
    ]


def _shares(config: Partition, root: Path) -> tuple[dict[str, tuple[str, ...]], SourceConfig]:
    """Patients of each site, and the source of the published ones."""
    (source,) = _absolute_sources((config.source,), root)
    patients = list_patients(source, root)
    ranked = sorted(
        patients, key=lambda patient: hashlib.sha256(f"published|{config.seed}|{patient}".encode()).digest()
    )
    kept = tuple(sorted(ranked[: config.published]))
    dealt = config.deal(sorted(set(patients) - set(kept)), Archive(source, root))
    shares = {site: tuple(sorted(dealt.get(site, ()))) for site in config.sites}
    return shares, source.model_copy(update={"patients": kept})


def _absolute(sites: Sequence[SiteConfig], root: Path) -> list[SiteConfig]:
    return [site.model_copy(update={"data": _absolute_sources(site.data, root)}) for site in sites]


def _absolute_sources(sources: Sequence[SourceConfig], root: Path) -> tuple[SourceConfig, ...]:
    base = root.absolute()
    return tuple(source.model_copy(update={"path": str(base / source.path)}) for source in sources)


__all__ = [
    "DATA_VARIABLE",
    "EXACT_SCORES",
    "CompareConfig",
    "PhantomsConfig",
    "Scenario",
    "ScenarioConfig",
    "load_scenario",
    "prepare",
    "refuse_others",
    "shipped",
]
