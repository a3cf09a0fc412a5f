"""A site's cohort in one go, read and dealt, as training has it."""

from pathlib import Path

from client.data.cohort import Cohort, deal, read_studies
from common.config import RunConfig, SiteConfig


def load_cohort(
    site: SiteConfig,
    run: RunConfig,
    *,
    root: Path,
    site_key: bytes,
    cache: Path | None = None,
    splits: Path | None = None,
    forgotten: Path | None = None,
    readers: int = 0,
) -> Cohort:
    """See `read_studies` and `deal`."""
    studies = read_studies(site, run, root=root, site_key=site_key, cache=cache, forgotten=forgotten, readers=readers)
    return deal(studies, site, run, site_key=site_key, splits=splits)
