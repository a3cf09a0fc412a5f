"""How the sites' moves of a round lie to each other: what of unlike patients shows in the updates.

    length       of the site's move away from the model that was sent, L2
    with-others  mean cosine of its move with each of the others': 1, all move the same way; near 0, each its own
                 (the less, the larger the gradient diversity of Yin et al., AISTATS 2018)
    own-way      cosine of what its move has beyond the mean of all moves with what it had so in the round before:
                 near 0 where that is chance, another one in each round; above where the site pulls the same way round
                 after round, which is client drift (Karimireddy et al., SCAFFOLD, ICML 2020)

All of it is computed from updates that have come; nothing more leaves a site for it. Not of a private run, whose moves
are mostly noise, nor of a strategy by which each site begins elsewhere. `own-way` needs what was seen in the round
before: the first round of a run, and the first after a coordinator was started again, have none. It is taken of up to
16384 weights spread evenly over the model, which holds little memory; the cosine of two moves that share nothing is
then below 0.01 in two of three cases. Of more than 128 sites it is fewer weights, so that memory does not grow with
them: of a thousand 2048 each, and 0.02.
"""

from torch import Tensor

from common.config import RunConfig
from server.federation.events import LENGTH, MOVES, OWN_WAY, WITH_OTHERS
from server.federation.moves import Moves

_NONE = 1e-12  # no move, or none beyond the mean's, but for rounding


class Drift:
    """The moves of one run, round after round."""

    def __init__(self, run: RunConfig) -> None:
        self._tells = run.privacy is None and not run.strategy.OWN_START
        self._before: dict[str, Tensor] = {}  # site -> unit vector of some weights

    def of_round(self, moves: Moves) -> dict[str, dict[str, float]]:
        """Site -> name -> value, of sites that moved; nothing of fewer than two."""
        before, self._before = self._before, {}
        if not self._tells or len(moves.sites) < 2:
            return {}
        with_others = moves.with_others / (len(moves.sites) - 1)
        some = moves.some / moves.work[:, None]  # or a fast site would seem to pull along the mean, and a slow one back
        beyond = some - some.mean(0)
        found: dict[str, dict[str, float]] = {}
        for place, site in enumerate(moves.sites):
            found[site] = {LENGTH: float(moves.lengths[place]), WITH_OTHERS: float(with_others[place])}
            if (size := float(beyond[place].norm())) > _NONE:
                self._before[site] = beyond[place] / size
                if site in before and before[site].shape == self._before[site].shape:
                    found[site][OWN_WAY] = float(self._before[site] @ before[site])
        return found


__all__ = ["LENGTH", "MOVES", "OWN_WAY", "WITH_OTHERS", "Drift"]
