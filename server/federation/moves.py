"""The moves of a round: each update less the model that was sent, looked at once for all that is told of them.

How they lie to each other follows from their directions d (moves of length 1) and from the sum s of these: the cosines
of one site with all others add up to d.s - d.d, and the others' sum has the length of s - d. So the work grows with the
sites, and not with their pairs.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from server.federation.checks import Update
from server.federation.strategies.blocks import Work, in_blocks, stack_of, stacked_block

MOST_WEIGHTS = 16384  # of `some`, about
MOST_OF_ALL = 1 << 21  # of all sites together: 16 MB


@dataclass(frozen=True)
class Moves:
    """Of the sites that moved, by name; all in float64."""

    sites: Sequence[str]
    lengths: Tensor  # (S,) L2
    with_others: Tensor  # (S,) sum of a direction's cosines with each of the others'
    others: Tensor  # (S,) length of the sum of the others' directions
    work: Tensor  # (S,) that the site's steps are, as a share of a round's
    some: Tensor  # (S, W) of each move the same weights, spread evenly over the model


def moves_of(updates: Mapping[str, Update], sent: Mapping[str, Tensor], part: str) -> Moves:
    """The moves of those that moved.

    Args:
        updates: those that enter the round.
        sent: the model that they started from.
        part: of an update that holds the model.
    """
    sites = sorted(site for site, update in updates.items() if update.distance > 0)
    lengths = torch.tensor([updates[site].distance for site in sites], dtype=torch.float64)
    work = torch.tensor([updates[site].work for site in sites], dtype=torch.float64)
    if not sites:
        return Moves(sites, lengths, lengths, lengths, work, torch.zeros(0, 0))
    states = [updates[site].parts[part] for site in sites]

    def begin() -> Work[tuple[Tensor, Tensor, float]]:
        stacked = stack_of([*states, sent])

        def of_block(name: str, start: int, stop: int) -> tuple[Tensor, Tensor, float]:
            values = stacked(name, start, stop)
            moves = values[:-1].sub_(values[-1])
            total = (1 / lengths) @ moves
            return moves @ total, torch.linalg.vector_norm(moves, dim=1).square(), float(total @ total)

        return of_block

    # By name, as their order in the first round is another.
    found = in_blocks(dict(sorted(sent.items())), begin, stacked_block(len(states) + 1))
    with_all = torch.stack([one for one, _, _ in found]).sum(0) / lengths
    own = torch.stack([one for _, one, _ in found]).sum(0) / lengths.square()
    others = (sum(one for _, _, one in found) - 2 * with_all + own).clamp(min=0).sqrt()
    return Moves(sites, lengths, with_all - own, others, work, _some(states, sent))


def _some(states: Sequence[Mapping[str, Tensor]], sent: Mapping[str, Tensor]) -> Tensor:
    """(S, W): of each move every so manieth weight of each tensor."""
    every = max(1, -(-sum(tensor.numel() for tensor in sent.values()) // weights_of_each(len(states))))
    spread = [
        torch.stack([one[name].reshape(-1)[::every].double() for one in states]) - start.reshape(-1)[::every].double()
        for name, start in sorted(sent.items())
    ]
    return torch.cat(spread, 1)


def weights_of_each(sites: int) -> int:
    """How many weights `some` has of each of so many sites; powers of two, so that it seldom changes between rounds."""
    return max(1, min(MOST_WEIGHTS, MOST_OF_ALL >> max(0, sites - 1).bit_length()))


__all__ = ["MOST_OF_ALL", "MOST_WEIGHTS", "Moves", "moves_of", "weights_of_each"]
