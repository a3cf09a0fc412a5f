"""A new home: the two files that a hospital writes in, as it first finds them, each key with what it means."""

import json
import re
from pathlib import Path

from client.home.version import VERSIONS
from common.config import METRICS
from common.errors import EnrolmentError
from common.models import NETWORK_CHOICE
from common.system.files import write_atomically
from common.text import NAME_PATTERN

# A hospital may look at its data before it joins; the invitation brings the name.
UNNAMED = "unnamed"
_NAME = '\nname = "{site}"\n'

SITE_TEMPLATE = """\
# What this hospital offers. Stays here. Add data with: `wardround-client data add PATH`
name = "{site}"
# cohort-size = 120     # publicly declared number of patients; default: that of the first run approved, in 5s
# threads = 4           # cores for training; default: all
# device = "auto"       # or "cpu", "cuda"
"""

POLICY_TEMPLATE = """\
# What this hospital allows. Nothing a coordinator sends can change it. These are the (strict) defaults.
participate = true            # false: nothing is done from the next message on
# hours = "20:00-06:00"       # local time in which work is done; default: always
auto-approve = false          # true: a run within these rules needs no person's approval
operators = 1                 # people, operators at the coordinator, who must have signed a proposal

architectures = []            # such as ["NETWORK"]; empty: all that this program knows
modalities = []               # such as ["CT", "MR"]; empty: all
max-parameters = 50000000
max-weight = 1000.0           # largest value in weights received

min-patients = 10             # refuse runs that fewer of our patients fit
max-rounds = 500              # of one run
max-rounds-per-day = 500      # of all runs
max-local-steps = 1000
min-learning-rate = 0.0
max-learning-rate = 10.0

require-privacy = true        # refuse runs without differential privacy
lifetime-epsilon = 10.0       # budget of a cohort over all runs, ever
# max-run-epsilon = 3.0       # of one run; default: the lifetime budget
late-start = false            # true: a run that names its first weights may reach us after round 1
min-noise-multiplier = 0.0
min-clipping = 0.0            # smallest clipping-norm accepted
max-clipping = 100.0
max-delta = 0.02

# Scores that may leave, as means over our held-out patients. Losses never do under differential privacy.
# Statistics of our training patients (means, without noise) leave only where "class-share", "foreground-share" or
# "intensity" is added.
metrics = METRICS
scores = "noised"             # of a run with privacy: "none", "noised" (the headline score alone) or "exact"
run-scores-epsilon = 1.0      # what noised scores of one run may cost a held-out patient
lifetime-scores-epsilon = 10.0    # and those of all runs, ever
min-held-out = 10             # fewer held-out patients leave no score
max-evaluations-per-day = 100
evaluations = "bound"         # one model a round, once; "free" is for generated or public images only
""".replace("NETWORK", NETWORK_CHOICE.first).replace("METRICS", json.dumps(METRICS))


def prepare_home(home: Path, site: str = UNNAMED) -> None:
    """Make a home folder with its two files; files that are there stay, but that a site without a name gets one.

    Raises:
        EnrolmentError: the name is none; nothing is made.
    """
    if not re.fullmatch(NAME_PATTERN, site):
        raise EnrolmentError(
            "that is no site name: lower-case letters, digits and dashes are. Ask for a new invitation."
        )
    is_new = not (home / "site.toml").exists()
    for folder in (home, home / "tls"):
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        folder.chmod(0o700)
    for name, text in (("site.toml", SITE_TEMPLATE.format(site=site)), ("policy.toml", POLICY_TEMPLATE)):
        if not (home / name).exists():
            write_atomically(home / name, text.encode())
    if is_new:
        VERSIONS.begin(home)
    settings = home / "site.toml"
    text = settings.read_text(encoding="utf-8")
    if _NAME.format(site=UNNAMED) in text:
        text = text.replace(_NAME.format(site=UNNAMED), _NAME.format(site=site), 1)
        write_atomically(settings, text.encode())


__all__ = ["POLICY_TEMPLATE", "SITE_TEMPLATE", "UNNAMED", "prepare_home"]
