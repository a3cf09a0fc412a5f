"""A site's second model: trained by plain steps once the update is made, so that nothing that leaves depends on it.

In a private run too: its steps are the site's own affair, as its images are. What fails here is written into the site's
log, and the model stays as it was; were it told, a refusal would say without noise what a patient's data have done.
"""

import logging
from dataclasses import replace
from typing import Any

import torch

from client.data.cohort import Cohort
from client.train.strategies import Local
from client.train.training import train_round
from common.config import RunConfig
from common.config.rundocument import RunDocument

_log = logging.getLogger(__name__)


def train_apart(
    local: Local[Any],
    cohort: Cohort,
    document: RunDocument,
    *,
    round_: int,
    site: str,
    device: torch.device,
    steps: int | None = None,
) -> None:
    """Train the second model of a strategy that has one, for one round.

    Args:
        local: the client half, after the update was made.
        cohort: the site's.
        document: the run.
        round_: from 1.
        site: its name.
        device: where to compute.
        steps: as many as the update has; None: as the run says.
    """
    half = local.apart()
    if half is None:
        return
    before = {name: one.detach().clone() for name, one in half.model.named_parameters()}
    plain = replace(document, config=without_privacy(document.config))
    try:
        train_round(half.model, cohort, plain, round_=round_, site=site, device=device, local=half, steps=steps)
    except Exception:  # noqa: BLE001 - whatever it is, the update is made, and must not tell of it
        _log.exception("the personal model of round %d could not be trained, and stays as it was", round_)
        half.model.load_state_dict(before, strict=False)


def without_privacy(run: RunConfig) -> RunConfig:
    """The run without privacy; a step is as long as the clipping norm allows, for which its rate was chosen."""
    if run.privacy is None:
        return run
    training = run.training.model_copy(update={"gradient_clipping": run.privacy.clipping_norm})
    return run.model_copy(update={"privacy": None, "training": training})


__all__ = ["train_apart", "without_privacy"]
