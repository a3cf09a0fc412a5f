"""What may go wrong with a PACS, in sentences that say what to do. No sentence has text of the PACS in it.

PacsError         it refuses, or answers with what cannot be taken
└── AwayError     it does not answer now, and may later
StoreError        what it sends cannot be written here
"""

from typing import Any

from common.errors import DataError, ErrorCode, WardroundError


class PacsError(DataError):
    """A PACS refuses, or answers with what cannot be taken."""

    code = ErrorCode.NOT_OPENED


class AwayError(PacsError):
    """It does not answer now, and may later."""


class StoreError(WardroundError):
    """What comes cannot be written."""

    code = ErrorCode.DISK_FULL


def not_written(error: OSError) -> StoreError:
    """What the system said, and what to do."""
    why = error.strerror or type(error).__name__
    return StoreError(f"what the PACS sends cannot be written here ({why}). Free space, or choose another --out.")


def not_to_be_had(where: str, error: OSError, advice: str) -> PacsError:
    """A port of ours that cannot be opened."""
    return PacsError(f"{where} is not to be had ({error.strerror or 'not an address of this machine'}). {advice}")


_KINDS: dict[str, type[PacsError | StoreError]] = {"refused": PacsError, "away": AwayError, "store": StoreError}


def to_json(error: PacsError | StoreError) -> dict[str, Any]:
    """For the pipe."""
    (which,) = (name for name, kind in _KINDS.items() if type(error) is kind)
    return {"kind": "problem", "which": which, "text": str(error)}


def from_json(header: dict[str, Any]) -> PacsError | StoreError:
    """Its inverse.

    Raises:
        KeyError: it is none.
    """
    return _KINDS[header["which"]](str(header["text"]))


__all__ = ["AwayError", "PacsError", "StoreError", "from_json", "not_to_be_had", "not_written", "to_json"]
