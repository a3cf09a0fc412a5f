"""The hospital's own rules: may this be done here, now? One decision, `decide`, for whoever asks.

`policy.toml` belongs to the hospital; nothing a coordinator sends changes it. The decision is pure and names every rule
that refuses, with the value found, the value allowed and a code. The person at the hospital reads the reasons; the
coordinator learns one code, that of the first rule. The rules that look at the hospital's data stand last: what they
say is told only where nothing else refuses.

For one message of a coordinator it is made, each time with the policy as it is written then,

    EXCHANGE    before its content is fetched, and again before an update leaves
    TRAINING    before each attempt is charged, after all that takes long: fetching, counting patients
    EVALUATION  before each attempt at scores, likewise
    WORK        in the worker, before anything is charged or trained there

The agent decides: it alone knows who signed the run, how many rounds the day has had, and what is charged. The worker
trusts it, and decides again because it alone holds the cohort: the agent's count of patients is as old as site.toml,
the images may be fewer today. And a simulation has no agent, so what a simulated site refuses is what a deployed one
does, but for the clock, the day's rounds and the signatures, which it has not.

What the policy says of an answer's content is the exit gate's (metrics, scores, max-weight), what it says of a budget
the ledger's. Rules about what was answered before (late-start, max-evaluations-per-day) are kept where that is written
down, under its lock: client/rules/evaluations.py.
"""

import datetime
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import TypeAlias

from client.home.offer import Offer
from common.config import PolicyConfig, RunConfig
from common.errors import ErrorCode, PolicyError
from common.identity.operators import Signer, people
from common.privacy.clipping import norm_bounds
from common.privacy.guarantee import plan, uncovered, why_void
from common.text import counted


class Purpose(Enum):
    """What a decision is for; which rules are asked follows from it."""

    PROPOSAL = "keep a proposal"
    REFUSAL = "tell the coordinator that a run is refused"
    APPROVAL = "approve a run"
    EXCHANGE = "take a message, or let an update leave"
    TRAINING = "begin a round"
    EVALUATION = "begin an evaluation"
    WORK = "work on patients"


@dataclass(frozen=True)
class Refused:
    """A rule that refuses."""

    code: ErrorCode
    why: str  # the value found and the value allowed


@dataclass(frozen=True)
class Decision:
    """Allowed, or every rule that refuses, in the order of the rules."""

    name: str  # of the run
    refused: tuple[Refused, ...]

    @property
    def allowed(self) -> bool:
        """Whether no rule refuses."""
        return not self.refused

    @property
    def code(self) -> ErrorCode | None:
        """What the coordinator may learn; None: allowed."""
        return self.refused[0].code if self.refused else None

    @property
    def why(self) -> str | None:
        """Every rule that refuses, and what to do, in a sentence; None: allowed."""
        if not self.refused:
            return None
        return (
            f"policy.toml refuses run {self.name!r}: {'; '.join(one.why for one in self.refused)}. "
            "Ask the coordinator for another run, or change policy.toml if the hospital agrees."
        )

    def enforce(self) -> None:
        """Raise where a rule refuses.

        Raises:
            PolicyError: with every rule that does.
        """
        if (why := self.why) is not None:
            raise PolicyError(why, self.refused[0].code)


def decide(
    run: RunConfig,
    policy: PolicyConfig,
    purpose: Purpose,
    *,
    signers: Sequence[Signer] | None = None,
    offer: Offer | None = None,
    rounds_today: int | None = None,
    held_out: int | None = None,
    now: datetime.time | None = None,
) -> Decision:
    """Whether the policy allows something of a run.

    Args:
        run: what the coordinator wants.
        policy: what the hospital allows.
        purpose: what is to be done.
        signers: operators whose signatures under the run count.
        offer: what the site has for it.
        rounds_today: attempts at training rounds in the last 24 hours, those of this message not among them.
        held_out: for scores, the patients of the split; None: no scores are asked for.
        now: local time of day; None: the clock's.

    Raises:
        ValueError: what a rule of this purpose must know was not given. Only APPROVAL leaves out a rule then: of a run
            that is given as a file, or whose patients nobody has counted.
    """
    asked = _Asked(run, policy, signers, offer, rounds_today, held_out, now or datetime.datetime.now().time())
    if missing := [name for name in _NEEDED.get(purpose, ()) if getattr(asked, name) is None]:
        raise ValueError(f"to {purpose.value} is not decided without {', '.join(missing)}")
    return Decision(run.name, tuple(one for rule in _RULES[purpose] for one in rule(asked)))


def check_signed(signers: Sequence[Signer], policy: PolicyConfig, run_hash: str) -> None:
    """The rule about operators alone, of a proposal that nobody has read yet.

    Raises:
        PolicyError: too few signed it.
    """
    Decision(run_hash[:12], tuple(_unsigned(signers, policy))).enforce()


@dataclass(frozen=True)
class _Asked:
    """What is known when a rule is asked; see `decide`."""

    run: RunConfig
    policy: PolicyConfig
    signers: Sequence[Signer] | None
    offer: Offer | None
    rounds_today: int | None
    held_out: int | None
    now: datetime.time


_Rule: TypeAlias = Callable[[_Asked], Iterator[Refused]]


def _switch(asked: _Asked) -> Iterator[Refused]:
    if not asked.policy.participate:
        yield _refused("it says participate = false: nothing is done until it is set to true")


def _operators(asked: _Asked) -> Iterator[Refused]:
    if asked.signers is not None:
        yield from _unsigned(asked.signers, asked.policy)


def _unsigned(signers: Sequence[Signer], policy: PolicyConfig) -> Iterator[Refused]:
    if (found := len(people(signers))) < (wanted := policy.operators):
        yield _refused(
            f"it is signed by {counted(found, 'operator')} of this federation, fewer than operators {wanted} (names "
            "with one key count as one; the coordinator proposes it with `run --as NAME`, or stops and resumes it so)",
            ErrorCode.NOT_APPROVED,
        )


def _document(asked: _Asked) -> Iterator[Refused]:
    """What the run's document alone says."""
    run, policy = asked.run, asked.policy
    if policy.architectures and run.model.architecture not in policy.architectures:
        yield _refused(
            f"its network {run.model.architecture} is not among architectures {', '.join(policy.architectures)}"
        )
    if policy.modalities and run.data.modality not in policy.modalities:
        yield _refused(f"its modality {run.data.modality} is not among modalities {', '.join(policy.modalities)}")
    yield from map(_refused, _privacy(run, policy))
    if run.federation.rounds > policy.max_rounds:
        yield _refused(f"its {counted(run.federation.rounds, 'round')} exceed max-rounds {policy.max_rounds}")
    if run.training.local_steps > policy.max_local_steps:
        yield _refused(f"its {run.training.local_steps} local-steps exceed max-local-steps {policy.max_local_steps}")
    rate = run.training.learning_rate
    if not policy.min_learning_rate <= rate <= policy.max_learning_rate:
        yield _refused(
            f"its learning-rate {rate:g} is not between min-learning-rate {policy.min_learning_rate:g} and "
            f"max-learning-rate {policy.max_learning_rate:g}"
        )


def _hours(asked: _Asked) -> Iterator[Refused]:
    hours = asked.policy.hours
    if hours is not None and not _within(asked.now, hours):
        yield _refused(f"it is {asked.now:%H:%M}, and work is allowed in hours {hours} only", ErrorCode.OUTSIDE_HOURS)


def _rate(asked: _Asked) -> Iterator[Refused]:
    if asked.rounds_today is not None and asked.rounds_today >= asked.policy.max_rounds_per_day:
        yield _refused(
            f"{counted(asked.rounds_today, 'round was', 'rounds were')} begun in the last 24 hours, and "
            f"max-rounds-per-day is {asked.policy.max_rounds_per_day}",
            ErrorCode.RATE_LIMITED,
        )


def _data(asked: _Asked) -> Iterator[Refused]:
    """What the site has for the run."""
    run, policy, offer = asked.run, asked.policy, asked.offer
    if offer is None:
        return
    if run.privacy is not None:
        cost = plan(run, offer.declared_size)
        if cost.noise_multiplier < policy.min_noise_multiplier:
            yield _refused(
                f"its noise-multiplier {cost.noise_multiplier:.3g} is below min-noise-multiplier "
                f"{policy.min_noise_multiplier:g}"
            )
        if cost.delta > policy.max_delta and run.privacy.delta is None:
            yield _refused(f"its delta {cost.delta:g} exceeds max-delta {policy.max_delta:g}")
    if offer.parameters > policy.max_parameters:
        yield _refused(f"its model has {offer.parameters} parameters, more than max-parameters {policy.max_parameters}")
    # With privacy those that are declared, since a refusal leaves.
    patients, are = (offer.patients, "usable") if run.privacy is None else (offer.declared_size, "declared")
    if patients < policy.min_patients:
        yield _refused(
            f"{patients} patients are {are} for it, fewer than min-patients {policy.min_patients}",
            ErrorCode.TOO_FEW_PATIENTS,
        )


def _held_out(asked: _Asked) -> Iterator[Refused]:
    held_out, least = asked.held_out, asked.policy.min_held_out
    if held_out is not None and held_out < least:
        yield _refused(
            f"{counted(held_out, 'patient is', 'patients are')} held out for these scores, fewer than min-held-out "
            f"{least}: too few for a mean to hide one of them",
            ErrorCode.TOO_FEW_PATIENTS if held_out else ErrorCode.NO_DATA,
        )


_RULES: Mapping[Purpose, tuple[_Rule, ...]] = {
    Purpose.PROPOSAL: (_operators,),
    # Not the switch: that a hospital pauses is no answer to a run.
    Purpose.REFUSAL: (_operators, _document),
    Purpose.APPROVAL: (_switch, _operators, _document, _data),
    Purpose.EXCHANGE: (_switch, _operators, _document),
    Purpose.TRAINING: (_switch, _operators, _document, _hours, _rate, _data),
    Purpose.EVALUATION: (_switch, _operators, _document, _hours, _data),
    Purpose.WORK: (_switch, _document, _data, _held_out),
}
_NEEDED: Mapping[Purpose, tuple[str, ...]] = {
    Purpose.PROPOSAL: ("signers",),
    Purpose.REFUSAL: ("signers",),
    Purpose.EXCHANGE: ("signers",),
    Purpose.TRAINING: ("signers", "rounds_today", "offer"),
    Purpose.EVALUATION: ("signers", "offer"),
    Purpose.WORK: ("offer",),
}


def _refused(why: str, code: ErrorCode = ErrorCode.POLICY_REFUSED) -> Refused:
    return Refused(code, why)


def _privacy(run: RunConfig, policy: PolicyConfig) -> Iterator[str]:
    """What the document says of differential privacy."""
    if run.privacy is None:
        if policy.require_privacy:
            yield "it has no differential privacy, and require-privacy is true"
        return
    if (beyond := uncovered(run)) is not None:
        yield f"its strategy {run.strategy.kind} {beyond}, which no guarantee covers"
    if policy.require_privacy and (reason := why_void(run)):
        yield f"it gives no differential privacy, and require-privacy is true: {reason}"
    epsilon, clipping = run.privacy.target_epsilon, run.privacy.clipping_norm
    if epsilon > policy.lifetime_epsilon:
        yield f"its epsilon {epsilon:g} exceeds lifetime-epsilon {policy.lifetime_epsilon:g}"
    if policy.max_run_epsilon is not None and epsilon > policy.max_run_epsilon:
        yield f"its epsilon {epsilon:g} exceeds max-run-epsilon {policy.max_run_epsilon:g}"
    adaptive = run.privacy.adaptive_clipping is not None
    least, largest = norm_bounds(clipping) if adaptive else (clipping, clipping)
    if least < policy.min_clipping:
        yield f"its {'adaptive ' * adaptive}clipping-norm {least:g} is below min-clipping {policy.min_clipping:g}"
    if largest > policy.max_clipping:
        yield f"its {'adaptive ' * adaptive}clipping-norm {largest:g} exceeds max-clipping {policy.max_clipping:g}"
    if run.privacy.delta is not None and run.privacy.delta > policy.max_delta:
        yield f"its delta {run.privacy.delta:g} exceeds max-delta {policy.max_delta:g}"


def _within(time: datetime.time, hours: str) -> bool:
    """Whether a time of day lies in hours such as 20:00-06:00; the end is not in them."""
    begin, end = (datetime.time.fromisoformat(part) for part in hours.split("-"))
    return begin <= time < end if begin < end else time >= begin or time < end


__all__ = ["Decision", "Purpose", "Refused", "decide"]
