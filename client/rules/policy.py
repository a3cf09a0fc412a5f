"""The hospital's own rules: may this run train here?

`policy.toml` belongs to the hospital; nothing a coordinator sends changes it. The check is pure and names every
rule that refuses, with the value found and the value allowed, for the person at the hospital. The coordinator
learns one code.
"""

import datetime
from collections.abc import Iterator

from client.home.offer import Offer
from common.config import PolicyConfig, RunConfig
from common.errors import ErrorCode, PolicyError
from common.privacy.clipping import norm_bounds
from common.privacy.guarantee import plan, uncovered, why_void
from common.text import counted


def check(run: RunConfig, policy: PolicyConfig, offer: Offer | None = None) -> None:
    """Refuse a run that the policy does not allow.

    Args:
        run: what the coordinator wants.
        policy: what the hospital allows.
        offer: what the site has for it; None leaves out the rules that need to know.

    Raises:
        PolicyError: with every rule that refuses.
    """
    reasons = refusals(run, policy, offer)
    if reasons:
        too_few = offer is not None and _counted(run, offer) < policy.min_patients and len(reasons) == 1
        code = ErrorCode.TOO_FEW_PATIENTS if too_few else ErrorCode.POLICY_REFUSED
        raise PolicyError(
            f"policy.toml refuses run {run.name!r}: {'; '.join(reasons)}. "
            "Ask the coordinator for another run, or change policy.toml if the hospital agrees.",
            code,
        )


def refusals(run: RunConfig, policy: PolicyConfig, offer: Offer | None = None) -> list[str]:
    """Each rule that refuses a run, with what was found and what is allowed; see `check`."""
    return list(_refusals(run, policy, offer))


def check_participation(policy: PolicyConfig) -> None:
    """Refuse everything, also to send again what was made before, while the hospital has switched itself off.

    Raises:
        PolicyError: it has.
    """
    if not policy.participate:
        raise PolicyError("policy.toml says participate = false: nothing is done. Set it to true to go on.")


def check_now(policy: PolicyConfig, *, rounds_today: int, now: datetime.time | None = None) -> None:
    """Refuse work that the policy does not allow at this moment.

    Args:
        policy: what the hospital allows.
        rounds_today: attempts at training rounds in the last 24 hours, this one not among them.
        now: local time of day; None: the clock's.

    Raises:
        PolicyError: switched off, outside the hours, or enough for today.
    """
    check_participation(policy)
    time = now or datetime.datetime.now().time()
    if policy.hours is not None and not _within(time, policy.hours):
        raise PolicyError(
            f"it is {time:%H:%M}, and policy.toml allows work in hours {policy.hours} only.", ErrorCode.OUTSIDE_HOURS
        )
    if rounds_today >= policy.max_rounds_per_day:
        raise PolicyError(
            f"{counted(rounds_today, 'round was', 'rounds were')} begun in the last 24 hours, and "
            f"max-rounds-per-day is {policy.max_rounds_per_day}.",
            ErrorCode.RATE_LIMITED,
        )


def _refusals(run: RunConfig, policy: PolicyConfig, offer: Offer | None) -> Iterator[str]:
    """Each rule that refuses, with what was found and what is allowed."""
    if policy.architectures and run.model.architecture not in policy.architectures:
        yield f"its network {run.model.architecture} is not among architectures {', '.join(policy.architectures)}"
    if policy.modalities and run.data.modality not in policy.modalities:
        yield f"its modality {run.data.modality} is not among modalities {', '.join(policy.modalities)}"
    yield from _privacy_refusals(run, policy, offer)
    if run.federation.rounds > policy.max_rounds:
        yield f"its {counted(run.federation.rounds, 'round')} exceed max-rounds {policy.max_rounds}"
    if run.training.local_steps > policy.max_local_steps:
        yield f"its {run.training.local_steps} local-steps exceed max-local-steps {policy.max_local_steps}"
    rate = run.training.learning_rate
    if not policy.min_learning_rate <= rate <= policy.max_learning_rate:
        yield (
            f"its learning-rate {rate:g} is not between min-learning-rate {policy.min_learning_rate:g} and "
            f"max-learning-rate {policy.max_learning_rate:g}"
        )
    if offer is None:
        return
    if (patients := _counted(run, offer)) < policy.min_patients:
        are = "usable" if run.privacy is None else "declared"
        yield f"{patients} patients are {are} for it, fewer than min-patients {policy.min_patients}"
    if offer.parameters > policy.max_parameters:
        yield f"its model has {offer.parameters} parameters, more than max-parameters {policy.max_parameters}"


def _counted(run: RunConfig, offer: Offer) -> int:
    """The patients that a rule looks at: with privacy those that are declared, since a refusal leaves."""
    return offer.patients if run.privacy is None else offer.declared_size


def _privacy_refusals(run: RunConfig, policy: PolicyConfig, offer: Offer | None) -> Iterator[str]:
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
    if offer is not None:
        cost = plan(run, offer.declared_size)
        if cost.noise_multiplier < policy.min_noise_multiplier:
            yield (
                f"its noise-multiplier {cost.noise_multiplier:.3g} is below min-noise-multiplier "
                f"{policy.min_noise_multiplier:g}"
            )
        if cost.delta > policy.max_delta:
            yield f"its delta {cost.delta:g} exceeds max-delta {policy.max_delta:g}"


def _within(time: datetime.time, hours: str) -> bool:
    """Whether a time of day lies in hours such as 20:00-06:00; the end is not in them."""
    begin, end = (datetime.time.fromisoformat(part) for part in hours.split("-"))
    return begin <= time < end if begin < end else time >= begin or time < end
