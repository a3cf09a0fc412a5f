"""What a run would mean here, for the person who decides: who asks, on whom, what leaves, how often, at what cost.

Everything is taken from the run document, the site's own count and its own ledger; nothing from what the coordinator
says about the run.
"""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

from client.home.declared import outgrown, set_size
from client.home.offer import Offer
from client.home.statistics import earlier as runs_told_before
from client.proposals.budget import shortfall
from client.proposals.opinion import opinion_on
from client.rules import exit_gate
from client.rules.approvals import Proposal
from client.site import Site
from common.audit.entries import SMALLEST_COUNT
from common.config import RunConfig
from common.config.rundocument import RunDocument
from common.config.statistics import STATISTICS, statistic_names
from common.privacy.guarantee import forecast, why_void
from common.privacy.scores import held_out_fraction, score_plan
from common.text import counted
from common.wire.encoding import Encoding, part_size, values_size
from common.wire.messages import Phase

_BYTES_PER_VALUE = 4
_NOT_COUNTED = "not counted yet: the agent has not run"


def consequences(proposal: Proposal, site: Site, earlier: Sequence[Proposal]) -> list[tuple[str, str]]:
    """Rows of (what, value) to show before an approval.

    Args:
        proposal: the run.
        site: the hospital; its ledger is read.
        earlier: all proposals known here; the one approved last before this one is compared.
    """
    run, offer = proposal.run, proposal.appraisal.offer if proposal.appraisal else None
    rows = [
        ("run", f"{run.name} ({proposal.run_hash})"),
        ("asked by", f"{', '.join(proposal.signers) or 'nobody'} (signature checked)"),
        ("trains", f"{run.model.dims}D {run.model.architecture}, {run.data.modality}: {', '.join(run.data.classes)}"),
        ("starts from", _start(run)),
        (
            "on",
            _NOT_COUNTED
            if offer is None
            else f"{offer.patients} of our patients, {counted(offer.usable, 'study', 'studies')}",
        ),
        ("number told to others", _declared(run, offer, site)),
        ("set aside", _set_aside(offer)),
        ("how often", _how_often(run)),
        ("updates become a model by", _strategy(run)),
        *_beside(run),
        *_statistics(proposal, site),
        ("leaves each round", _weights(run, offer)),
        ("scalars that leave", ", ".join(_scalars(run, site))),
        ("scores", _scores(run, offer, site)),
        ("never leaves", "images, labels, names, dates, paths, messages, values of single cases"),
        ("privacy", _privacy(proposal.document, offer, site)),
        ("policy", opinion_on(site.home, proposal) or "not checked yet: the agent has not run"),
    ]
    rows += [("since the last approval", change) for change in _changes(proposal, earlier)]
    return rows


def tensor_rows(offer: Offer, run: RunConfig) -> list[tuple[str, str, int]]:
    """Name, shape and bytes of every tensor that leaves each round."""

    def size(part: str, shape: Sequence[int]) -> int:
        encoding = _encoding(run, part)
        return _BYTES_PER_VALUE * math.prod(shape) if encoding == "float32" else values_size({"": shape}, encoding)

    return [
        (name, " x ".join(map(str, shape)) or "scalar", size(part, shape))
        for part, shapes in offer.parts.items()
        for name, shape in shapes.items()
    ]


def _encoding(run: RunConfig, part: str) -> Encoding | Literal["float32"]:
    """How a part travels: the model's as the run says, and any other as it is."""
    return run.federation.update_precision if part == run.strategy.MODEL else "float32"


def _declared(run: RunConfig, offer: Offer | None, site: Site) -> str:
    if run.privacy is None:
        return (
            "the number of patients in training, in steps of 5, at least 10"
            if run.weighting == "patients"
            else "no number of patients"
        )
    if offer is None:
        return "a declared number of patients"
    if set_size(site.config, run, site.home) is None:
        return (
            f"{offer.declared_size} patients, and from now on so many for every private {run.data.modality} run, "
            "whoever comes; to declare another number, set cohort-size in site.toml first"
        )
    grown = outgrown(offer.declared_size, offer.patients)
    return grown or f"{offer.declared_size} patients, as declared, and no other count of them"


def _set_aside(offer: Offer | None) -> str:
    if offer is None:
        return _NOT_COUNTED
    codes = ", ".join(f"{count} {code}" for code, count in sorted(offer.quarantined.items()))
    return f"{codes} (see data check)" if codes else "no study"


def _start(run: RunConfig) -> str:
    if run.initial is None:
        return "random weights"
    said = (
        f'public, in the coordinator\'s words: "{run.initial.public}"' if run.initial.public else "not declared public"
    )
    return f"weights {run.initial.sha256[:8]}, {said}"


def _how_often(run: RunConfig) -> str:
    some = run.federation.sites_per_round
    drawn = f", in each of which the coordinator asks {counted(some, 'hospital')}, drawn anew" if some else ""
    every = run.evaluate_every
    scored = f"every {every} rounds" if every < run.federation.rounds else "at the end"
    scored = "each round" if every == 1 else scored
    return (
        f"{counted(run.federation.rounds, 'round')} of {run.training.work}, each within "
        f"{run.federation.round_timeout_s:g} s{drawn}; scores {scored}"
    )


def _strategy(run: RunConfig) -> str:
    strategy, said = run.strategy, run.strategy.kind
    if run.training.local_seconds is not None:
        said += (
            ", by which all count alike whatever steps they make"
            if strategy.BY_WORK
            else "; who makes more steps in the time counts for more: a fast site's patients more than a slow one's"
        )
    if strategy.STEERS:
        said += f", which changes our steps{' after the noise' if run.privacy else ''}"
    if strategy.PERSONAL:
        said += f"; it KEEPS here, sealed, until we remove it, {_personal(run)}"
    elif strategy.REMEMBERS:
        reveals = "noised as that is" if run.privacy else "NOT noised: like that it may reveal single patients"
        said += (
            "; it KEEPS here, sealed, what the next round goes on from, made of what we received and sent, "
            f"{reveals}. It is removed when the last model is to be scored, and stays where the run ends otherwise"
        )
    return said


def _beside(run: RunConfig) -> Iterator[tuple[str, str]]:
    """The model that we train alone, where the run compares."""
    if not run.federation.cross_site:
        return
    leaves = "nothing of it leaves" if run.privacy else "of it the score alone leaves"
    yield (
        "compared with",
        "a model that we train alone, for which we train as long again: NOT noised, it may reveal single patients; "
        f"{leaves}. It is KEPT here, sealed, and removed after the test, or stays where the run ends otherwise; both "
        "scores stay, for `wardround-client show`",
    )


def _statistics(proposal: Proposal, site: Site) -> Iterator[tuple[str, str]]:
    """What would be told of who trains here, where the run asks for it."""
    run, offer = proposal.run, proposal.appraisal.offer if proposal.appraisal else None
    if not run.federation.statistics:
        return
    named = [name for name in STATISTICS if name in site.policy.metrics]
    if not statistic_names(run, named):
        yield "statistics of our patients", f"none leave: metrics in policy.toml names none of {', '.join(STATISTICS)}"
        return
    least = max(site.policy.min_patients, SMALLEST_COUNT)
    before = runs_told_before(site.home, proposal.run_hash)
    others = f" ({counted(before, 'other run')} here told of them before)" if before else ""
    few = "" if offer is None or offer.training >= least else f"; but none will leave: {offer.training} patients train"
    yield (
        "statistics of our patients",
        f"{', '.join(named)}, means over the patients in training and how far they lie apart, with two digits and NOT "
        f"noised: whoever has those of two runs, with one patient in but one of them, may tell something of that "
        f"one{others}. The same in each round, from {least} patients on; KEPT here, sealed, for `wardround-client show`"
        f"{few}",
    )


def _personal(run: RunConfig) -> str:
    """The model of our own that stays, and what it may reveal here."""
    what = "our own normalisations for its model" if run.strategy.NORMS_STAY else "a model of our own"
    if run.strategy.APART:
        beside = ", this run's noise does not cover it, and nothing of it leaves" if run.privacy else ""
        return f"{what}, for which we train as long again: NOT noised, it may reveal single patients{beside}"
    if run.privacy:
        return f"{what}, noised as our updates are"
    return f"{what}, NOT noised: like our updates it may reveal single patients"


def _weights(run: RunConfig, offer: Offer | None) -> str:
    noised = ", clipped and noised" if run.privacy else ", NOT noised"
    encoding = run.federation.update_precision
    if encoding != "float32":
        noised += (
            f", as what each moved, rounded to {encoding}; what rounding takes is KEPT here, sealed, and added to our "
            "next update: it reveals no more than updates do, and is removed when the last model is to be scored, or "
            "stays where the run ends otherwise"
        )
    if offer is None:
        return f"the model's weights{noised}"
    weights = sum(of_tensor for _, _, of_tensor in tensor_rows(offer, run))
    size = sum(part_size(shapes, _encoding(run, part)) for part, shapes in offer.parts.items())
    return (
        f"{counted(len(offer.tensors), 'tensor')} in {size:,} bytes, as its receipt counts them ({weights:,} of "
        f"weights, the others of names and shapes){noised}"
    )


def _scalars(run: RunConfig, site: Site) -> list[str]:
    allowed = site.policy.metrics
    return sorted(exit_gate.train_metrics(run, allowed) | exit_gate.score_names(run, allowed, site.policy.scores))


def _scores(run: RunConfig, offer: Offer | None, site: Site) -> str:
    rules = site.policy
    if not exit_gate.score_names(run, rules.metrics, rules.scores):
        unheard = "; which round's model is kept, or when the run stops, is decided without ours"
        return f"none leave{unheard if run.chooses else ''}"
    asked = (
        f"{counted(run.evaluations - 1, 'time')} in validation, once in the test; from {rules.min_held_out} patients on"
    )
    phases: tuple[Phase, ...] = ("test", "validation")
    held_out = [phase for phase in phases if held_out_fraction(run.data, phase)]
    if run.privacy is None or rules.scores == "exact":
        said = f"EXACT, means over our held-out patients; {asked}"
        if offer is None:
            return said
        # A phase has no more than all phases together. Its own number follows from earlier runs too.
        most = offer.patients - offer.training
        about = {phase: min(most, round(offer.patients * held_out_fraction(run.data, phase))) for phase in held_out}
        return said + _too_few(about, rules.min_held_out, "is likely to leave: about " if most else "will leave: ")
    if offer is None or not held_out:
        return f"noised; {asked}"
    costs = {phase: score_plan(run, offer.declared_size, phase, rules.run_scores_epsilon) for phase in held_out}
    few = _too_few({phase: cost.held_out for phase, cost in costs.items()}, rules.min_held_out, "will leave: ")
    phase = max(held_out, key=lambda one: costs[one].held_out)
    if costs[phase].held_out < rules.min_held_out:
        return few.removeprefix("; but ")
    return (
        f"noised by {costs[phase].deviation:.2f} for a class in the {phase}; {asked}. Epsilon "
        f"{rules.run_scores_epsilon:g} of a held-out patient for this run, of {rules.lifetime_scores_epsilon:g} in all"
        f"{few}"
    )


def _too_few(counts: Mapping[Phase, int], least: int, how: str) -> str:
    """What to say of the splits that are too small for a score to leave; empty where all are large enough."""
    few = {phase: count for phase, count in counts.items() if count < least}
    if not few:
        return ""
    which = "none" if len(few) == len(counts) else f"none of the {next(iter(few))}"
    patients = " and ".join(f"{count} patients for {phase}" for phase, count in few.items())
    return f"; but {which} {how}{patients} are held out, fewer than min-held-out {least} in policy.toml"


def _privacy(document: RunDocument, offer: Offer | None, site: Site) -> str:
    run = document.config
    if run.privacy is None:
        return "NONE: the weights are not noised, and may reveal single patients"
    if reason := why_void(run):
        return f"NONE: {reason}"
    if offer is None:
        return f"epsilon {run.privacy.target_epsilon:g} per patient for this run"
    cost = forecast(site.ledger, document, cohort=offer.cohort_id, cohort_size=offer.declared_size)
    short = shortfall(site, document, offer)
    beside = "" if cost.reserved is None else f", and to {cost.reserved:.2f} with what other runs still want"
    return (
        f"epsilon of our cohort goes from {cost.before:.2f} to {cost.after:.2f}{beside} (delta "
        f"{cost.delta:.1e}, per patient, over all runs); the budget is {site.policy.lifetime_epsilon:g}"
        f"{'' if short is None else f'; {short.why}'}"
    )


def _changes(proposal: Proposal, earlier: Sequence[Proposal]) -> Iterator[str]:
    approved = [
        one for one in earlier if one.run_hash != proposal.run_hash and one.answer is not None and one.answer.approved
    ]
    if not approved:
        yield "this is the first"
        return
    last = max(approved, key=lambda one: one.answer.at if one.answer else 0.0)
    old, new = _flat(last.run), _flat(proposal.run)
    different = [key for key in sorted({*old, *new}) if old.get(key) != new.get(key)]
    if not different:
        yield "nothing"
    for key in different:
        yield f"{key}: {_said(old, key)} -> {_said(new, key)}"


def _said(values: Mapping[str, Any], key: str) -> str:
    return json.dumps(values[key], ensure_ascii=False) if key in values else "not there"


def _flat(run: RunConfig) -> dict[str, Any]:
    """Dotted key -> value, of a run document."""
    flat: dict[str, Any] = {}

    def walk(values: Mapping[str, Any], prefix: str) -> None:
        for key, value in values.items():
            if isinstance(value, dict):
                walk(value, f"{prefix}{key}.")
            else:
                flat[prefix + key] = value

    walk(run.model_dump(mode="json", by_alias=True), "")
    return flat
