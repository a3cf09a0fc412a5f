"""Which versions of client and server may work with each other: one table, and how each side says its own.

What is sent has a number, the protocol; a version of Wardround speaks one, and understands those from an earlier one
on. A site says both with each call, in gRPC's own user-agent, and the coordinator when a site connects. The gateway and
the enrolment port refuse every call of a site whose protocol the coordinator does not understand, and the site a
coordinator whose protocol it does not. Whoever says none is of the first version.

    user-agent: wardround/0.1.0-protocol.1 grpc-python/...      the site, with each call
    wardround-version: 0.1.0-protocol.1                         the coordinator, as a site connects
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from importlib import metadata

import grpc

from common.errors import FederationError

AGENT = "user-agent"  # gRPC's own

_KEY = "wardround-version"
_SAID = re.compile(r"([0-9]{1,4}(?:\.[0-9]{1,4}){1,3})[0-9A-Za-z.+]{0,24}-protocol\.([0-9]{1,6})")
# How a refusal begins, by which the other side knows it.
_REFUSED = "these versions do not work together: "


class OtherVersionError(FederationError):
    """The two sides are of versions that do not work together."""


@dataclass(frozen=True)
class Protocol:
    """A row of the table."""

    number: int
    since: str  # the first version of Wardround that speaks it
    oldest: int  # the earliest protocol that a program which speaks it understands
    what: str  # what came with it


# docs/operations.md has the same table. A change of what is sent that an earlier version cannot read is a new row.
PROTOCOLS = (Protocol(1, "0.1.0", 1, "the first"),)
OURS = PROTOCOLS[-1]


@dataclass(frozen=True)
class Version:
    """What a side says of itself."""

    program: str
    protocol: int


# What says nothing.
FIRST = Version(PROTOCOLS[0].since, PROTOCOLS[0].number)


def user_agent() -> str:
    """What a site says with each call, for the option `grpc.primary_user_agent`."""
    return f"wardround/{_own()}"


def stamp() -> tuple[tuple[str, str], ...]:
    """What a coordinator says when a site connects, as metadata."""
    return ((_KEY, _own()),)


def said(sent: Iterable[tuple[str, str | bytes]] | None) -> Version:
    """What the other side has said with a call, as either side says it."""
    for key, value in sent or ():
        if key in (_KEY, AGENT) and isinstance(value, str):
            return _read(value[:200])
    return FIRST


def refusal(theirs: Version, whose: str) -> str:
    """Why a side is refused, and what to do, in a sentence for both of them; empty where the two work together.

    Args:
        theirs: what the other side says.
        whose: the other side, such as "site north".
    """
    if OURS.oldest <= theirs.protocol <= OURS.number:
        return ""
    ours = f"protocols {OURS.oldest} to {OURS.number}" if OURS.oldest < OURS.number else f"protocol {OURS.number}"
    other = "this site" if whose == "the coordinator" else "the coordinator"
    older = whose if theirs.protocol < OURS.oldest else other
    return (
        f"{_REFUSED}{whose} has wardround {theirs.program}, which speaks protocol {theirs.protocol}, and {other} has "
        f"wardround {_program()}, which understands {ours}. Update wardround at {older}; docs/operations.md, "
        "'Versions', has the table"
    )


def refused(error: Exception) -> str:
    """Why the two sides do not work together, as either said it; empty for any other error."""
    if isinstance(error, OtherVersionError):
        return str(error)
    details = str(error.details() or "") if isinstance(error, grpc.Call) else ""
    return details if details.startswith(_REFUSED) else ""


def check_coordinator(sent: Iterable[tuple[str, str | bytes]] | None) -> None:
    """Refuse a coordinator whose protocol this site does not understand.

    Args:
        sent: the metadata with which it answered.

    Raises:
        OtherVersionError: it is one.
    """
    if why := refusal(said(sent), "the coordinator"):
        raise OtherVersionError(why)


def check_caller(context: grpc.ServicerContext, whose: str) -> str:
    """Why a caller is refused; empty where it is not. Costs a look at what the call says."""
    return refusal(said(context.invocation_metadata()), whose)


@lru_cache(256)
def _read(text: str) -> Version:
    found = _SAID.search(text)
    return FIRST if found is None else Version(found[1], int(found[2]))


@lru_cache(1)
def _program() -> str:
    return metadata.version("wardround")


def _own() -> str:
    return f"{_program()}-protocol.{OURS.number}"


__all__ = [
    "AGENT",
    "FIRST",
    "OURS",
    "PROTOCOLS",
    "OtherVersionError",
    "Protocol",
    "Version",
    "check_caller",
    "check_coordinator",
    "refusal",
    "refused",
    "said",
    "stamp",
    "user_agent",
]
