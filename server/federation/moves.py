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

MOST_WEIGHTS = 16384  # of `some`, about


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
    with_all, own, together = torch.zeros_like(lengths), torch.zeros_like(lengths), 0.0
    every = max(1, -(-sum(tensor.numel() for tensor in sent.values()) // MOST_WEIGHTS))
    some: list[Tensor] = []
    # Tensor by tensor, as a model may be large; by name, as their order in the first round is another.
    for name, start in sorted(sent.items()) if sites else ():
        moves = torch.stack([(updates[site].parts[part][name].double() - start.double()).flatten() for site in sites])
        some.append(moves[:, ::every].clone())  # a view would keep the whole
        directions = moves.div_(lengths[:, None])
        total = directions.sum(0)
        with_all += directions @ total
        own += directions.square_().sum(1)
        together += float(total @ total)
    others = (together - 2 * with_all + own).clamp(min=0).sqrt()
    return Moves(sites, lengths, with_all - own, others, work, torch.cat(some, 1) if some else torch.zeros(0, 0))


__all__ = ["MOST_WEIGHTS", "Moves", "moves_of"]
