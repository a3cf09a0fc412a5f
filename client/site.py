"""A hospital's site: the folder that holds its rules, its key and its ledger, and the cohort its images make.

    home/site.toml      what it offers (SiteConfig); relative paths start from home
    home/policy.toml    what it allows (PolicyConfig); the strict default where the file is absent
    home/site.key       32 random bytes, mode 0600, made on first use; keys the pseudonyms, never leaves
    home/ledger.sqlite  privacy spent, over all runs
    home/cache/         the preprocessed images, encrypted under a key from site.key; may be deleted at any time

No torch and no images are imported here before a cohort is asked for: the agent opens a site too.
"""

import os
import secrets
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from common.config import PolicyConfig, RunConfig, SiteConfig, canonical, load
from common.errors import ConfigError

if TYPE_CHECKING:
    from client.data.cohort import Cohort
    from common.privacy.ledger import Ledger

SITE_NAME = "site.toml"
POLICY_NAME = "policy.toml"
KEY_NAME = "site.key"
LEDGER_NAME = "ledger.sqlite"
CACHE_NAME = "cache"

_KEY_BYTES = 32
# A simulation opens this many sites at once without reading any of them twice.
_OPEN_SITES = 256


@dataclass(frozen=True)
class Site:
    """One hospital. Cohorts are read once and kept while the process lives."""

    home: Path
    config: SiteConfig
    policy: PolicyConfig
    key: bytes = field(repr=False)
    _cohorts: "dict[str, Cohort]" = field(default_factory=dict, repr=False, compare=False)

    def cohort(self, run: RunConfig) -> "Cohort":
        """The site's images, preprocessed and split as the run asks.

        Raises:
            ConfigError: a source in site.toml is described wrongly.
            DataError: no study is usable.
        """
        from client.data.cohort import load_cohort  # noqa: PLC0415 - torch, see above

        asked = f"{canonical(run.data)}{canonical(run.preprocessing)}{run.model.dims},{run.seed}"
        if asked not in self._cohorts:
            # One at a time: a second run's cohort takes the place of the first, memory holds one.
            self._cohorts.clear()
            self._cohorts[asked] = load_cohort(
                self.config, run, root=self.home, site_key=self.key, cache=self.home / CACHE_NAME
            )
        return self._cohorts[asked]

    @cached_property
    def ledger(self) -> "Ledger":
        """The privacy ledger."""
        from common.privacy.ledger import Ledger  # noqa: PLC0415 - its accountant is heavy

        return Ledger(self.home / LEDGER_NAME)


def open_site(home: Path) -> Site:
    """Open a site by its home folder; the same object, with its cohort, while its files are unchanged.

    Raises:
        ConfigError: not a site's home, site.toml or policy.toml is wrong, or the key is damaged.
    """
    home = home.resolve()
    if not (home / SITE_NAME).exists():
        raise ConfigError(
            f"{home} is not a site's home: it has no {SITE_NAME}. Run `wardround-client join`, or make it."
        )
    key = _key(home / KEY_NAME)
    opened = _opened(home)
    stamps = tuple(_stamp(home / name) for name in (SITE_NAME, POLICY_NAME, KEY_NAME))
    if stamps not in opened:
        opened.clear()  # lets go of the images read under the old files
        opened[stamps] = _read(home, key)
    return opened[stamps]


def _read(home: Path, key: bytes) -> Site:
    policy_path = home / POLICY_NAME
    policy = load(PolicyConfig, policy_path) if policy_path.exists() else PolicyConfig()
    return Site(home, load(SiteConfig, home / SITE_NAME), policy, key)


@lru_cache(maxsize=_OPEN_SITES)
def _opened(_home: Path) -> dict[tuple[int, ...], Site]:
    """A home's site by the times of its files: one entry, or none at first."""
    return {}


def _stamp(path: Path) -> int:
    return path.stat().st_mtime_ns if path.exists() else 0


def _key(path: Path) -> bytes:
    """Read the key; make it first where there is none, such that two processes end up with the same one."""
    if not path.exists():
        fresh = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
        descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(secrets.token_bytes(_KEY_BYTES))
        try:
            os.link(fresh, path)  # fails where another process was first; then its key counts
        except FileExistsError:
            pass
        finally:
            fresh.unlink()
    key = path.read_bytes()
    if len(key) != _KEY_BYTES:
        raise ConfigError(
            f"{path} holds {len(key)} bytes, expected {_KEY_BYTES}. Restore it from a backup: with a new key "
            "the site's pseudonyms change and its privacy ledger starts a new cohort."
        )
    return key


__all__ = ["Site", "open_site"]
