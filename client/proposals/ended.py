"""How a run has ended, for the hospital: how, why, after how many rounds, and what can be done next.

It is the coordinator's word (common/wire/endings.py). Whatever it says, a run that is closed neither trains nor scores
here, and what it had reserved of the privacy budget is free again.
"""

from client.rules.approvals import Proposal
from common.errors import ErrorCode
from common.text import counted

# What is known here of why a run failed.
_WHY = {
    ErrorCode.TOO_FEW_SITES: (
        "too few hospitals took part",
        "see that this site's agent runs and is connected (`wardround-client status`)",
    ),
    ErrorCode.TOO_FEW_UPDATES: (
        "too few updates could enter a round",
        "see whether this site's was refused, and why (`wardround-client status`)",
    ),
    ErrorCode.INTERNAL: (
        "the coordinator's process failed again and again",
        "nothing: the cause is at the coordinator",
    ),
}


def how_in_words(proposal: Proposal) -> str | None:
    """How the run has ended, in a few words; None of one that is open."""
    if proposal.open:
        return None
    ending, rounds = proposal.ending, proposal.run.federation.rounds
    if ending is None:
        return "closed; the coordinator does not tell how it ended"
    if ending.rounds is None:
        reached = ""
    elif ending.rounds == 0:
        reached = ", no round done"
    else:
        reached = f", {ending.rounds} of {counted(rounds, 'round')} done"
    if ending.how == "failed":
        known = next((why for code, (why, _) in _WHY.items() if code == ending.code), "")
        return f"failed{reached}" + (f": {known} ({ending.code})" if known else f" ({ending.code})" * bool(ending.code))
    return f"{'stopped by the coordinator' if ending.how == 'stopped' else 'completed'}{reached}"


def next_in_words(proposal: Proposal, against: str | None = None) -> str | None:
    """What the hospital can do now, as a sentence; None while the run is open.

    Args:
        proposal: the run.
        against: what speaks against it here now, in words; its rounds would be refused.
    """
    if proposal.open:
        return None
    ending = proposal.ending
    if ending is not None and ending.how == "completed":
        return (
            "Nothing has to be done. The coordinator has the model: ask for it, and score it on your own patients with "
            "`wardround-client evaluate MODEL`."
        )
    look = "nothing has to be done"
    if ending is not None and ending.how == "failed":
        look = next((what for code, (_, what) in _WHY.items() if code == ending.code), "ask the coordinator why")
    if against is not None:
        return f"If an operator resumes the run, it does not go on here as things are: {against.rstrip('.')}."
    again = (
        f"under your approval; `wardround-client deny {proposal.run_hash[:8]}` takes that back"
        if proposal.answer is not None and proposal.answer.approved
        else "once it is approved here"
    )
    return f"{look[0].upper()}{look[1:]}. If an operator resumes the run, it goes on here {again}."


__all__ = ["how_in_words", "next_in_words"]
