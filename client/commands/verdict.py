"""What a hospital's policy says of a run, for the person who asks: verdict first, then the run's hash, then why.

The rules are in client/rules/policy.py. Here a rule that needs the hospital's data is checked where that is known: the
agent has counted the patients for a proposed run, and `data check --run` counts them itself.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, get_args

from client.home.declared import declared_size, outgrown
from client.home.offer import Offer
from client.proposals import signers
from client.proposals.budget import Shortfall
from client.proposals.opinion import budget_is_known, offer_for, shortfall_on
from client.rules import approvals, exit_gate, policy
from client.rules.policy import Decision, Purpose, Refused
from client.site import Site
from common.config import PolicyConfig
from common.config.rundocument import RunDocument, from_file
from common.console.cli import say
from common.errors import ErrorCode, PrivacyError
from common.identity.operators import Signer
from common.privacy.scores import held_out_fraction, score_plan
from common.text import counted
from common.wire.messages import Phase

if TYPE_CHECKING:
    from client.data.check.checkup import Checkup


@dataclass(frozen=True)
class Verdict:
    """Whether the policy lets a run train here."""

    document: RunDocument
    decision: Decision
    patients: int | None  # usable for it; None: not counted, and the rules that need it are left out
    declared: int | None = None  # what a run with privacy is told instead
    too_few: Mapping[Phase, int] | None = None  # held-out patients of the splits that leave no score; None: not known
    least: int = 0  # min-held-out
    budget_known: bool = False  # whether the ledger was asked
    shortfall: Shortfall | None = None  # what the privacy budget lacks then

    @property
    def beyond(self) -> Shortfall | None:
        """The budget, where it will not carry the run whatever other runs leave of it."""
        return None if self.shortfall is None or self.shortfall.for_now else self.shortfall

    def enforce(self) -> None:
        """Raise where the run is refused.

        Raises:
            PolicyError: policy.toml does not allow it.
            PrivacyError: the budget does not carry it.
        """
        self.decision.enforce()
        if self.beyond is not None:
            raise PrivacyError(f"run {self.document.name!r} is {self.beyond.why}.", ErrorCode.BUDGET_SPENT)

    def as_data(self) -> dict[str, object]:
        """For JSON."""
        return {
            "name": self.document.name,
            "sha256": self.document.hash,
            "allowed": self.decision.allowed and self.beyond is None,
            "refusals": [one.why for one in self.decision.refused] + [one.why for one in [self.beyond] if one],
            "patients": self.patients,
            "too-few-held-out": None if self.too_few is None else dict(self.too_few),
        }

    def show(self) -> None:
        """Print it."""
        known = "without a count of patients" if self.patients is None else f"with {counted(self.patients, 'patient')}"
        verdict = "ALLOWED by policy.toml" if self.decision.allowed else "REFUSED by policy.toml"
        if self.decision.allowed and self.beyond is not None:
            verdict = "BEYOND THE BUDGET, though policy.toml allows it"
        say(f"{verdict}, {known}: {self.document.name}")
        say(f"SHA-256 of the run: {self.document.hash}")
        for one in self.decision.refused:
            say(f"- {one.why}")
        if self.shortfall is not None:
            say(f"- {self.shortfall.why}")
        if self.document.config.privacy is not None and self.decision.allowed and not self.budget_known:
            say("Whether the privacy budget lasts for it the policy does not say: approve does, under privacy.")
        for phase, count in (self.too_few or {}).items():
            say(
                f"No {phase} score will leave: {counted(count, 'patient is', 'patients are')} held out for it, fewer "
                f"than min-held-out {self.least} in policy.toml."
            )
        if self.patients is not None and self.declared is not None and (why := outgrown(self.declared, self.patients)):
            say(why)


def policy_verdict(home: Path, run: str, rules: PolicyConfig) -> Verdict:
    """The verdict on a run that is given as a file, or proposed here.

    Raises:
        ConfigError: there is no such run, or state/declared.json is damaged.
    """
    if Path(run).is_file():
        return verdict_on(from_file(Path(run)), rules, None)
    proposal = approvals.find(home, run)
    offer = offer_for(home, proposal)
    verdict = verdict_on(proposal.document, rules, offer, signers.of(home, proposal.run_hash))
    known = budget_is_known(home, proposal)
    return replace(verdict, budget_known=known, shortfall=shortfall_on(home, proposal))


def verdict_on(
    document: RunDocument, rules: PolicyConfig, offer: Offer | None, signed: Sequence[Signer] | None = None
) -> Verdict:
    """The verdict, with what the site has for the run and who has signed it; None: not known."""
    decision = policy.decide(document.config, rules, Purpose.APPROVAL, signers=signed, offer=offer)
    if offer is None:
        return Verdict(document, decision, None)
    declared = None if document.config.privacy is None else offer.declared_size
    return Verdict(document, decision, offer.patients, declared)


def verdict_after(checkup: "Checkup", site: Site) -> Verdict:
    """The verdict on the run for which the site's data were checked.

    Raises:
        ConfigError: state/declared.json is damaged.
    """
    from client.data.deidentify.pseudonym import cohort_id  # noqa: PLC0415 - of the data, of which an agent loads nothing
    from common.learning.network import tensor_shapes  # noqa: PLC0415 - torch

    if checkup.document is None:
        raise ValueError("the data were checked for no run")
    run = checkup.document.config
    patients = {study.patient for study in checkup.usable}
    if not patients:  # neither noise nor delta can be said
        decision = policy.decide(run, site.policy, Purpose.APPROVAL)
        nobody = Refused(ErrorCode.NO_DATA, "no patient is usable for it")
        return Verdict(checkup.document, Decision(run.name, (*decision.refused, nobody)), 0)
    offer = Offer(
        patients=len(patients),
        declared_size=declared_size(site.config, run, len(patients), site.home),
        cohort_id=cohort_id(site.key),
        usable=len(checkup.usable),
        quarantined=dict(Counter(str(one.problem.code) for one in checkup.quarantined if one.problem is not None)),
        parts=dict.fromkeys(run.strategy.up, tensor_shapes(run)),
        training=len({study.patient for study in checkup.usable if study.split == "train"}),
    )
    few = _too_few(checkup, offer.declared_size, site.policy)
    return replace(verdict_on(checkup.document, site.policy, offer), too_few=few, least=site.policy.min_held_out)


def _too_few(checkup: "Checkup", declared: int, rules: PolicyConfig) -> dict[Phase, int]:
    """The splits of which no score leaves, as too few are held out: of noised scores the declared number counts."""
    if checkup.run is None or not exit_gate.score_names(checkup.run, rules.metrics, rules.scores):
        return {}
    run, noised = checkup.run, checkup.run.privacy is not None and rules.scores == "noised"
    held_out: dict[Phase, int] = {}
    for phase in get_args(Phase):
        if held_out_fraction(run.data, phase):
            there = len({study.patient for study in checkup.usable if study.split == phase})
            planned = score_plan(run, declared, phase, rules.run_scores_epsilon).held_out if noised else there
            held_out[phase] = planned
    return {phase: count for phase, count in held_out.items() if count < rules.min_held_out}


__all__ = ["Verdict", "policy_verdict", "verdict_after", "verdict_on"]
