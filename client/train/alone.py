"""The model that a site would have without the others: what [federation] cross-site compares the global model with.

It starts from the run's first weights and is trained beside the run, after each update is made, by as many steps on the
same crops at the same rates, as a run of this site alone would: what `wardround-sim compare` calls "alone". Its steps
are plain also in a private run, as the hospital needs no guarantee against itself. The model never leaves. Its headline
score does beside that of the global model, where run and policy let it (client/rules/exit_gate.py); both, exact, stay
here for the hospital (client/home/gains.py).

A site that takes part from a later round on begins at the run's first weights all the same, and has fewer steps; of a
run that names its weights it must have seen round 1, where they come. What goes wrong here is written into the site's
log and changes nothing that leaves, as in `client.train.apart`.
"""

import logging
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

from client.data.cohort import Cohort
from client.home.folder import LOCAL_NAME
from client.home.gains import Compared, note
from client.home.kept import remove
from client.rules.exit_gate import score_names
from client.site import Site
from client.train import training
from client.train.apart import without_privacy
from client.train.memory import recall_from, retain_in
from client.train.strategies import Kept
from common.config.rundocument import RunDocument
from common.learning.checkpoint import unpack
from common.learning.network import build_model, load_model, weights_of
from common.tasks import of_local
from common.wire.messages import EvaluateRequest, TrainRequest

_LOCAL = "local"  # the only part of what is kept

_log = logging.getLogger(__name__)


def train_alone(
    request: TrainRequest,
    document: RunDocument,
    site: Site,
    cohort: Cohort,
    device: torch.device,
    *,
    steps: int | None = None,
) -> None:
    """Train the site's local model for one round, where the run asks for it; the update is made by then.

    Args:
        request: whose round it is.
        document: the run.
        site: the hospital; the model is kept there, sealed.
        cohort: its patients.
        device: where to compute.
        steps: as many as the update has; None: as the run says.
    """
    if not document.config.federation.cross_site:
        return
    try:
        start = _start(request, document, site)
        if start is None:
            _log.warning("cross-site: this site did not see round 1, where the first weights came: no local model")
            return
        model = load_model(document.config, start).to(device)
        plain = replace(document, config=without_privacy(document.config))
        training.train_round(
            model, cohort, plain, round_=request.round, site=site.config.name, device=device, steps=steps
        )
        weights = {name: one.cpu() for name, one in weights_of(model).items()}
        retain_in(_folder(site, document), site, Kept(request.round, {_LOCAL: weights}))
    except Exception:  # noqa: BLE001 - whatever it is, the update is made, and must not tell of it
        _log.exception("the local model of round %d could not be trained, and stays as it was", request.round)


def compared(
    request: EvaluateRequest,
    document: RunDocument,
    site: Site,
    cohort: Cohort,
    model: nn.Module,
    *,
    shared: Mapping[str, float] | None = None,
) -> dict[str, float]:
    """Score the local model beside the global one and keep both here.

    Args:
        request: whose patients, and after which round; the test is of the last local model.
        document: the run.
        site: the hospital.
        cohort: its patients.
        model: the global one, on its device.
        shared: its exact scores; None: they are taken here.

    Returns:
        The headline score of the local model under its own name; nothing where there is none, or it may not leave.
    """
    run = document.config
    if not run.federation.cross_site:
        return {}
    device = next(model.parameters()).device
    headline = run.task.headline
    try:
        last = run.federation.rounds if request.phase == "test" else request.round
        kept = recall_from(_folder(site, document), site, last + 1)
        scores: Mapping[str, float] = {}
        if kept is not None:
            own = load_model(run, kept.states[_LOCAL]).to(device)
            _, scores = training.evaluate(own, cohort, run, request.phase, device)
        if shared is None:
            _, shared = training.evaluate(model, cohort, run, request.phase, device)
        one = Compared(
            round=request.round,
            phase=request.phase,
            score=headline,
            shared=shared.get(headline),
            local=scores.get(headline),
        )
        note(site.home, site.key, document.hash, one)
    except Exception:  # noqa: BLE001 - the scores of the global model are there, and must not tell of it
        _log.exception("the local model could not be compared after round %d", request.round)
        return {}
    may_leave = of_local(headline) in score_names(run, site.policy.metrics, site.policy.scores)
    return {of_local(headline): scores[headline]} if may_leave and headline in scores else {}


def let_go(site: Site, document: RunDocument) -> None:
    """Remove the local model, as the run is over."""
    remove(_folder(site, document))


def _start(request: TrainRequest, document: RunDocument, site: Site) -> Mapping[str, Tensor] | None:
    """The local model as the last round left it, or the run's first weights; None: they are not known here."""
    run = document.config
    if (kept := recall_from(_folder(site, document), site, request.round)) is not None:
        return kept.states[_LOCAL]
    if run.initial is None:
        return weights_of(build_model(run))
    return unpack(request.parts[run.strategy.MODEL]) if request.round == 1 else None


def _folder(site: Site, document: RunDocument) -> Path:
    return site.home / LOCAL_NAME / document.hash


__all__ = ["compared", "let_go", "train_alone"]
