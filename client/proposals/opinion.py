"""What speaks against a proposed run here, by the hospital's files as they are now.

What the agent has counted for it is kept (client/rules/approvals.py). What policy.toml and the privacy ledger say of it
is asked anew each time that somebody looks, so that a change counts at once. The ledger is sealed: without the key it
says nothing.
"""

from pathlib import Path

from client.home.declared import as_declared
from client.home.folder import SITE_NAME
from client.home.offer import Offer
from client.home.sitekey import opens_unasked
from client.proposals import signers
from client.proposals.budget import Shortfall, shortfall
from client.rules import policy
from client.rules.approvals import Proposal
from client.rules.policy import Decision, Purpose
from client.site import open_site, policy_of
from common.config import SiteConfig, load
from common.errors import WardroundError

ALLOWS = "allows"


def decision_on(home: Path, proposal: Proposal) -> Decision:
    """What policy.toml says of a run; of our data as far as the agent has counted them.

    Raises:
        WardroundError: a file of the hospital's is wrong, so nothing is allowed.
    """
    signed, offer = signers.of(home, proposal.run_hash), offer_for(home, proposal)
    return policy.decide(proposal.run, policy_of(home), Purpose.APPROVAL, signers=signed, offer=offer)


def offer_for(home: Path, proposal: Proposal) -> Offer | None:
    """What the agent has counted for a run, with the number of patients that is declared now.

    Raises:
        ConfigError: site.toml or state/declared.json is wrong.
    """
    offer = proposal.appraisal.offer if proposal.appraisal else None
    if offer is None or proposal.run.privacy is None:
        return offer
    return as_declared(offer, load(SiteConfig, home / SITE_NAME), proposal.run, home)


def budget_is_known(home: Path, proposal: Proposal) -> bool:
    """Whether the ledger can be asked about a run: its patients are counted, and the key opens."""
    ended = proposal.ending is not None and proposal.ending.how == "completed"
    counted = proposal.appraisal is not None and proposal.appraisal.offer is not None
    return counted and proposal.run.privacy is not None and not ended and opens_unasked(home)


def shortfall_on(home: Path, proposal: Proposal) -> Shortfall | None:
    """What the privacy budget lacks for a run, as far as the ledger can be asked.

    Raises:
        WardroundError: a file of the hospital's is wrong, or the ledger cannot be read.
    """
    if not budget_is_known(home, proposal) or (offer := offer_for(home, proposal)) is None:
        return None
    return shortfall(open_site(home), proposal.document, offer)


def opinion_on(home: Path, proposal: Proposal) -> str | None:
    """Why this site cannot or must not take part, or that nothing speaks against it; None: nobody has counted yet."""
    appraisal = proposal.appraisal
    if appraisal is not None and appraisal.refusal is not None:
        return appraisal.refusal
    try:
        why = decision_on(home, proposal).why
        if why is None and (short := shortfall_on(home, proposal)) is not None:
            return short.why
    except WardroundError as error:
        return str(error)
    return why or (None if appraisal is None else ALLOWS)


def against(home: Path, proposal: Proposal) -> str | None:
    """What speaks against a run, in words; None: nothing that is known."""
    opinion = opinion_on(home, proposal)
    return None if opinion == ALLOWS else opinion


__all__ = ["ALLOWS", "against", "budget_is_known", "decision_on", "offer_for", "opinion_on", "shortfall_on"]
