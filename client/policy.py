"""The hospital's own rules: may this run train here?

`policy.toml` belongs to the hospital; nothing a coordinator sends changes it. The check is pure and names every
rule that refuses, with the value found and the value allowed, for the person at the hospital. The coordinator
learns one code.
"""

from collections.abc import Iterator

from client.pipe import Offer
from common.config import PolicyConfig, RunConfig
from common.errors import ErrorCode, PolicyError


def check(run: RunConfig, policy: PolicyConfig, offer: Offer | None = None) -> None:
    """Refuse a run that the policy does not allow.

    Args:
        run: what the coordinator wants.
        policy: what the hospital allows.
        offer: what the site has for it; None leaves out the rules that need to know.

    Raises:
        PolicyError: with every rule that refuses.
    """
    refusals = list(_refusals(run, policy, offer))
    if refusals:
        too_few = offer is not None and offer.patients < policy.min_patients and len(refusals) == 1
        code = ErrorCode.TOO_FEW_PATIENTS if too_few else ErrorCode.POLICY_REFUSED
        raise PolicyError(
            f"policy.toml refuses run {run.name!r}: {'; '.join(refusals)}. "
            "Ask the coordinator for another run, or change policy.toml if the hospital agrees.",
            code,
        )


def _refusals(run: RunConfig, policy: PolicyConfig, offer: Offer | None) -> Iterator[str]:
    if run.privacy is None and policy.require_privacy:
        yield "it has no differential privacy, and require-privacy is true"
    if run.privacy is not None:
        if run.privacy.target_epsilon > policy.lifetime_epsilon:
            yield f"its epsilon {run.privacy.target_epsilon:g} exceeds lifetime-epsilon {policy.lifetime_epsilon:g}"
        if run.privacy.clipping_norm < policy.min_clipping:
            yield f"its clipping-norm {run.privacy.clipping_norm:g} is below min-clipping {policy.min_clipping:g}"
    if run.federation.rounds > policy.max_rounds:
        yield f"its {run.federation.rounds} rounds exceed max-rounds {policy.max_rounds}"
    if run.training.local_steps > policy.max_local_steps:
        yield f"its {run.training.local_steps} local-steps exceed max-local-steps {policy.max_local_steps}"
    if offer is None:
        return
    if offer.patients < policy.min_patients:
        yield f"{offer.patients} patients are usable for it, fewer than min-patients {policy.min_patients}"
    if offer.parameters > policy.max_parameters:
        yield f"its model has {offer.parameters} parameters, more than max-parameters {policy.max_parameters}"
