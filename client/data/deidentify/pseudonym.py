"""Keyed pseudonyms: HMAC-SHA256 under the site key, so that nobody without the key can confirm a guessed name.

Standard library only: the agent, which imports neither torch nor pydicom, needs the cohort's name for its ledger.
"""

import hashlib
import hmac

_LENGTH = 16  # hex digits; 64 bits, so that 10 million names collide with a chance below 1 in 100 000


def pseudonym(site_key: bytes, name: str) -> str:
    """The 16 hex digits that stand for a raw patient id or study key at this site."""
    return hmac.new(site_key, name.encode(), hashlib.sha256).hexdigest()[:_LENGTH]


def cohort_id(site_key: bytes) -> str:
    """The name of a site's cohort in its privacy ledger.

    It depends on the site key alone and not on who is in the cohort: adding one study must not hand every
    other patient a fresh lifetime budget.
    """
    return pseudonym(site_key, "cohort")
