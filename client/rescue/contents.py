"""What a backup of a hospital holds: what the hospital cannot make again, and none of its images.

The order is that of what may be newer. The audit log comes first, so the ledger, which is charged before the log has
an entry, is never older than the log says, and what is kept for the coordinator, the answers and what was scored are at
least as new.
"""

from pathlib import Path

from client.home.folder import CACHE_NAME, CHECK_NAME, FORGOTTEN_NAME, LEDGER_NAME, POLICY_NAME, SITE_NAME, STATE_NAME
from client.home.sitekey import KEY_NAME
from client.pacs.settings import PACS_NAME
from client.trail.audit_trail import AUDIT_NAME
from client.trail.certificate import CERTIFICATES
from client.trail.log_exchange import CONFLICT_NAME
from client.trail.outbox import FOLDER
from common.config import SiteConfig, load
from common.rescue.members import Side
from common.rescue.migration import VERSION_NAME
from common.rescue.restored import MARK_NAME

SIDE = Side(
    name="hospital",
    program="wardround-client",
    mark=SITE_NAME,
    kept=(
        AUDIT_NAME,
        CONFLICT_NAME,
        MARK_NAME,
        STATE_NAME,
        FOLDER,
        "proposals",
        "tls",
        FORGOTTEN_NAME,
        CERTIFICATES,
        KEY_NAME,
        VERSION_NAME,
        POLICY_NAME,
        PACS_NAME,
        SITE_NAME,
    ),
    databases=(AUDIT_NAME, LEDGER_NAME),
    at_once=("tls",),
    folders=("tls", STATE_NAME),
    left_out={
        CACHE_NAME: "the working set, which is made again from the images",
        CHECK_NAME: "reports with pictures, which `data check` makes again",
        "logs": "logs of processes",
        "scratch": "the worker's, while it works",
        "status.json": "how the agent is",
        "before-version-*": "what a step from an earlier version changed",
    },
)


def sources(home: Path) -> list[Path]:
    """The folders of images, of which nothing is taken wherever they lie.

    Raises:
        ConfigError: site.toml is wrong.
    """
    return [home / Path(one.path).expanduser() for one in load(SiteConfig, home / SITE_NAME).data]


def missing_sources(home: Path) -> list[Path]:
    """The folders of images that are not on this machine."""
    return [path for path in sources(home) if not path.is_dir()]


__all__ = ["SIDE", "missing_sources", "sources"]
