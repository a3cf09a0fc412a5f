"""What a person decides about a proposed run: seen first as what it would mean, then answered. One way for all who ask.

An answer is a file; the agent enters it in the audit log, and tells the coordinator.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from client.agent import spending
from client.home.declared import declare
from client.proposals import signers
from client.proposals.budget import beyond
from client.proposals.consequences import consequences
from client.proposals.opinion import offer_for
from client.rules import approvals, policy
from client.rules.approvals import Proposal
from client.rules.policy import Purpose
from client.site import Site, open_site
from common.errors import ConfigError, ErrorCode, PrivacyError


@dataclass(frozen=True)
class Question:
    """A proposal, and what it would mean here, as it is shown to whoever decides."""

    proposal: Proposal  # with the number of patients that would be declared for it
    site: Site
    rows: Sequence[tuple[str, str]]  # what, value

    @property
    def digest(self) -> str:
        """Of what is shown: who has seen this much has seen nothing else."""
        return hashlib.sha256(json.dumps([self.proposal.run_hash, self.rows]).encode()).hexdigest()


def question(site: Site, proposal: Proposal) -> Question:
    """What a proposal would mean at a site now.

    Raises:
        ConfigError: state/declared.json is damaged.
        PrivacyError: the ledger cannot be read.
    """
    if proposal.appraisal is not None:
        offer = offer_for(site.home, proposal)
        proposal = replace(proposal, appraisal=replace(proposal.appraisal, offer=offer))
    return Question(proposal, site, consequences(proposal, site, approvals.load_all(site.home)))


def check(asked: Question) -> None:
    """Refuse what may not be approved here, whoever would.

    Raises:
        PolicyError: policy.toml does not allow it.
        PrivacyError: the ledger is older than the audit log, or the budget does not carry the run, or nobody knows.
    """
    proposal, site = asked.proposal, asked.site
    offer = proposal.appraisal.offer if proposal.appraisal else None
    signed = signers.of(site.home, proposal.run_hash)
    policy.decide(proposal.run, site.policy, Purpose.APPROVAL, signers=signed, offer=offer).enforce()
    if proposal.run.privacy is not None:
        spending.check_home(site)
        if (why := beyond(site, proposal.document, offer)) is not None:
            raise PrivacyError(f"run {proposal.run.name!r} is {why}.", ErrorCode.BUDGET_SPENT)


def approve(asked: Question) -> str:
    """Let the run train here, as it was shown; after `check`.

    Returns:
        What was done, in a sentence.

    Raises:
        ConfigError: another number of patients was declared meanwhile.
    """
    proposal, site = asked.proposal, asked.site
    offer = proposal.appraisal.offer if proposal.appraisal else None
    if offer is not None and declare(site.config, proposal.run, offer.declared_size, site.home) != offer.declared_size:
        raise ConfigError(
            f"another number of patients than {offer.declared_size} was declared meanwhile. Nothing was approved. Look "
            "again: repeat the command."
        )
    approvals.answer(site.home, proposal.run_hash, approved=True, by="person")
    return f"Approved {proposal.run.name} ({proposal.run_hash})."


def deny(home: Path, proposal: Proposal) -> str:
    """Deny a run, also one approved before: its next round is refused.

    Returns:
        What was done, in a sentence.
    """
    # First of all, so that it holds whatever else is wrong with the site.
    approvals.answer(home, proposal.run_hash, approved=False, by="person")
    open_site(home).ledger.release(proposal.run_hash)
    return f"Denied {proposal.run.name} ({proposal.run_hash})."


__all__ = ["Question", "approve", "check", "deny", "question"]
