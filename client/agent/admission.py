"""Whose messages an agent takes at all, and how much of them: decided from a message's head, before its content comes.

A message belongs to a run of Flower's, and that to a bundle that was proposed here. Only if the hospital approved that
bundle's run, and the coordinator still holds the run open, is anything fetched, and no more than a model of this run
has. A run that has ended is over here too, whatever the coordinator sends; one that an operator resumed is open again.
"""

import shutil
from collections.abc import Callable
from pathlib import Path

from client.agent.fleet import Fleet
from client.home.offer import Offer
from client.rules import approvals
from client.rules.approvals import Proposal
from common.errors import ConfigError, ErrorCode, PolicyError
from common.text import sized

# safetensors: 8 bytes, and for each tensor its name, type, shape and place as JSON.
_HEADER_BYTES, _TENSOR_HEADER_BYTES, _BYTES_PER_VALUE = 4096, 512, 4
# Beside two copies of the model: journals of the ledger and the audit log, status, logs.
_SPARE_BYTES = 1 << 20


class Admission:
    """Which run of Flower's is which proposal's; a run keeps its bundle, so each is compared once."""

    def __init__(self, home: Path, refresh: Callable[[], None]) -> None:
        """Know where to look.

        Args:
            home: the site's.
            refresh: asks the coordinator for its proposals, in case a closed run was resumed just now.
        """
        self._home, self._refresh = home, refresh
        self._runs: dict[int, str] = {}  # Flower's run id -> run hash

    def run_hash(self, fleet: Fleet, run_id: int) -> str:
        """The proposed run that a message belongs to.

        Args:
            fleet: is asked what Flower runs.
            run_id: Flower's.

        Raises:
            PolicyError: NOT_APPROVED, it was never proposed here; WRONG_RUN, it was, and settings were added.
            grpc.RpcError: the coordinator does not say what it runs.
        """
        return self._runs.get(run_id) or self._compare(fleet, run_id)

    def proposal(self, run_hash: str) -> Proposal:
        """A run that this hospital has approved, and that is open.

        Raises:
            PolicyError: NOT_APPROVED, it is not.
            grpc.RpcError: the coordinator does not say whether it is open.
        """
        proposal = self._load(run_hash)
        if proposal.answer is None or not proposal.answer.approved:
            raise PolicyError(
                f"run {proposal.run.name!r} is not approved. Look at it with `wardround-client runs`, and approve it "
                f"with `wardround-client approve {run_hash[:12]}` if the hospital agrees.",
                ErrorCode.NOT_APPROVED,
            )
        if not proposal.open:
            self._refresh()
            proposal = self._load(run_hash)
        if not proposal.open:
            raise PolicyError(
                f"run {proposal.run.name!r} has ended, so nothing is done for it. An operator at the coordinator may "
                "resume it.",
                ErrorCode.NOT_APPROVED,
            )
        return proposal

    def _compare(self, fleet: Fleet, run_id: int) -> str:
        """What Flower runs must be a bundle that was proposed, with no settings added."""
        run = fleet.run(run_id)
        found = [one for one in approvals.load_all(self._home) if one.bundle_sha256 == run.fab_hash]
        if not found:
            raise PolicyError(
                f"Flower's run {run_id} is no bundle that was proposed here. See `wardround-client runs`.",
                ErrorCode.NOT_APPROVED,
            )
        if run.override_config:
            raise PolicyError(
                f"Flower's run {run_id} adds settings to the bundle of {found[0].run.name!r}", ErrorCode.WRONG_RUN
            )
        self._runs[run_id] = found[0].run_hash
        return found[0].run_hash

    def _load(self, run_hash: str) -> Proposal:
        try:
            return approvals.load(self._home, run_hash)
        except ConfigError as error:
            raise PolicyError(str(error), ErrorCode.NOT_APPROVED) from error


def most_bytes(offer: Offer) -> int:
    """Bytes that a model of the run has at most, as it travels."""
    return _BYTES_PER_VALUE * offer.parameters + _HEADER_BYTES + _TENSOR_HEADER_BYTES * len(offer.tensors)


def check_room(home: Path, weights: int) -> None:
    """Refuse to begin what could not be kept.

    Args:
        home: the site's.
        weights: bytes of the model.

    Raises:
        PolicyError: DISK_FULL; nothing was charged.
    """
    wanted = 2 * weights + _SPARE_BYTES
    if (free := shutil.disk_usage(home).free) < wanted:
        raise PolicyError(
            f"the disk of this site's home has {sized(free)} free, a round needs {sized(wanted - free)} more. "
            "Nothing is done until there is room: free some.",
            ErrorCode.DISK_FULL,
        )


def is_full(home: Path) -> bool:
    """Whether even a round of a small model would not fit."""
    return shutil.disk_usage(home).free < _SPARE_BYTES
