"""A federated run: wait for the quorum, then round after round ask, check, average, keep, evaluate.

The run never lies. A round that fewer sites than the quorum entered fails the run, with the last good model kept; every
site that was refused or missing is named in the journal. After each round the model is on disk in a folder of its own
(`checkpoint/round-00007`), written whole or not at all, and a run started again in the same folder goes on from there.
Sites start each round with a fresh optimiser, so the resumed run makes the same model, unless they stop by time.
"""

import logging
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias, TypeVar

from flwr.serverapp import Grid

from common.config import RunConfig
from common.config.rundocument import RunDocument
from common.crypto.stream import Sealer
from common.errors import ErrorCode, FederationError, UpdateError, WardroundError
from common.learning.checkpoint import save_model
from common.text import counted
from common.wire.messages import (
    EvaluateReply,
    EvaluateRequest,
    Phase,
    Refusal,
    Request,
    TrainReply,
    TrainRequest,
)
from server.federation.best_model import keep_best, kept_model, prune
from server.federation.broadcast import LONGEST_WAIT_S, Answer, Hint, Wait, ask
from server.federation.checks import Update, check_scores, check_update, outliers, steps_made
from server.federation.drift import MOVES, Drift
from server.federation.events import (
    NOT_ASKED,
    OVERALL,
    QUORUM,
    STOPPED,
    SUMMARY_NAME,
    SUSPICIOUS,
    Journal,
    Observe,
    Summary,
    mean_of_patients,
    mean_of_sites,
    open_journal,
    refusal,
    summarise,
    up_to,
    write_summary,
)
from server.federation.members import (
    Absent,
    Draw,
    GridMembers,
    Members,
    Waiting,
    draw_of,
    not_there,
    present,
    who_is_missing,
)
from server.federation.model import Model, initial_weights, keep, last_checkpoint, manifest_of, model_of
from server.federation.moves import moves_of
from server.federation.price import deltas_of
from server.federation.selection import costs_of, has_seen_enough
from server.federation.strategies import Aggregation, aggregation_of
from server.federation.strategies.blocks import length
from server.federation.strategies.spill import Spill
from server.federation.strategies.weighing import capped, tempered
from server.federation.suspicion import suspicious

_GO_ON = "then run `wardround-server resume` with the run's name: it goes on from there"

# Told what became of each update of a round: see server/registry/audit_trail.py.
NoteRound: TypeAlias = Callable[[int, Mapping[str, str], Mapping[str, ErrorCode], str | None], None]

ReplyType = TypeVar("ReplyType", TrainReply, EvaluateReply)
Judged = TypeVar("Judged")

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Session:
    """What stays the same from the first round to the last."""

    grid: Grid
    document: RunDocument
    aggregation: Aggregation
    out: Path
    journal: Journal
    members: Members
    wait: Wait
    hint: Hint
    note_round: NoteRound | None
    sealer: Sealer | None
    drift: Drift

    @property
    def run(self) -> RunConfig:
        return self.document.config

    @property
    def run_hash(self) -> str:
        return self.document.hash


def federate(
    grid: Grid,
    document: RunDocument,
    out: Path,
    *,
    members: Members | None = None,
    observe: Observe | None = None,
    wake: Wait = time.sleep,
    hint: Hint = lambda _nodes: None,
    note_round: NoteRound | None = None,
    sealer: Sealer | None = None,
    test: bool = True,
) -> Summary:
    """Train one model with all sites; go on from the last checkpoint where `out` holds one.

    Args:
        grid: Flower's way to the sites.
        document: the run that both sides agreed on.
        out: receives model.safetensors, model.json, summary.json, metrics.jsonl and checkpoint/.
        members: who takes part; None: the nodes of the grid, under the names they carry.
        observe: called with each event of the journal as it happens.
        wake: sleeps about the given seconds; returns early when a reply is known to be there.
        hint: told for which nodes there are messages, as soon as there are.
        note_round: told what became of each update, before a model is made of a round.
        sealer: seals the checkpoints and the model; None: they are plain files.
        test: score the model on the test patients at the end; False while settings are still being chosen.

    Raises:
        FederationError: too few sites joined, or too few updates could enter a round.
        ConfigError: `out` holds another run, a checkpoint that does not open, or not the initial weights that the run
            names.
    """
    run = document.config
    aggregation = aggregation_of(run)
    kept = last_checkpoint(document, out, sealer, aggregation.holds)
    done, held = kept or (0, {aggregation.model: initial_weights(run, out)})
    aggregation.start({name: {key: one.detach().clone() for key, one in state.items()} for name, state in held.items()})
    model = model_of(done, aggregation)
    journal = open_journal(out, last_round=model.round, run_hash=document.hash, observe=observe)
    members = members or GridMembers(grid)
    session = _Session(grid, document, aggregation, out, journal, members, wake, hint, note_round, sealer, Drift(run))
    try:
        _start(session, model.round)
        while not _is_over(session, model):
            with Spill(out if sealer is None else None) as spill:
                model = _train(session, model.round + 1, model, spill)
            keep(model, document, journal.events, out, sealer)
            prune(journal.events, run.task, out)
        model = kept_model(model, aggregation.best, document, journal.events, out=out, sealer=sealer)
        if test:
            _evaluate(session, model, "test")
        return _finish(session, model)
    except WardroundError as error:
        journal.record("run-failed", {"reason": str(error)})
        write_summary(out, summarise(document, journal.events, status="failed", reason=str(error), code=error.code))
        raise
    except BaseException as error:
        # No verdict but an accident (Ctrl-C, a lost SuperLink, a full disk): without a summary the run stays open, and
        # goes on from its checkpoint when it is started again.
        journal.record("run-interrupted", {"reason": type(error).__name__})
        raise


def _start(session: _Session, resumed_from: int) -> None:
    """Write the journal's first line, then wait until enough sites are connected."""
    run, federation = session.run, session.run.federation
    first = {"name": run.name, "run-hash": session.run_hash, "rounds": federation.rounds, "quorum": federation.quorum}
    session.journal.record("run-started", {**first, "seed": run.seed, "resumed-from": resumed_from})
    (session.out / SUMMARY_NAME).unlink(missing_ok=True)  # of an earlier start; a summary means that it ended
    deadline = time.monotonic() + federation.join_timeout_s
    waiting = Waiting(session.journal, resumed_from + 1, federation.join_timeout_s, QUORUM)
    while len(here := present(session.members)) < federation.quorum:
        if time.monotonic() > deadline:
            others = who_is_missing(session.members, here, {}, {})
            raise FederationError(
                f"{counted(len(here), 'site')} connected within {federation.join_timeout_s:g} s, the quorum is "
                f"{federation.quorum}{others}. Start the agents there (`wardround-client start`), {_GO_ON}.",
                ErrorCode.TOO_FEW_SITES,
            )
        waiting([one for one in session.members.look().values() if one.willing])
        session.wait(LONGEST_WAIT_S)
    waiting([])


def _is_over(session: _Session, model: Model) -> bool:
    """Score the model of a round where that is due; whether it was the run's last round."""
    run, events = session.run, session.journal.events
    if run.validates_after(model.round):
        _evaluate(session, model, "validation")
        if run.federation.keep == "best":
            keep_best(model, session.aggregation.best, session.document, events, out=session.out, sealer=session.sealer)
        if model.round < run.federation.rounds and (told := has_seen_enough(run, events)) is not None:
            session.journal.record(STOPPED, told)
            return True
    return model.round >= run.federation.rounds


def _train(session: _Session, number: int, model: Model, spill: Spill) -> Model:
    """One round: the new global model."""
    start, run, stated = time.monotonic(), session.run, deltas_of(session.journal.events)
    updates: dict[str, Update] = {}
    weights: dict[str, float] = {}
    entered: dict[str, str] = {}  # site -> SHA-256 of its update
    absent = Absent()
    bytes_up = answered = 0
    sent = session.aggregation.held[part := session.aggregation.model]
    norm = length(sent)

    def wanted() -> int:
        return run.federation.quorum - len(entered)

    draw = draw_of(session.journal, session.document, number)
    for answer in _ask(session, TrainRequest(session.run_hash, number, model.request), wanted, draw):
        answered += answer.came
        if (reply := _expect(answer, TrainReply, absent)) is None:
            continue
        bytes_up += reply.size
        before = stated.get(answer.site, ())
        judge = partial(check_update, reply, run, session.run_hash, number, sent, earlier=before, start_norm=norm)
        if (
            update := _judged(judge, answer.site, f"round {number}: the coordinator refuses the update", absent)
        ) is None:
            continue
        # By its parts alone: what lies in the file would else stay in memory too.
        updates[answer.site] = replace(update, parts=spill.keep(update.parts, update.packed), packed={})
        weights[answer.site] = reply.patients if run.weighting == "patients" else 1
        entered[answer.site] = reply.sha256
        about = {"round": number, "site": answer.site, "patients": reply.patients}
        session.journal.record("train", {**reply.metrics, **about}, durable=False)
    for site in outliers(updates, run):
        refusal = f"round {number}: the coordinator refuses the update of {site}"
        _log.warning("%s (%s): it lies far beyond the others'", refusal, ErrorCode.UPDATE_TOO_LARGE)
        absent.reject(site, ErrorCode.UPDATE_TOO_LARGE)
        del updates[site], weights[site], entered[site]
    if len(entered) < run.federation.quorum:
        _note(session, number, entered, absent, None)
        not_asked = draw.not_asked if draw else []
        others = who_is_missing(session.members, {*entered, *not_asked}, absent.missing, absent.refusals())
        others += f"; {counted(len(not_asked), 'other')} were not asked (sites-per-round)" if not_asked else ""
        if draw is not None:  # for the next try, or those who were silent would fail it again
            draw.more(session.members.look().values(), wanted())
        kept = "The model of the round before is kept" if number > 1 else "No round is done yet"
        raise FederationError(
            f"{counted(len(entered), 'update')} could enter round {number}, the quorum is {run.federation.quorum}"
            f"{others}. {kept}. Mend the cause, {_GO_ON}.",
            ErrorCode.TOO_FEW_UPDATES,
        )
    odd = suspicious(updates, moves := moves_of(updates, sent, part), entered)
    for site, what in odd.items():
        _log.warning("round %d: the update of %s may enter, and is odd: %s", number, site, ", ".join(what))
    weights = session.aggregation.weighed(dict(sorted(weights.items())), costs_of(session.journal.events, run.task))
    shares = capped(weights)
    if run.privacy is not None or run.strategy.BY_WORK:
        shares = tempered(shares, {s: u.pull for s, u in updates.items()}, timed=run.training.local_seconds is not None)
    for site in sorted(updates):
        session.aggregation.add(updates[site].parts, shares[site], updates[site].work)
    session.aggregation.finish(number)
    new = model_of(number, session.aggregation)
    _note(session, number, entered, absent, new.digests[new.name])
    session.journal.record(
        "round",
        {
            "round": number,
            "sites": sorted(entered),
            **absent.as_event(),
            **({} if draw is None else {NOT_ASKED: draw.not_asked}),
            **not_there(session.members, {*entered, *absent.refused, *absent.missing}, draw),
            "seconds": time.monotonic() - start,
            "bytes-down": sum(map(len, model.request.values())) * answered,
            "bytes-up": bytes_up,
            "model-sha256": new.digests[new.name],
            **{SUSPICIOUS: odd, MOVES: session.drift.of_round(moves), **steps_made(updates, run)},
            "weights": {site: shares[site] for site in sorted(shares)},
            "capped": sorted(site for site in shares if shares[site] != weights[site]),
            **{f"{name}-sha256": digest for name, digest in new.digests.items() if name != new.name},
        },
    )
    return new


def _evaluate(session: _Session, model: Model, phase: Phase) -> None:
    """Ask all sites for the scores of the global model, or of its average, on their held-out patients."""
    start = time.monotonic()
    weights = model.packed[session.aggregation.best]
    replies: dict[str, EvaluateReply] = {}
    absent, answered = Absent(), 0
    for answer in _ask(
        session, EvaluateRequest(session.run_hash, model.round, phase, {session.aggregation.model: weights})
    ):
        answered += answer.came
        if (reply := _expect(answer, EvaluateReply, absent)) is None:
            continue
        judge = partial(check_scores, reply, session.run_hash, model.round, phase)
        if (
            scored := _judged(judge, answer.site, f"round {model.round}: the coordinator refuses the scores", absent)
        ) is not None:
            replies[answer.site] = scored
    # A site without patients in this part of the split has nothing to say; that is no fault.
    absent.refused = {site: code for site, code in absent.refused.items() if code is not ErrorCode.NO_DATA}
    about: dict[str, Any] = {"round": model.round, "phase": phase}
    for site, reply in sorted(replies.items()):
        said = {**reply.metrics, **about, "site": site, "patients": reply.patients}
        session.journal.record("evaluate", said, durable=False)
    scores = {site: reply.metrics for site, reply in sorted(replies.items())}
    session.journal.record(
        "evaluate",
        {
            **mean_of_sites(scores, session.run.task),
            **about,
            "site": OVERALL,
            "mean-of-patients": mean_of_patients(scores, {site: reply.patients for site, reply in replies.items()}),
            **absent.as_event(),
            "seconds": time.monotonic() - start,
            "bytes-down": len(weights) * answered,
        },
    )


def _note(session: _Session, number: int, entered: Mapping[str, str], absent: Absent, model_sha256: str | None) -> None:
    if session.note_round is not None:
        late = dict.fromkeys(absent.missing, ErrorCode.DEADLINE)
        session.note_round(number, entered, {**absent.refused, **late}, model_sha256)


def _ask(
    session: _Session, request: Request, wanted: Callable[[], int] = lambda: 0, draw: Draw | None = None
) -> Iterator[Answer]:
    return ask(
        session.grid,
        session.members,
        request,
        timeout_s=session.run.federation.round_timeout_s,
        wait=session.wait,
        hint=session.hint,
        wanted=wanted,
        draw=draw,
        waiting=Waiting.of(session.journal, request, session.run.federation.round_timeout_s),
    )


def _expect(answer: Answer, kind: type[ReplyType], absent: Absent) -> ReplyType | None:
    """The reply if it is of this kind; otherwise None, with the reason noted."""
    match answer.reply:
        case None if answer.rejected is not None:
            absent.reject(answer.site, answer.rejected)
        case None:
            absent.missing[answer.site] = answer.why
        case Refusal(code=code, round=number):
            _log.info("round %d: %s", number, refusal(answer.site, code))
            absent.refused[answer.site] = code
        case reply if isinstance(reply, kind):
            return reply
        case _:
            code = ErrorCode.BAD_REQUEST
            _log.warning(
                "the coordinator refuses the answer of %s (%s): it is one to another question", answer.site, code
            )
            absent.reject(answer.site, code)
    return None


def _judged(judge: Callable[[], Judged], site: str, what: str, absent: Absent) -> Judged | None:
    """What a check lets through; None with the code noted. A fault of the check itself costs that one reply, no run."""
    try:
        return judge()
    except UpdateError as error:
        _log.warning("%s of %s (%s): %s", what, site, error.code, error)
        absent.reject(site, error.code)
    except Exception:  # noqa: BLE001 - logged; what a site sends must not end a run, whatever it does to a check
        _log.exception("%s of %s (%s): it cannot be checked", what, site, ErrorCode.INTERNAL)
        absent.reject(site, ErrorCode.INTERNAL)
    return None


def _finish(session: _Session, model: Model) -> Summary:
    best, events = session.aggregation.best, session.journal.events
    manifest = manifest_of(model, best, session.document, up_to(events, model.round))
    save_model(session.out, model.packed[best], manifest, session.sealer)
    summary = summarise(
        session.document, events, status="completed", model_sha256=manifest.sha256, model_round=model.round
    )
    about = {"model-sha256": manifest.sha256, "model-round": model.round}
    session.journal.record("run-finished", {"seconds": summary.seconds, **about})
    write_summary(session.out, summary)  # last: where it is, all else of the run is there and does not change
    return summary


__all__ = ["NoteRound", "federate"]
