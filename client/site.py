"""A hospital's site: its folder opened, with its rules, its key and its ledger, and the cohort its images make.

No torch and no images are imported here before a cohort is asked for: the agent opens a site too.
"""

import logging
import os
from dataclasses import dataclass, field, replace
from functools import cached_property, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from client.home.declared import declared_size, outgrown
from client.home.folder import (
    CACHE_NAME,
    FORGOTTEN_NAME,
    LEDGER_NAME,
    POLICY_NAME,
    SITE_NAME,
    SPLITS_NAME,
    STATE_NAME,
)
from client.home.sitekey import check_outside, site_key
from common.config import PolicyConfig, RunConfig, SiteConfig, canonical, load
from common.errors import ConfigError, PolicyError

if TYPE_CHECKING:
    from client.data.cohort import Cohort, Studies
    from client.data.isolate.isolation import Readers
    from common.privacy.ledger import Ledger

_log = logging.getLogger(__name__)

# A simulation opens this many sites at once without reading any of them twice.
_OPEN_SITES = 256


@dataclass(frozen=True)
class Site:
    """One hospital. Studies are read once and kept while the process lives."""

    home: Path
    config: SiteConfig
    policy: PolicyConfig
    key: bytes = field(repr=False)
    _studies: "dict[str, Studies]" = field(default_factory=dict, repr=False, compare=False)
    _cohorts: "dict[str, Cohort]" = field(default_factory=dict, repr=False, compare=False)

    def cohort(self, run: RunConfig, *, keep: bool = True, readers: "Readers | None" = None) -> "Cohort":
        """The site's images, preprocessed and split as the run asks, under the number of patients declared now.

        Args:
            run: what it asks of the data.
            keep: False only looks, at a run that nobody has approved: no patient's place is kept for it.
            readers: processes that parse files, which stay for other sites; None: such ones are started if need be.

        Raises:
            ConfigError: a source in site.toml is described wrongly, or state/declared.json is damaged.
            DataError: no study is usable.
        """
        from client.data.cohort import deal, read_studies  # noqa: PLC0415 - torch, see above

        asked = asked_of(run)
        if asked not in self._studies:
            # One at a time: a second run's studies take the place of the first, memory holds one.
            self.let_go()
            self._studies[asked] = read_studies(
                self.config,
                run,
                root=self.home,
                site_key=self.key,
                cache=self.home / CACHE_NAME,
                forgotten=self.home / FORGOTTEN_NAME,
                readers=readers or self.config.threads or os.cpu_count() or 1,
            )
        known = self._cohorts.get(asked)
        cohort = known
        if cohort is None:
            studies, splits = self._studies[asked], self.home / SPLITS_NAME
            cohort = deal(studies, self.config, run, site_key=self.key, splits=splits, keep=keep)
        number = declared_size(self.config, run, cohort.size, self.home)
        if known is None or number != cohort.declared_size:
            if why := outgrown(number, cohort.size):
                _log.warning("%s", why)
            cohort = replace(cohort, declared_size=number)
        if known is not None or keep:
            self._cohorts[asked] = cohort
        return cohort

    def has_read(self, run: RunConfig) -> bool:
        """Whether the studies that a run asks for are in memory."""
        return asked_of(run) in self._studies

    @property
    def held_bytes(self) -> int:
        """Bytes of the images and labels in memory."""
        prepared = (one for studies in self._studies.values() for _, one in studies.usable)
        return sum(one.images.nbytes + one.labels.nbytes for one in prepared)

    def let_go(self) -> None:
        """Forget what was read: the next cohort is read anew, from the cache or the files."""
        self._studies.clear()
        self._cohorts.clear()

    @cached_property
    def ledger(self) -> "Ledger":
        """The privacy ledger."""
        from common.privacy.ledger import Ledger  # noqa: PLC0415 - its accountant is heavy

        return Ledger(self.home / LEDGER_NAME, self.key)


def asked_of(run: RunConfig) -> str:
    """What a run asks of a site's data, as text: of two runs with the same one cohort is read."""
    # Regions are cut to the run's patch.
    cut = run.training.patch_size if run.task.of_regions else None
    return (
        f"{canonical(run.data)}{canonical(run.preprocessing)}{run.model.dims},{run.seed},{run.split},"
        f"{run.task.label},{run.task.overlaps},{cut}"
    )


def open_site(home: Path) -> Site:
    """Open a site by its home folder; the same object, with its cohort, while its files are unchanged.

    Raises:
        ConfigError: not a site's home, one that lies among its images, site.toml or policy.toml is wrong, or the key
            does not open.
    """
    home = home.resolve()
    if not (home / SITE_NAME).exists():
        raise ConfigError(
            f"{home} is not a site's home: it has no {SITE_NAME}. Run `wardround-client join`, or make it."
        )
    key = site_key(home)
    opened = _opened(home)
    state = (key, *changed(home, SITE_NAME, POLICY_NAME, FORGOTTEN_NAME))
    if state not in opened:
        opened.clear()  # lets go of the images read under the old files
        opened[state] = _read(home, key)
    return opened[state]


def current_site(home: Path) -> Site:
    """The site as its files are now: what the hospital writes holds from the next message on.

    Raises:
        PolicyError: a file is wrong, so nothing may be done.
    """
    try:
        return open_site(home)
    except ConfigError as error:
        raise PolicyError(str(error)) from error


def policy_of(home: Path) -> PolicyConfig:
    """The hospital's rules as they are written now, for which no key is needed.

    Raises:
        ConfigError: policy.toml is wrong.
    """
    path = home / POLICY_NAME
    return load(PolicyConfig, path) if path.exists() else PolicyConfig()


def changed(home: Path, *names: str) -> tuple[int, ...]:
    """When files of a home were changed last, nanoseconds; 0 for one that is not there."""
    return tuple(_stamp(home / name) for name in names)


def _read(home: Path, key: bytes) -> Site:
    policy = policy_of(home)
    config = load(SiteConfig, home / SITE_NAME)
    (home / STATE_NAME).mkdir(mode=0o700, exist_ok=True)
    check_outside(home, (home / Path(source.path).expanduser() for source in config.data))
    return Site(home, config, policy, key)


@lru_cache(maxsize=_OPEN_SITES)
def _opened(_home: Path) -> dict[tuple[object, ...], Site]:
    """A home's site by its key and the times of its files: one entry, or none at first."""
    return {}


def _stamp(path: Path) -> int:
    return path.stat().st_mtime_ns if path.exists() else 0


__all__ = ["Site", "asked_of", "changed", "current_site", "open_site", "policy_of"]
