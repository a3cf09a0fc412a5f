"""What may enter the average and looks wrong all the same: told, never refused, since an honest site can do each.

    unchanged   the model that was sent, bit for bit: the site did not train
    repeated    the same bytes as another site's: one hospital under two names, or one that copies
    opposite    it moves against the mean direction of the others (cosine below -0.5, at least three updates): labels
                that are the wrong way round, or an attack. Moves of honest sites that share nothing are at a right
                angle in thousands of dimensions; so is noise, and a private run is hardly ever told this

Directions count alike, however long the moves are: who moves far would else be the mean of the others for each honest
site, and these the ones that are told. Where half of the sites or more lie so, there is no direction to be against, and
none is told: where unlike sites have settled, their moves add up to nothing, and each is opposite to the rest.

Pure functions of a round's updates and the model that was sent.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from server.federation.checks import Update

UNCHANGED, OPPOSITE = "unchanged", "opposite"
_REPEATED = "the same as {}"
_AGAINST = -0.5
_FEWEST_FOR_A_DIRECTION = 3
_NO_DIRECTION = 1e-6  # directions that cancel out, but for rounding


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
    """Sites whose move lies opposite to the mean direction of all others; see the module."""
    sites = sorted(site for site, update in updates.items() if update.distance > 0)
    if len(sites) < _FEWEST_FOR_A_DIRECTION:
        return []
    lengths = torch.tensor([updates[site].distance for site in sites], dtype=torch.float64)
    cosines = torch.zeros(len(sites), len(sites), dtype=torch.float64)
    for name, start in sent.items():  # tensor by tensor, as a model may be large
        moves = torch.stack([(updates[site].parts[part][name].double() - start.double()).flatten() for site in sites])
        directions = moves / lengths[:, None]
        cosines += directions @ directions.T
    with_all = cosines.sum(1)
    along = with_all - cosines.diagonal()  # a direction, times the sum of the others'
    others = (cosines.sum() - 2 * with_all + cosines.diagonal()).clamp(min=0).sqrt()  # how long that sum is
    found = [
        site for site, one, rest in zip(sites, along.tolist(), others.tolist(), strict=True) if _lies_against(one, rest)
    ]
    return found if 2 * len(found) < len(sites) else []


def _lies_against(along: float, others: float) -> bool:
    return others > _NO_DIRECTION and along < _AGAINST * others


__all__ = ["OPPOSITE", "UNCHANGED", "suspicious"]
