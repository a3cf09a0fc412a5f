"""What may enter the average and looks wrong all the same: told, never refused, since an honest site can do each.

    unchanged   the model that was sent, bit for bit: the site did not train
    repeated    the same bytes as another site's: one hospital under two names, or one that copies
    opposite    it moves against the mean direction of the others (cosine below -0.5, at least three updates): labels
                that are the wrong way round, or an attack. Moves of honest sites that share nothing are at a right
                angle in thousands of dimensions; so is noise, and a private run is hardly ever told this

Directions count alike, however long the moves are: who moves far would else be the mean of the others for each honest
site, and these the ones that are told. Where half of the sites or more lie so, there is no direction to be against, and
none is told: where unlike sites have settled, their moves add up to nothing, and each is opposite to the rest.

Pure functions of a round's updates.
"""

from collections.abc import Mapping, Sequence

from server.federation.checks import Update
from server.federation.moves import Moves

UNCHANGED, OPPOSITE = "unchanged", "opposite"
_REPEATED = "the same as {}"
_AGAINST = -0.5
_FEWEST_FOR_A_DIRECTION = 3
_NO_DIRECTION = 1e-6  # directions that cancel out, but for rounding


def suspicious(updates: Mapping[str, Update], moves: Moves, digests: Mapping[str, str]) -> dict[str, list[str]]:
    """Site -> what is odd about its update; sites without are left out.

    Args:
        updates: those that enter the round.
        moves: theirs.
        digests: site -> SHA-256 of its update.
    """
    against = _against(moves)
    alike: dict[str, list[str]] = {}
    for site, digest in sorted(digests.items()):
        alike.setdefault(digest, []).append(site)
    found = {site: _of_one(site, update, alike[digests[site]]) for site, update in sorted(updates.items())}
    for site in against:
        found[site].append(OPPOSITE)
    return {site: odd for site, odd in found.items() if odd}


def _of_one(site: str, update: Update, alike: Sequence[str]) -> list[str]:
    if update.distance == 0:
        return [UNCHANGED]
    twins = [other for other in alike if other != site]
    return [_REPEATED.format(" and ".join(twins))] if twins else []


def _against(moves: Moves) -> list[str]:
    """Sites whose move lies opposite to the mean direction of all others; see the module."""
    if len(moves.sites) < _FEWEST_FOR_A_DIRECTION:
        return []
    along = zip(moves.sites, moves.with_others.tolist(), moves.others.tolist(), strict=True)
    found = [site for site, one, rest in along if _lies_against(one, rest)]
    return found if 2 * len(found) < len(moves.sites) else []


def _lies_against(along: float, others: float) -> bool:
    return others > _NO_DIRECTION and along < _AGAINST * others


__all__ = ["OPPOSITE", "UNCHANGED", "suspicious"]
