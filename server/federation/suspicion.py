"""What may enter the average and looks wrong all the same: told, never refused, since an honest site can do each.

    unchanged   the model that was sent, bit for bit: the site did not train
    repeated    the same bytes as another site's: one hospital under two names, or one that copies
    opposite    it moves against the mean of the others (cosine below -0.5, at least three updates): labels that are the
                wrong way round, or an attack. Moves of honest sites that share nothing are at a right angle in
                thousands of dimensions; so is noise, and a private run is hardly ever told this

Pure functions of a round's updates and the model that was sent.
"""

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from server.federation.checks import Update

UNCHANGED, OPPOSITE = "unchanged", "opposite"
_REPEATED = "the same as {}"
_AGAINST = -0.5
_FEWEST_FOR_A_DIRECTION = 3


def suspicious(
    updates: Mapping[str, Update], sent: Mapping[str, Tensor], digests: Mapping[str, str], part: str
) -> dict[str, list[str]]:
    """Site -> what is odd about its update; sites without are left out.

    Args:
        updates: those that enter the round.
        sent: the model that they started from.
        digests: site -> SHA-256 of its update.
        part: of an update that holds the model.
    """
    against = _against(updates, sent, part)
    found = {site: _of_one(site, update, digests) for site, update in sorted(updates.items())}
    for site in against:
        found[site].append(OPPOSITE)
    return {site: odd for site, odd in found.items() if odd}


def _of_one(site: str, update: Update, digests: Mapping[str, str]) -> list[str]:
    if update.distance == 0:
        return [UNCHANGED]
    twins = [other for other, digest in sorted(digests.items()) if other != site and digest == digests[site]]
    return [_REPEATED.format(" and ".join(twins))] if twins else []


def _against(updates: Mapping[str, Update], sent: Mapping[str, Tensor], part: str) -> list[str]:
    """Sites whose move lies opposite to the mean move of all others; tensor by tensor, as a model may be large."""
    sites = sorted(site for site, update in updates.items() if update.distance > 0)
    if len(sites) < _FEWEST_FOR_A_DIRECTION:
        return []
    along, own, others = (dict.fromkeys(sites, 0.0) for _ in range(3))
    for name, start in sent.items():
        moves = {site: updates[site].parts[part][name].double() - start.double() for site in sites}
        total = torch.stack(list(moves.values())).sum(0)
        for site, move in moves.items():
            rest = total - move
            along[site] += float((move * rest).sum())
            own[site] += float(move.square().sum())
            others[site] += float(rest.square().sum())
    return [site for site in sites if along[site] < _AGAINST * math.sqrt(own[site] * others[site])]


__all__ = ["OPPOSITE", "UNCHANGED", "suspicious"]
