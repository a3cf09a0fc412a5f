"""Whether a hospital's privacy budget carries a proposed run: what the ledger would say at its next round.

A run is refused at its first round unless all of its rounds fit, so that it does not fail half-way; one that has begun
here goes on while a round fits (common/privacy/ledger.py).
"""

from dataclasses import dataclass

from client.home.folder import LEDGER_NAME
from client.home.offer import Offer
from client.site import Site
from common.config.rundocument import RunDocument
from common.privacy.charges import Charge
from common.privacy.guarantee import plan, why_void
from common.text import counted

_UNKNOWN = (
    "not known to be within what is left of the privacy budget: its patients are not counted yet. Start the agent, "
    "which counts them (`wardround-client start`), and approve the run then"
)


@dataclass(frozen=True)
class Shortfall:
    """A budget that does not carry a run."""

    lifetime_epsilon: float
    wanted: int  # rounds that must fit
    fitting: int
    for_now: bool  # it would, were it not for what runs that are going on have reserved

    @property
    def why(self) -> str:
        """What is the case, and what to do."""
        only = "none would fit" if self.fitting == 0 else f"{self.fitting} would fit"
        rounds = f"of {counted(self.wanted, 'round')} like its own {only}"
        if self.for_now:
            return (
                f"beyond the budget for now: {rounds} beside what other runs have reserved of lifetime-epsilon "
                f"{self.lifetime_epsilon:g}. The site refuses this run's next round (budget-spent) until another has "
                "ended and left something"
            )
        return (
            f"beyond the budget: {rounds} into what is left of lifetime-epsilon {self.lifetime_epsilon:g}, and the "
            "site refuses the next one (budget-spent). Ask for a run with a smaller target-epsilon (fewer rounds at "
            "the same one cost as much, with less noise in each), or raise lifetime-epsilon in policy.toml"
        )


def shortfall(site: Site, run: RunDocument, offer: Offer) -> Shortfall | None:
    """What is lacking; None: the budget carries the run, or it needs none.

    Args:
        site: the hospital; its ledger and its policy are read.
        run: proposed.
        offer: what the agent has counted for it, with the number of patients that is declared.

    Raises:
        PrivacyError: the ledger cannot be read.
    """
    if not _is_private(run):
        return None
    cost, budget = plan(run.config, offer.declared_size), site.policy.lifetime_epsilon
    charge = Charge(
        offer.cohort_id,
        run.hash,
        1,
        "",
        cost.noise_multiplier,
        cost.sampling_rate,
        cost.steps_per_round,
        cost.delta,
        "",
    )
    done = sum(steps for _, _, steps in site.ledger.history(offer.cohort_id, run.hash)) // cost.steps_per_round
    if done >= run.config.federation.rounds:
        return None
    wanted = 1 if done else run.config.federation.rounds
    if (fitting := site.ledger.fitting(charge, budget, wanted)) >= wanted:
        return None
    alone = site.ledger.fitting(charge, budget, wanted, beside=False)
    return Shortfall(budget, wanted, fitting if alone >= wanted else alone, for_now=alone >= wanted)


def beyond(site: Site, run: RunDocument, offer: Offer | None) -> str | None:
    """Why a run must not be approved, as `shortfall`; what others have reserved may be free before it begins.

    Where its patients are not counted (`offer` is None), nobody knows whether it fits into what runs of before have
    left; an approval would be followed by the refusal of its first round.
    """
    if offer is None:
        return _UNKNOWN if _is_private(run) and _has_spent(site) else None
    short = shortfall(site, run, offer)
    return None if short is None or short.for_now else short.why


def _is_private(run: RunDocument) -> bool:
    return run.config.privacy is not None and why_void(run.config) is None


def _has_spent(site: Site) -> bool:
    return (site.home / LEDGER_NAME).exists() and bool(site.ledger.entries())


__all__ = ["Shortfall", "beyond", "shortfall"]
