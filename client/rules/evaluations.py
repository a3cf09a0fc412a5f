"""Which models a site scores, and how often.

A score of any model at any time would be an oracle: with enough questions a patient's label can be rebuilt from exact
scores. So a site scores one model a round: in a round that is due, once for each phase, in order, the model that the
next round starts from; and one model a run for the test. The same question again gets the same answer, from disk; noise
is never drawn a second time.

What a site can know. The weights that come for training round r + 1 are the global model of round r. So the model
scored after round r must be the one that round r + 1 starts from, and a coordinator that sends another is refused. With
[federation] averaging the model scored is an average of rounds, which the site cannot make itself: there the first that
comes for a round is the round's. In the last round nothing follows, and both phases must name one model. A run that may
stop early is tested after any round that is due; one that keeps its best model, for a round that is over, if the model
is the one that the site scored then. Training is in order too, and a round starts from one model: a round that was
begun is not begun from other weights.

    home/state/evaluations/<run hash>.sealed   what was trained from and scored in each round, and the answers

A file is on disk before the site goes on, so that this holds across restarts, and sealed (client/home/sealed_table.py).
A policy with `evaluations = "free"` keeps none of this: for generated and public images.
"""

import time
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Literal

from pydantic import Field

from client.home.folder import EVALUATIONS_NAME
from client.home.sealed_table import read_table, write_table
from client.rules.exit_gate import score_names
from client.site import Site
from common.config import PolicyConfig, RunConfig, Table
from common.errors import ConfigError, ErrorCode, PolicyError, UpdateError
from common.system.locks import locked
from common.text import counted
from common.wire.messages import EvaluateReply, EvaluateRequest, Request, TrainRequest

_PURPOSE = "evaluations"
_DAY_S = 24 * 3600


class _Answer(Table):
    at: float  # when it was first asked for, seconds since the epoch
    patients: int = 0
    # None: asked for, and not answered yet.
    metrics: dict[str, float] | None = None


class _Round(Table):
    start: str | None = None  # SHA-256 of the weights it was trained from
    model: str | None = None  # of the model that was scored after it
    answers: dict[str, _Answer] = Field(default={})  # by phase


class _Run(Table):
    format: Literal[1] = 1
    rounds: dict[int, _Round] = Field(default={})


def begin_training(site: Site, run: RunConfig, request: TrainRequest) -> None:
    """Note which weights a round starts from, before it is trained.

    Raises:
        UpdateError: WRONG_RUN, the weights are not the model that was scored before; ROUND_REPEATED, the round began
            from other weights, or a later one has begun.
        PolicyError: the site would join the run late.
    """
    if site.policy.evaluations == "free":
        return
    with _locked(site):
        known = _read(site, request.run_hash)
        _check_first(known, request, run, site.policy)
        digest = request.sha256
        this = known.rounds.get(request.round, _Round())
        if this.start == digest:
            return
        if this.start is not None:
            raise UpdateError(
                f"round {request.round} began here from another model; a round has one start.", ErrorCode.ROUND_REPEATED
            )
        begun = (number > request.round for number, one in known.rounds.items() if one.start)
        scored = (number >= request.round for number, one in known.rounds.items() if one.model)
        if any(begun) or any(scored):
            raise UpdateError(
                f"round {request.round} is over here: a later one has begun, or its model was scored.",
                ErrorCode.ROUND_REPEATED,
            )
        before = known.rounds.get(request.round - 1, _Round()).model
        weights = request.sha256_of(run.strategy.MODEL)
        if before not in (None, weights) and not run.federation.averaging:
            raise UpdateError(
                f"round {request.round} does not start from the model that was scored after round {request.round - 1}",
                ErrorCode.WRONG_RUN,
            )
        _write(site, request.run_hash, known, request.round, this.model_copy(update={"start": digest}))


def begin_scoring(site: Site, run: RunConfig, request: EvaluateRequest) -> EvaluateReply | None:
    """Let an evaluation go on, or give the answer that was given before.

    Raises:
        PolicyError: the policy lets no scores go, or no more today, or the site would join the run late.
        UpdateError: WRONG_RUN, nothing is due after this round; ROUND_REPEATED, another model was scored after it, or
            it is over.
    """
    rules = site.policy
    if not score_names(run, rules.metrics, rules.scores):
        raise PolicyError("policy.toml lets no scores of this run go: see scores and metrics there.")
    if rules.evaluations == "free":
        return None
    with _locked(site):
        known = _read(site, request.run_hash)
        this, digest = known.rounds.get(request.round, _Round()), request.sha256
        if this.model not in (None, digest):
            raise UpdateError(
                f"another model was scored after round {request.round}; a round has one model.",
                ErrorCode.ROUND_REPEATED,
            )
        before = this.answers.get(request.phase)
        if before is not None and before.metrics is not None:
            return EvaluateReply(request.run_hash, request.round, request.phase, before.patients, before.metrics)
        _check_due(request, run)
        _check_first(known, request, run, rules)
        _check_one_test(known, request)
        over = any(number > request.round and (one.start or one.model) for number, one in known.rounds.items())
        chosen = request.phase == "test" and run.federation.keep == "best" and this.model == digest
        if over and not chosen:
            raise UpdateError(f"round {request.round} is over here: a later one has begun.", ErrorCode.ROUND_REPEATED)
        if before is None:
            _check_limit(site)
            before = _Answer(at=time.time())
        changed = {"model": digest, "answers": {**this.answers, request.phase: before}}
        _write(site, request.run_hash, known, request.round, this.model_copy(update=changed))
    return None


def keep(site: Site, request: EvaluateRequest, reply: EvaluateReply) -> None:
    """Keep an answer before it leaves, to be given again."""
    if site.policy.evaluations == "free":
        return
    with _locked(site):
        known = _read(site, request.run_hash)
        this = known.rounds[request.round]
        changed = {"patients": reply.patients, "metrics": dict(reply.metrics)}
        answer = this.answers[request.phase].model_copy(update=changed)
        answers = {**this.answers, request.phase: answer}
        _write(site, request.run_hash, known, request.round, this.model_copy(update={"answers": answers}))


def _check_first(known: _Run, request: Request, run: RunConfig, rules: PolicyConfig) -> None:
    """What a site first hears of a run that names its start must be the round where that can be checked."""
    first = isinstance(request, TrainRequest) and request.round == 1
    if known.rounds or first or run.initial is None or rules.late_start:
        return
    raise PolicyError(
        f"run {run.name!r} names the weights it starts from, and round {request.round} is the first that this site "
        "hears of it: they cannot be checked. Set late-start = true in policy.toml if the hospital wants to join late, "
        "or ask the coordinator to propose the run anew."
    )


def _check_due(request: EvaluateRequest, run: RunConfig) -> None:
    last = run.federation.rounds
    anytime = request.phase == "validation" or run.chooses
    if run.validates_after(request.round) if anytime else request.round == last:
        return
    when = (
        f"round {last}, the last"
        if not anytime
        else f"{counted(run.evaluate_every, 'round')} after the one before, and the last"
    )
    raise UpdateError(
        f"{request.phase} scores are due after {when}, not after round {request.round}.", ErrorCode.WRONG_RUN
    )


def _check_one_test(known: _Run, request: EvaluateRequest) -> None:
    """Whoever may ask for the test of several rounds chooses by it, and it tests nothing any more."""
    others = (number for number, one in known.rounds.items() if number != request.round and "test" in one.answers)
    if request.phase == "test" and (other := next(others, None)) is not None:
        raise UpdateError(f"this run was tested after round {other}; a run has one test.", ErrorCode.ROUND_REPEATED)


def _check_limit(site: Site) -> None:
    """Of all runs, in any 24 hours."""
    since = time.time() - _DAY_S
    most = site.policy.max_evaluations_per_day
    recent = (path for path in _folder(site).glob("*.sealed") if path.stat().st_mtime >= since)
    rounds = (one for path in recent for one in _read(site, path.stem).rounds.values())
    count = sum(answer.at > since for one in rounds for answer in one.answers.values())
    if count >= most:
        raise PolicyError(
            f"{count} models were scored in the last 24 hours, and max-evaluations-per-day is {most}.",
            ErrorCode.RATE_LIMITED,
        )


def _folder(site: Site) -> Path:
    return site.home / EVALUATIONS_NAME


def _read(site: Site, run_hash: str) -> _Run:
    try:
        return read_table(_folder(site) / f"{run_hash}.sealed", _Run, site.key, _PURPOSE) or _Run()
    except ValueError as error:
        raise ConfigError(
            f"a file in {EVALUATIONS_NAME} of the site's home cannot be used: {error}. It says which models were "
            "scored, and is not made anew by itself. Restore it, and site.key, from a backup; if there is none, take "
            "part in that run no more, and remove the file."
        ) from error


def _write(site: Site, run_hash: str, known: _Run, round_: int, changed: _Round) -> None:
    record = _Run(rounds={**known.rounds, round_: changed})
    write_table(_folder(site) / f"{run_hash}.sealed", record, site.key, _PURPOSE)


def _locked(site: Site) -> AbstractContextManager[object]:
    """One at a time, also of several processes."""
    return locked(_folder(site) / "lock")


__all__ = ["begin_scoring", "begin_training", "keep"]
