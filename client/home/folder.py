"""What lies in a site's home folder, under which name, and that nobody else looks into it.

    home/site.toml         what it offers (SiteConfig); relative paths start from home
    home/policy.toml       what it allows (PolicyConfig); the strict default where the file is absent
    home/tls/              keys and certificates of a site that has joined; see client/home/enrolment.py
    home/site.key          keys the pseudonyms and all that is sealed, never leaves; see client/home/sitekey.py
    home/forgotten.sealed  the patients who take no part any more
    home/state/            ledger.sqlite: privacy spent, over all runs; splits.sealed: who trains and who tests;
                           declared.json: the number of patients that private runs are told (client/home/declared.py);
                           evaluations/: scores given; strategies/: what a run's strategy keeps from round to round;
                           residuals/: what rounding took from a run's last updates (client/train/sending.py);
                           personal/: models of the site's own, until a person removes them (client/home/kept.py);
                           local/: models that the site trains alone for comparison, until the run is over;
                           gains/: what was compared (client/home/gains.py);
                           statistics/: what runs are told of the training patients (client/home/statistics.py)
    home/home.json         the version of all this (client/home/version.py)
    home/restored.json     after a restore, until the coordinator has seen the audit log (common/rescue/restored.py)
    home/cache/            the preprocessed images; may go while the agent is stopped

Forgotten, state and cache are sealed under keys that are derived from site.key (common/crypto/record_box.py): a copy of
the folder without that key shows how much there is and when it was written, and nothing else.

The worker may write to the last two folders and to scratch/, and to nothing else (common/system/sandbox.py).
"""

import os
import stat
from pathlib import Path

from common.advice import Advice
from common.errors import ConfigError

DEFAULT = Path("wardround-site")
ENVIRONMENT = "WARDROUND_HOME"

SITE_NAME = "site.toml"
POLICY_NAME = "policy.toml"
STATE_NAME = "state"  # what the worker writes beside its cache
LEDGER_NAME = f"{STATE_NAME}/ledger.sqlite"
CACHE_NAME = "cache"
INDEX_NAME = "index"  # within the cache: what the headers of the files told
SPLITS_NAME = f"{STATE_NAME}/splits.sealed"
DECLARED_NAME = f"{STATE_NAME}/declared.json"
EVALUATIONS_NAME = f"{STATE_NAME}/evaluations"
STRATEGIES_NAME = f"{STATE_NAME}/strategies"  # see client/train/memory.py
RESIDUALS_NAME = f"{STATE_NAME}/residuals"  # see client/train/sending.py
PERSONAL_NAME = f"{STATE_NAME}/personal"  # see client/home/kept.py
LOCAL_NAME = f"{STATE_NAME}/local"  # see client/train/alone.py
GAINS_NAME = f"{STATE_NAME}/gains"
STATISTICS_NAME = f"{STATE_NAME}/statistics"
FORGOTTEN_NAME = "forgotten.sealed"
CHECK_NAME = "check"  # the last report of `wardround-client data check`

_COORDINATORS = "server.toml"  # of server/home/folder.py
_PRIVATE = ("tls", "tls/key.pem", "tls/receipt.key", "site.key")


def advice(home: Path) -> Advice:
    """What completes the commands of this side: with --home where they would look into another folder."""
    return Advice.about("wardround-client", home, Path(os.environ.get(ENVIRONMENT) or DEFAULT))


def check_kind(home: Path) -> None:
    """Refuse the folder of a coordinator: what a hospital keeps would be mixed with it.

    Raises:
        ConfigError: it is one.
    """
    if (home / _COORDINATORS).exists() and not (home / SITE_NAME).exists():
        raise ConfigError(
            f"{home} is a coordinator's folder (it has {_COORDINATORS}), and not a hospital's. The coordinator's "
            f"commands begin with wardround-server; for a hospital name another folder with --home or {ENVIRONMENT}."
        )


def check_private(home: Path) -> None:
    """Refuse a home that other users of this computer can look into.

    Raises:
        ConfigError: names what is open, and says how to close it.
    """
    wanted = (home, *(home / name for name in _PRIVATE))
    open_to_others = [str(path) for path in wanted if path.exists() and stat.S_IMODE(path.stat().st_mode) & 0o077]
    if open_to_others:
        raise ConfigError(
            f"other users of this computer may look into {', '.join(open_to_others)}. Run: chmod -R go-rwx {home}"
        )
