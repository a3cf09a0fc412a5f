"""What a hospital does when it is asked to train or to evaluate: is it allowed, what does it cost, and what leaves.

The site's worker calls it, and so does the ClientApp of a simulation (client/app.py). Whatever goes wrong is raised
with a code from the closed list, which is all that the coordinator may know.
"""

import logging
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import replace

import torch
from torch import nn

from client.data.cohort import Cohort
from client.home.declared import declare
from client.home.offer import Offer
from client.rules import evaluations, exit_gate, policy
from client.rules.policy import Purpose
from client.site import Site
from client.train import training
from client.train.alone import compared, let_go, train_alone
from client.train.apart import train_apart
from client.train.memory import discard, recall, retain
from client.train.sending import model_part
from client.train.statistics import told
from client.train.strategies import Kept, local_of
from common.audit.entries import bucketed
from common.config import RunConfig
from common.config.rundocument import RunDocument
from common.errors import ConfigError, DataError, ErrorCode, UpdateError
from common.learning.checkpoint import pack, unpack
from common.learning.network import load_model, tensor_shapes, weights_of
from common.privacy.guarantee import charge_round
from common.privacy.scores import (
    SCORES_DELTA,
    SCORES_EPSILON,
    ScorePlan,
    charge_scores,
    held_out_cohort,
    noised_scores,
    score_plan,
)
from common.strategies import PERSONAL, of_personal
from common.wire.messages import (
    EvaluateReply,
    EvaluateRequest,
    Reply,
    Request,
    TrainReply,
    TrainRequest,
)

_log = logging.getLogger(__name__)


def answer(request: Request, document: RunDocument, site: Site, attempt: str) -> Reply:
    """Do what is asked, if the request belongs to the run and the site's policy allows it.

    Args:
        request: what the coordinator wants.
        document: the run that both sides agreed on.
        site: the hospital.
        attempt: names this execution in the privacy ledger; the same attempt is charged once and trained once.

    Raises:
        WardroundError: the site does not do it; the error's code is what the coordinator may know.
    """
    run = document.config
    if request.run_hash != document.hash:
        raise UpdateError("the request belongs to another run than the one approved here", ErrorCode.WRONG_RUN)
    exit_gate.check_start(request, run)
    exit_gate.check_covered(run)
    model = _model(request, run)
    if isinstance(request, TrainRequest):
        evaluations.begin_training(site, run, request)
    else:
        if request.round >= run.federation.rounds:  # its model is there: no round will be trained again
            discard(site, document)
        if (kept := evaluations.begin_scoring(site, run, request)) is not None:
            _end(request, document, site)
            return kept
    found = site.cohort(run, keep=False)
    cost = _score_plan(request, run, site, found)
    offer, held_out = offer_of(found, run, model), _held_out(request, found, cost)
    policy.decide(run, site.policy, Purpose.WORK, offer=offer, held_out=held_out).enforce()
    cohort = site.cohort(run)
    declare(site.config, run, cohort.declared_size, site.home)
    device = _device(site)
    match request:
        case TrainRequest():
            return _train(request, document, site, cohort, model.to(device), attempt=attempt)
        case EvaluateRequest():
            reply = _evaluate(request, document, site, cohort, model.to(device), cost=cost)
            evaluations.keep(site, request, reply)
            _end(request, document, site)
            return reply


def _end(request: EvaluateRequest, document: RunDocument, site: Site) -> None:
    """Let go what only further rounds would need, once the test is made, which ends a run that stopped early too."""
    if request.phase == "test":
        discard(site, document)
        let_go(site, document)


def _train(
    request: TrainRequest, document: RunDocument, site: Site, cohort: Cohort, model: nn.Module, *, attempt: str
) -> TrainReply:
    run = document.config
    patients = len(cohort.patients("train"))
    if patients == 0 and run.privacy is None:
        raise DataError("no patient is left for training. Add studies with labels.", ErrorCode.NO_DATA)
    # Last of all that can fail: who is let through here draws noise, and nobody does so again for this charge.
    spent = {} if run.privacy is None else _charge(request, document, site, cohort, attempt)
    device = next(model.parameters()).device
    beside = {name: unpack(request.parts[name]) for name in run.strategy.DOWN}
    local = local_of(
        run.strategy,
        model,
        {name: {key: one.to(device) for key, one in state.items()} for name, state in beside.items()},
    )
    if run.strategy.REMEMBERS:
        local.remember(run, request.round, recall(site, document, request.round))
    name = site.config.name
    metrics = training.train_round(
        model, cohort, document, round_=request.round, site=name, device=device, site_key=site.key, local=local
    )
    beside_model = {name: pack(state) for name, state in local.parts().items()}
    parts = {run.strategy.MODEL: model_part(local.weights(), request, document, site), **beside_model}
    # Who stops by time makes as many steps for the others: as long again, and comparable.
    steps = None if run.training.local_seconds is None else int(metrics["steps"])
    train_apart(local, cohort, document, round_=request.round, site=name, device=device, steps=steps)
    if run.strategy.REMEMBERS:
        retain(site, document, Kept(request.round, local.kept()))
    train_alone(request, document, site, cohort, device, steps=steps)
    counted = bucketed(patients) if run.weighting == "patients" else 0
    metrics = {**metrics, **spent, **told(document, site, cohort)}
    return TrainReply(request.run_hash, request.round, parts, counted, metrics)


def _charge(request: TrainRequest, document: RunDocument, site: Site, cohort: Cohort, attempt: str) -> dict[str, float]:
    """Enter the round in the ledger and take it, before the first step; what the run has then spent."""
    charged = charge_round(
        site.ledger,
        document,
        cohort=cohort.cohort_id,
        cohort_size=cohort.declared_size,
        round_=request.round,
        attempt=attempt,
        lifetime_epsilon=site.policy.lifetime_epsilon,
        begin=True,
    )
    return {"epsilon": charged.epsilon, "delta": charged.delta}


def _score_plan(request: Request, run: RunConfig, site: Site, cohort: Cohort) -> ScorePlan | None:
    """How the scores that are asked for are noised; None: they are not, or none are asked for."""
    if isinstance(request, TrainRequest) or run.privacy is None or site.policy.scores != "noised":
        return None
    return score_plan(run, cohort.declared_size, request.phase, site.policy.run_scores_epsilon)


def _held_out(request: Request, cohort: Cohort, cost: ScorePlan | None) -> int | None:
    """The patients of the split that is scored: the public number where scores are noised; None: nothing is scored."""
    if isinstance(request, TrainRequest):
        return None
    return len(cohort.patients(request.phase)) if cost is None else cost.held_out


def _evaluate(
    request: EvaluateRequest,
    document: RunDocument,
    site: Site,
    cohort: Cohort,
    model: nn.Module,
    *,
    cost: ScorePlan | None,
) -> EvaluateReply:
    run = document.config
    device = next(model.parameters()).device

    def score(some: Cohort, *, every_class: bool = False) -> tuple[int, dict[str, float]]:
        return training.evaluate(model, some, run, request.phase, device, every_class=every_class)

    if cost is not None:
        # Which scores there are must not depend on who is a patient here.
        scores = _noised(request, document, site, cohort, lambda some: score(some, every_class=True)[1], cost=cost)
        compared(request, document, site, cohort, model)  # for the site's own eyes
        return EvaluateReply(request.run_hash, request.round, request.phase, 0, scores)
    patients, scores = score(cohort)
    if (own := _personal(request, document, site, model)) is not None:
        _, of_own = training.evaluate(own.to(device), cohort, run, request.phase, device)
        scores |= {of_personal(name): value for name, value in of_own.items() if name == run.task.headline}
    scores |= compared(request, document, site, cohort, model, shared=scores)
    counted = bucketed(patients) if run.weighting == "patients" else 0
    return EvaluateReply(request.run_hash, request.round, request.phase, counted, scores)


def _personal(request: EvaluateRequest, document: RunDocument, site: Site, model: nn.Module) -> nn.Module | None:
    """The site's own model after this round, with the test its last; where its score may leave and there is one."""
    run, rules = document.config, site.policy
    if of_personal(run.task.headline) not in exit_gate.score_names(run, rules.metrics, rules.scores):
        return None
    last = run.federation.rounds if request.phase == "test" else request.round
    kept = recall(site, document, last + 1)
    return None if kept is None else load_model(run, {**weights_of(model), **kept.states[PERSONAL]})


def _noised(
    request: EvaluateRequest,
    document: RunDocument,
    site: Site,
    cohort: Cohort,
    score: Callable[[Cohort], dict[str, float]],
    *,
    cost: ScorePlan,
) -> dict[str, float]:
    """Charge, score each patient on their own, add noise: nothing that leaves depends on more than that sum.

    Whether there is an answer follows from the declared number of patients alone. A patient who cannot be scored counts
    as 1/2, like one who is not there.
    """
    run = document.config
    charged = charge_scores(
        site.ledger,
        document,
        cost,
        cohort=cohort.cohort_id,
        round_=request.round,
        phase=request.phase,
        lifetime_epsilon=site.policy.lifetime_scores_epsilon,
    )
    rows = []
    for patient in cohort.patients(request.phase):
        try:
            rows.append(score(replace(cohort, cases=cohort.cases_of(patient))))
        except Exception:  # noqa: BLE001 - a code would tell of one patient; the reason stays in the log
            _log.exception("a held-out patient cannot be scored, and counts as 1/2")
    held_out = held_out_cohort(cohort.cohort_id)
    # Of all who have come so far with this round and phase, one draws noise.
    site.ledger.begin(held_out, request.run_hash, request.round, request.phase)
    spent = {SCORES_EPSILON: charged.epsilon, SCORES_DELTA: charged.delta}
    return {**noised_scores(rows, run.task, run.data.classes, cost), **spent}


def offer_of(cohort: Cohort, run: RunConfig, model: nn.Module | None = None) -> Offer:
    """What a site has for a run; with the run's model, where there is one, it need not be built to be measured."""
    shapes = tensor_shapes(run) if model is None else {name: tuple(t.shape) for name, t in weights_of(model).items()}
    return Offer(
        patients=cohort.size,
        training=len(cohort.patients("train")),
        declared_size=cohort.declared_size,
        cohort_id=cohort.cohort_id,
        usable=len(cohort.cases),
        quarantined=dict(Counter(str(study.code) for study in cohort.quarantined)),
        parts=dict.fromkeys(run.strategy.up, shapes),
    )


def _model(request: Request, run: RunConfig) -> nn.Module:
    wanted = run.strategy.down if isinstance(request, TrainRequest) else (run.strategy.MODEL,)
    if request.parts.keys() != set(wanted):
        raise UpdateError("the request's parts are not those of the run. Send the model of the run.")
    states = {name: unpack(part) for name, part in request.parts.items()}
    if any(_schema(state) != _schema(states[run.strategy.MODEL]) for state in states.values()):
        raise UpdateError(
            "a part has other tensors than the weights, by name, shape or type. Send the parts of the run."
        )
    return load_model(run, states[run.strategy.MODEL])


def _schema(state: Mapping[str, torch.Tensor]) -> dict[str, tuple[torch.Size, torch.dtype]]:
    return {name: (tensor.shape, tensor.dtype) for name, tensor in state.items()}


def _device(site: Site) -> torch.device:
    if site.config.device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if site.config.device == "cuda" and not torch.cuda.is_available():
        raise ConfigError(
            'site.toml says device = "cuda", and torch finds no CUDA device. See whether `nvidia-smi` lists one, and '
            'restart the computer if one has vanished; device = "auto" uses the CPU where there is none.'
        )
    return torch.device(site.config.device)


__all__ = ["answer", "offer_of"]
