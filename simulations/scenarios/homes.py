"""A simulated site's home: the same kind of folder that a hospital has."""

import secrets
from functools import lru_cache
from pathlib import Path

from client.home.folder import POLICY_NAME, SITE_NAME
from client.home.sitekey import KEY_NAME
from client.site import Site, open_site
from common.config import ALL_METRICS, PolicyConfig, SiteConfig, Table
from common.crypto.derivation import KEY_BYTES
from common.document.tomlfile import to_toml
from common.system.files import write_private

# On the researcher's own machine there is no hospital to protect: the scenario decides. Budgets are still recorded.
# Scores are exact and of any model, so that figures mean what they say; a hospital's would have noise.
_POLICY = PolicyConfig(
    auto_approve=True,
    require_privacy=False,
    lifetime_epsilon=1e6,
    min_patients=1,
    max_rounds=1_000_000,
    max_rounds_per_day=10**9,
    max_learning_rate=1e6,
    max_weight=1e30,
    max_clipping=1e9,
    max_delta=0.99,
    max_local_steps=1_000_000,
    max_parameters=10**9,
    scores="exact",
    min_held_out=1,
    evaluations="free",
    metrics=ALL_METRICS,
)


def make_site(folder: Path, config: SiteConfig) -> Site:
    """Write a simulated site's home, `folder/<name>`, and open it. Its key and ledger are kept if they are there."""
    home = folder / config.name
    # Nothing here needs to outlast a power failure, and to flush each file takes longer than all else.
    if not (home / KEY_NAME).exists():
        write_private(home / KEY_NAME, secrets.token_bytes(KEY_BYTES), durable=False)
    write_private(home / SITE_NAME, _toml(config).encode(), durable=False)
    write_private(home / POLICY_NAME, _policy().encode(), durable=False)
    return open_site(home)


@lru_cache
def _policy() -> str:
    return _toml(_POLICY)


def _toml(table: Table) -> str:
    return to_toml(table.model_dump(mode="json", by_alias=True, exclude_none=True))


__all__ = ["make_site"]
